//! Streams: the load of large transfers, each on a connection of its own.

use std::num::NonZeroU64;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::plan::Load;
use super::report::Report;
use super::worker::{RunError, Stop, Worker, drive};
use super::{Failure, pattern, serve};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to, how much, how long.
    pub load: Load,
    /// How many bytes a transfer has in each of its directions.
    pub bytes: NonZeroU64,
    /// Which way they go.
    pub direction: Direction,
}

/// Which way a transfer goes, and what has to be at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From here to a [`serve::Mode::Sink`], which says at the end how much has come.
    Up,
    /// From a [`serve::Mode::Source`] to here.
    Down,
    /// To a [`serve::Mode::Echo`] and back, both at once; the end of the stream has to come back too.
    Both,
}

/// Runs it to its end. An operation is a transfer, from the connect to the last byte checked.
///
/// # Errors
///
/// Where the plan is refused or a thread cannot be started. Failed operations are in the report.
pub fn run(plan: &Plan) -> Result<Report, RunError> {
    let (bytes, direction) = (plan.bytes.get(), plan.direction);
    drive("bulk", &plan.load, move |worker| async move {
        while worker.begin() {
            let started = Instant::now();
            match transfer(&worker, bytes, direction).await {
                Ok(()) => worker.done(started.elapsed()),
                Err(Stop::Failed(failure)) => {
                    worker.failed(failure);
                    worker.pause_after_failure().await;
                }
                Err(Stop::RunOver) => return,
            }
        }
    })
}

async fn transfer(worker: &Worker, bytes: u64, direction: Direction) -> Result<(), Stop> {
    let mut stream = worker.connect().await?;
    match direction {
        Direction::Up => {
            send(worker, &mut stream, 0, bytes).await?;
            worker.step(stream.shutdown()).await?;
            let mut count = Vec::new();
            let longest = serve::LONGEST_COUNT as u64 + 1;
            let mut rest = (&mut stream).take(longest);
            worker.step(rest.read_to_end(&mut count)).await?;
            match str::from_utf8(&count) {
                Ok("") => Err(Failure::Eof.into()),
                Ok(count) if count.trim_end().parse() == Ok(bytes) => Ok(()),
                _ => Err(Failure::Mismatch.into()),
            }
        }
        Direction::Down => receive(worker, &mut stream, 0, bytes).await,
        Direction::Both => {
            there_and_back(worker, &mut stream, 0, bytes).await?;
            worker.step(stream.shutdown()).await?;
            match worker.step(stream.read(&mut [0])).await? {
                0 => Ok(()),
                _ => Err(Failure::Mismatch.into()),
            }
        }
    }
}

/// Sends the `bytes` that belong at `place`, and meanwhile receives them again.
pub(super) async fn there_and_back(
    worker: &Worker,
    stream: &mut TcpStream,
    place: u64,
    bytes: u64,
) -> Result<(), Stop> {
    let (mut from, mut to) = stream.split();
    // Both at once: a server that cannot write stops reading.
    tokio::try_join!(
        send(worker, &mut to, place, bytes),
        receive(worker, &mut from, place, bytes)
    )?;
    Ok(())
}

async fn send(
    worker: &Worker,
    to: &mut (impl AsyncWrite + Unpin),
    place: u64,
    bytes: u64,
) -> Result<(), Stop> {
    let mut sent = 0;
    while sent < bytes {
        let rest = usize::try_from(bytes - sent).unwrap_or(usize::MAX);
        let slice = pattern::at(place.wrapping_add(sent), rest);
        let written = worker.step(to.write(slice)).await?;
        worker.sent(written);
        sent += written as u64;
    }
    Ok(())
}

async fn receive(
    worker: &Worker,
    from: &mut (impl AsyncRead + Unpin),
    place: u64,
    bytes: u64,
) -> Result<(), Stop> {
    let most = usize::try_from(bytes)
        .unwrap_or(usize::MAX)
        .min(pattern::LONGEST);
    let mut buffer = vec![0; most];
    let mut received = 0;
    while received < bytes {
        let rest = usize::try_from(bytes - received).unwrap_or(usize::MAX);
        let room = &mut buffer[..rest.min(most)];
        let count = worker.step(from.read(room)).await?;
        if count == 0 {
            return Err(Failure::Eof.into());
        }
        if !pattern::belongs_at(place.wrapping_add(received), &room[..count]) {
            return Err(Failure::Mismatch.into());
        }
        worker.received(count);
        received += count as u64;
    }
    Ok(())
}
