//! A side of a relay: a socket, or one with TLS on it.

use std::{
    io,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// What a relay does with a side, beside reading and writing. For a plain
/// socket all of it is nothing.
pub trait Leg: AsyncRead + AsyncWrite + Unpin {
    /// Whether closing the socket tells the peer that its stream has ended.
    const CLOSE_ENDS: bool;
    /// Whether the peer can tell a stream that was cut short from one that
    /// ended, also where all of it was delivered.
    const CAN_BE_CUT: bool;

    fn socket(&self) -> &TcpStream;

    /// Bytes were taken that are not in the socket yet; `poll_flush` waits for
    /// them.
    fn holds(&self) -> bool;

    /// Sends what there is, and then no more, as a stream that was cut short.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Leg for TcpStream {
    const CLOSE_ENDS: bool = true;
    const CAN_BE_CUT: bool = false;

    fn socket(&self) -> &TcpStream {
        self
    }

    fn holds(&self) -> bool {
        false
    }

    fn poll_cut(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A reset is all that could tell it, and that is the relay's matter.
        Poll::Ready(Ok(()))
    }
}
