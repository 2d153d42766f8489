//! Turns for the part of handshakes that costs.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{sync::Semaphore, task::yield_now};

thread_local! {
    static TURN: Arc<Semaphore> = Arc::new(Semaphore::new(1));
}

/// Does some work of a handshake when it is its turn: one piece of it a round of
/// the worker, whosever it is, so that every other connection that has
/// something to do gets its part. Whoever waits for bytes has no turn to hold.
pub async fn in_turn<T>(mut work: impl FnMut(&mut Context<'_>) -> T) -> io::Result<T> {
    let turn = TURN.with(Arc::clone).acquire_owned().await;
    let turn = turn.map_err(io::Error::other)?;
    let done = poll_fn(|cx| Poll::Ready(work(cx))).await;
    yield_now().await;
    drop(turn);
    Ok(done)
}
