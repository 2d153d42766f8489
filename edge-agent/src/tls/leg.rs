//! A socket with TLS on it, as a leg of the relay.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

use crate::tcp::Leg;

/// One side of a terminated connection. Boxed, so that what has no TLS pays
/// nothing for it.
pub struct TlsLeg(Box<TlsStream<TcpStream>>);

impl TlsLeg {
    pub fn new(stream: TlsStream<TcpStream>) -> Self {
        Self(Box::new(stream))
    }

    /// The protocol that was agreed on (ALPN).
    pub fn protocol(&self) -> Option<&[u8]> {
        self.0.get_ref().1.alpn_protocol()
    }

    /// As the event log writes it: `TLSv1.3`.
    pub fn version(&self) -> &'static str {
        match self.0.get_ref().1.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "unknown",
        }
    }

    /// The name of the cipher suite.
    pub fn cipher(&self) -> &'static str {
        let suite = self.0.get_ref().1.negotiated_cipher_suite();
        suite
            .and_then(|suite| suite.suite().as_str())
            .unwrap_or("unknown")
    }
}

impl Leg for TlsLeg {
    /// A close tells nothing: the end of the stream is a message of TLS.
    const CLOSE_ENDS: bool = false;
    const CAN_BE_CUT: bool = true;

    fn socket(&self) -> &TcpStream {
        self.0.get_ref().0
    }

    fn holds(&self) -> bool {
        self.0.get_ref().1.wants_write()
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut *self.0).poll_flush(cx))?;
        Pin::new(self.0.get_mut().0).poll_shutdown(cx)
    }
}

impl AsyncRead for TlsLeg {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsLeg {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}
