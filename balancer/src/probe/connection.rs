//! A connection to an origin, and how it is left.
//!
//! Who closes while something is unread, or before something more has come, sends
//! a reset, and the origin's log has an error for each probe: a banner is enough,
//! or the tickets of TLS. So it is told that no more is sent, and what still comes
//! is read until it closes, too, for a while and not without end. The verdict does
//! not wait for that.

use std::{
    io::{self, IoSlice},
    net::{Shutdown, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::ANSWER_MAX;

/// How long an origin may take to close, too.
const CLOSING_FOR: Duration = Duration::from_secs(1);
/// Those that may do so at a time, each of which holds a descriptor. Of others, what
/// has come is read.
pub(super) const CLOSING_MAX: usize = 128;

/// Room for connections that are being closed. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Closing(Arc<Semaphore>);

impl Default for Closing {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(CLOSING_MAX)))
    }
}

#[cfg(test)]
impl Closing {
    pub(super) fn len(&self) -> usize {
        CLOSING_MAX - self.0.available_permits()
    }

    /// As if so many others were being closed, until what is returned is dropped.
    pub(super) fn take(&self, count: u32) -> OwnedSemaphorePermit {
        let taken = Arc::clone(&self.0).try_acquire_many_owned(count);
        taken.expect("room for them")
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    /// There until this is dropped.
    stream: Option<TcpStream>,
    closing: Closing,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr, closing: Closing) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        // What a probe sends is whole: a delay would only be measured.
        let _ = stream.set_nodelay(true);
        Ok(Self {
            stream: Some(stream),
            closing,
        })
    }

    fn poll<T>(
        self: Pin<&mut Self>,
        nothing: T,
        poll: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.get_mut().stream {
            Some(stream) => poll(Pin::new(stream)),
            None => Poll::Ready(Ok(nothing)),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else {
            return;
        };
        // Fails where the connection is gone already.
        let is_open = SockRef::from(&stream).shutdown(Shutdown::Write).is_ok();
        if is_open
            && !is_drained(&stream)
            && let (Ok(runtime), Ok(room)) = (
                Handle::try_current(),
                Arc::clone(&self.closing.0).try_acquire_owned(),
            )
        {
            runtime.spawn(await_end(stream, room));
        }
    }
}

/// Reads what has come; whether that was all there will be.
fn is_drained(stream: &TcpStream) -> bool {
    let mut read = [0; 4096];
    for _ in 0..ANSWER_MAX / read.len() {
        match stream.try_read(&mut read) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
    // It pours out more than any answer: it may be told so.
    true
}

async fn await_end(stream: TcpStream, _room: OwnedSemaphorePermit) {
    let mut rest = stream.take(ANSWER_MAX as u64);
    let mut nowhere = tokio::io::sink();
    let end = tokio::io::copy(&mut rest, &mut nowhere);
    let _ = tokio::time::timeout(CLOSING_FOR, end).await;
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        read: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll((), |stream| stream.poll_read(context, read))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(0, |stream| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(0, |stream| stream.poll_write_vectored(context, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll((), |stream| stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll((), |stream| stream.poll_shutdown(context))
    }
}
