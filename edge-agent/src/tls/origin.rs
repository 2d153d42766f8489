//! Handshakes with origins.

use std::{io, net::IpAddr, sync::Arc, task::Poll, time::Duration};

use anyport_model::{client_hello::ClientHello, outcome::Status};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, client::UnbufferedClientConnection,
    pki_types::ServerName,
};
use tokio::{net::TcpStream, time::timeout};

use super::{
    leg::{OriginLeg, TlsLeg},
    turn::in_turn,
};
use crate::tcp::Leg;

/// The origin did not shake hands.
#[derive(Debug, thiserror::Error)]
#[error("TLS with the origin: {error}")]
pub struct OriginTlsError {
    error: io::Error,
    /// The name that it was asked for is one that the client chose.
    by_clients_name: bool,
}

impl OriginTlsError {
    pub fn status(&self) -> Status {
        match self.error.kind() {
            io::ErrorKind::TimedOut => Status::ConnectTimedOut,
            io::ErrorKind::ConnectionReset => Status::ConnectRefused,
            // A certificate that is refused, no TLS at all, nothing in common.
            _ => Status::TlsConfiguration,
        }
    }

    /// It would have failed whatever the client had asked for: no client can
    /// make an origin look bad.
    pub fn blames_origin(&self) -> bool {
        let inner = self.error.get_ref();
        match inner.and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => false,
            Some(Error::InvalidCertificate(error)) => !self.by_clients_name || is_over(error),
            Some(Error::AlertReceived(_)) => !self.by_clients_name,
            _ => true,
        }
    }
}

/// Or has not begun.
fn is_over(error: &CertificateError) -> bool {
    matches!(
        error,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}

/// Shakes hands with an origin, offering it the protocols (ALPN) that the
/// client offers. Its certificate is asked for by the name that it was found by
/// (`found_by`), else by the client's server name, else by its address.
///
/// # Errors
/// [`OriginTlsError`], also where it took longer than `patience`.
pub async fn connect(
    origin: TcpStream,
    config: &Arc<ClientConfig>,
    hello: &ClientHello,
    found_by: Option<&str>,
    patience: Duration,
) -> Result<OriginLeg, OriginTlsError> {
    let failed = |error| OriginTlsError {
        error,
        by_clients_name: found_by.is_none() && hello.server_name.is_some(),
    };
    let address = origin.peer_addr().map_err(failed)?;
    let name = name(found_by, hello, address.ip());
    let shaken = timeout(patience, shake(origin, config, name, &hello.alpn)).await;
    let shaken = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    shaken.map_err(failed)
}

/// What costs is done in turns: the shares of the key agreement are made with
/// the first, and the rest with the origin's answer.
async fn shake(
    origin: TcpStream,
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
    protocols: &[Vec<u8>],
) -> io::Result<OriginLeg> {
    let begin = || {
        let (config, protocols) = (Arc::clone(config), protocols.to_vec());
        UnbufferedClientConnection::new_with_alpn(config, name.clone(), protocols)
    };
    let session = in_turn(|_| begin()).await?.map_err(io::Error::other)?;
    let mut leg = TlsLeg::new(origin, session);
    loop {
        if let Poll::Ready(done) = in_turn(|cx| leg.poll_shake(cx)).await? {
            return done.map(|()| leg);
        }
        if leg.holds() {
            leg.socket().writable().await?;
        } else {
            leg.socket().readable().await?;
        }
    }
}

fn name(found_by: Option<&str>, hello: &ClientHello, address: IpAddr) -> ServerName<'static> {
    let asked = hello.server_name.as_ref().map(|name| name.as_str());
    let name = found_by.or(asked);
    let name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
    name.unwrap_or_else(|| ServerName::IpAddress(address.to_canonical().into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_origin_is_known_by_its_own_name_then_the_clients_then_its_address() {
        let hello = |name: Option<&str>| ClientHello {
            server_name: name.map(|name| name.parse().unwrap()),
            alpn: Vec::new(),
        };
        let address = "10.0.2.2".parse().unwrap();
        for (found_by, asked, known_as) in [
            (Some("a.internal"), Some("b.example.com"), "a.internal"),
            (Some("a.internal"), None, "a.internal"),
            (None, Some("b.example.com"), "b.example.com"),
            (None, None, "10.0.2.2"),
        ] {
            let name = name(found_by, &hello(asked), address);
            assert_eq!(name, ServerName::try_from(known_as).unwrap());
        }
    }

    #[test]
    fn no_client_can_make_an_origin_look_bad() {
        let tls = |error: Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let certificate = |error| tls(Error::InvalidCertificate(error));
        let alert = |alert| tls(Error::AlertReceived(alert));
        for (error, by_its_own, by_the_clients) in [
            (io::ErrorKind::TimedOut.into(), true, true),
            (io::ErrorKind::ConnectionReset.into(), true, true),
            (io::ErrorKind::UnexpectedEof.into(), true, true),
            (
                tls(Error::InvalidMessage(
                    rustls::InvalidMessage::InvalidContentType,
                )),
                true,
                true,
            ),
            (certificate(CertificateError::Expired), true, true),
            (certificate(CertificateError::UnknownIssuer), true, false),
            (certificate(CertificateError::NotValidForName), true, false),
            (alert(AlertDescription::UnrecognisedName), true, false),
            (alert(AlertDescription::NoApplicationProtocol), false, false),
        ] {
            let mut failed = OriginTlsError {
                error,
                by_clients_name: false,
            };
            assert_eq!(failed.blames_origin(), by_its_own, "{failed}");
            failed.by_clients_name = true;
            assert_eq!(failed.blames_origin(), by_the_clients, "{failed}");
        }
    }
}
