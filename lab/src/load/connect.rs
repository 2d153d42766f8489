//! Opens a connection, asks, closes, and again: the load of short connections.
//!
//! The client closes first, with an ordinary FIN, as most clients do. Its ports then stay in
//! TIME_WAIT for a minute, and one client address has some 28,000 of them for each target: a longer
//! run towards one target ends in "Cannot assign requested address". Draw from more targets, give
//! more sources, or take [`Close::Reset`], which leaves no TIME_WAIT on either side.

use std::num::NonZeroU64;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::plan::Load;
use super::report::Report;
use super::worker::{RunError, Stop, Worker, drive};
use super::{Failure, Tag, bulk, who};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to, how much, how long.
    pub load: Load,
    /// What to ask on each connection.
    pub request: Request,
    /// How to close it.
    pub close: Close,
}

/// What is asked on each connection before it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing. Of a proxy this shows only that the proxy is there.
    Nothing,
    /// So many bytes, which have to come back.
    Echo(NonZeroU64),
    /// Which server this is; the report counts the answers.
    Who,
}

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// By a FIN, which leaves a TIME_WAIT here.
    Fin,
    /// By a reset (SO_LINGER of zero), which leaves nothing.
    Reset,
}

/// Runs it to its end. An operation is a connection that was opened and got its answer; its latency
/// is from the first to the last of these.
///
/// # Errors
///
/// Where the plan is refused or a thread cannot be started. Failed operations are in the report.
pub fn run(plan: &Plan) -> Result<Report, RunError> {
    let (request, close) = (plan.request, plan.close);
    drive("connect", &plan.load, move |worker| async move {
        while worker.begin() {
            let started = Instant::now();
            match once(&worker, request, close).await {
                Ok(_) => worker.done(started.elapsed()),
                Err(Stop::Failed(failure)) => {
                    // Refusals are a load like any other. But one that comes at once, without a
                    // wait for the network, must not keep the thread from its other connections,
                    // and a local fault, such as no free port, is not worth repeating at full speed.
                    let is_local = matches!(failure, Failure::Other(_));
                    worker.failed(failure);
                    if is_local {
                        worker.pause_after_failure().await;
                    } else {
                        tokio::task::yield_now().await;
                    }
                }
                Err(Stop::RunOver) => return,
            }
        }
    })
}

/// One connection, to its end; gives who answered, where that was asked.
pub(super) async fn once(
    worker: &Worker,
    request: Request,
    close: Close,
) -> Result<Option<Tag>, Stop> {
    let mut stream = worker.connect().await?;
    if close == Close::Reset {
        // Set before anything can fail, so that every connection ends alike.
        stream.set_zero_linger()?;
    }
    match request {
        Request::Nothing => Ok(None),
        // A place of its own, so that another connection's answer is not taken for this one's.
        Request::Echo(bytes) => {
            let place = worker.random() >> 1;
            bulk::there_and_back(worker, &mut stream, place, bytes.get()).await?;
            Ok(None)
        }
        Request::Who => ask_who(worker, &mut stream).await.map(Some),
    }
}

async fn ask_who(worker: &Worker, stream: &mut TcpStream) -> Result<Tag, Stop> {
    worker.step(stream.write_all(who::REQUEST)).await?;
    worker.sent(who::REQUEST.len());
    let mut answer = Vec::with_capacity(who::LONGEST_ANSWER);
    while !answer.ends_with(b"\n") {
        if answer.len() >= who::LONGEST_ANSWER {
            return Err(Failure::Mismatch.into());
        }
        match worker.step(stream.read_buf(&mut answer)).await? {
            0 => return Err(Failure::Eof.into()),
            bytes => worker.received(bytes),
        }
    }
    let line = str::from_utf8(&answer).map_err(|_| Failure::Mismatch)?;
    let who: who::Who = line.parse().map_err(|_| Failure::Mismatch)?;
    let tag = who.tag.clone();
    worker.answered(who);
    Ok(tag)
}
