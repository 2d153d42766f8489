//! Connections to origins, in clear text and in TLS.
//!
//! They are closed in the ordinary way rather than reset ([`Connection`]): that
//! costs a TIME_WAIT here, but leaves no error in the origin's log.

use std::{net::SocketAddr, sync::Arc};

use anyport_model::any_certificate::AnyCertificate;
use futures_util::FutureExt;
use rustls::{ClientConfig, client::Resumption, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::io::AsyncWriteExt;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    attempt::Progress,
    connection::{Closing, Connection},
    failure::{Failure, Waiting},
};

/// What opens connections. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Opener {
    tls: Arc<ClientConfig>,
    https: Arc<ClientConfig>,
    closing: Closing,
}

impl Opener {
    /// Any certificate will do: an origin is an address, which no name belongs to,
    /// and what is asked is whether it serves.
    ///
    /// # Errors
    /// Where the TLS library has no version to offer.
    pub(crate) fn new() -> Result<Self, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let any = Arc::new(AnyCertificate(Arc::clone(&provider)));
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(any)
            .with_no_client_auth();
        // Every probe is a whole handshake.
        tls.resumption = Resumption::disabled();
        let mut https = tls.clone();
        https.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: Arc::new(tls),
            https: Arc::new(https),
            closing: Closing::default(),
        })
    }

    /// How many connections are being closed.
    #[cfg(test)]
    pub(super) fn closing(&self) -> usize {
        self.closing.len()
    }

    #[cfg(test)]
    pub(super) fn close_others(&self, count: u32) -> tokio::sync::OwnedSemaphorePermit {
        self.closing.take(count)
    }

    pub(super) async fn tcp(&self, address: SocketAddr) -> Result<Connection, Failure> {
        let opened = Connection::open(address, self.closing.clone()).await;
        opened.map_err(Failure::Connect)
    }

    pub(super) async fn tls(
        &self,
        address: SocketAddr,
        progress: &mut Progress,
    ) -> Result<TlsStream<Connection>, Failure> {
        self.handshake(&self.tls, address, progress).await
    }

    pub(super) async fn https(
        &self,
        address: SocketAddr,
        progress: &mut Progress,
    ) -> Result<TlsStream<Connection>, Failure> {
        self.handshake(&self.https, address, progress).await
    }

    async fn handshake(
        &self,
        config: &Arc<ClientConfig>,
        address: SocketAddr,
        progress: &mut Progress,
    ) -> Result<TlsStream<Connection>, Failure> {
        let stream = self.tcp(address).await?;
        progress.waiting = Waiting::Handshake;
        // An address is no name, so none is sent.
        let name = ServerName::from(address.ip());
        let connector = TlsConnector::from(Arc::clone(config));
        let stream = connector.connect(name, stream).await;
        stream.map_err(Failure::handshake)
    }
}

/// Sends close_notify if there is room for it, which there is; the verdict does
/// not wait for it.
pub(super) fn say_goodbye(mut stream: TlsStream<Connection>) {
    let _ = stream.shutdown().now_or_never();
}
