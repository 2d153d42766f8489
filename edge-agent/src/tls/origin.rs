//! Handshakes with origins.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use anyport_model::{client_hello::ClientHello, outcome::Status};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::leg::TlsLeg;

/// The origin did not shake hands.
#[derive(Debug, thiserror::Error)]
#[error("TLS with the origin: {0}")]
pub struct OriginTlsError(io::Error);

impl OriginTlsError {
    pub fn status(&self) -> Status {
        match self.0.kind() {
            io::ErrorKind::TimedOut => Status::ConnectTimedOut,
            io::ErrorKind::ConnectionReset => Status::ConnectRefused,
            // A certificate that is refused, no TLS at all, nothing in common.
            _ => Status::TlsConfiguration,
        }
    }
}

/// Shakes hands with an origin, offering it the protocols (ALPN) that the
/// client offers. Its certificate is asked for by the client's server name, and
/// where there is none, by the origin's address.
///
/// # Errors
/// [`OriginTlsError`], also where it took longer than `patience`.
pub async fn connect(
    origin: TcpStream,
    config: &Arc<ClientConfig>,
    hello: &ClientHello,
    patience: Duration,
) -> Result<TlsLeg, OriginTlsError> {
    let address = origin.peer_addr().map_err(OriginTlsError)?;
    let config = match hello.alpn.as_slice() {
        [] => Arc::clone(config),
        protocols => {
            let mut config = ClientConfig::clone(config);
            config.alpn_protocols = protocols.to_vec();
            Arc::new(config)
        }
    };
    let name = name(hello, address.ip());
    let shaking = TlsConnector::from(config).connect(name, origin);
    let shaken = timeout(patience, shaking).await;
    match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => Ok(TlsLeg::new(stream.into())),
        Err(error) => Err(OriginTlsError(error)),
    }
}

fn name(hello: &ClientHello, address: IpAddr) -> ServerName<'static> {
    let asked = hello.server_name.as_ref();
    let asked = asked.and_then(|name| ServerName::try_from(name.as_str().to_owned()).ok());
    asked.unwrap_or_else(|| ServerName::IpAddress(address.to_canonical().into()))
}
