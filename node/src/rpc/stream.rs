//! A connection with what protects it, and who is at its other end.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use super::connection::Connection;
use crate::{
    access::{Caller, Certified},
    identity::HANDSHAKE_TIMEOUT,
};

/// A peer that was refused has this long to hear why: closing at once, with bytes
/// of it unread, would take the alert back.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// What gRPC is served on.
pub(super) struct ServerStream {
    inner: Inner,
    caller: Caller,
}

enum Inner {
    Clear(Connection),
    Tls(Box<TlsStream<Connection>>),
}

impl ServerStream {
    /// Nobody is known at the other end.
    pub(super) fn clear(connection: Connection) -> Self {
        let caller = Caller {
            address: connection.peer(),
            certified: None,
        };
        let inner = Inner::Clear(connection);
        Self { inner, caller }
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
        let inner = Inner::Tls(Box::new(stream));
        Some(Self { inner, caller })
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
        self.caller.clone()
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Clear(stream) => Pin::new(stream).poll_read(cx, buffer),
            Inner::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Clear(stream) => Pin::new(stream).poll_write(cx, bytes),
            Inner::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Inner::Clear(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Inner::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Inner::Clear(stream) => stream.is_write_vectored(),
            Inner::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Clear(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
