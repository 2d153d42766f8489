//! TLS to a server, with the certificates of that moment.
//!
//! In place of the transport's own, which keeps those it was made with, and takes
//! any server of the authority for the one that is meant.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::watched::{Watch, Watched};
use crate::{
    access::{Certified, Role},
    identity::{ALPN, HANDSHAKE_TIMEOUT, Identity},
};

/// Whom to dial, and what its certificate has to say.
#[derive(Clone, Debug)]
pub(super) struct Dialler {
    pub(super) host: String,
    pub(super) port: u16,
    /// `None`: it is none of ours, and anything.
    pub(super) role: Option<Role>,
    pub(super) identity: Identity,
    pub(super) connect_timeout: Duration,
    pub(super) refusal: Refusal,
}

/// Why the two sides last did not accept each other, in words; nothing once they did,
/// or where there is no server. Clones share it.
///
/// The HTTP/2 library keeps no more of an error than that there was one; and by the
/// time that the call hears of it, the next attempt has begun.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusal(Arc<Mutex<Option<String>>>);

impl Refusal {
    pub(super) fn get(&self) -> Option<String> {
        self.lock().clone()
    }

    fn set(&self, refusal: Option<String>) {
        *self.lock() = refusal;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dialler {
    /// A connection to the server, which is who it should be.
    pub(super) async fn dial(self) -> io::Result<TokioIo<Dialled>> {
        let connect = TcpStream::connect((&*self.host, self.port));
        let connect = limited(self.connect_timeout, connect, "no connection in time");
        let stream = connect.await.inspect_err(|_| self.refusal.set(None))?;
        stream.set_nodelay(true)?;
        let config = self.identity.client();
        let config = config.ok_or_else(|| io::Error::other("there is no certificate to show"))?;
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let connect = TlsConnector::from(config).connect(name, stream);
        let connect = limited(HANDSHAKE_TIMEOUT, connect, "no TLS handshake in time");
        let stream = connect.await.inspect_err(|error| self.note(error))?;
        if let Err(refusal) = self.check(&stream) {
            self.refusal.set(Some(refusal.clone()));
            return Err(io::Error::other(refusal));
        }
        let watch = Listening {
            dialler: self,
            accepted: false,
        };
        Ok(TokioIo::new(Watched { stream, watch }))
    }

    /// Is the server what was dialled, and does it speak gRPC?
    fn check(&self, stream: &TlsStream<TcpStream>) -> Result<(), String> {
        let session = stream.get_ref().1;
        let certificates = session.peer_certificates();
        let der = certificates.and_then(|chain| chain.first());
        let server = Certified::of_peer(der.map(AsRef::as_ref));
        if let Some(role) = self.role
            && !server.roles.has(role)
        {
            return Err(format!(
                "its certificate `{}` is not for the role {role}: needs O={}",
                server.subject,
                role.organization()
            ));
        }
        if session.alpn_protocol() != Some(ALPN) {
            return Err("it does not speak HTTP/2".to_owned());
        }
        Ok(())
    }

    /// Keeps what an error says of certificates.
    fn note(&self, error: &io::Error) {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
        let Some(cause) = cause else { return };
        self.refusal.set(match cause {
            rustls::Error::AlertReceived(alert) => Some(format!(
                "it does not accept the certificate of --tls-cert: {}",
                said_by(*alert)
            )),
            cause => Some(cause.to_string()),
        });
    }
}

/// What an alert means where the certificate of the client was the matter.
fn said_by(alert: rustls::AlertDescription) -> String {
    use rustls::AlertDescription as Alert;
    match alert {
        Alert::UnknownCA | Alert::DecryptError => "it trusts another authority".to_owned(),
        Alert::CertificateExpired => "it has expired".to_owned(),
        Alert::CertificateRequired => "it wants one, and was shown none".to_owned(),
        other => format!("{other:?}"),
    }
}

async fn limited<T>(
    limit: Duration,
    work: impl Future<Output = io::Result<T>>,
    late: &'static str,
) -> io::Result<T> {
    let done = tokio::time::timeout(limit, work).await;
    done.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, late)))
}

/// A connection that stands. A server may still turn the certificate down, and says
/// so in the place of its first bytes.
pub(super) type Dialled = Watched<TlsStream<TcpStream>, Listening>;

pub(super) struct Listening {
    dialler: Dialler,
    /// The server has said something else than that.
    accepted: bool,
}

impl Watch for Listening {
    fn read(
        &mut self,
        _: &mut Context<'_>,
        outcome: Poll<io::Result<()>>,
        bytes: usize,
    ) -> Poll<io::Result<()>> {
        match &outcome {
            Poll::Ready(Err(error)) => self.dialler.note(error),
            Poll::Ready(Ok(())) if !self.accepted && bytes > 0 => {
                self.accepted = true;
                self.dialler.refusal.set(None);
            }
            _ => {}
        }
        outcome
    }
}
