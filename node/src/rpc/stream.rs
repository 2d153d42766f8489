//! A connection with what protects it, and who is at its other end.

use std::{io, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use super::{
    connection::Connection,
    watched::{Watch, Watched},
};
use crate::{
    access::{Caller, Certified},
    identity::HANDSHAKE_TIMEOUT,
};

/// A peer that was refused has this long to hear why: closing at once, with bytes
/// of it unread, would take the alert back.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// What gRPC is served on.
pub(super) type ServerStream = Watched<Either<Connection, Box<TlsStream<Connection>>>, Caller>;

impl Watch for Caller {}

impl ServerStream {
    /// Nobody is known at the other end.
    pub(super) fn clear(connection: Connection) -> Self {
        let caller = Caller {
            address: connection.peer(),
            certified: None,
        };
        Self {
            stream: Either::Left(connection),
            watch: caller,
        }
    }

    /// Does the handshake; `None` where it fails, which is logged.
    pub(super) async fn tls(connection: Connection, config: Arc<ServerConfig>) -> Option<Self> {
        let address = connection.peer();
        let peer = address.map(tracing::field::display);
        let accept = TlsAcceptor::from(config).accept(connection).into_fallible();
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, accept).await {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, connection))) => {
                // What only looks whether the port is open says nothing wrong.
                if error
                    .get_ref()
                    .is_some_and(|cause| cause.is::<rustls::Error>())
                {
                    tracing::warn!(peer, %error, "a TLS handshake failed");
                } else {
                    tracing::debug!(peer, %error, "a TLS handshake broke off");
                }
                last_words(connection).await;
                return None;
            }
            Err(_) => {
                tracing::debug!(peer, "a TLS handshake took too long");
                return None;
            }
        };
        let certificates = stream.get_ref().1.peer_certificates();
        let der = certificates.and_then(|chain| chain.first());
        let caller = Caller {
            address,
            certified: Some(Arc::new(Certified::of_peer(der.map(AsRef::as_ref)))),
        };
        Some(Self {
            stream: Either::Right(Box::new(stream)),
            watch: caller,
        })
    }
}

async fn last_words(mut connection: Connection) {
    let read_on = async {
        connection.shutdown().await?;
        let mut scratch = [0; 1024];
        while connection.read(&mut scratch).await? > 0 {}
        io::Result::Ok(())
    };
    // However that ends, it is over.
    let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, read_on).await;
}

impl Connected for ServerStream {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.watch.clone()
    }
}
