//! A stream with something that watches over it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads and writes as the stream does, as far as the watch lets it.
pub(super) struct Watched<S, W> {
    pub(super) stream: S,
    pub(super) watch: W,
}

/// What is asked and told of each read and write.
pub(super) trait Watch: Unpin {
    /// May it be done?
    fn may_go_on(&mut self, _: &mut Context<'_>) -> io::Result<()> {
        Ok(())
    }

    /// What comes of a read that gave so many bytes.
    fn read(
        &mut self,
        _: &mut Context<'_>,
        outcome: Poll<io::Result<()>>,
        _bytes: usize,
    ) -> Poll<io::Result<()>> {
        outcome
    }
}

impl<S: AsyncRead + Unpin, W: Watch> AsyncRead for Watched<S, W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, watch } = &mut *self;
        watch.may_go_on(cx)?;
        let before = buffer.filled().len();
        let outcome = Pin::new(stream).poll_read(cx, buffer);
        watch.read(cx, outcome, buffer.filled().len() - before)
    }
}

impl<S: AsyncWrite + Unpin, W: Watch> AsyncWrite for Watched<S, W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.watch.may_go_on(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.watch.may_go_on(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
