//! New connections, each remembered with how it went.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::stream::{self, FuturesUnordered, StreamExt};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::{
    resident::{Resident, finished},
    talk::{Conversation, Problem},
};
use crate::failure::Failure;

/// Between two new connections of a steady load.
const PACE: Duration = Duration::from_millis(1);
/// Connections under way at once, at most.
pub const AT_ONCE: usize = 64;

/// Where to dial and what to say there.
pub type Call = (SocketAddr, u64);

/// What became of one connection.
#[derive(Debug)]
pub struct Attempt {
    pub target: SocketAddr,
    pub begun: Instant,

    /// The name of the origin that answered.
    pub outcome: Result<String, Problem>,
}

/// A steady load, until it is stopped or `calls` end.
pub struct Load {
    stop: oneshot::Sender<()>,
    done: watch::Receiver<usize>,
    attempts: JoinHandle<Vec<Attempt>>,
}

impl Load {
    pub fn start(client: &Resident, calls: impl Iterator<Item = Call> + Send + 'static) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (progress, done) = watch::channel(0);
        let attempts = client.spawn(steady(calls, stopped, progress));
        Self {
            stop,
            done,
            attempts,
        }
    }

    /// Waits until so many more connections are over, well or not.
    pub async fn more(&mut self, count: usize) -> Result<(), Failure> {
        let wanted = *self.done.borrow() + count;
        let reached = self.done.wait_for(|done| *done >= wanted).await;
        reached
            .map(|_| ())
            .map_err(|_| Failure::refused("the load has ended by itself"))
    }

    /// All that were begun, each brought to its end.
    pub async fn stop(self) -> Result<Vec<Attempt>, Failure> {
        // A load that has ended by itself needs no telling.
        let _ = self.stop.send(());
        finished(self.attempts).await
    }
}

async fn steady(
    mut calls: impl Iterator<Item = Call>,
    mut stopped: oneshot::Receiver<()>,
    progress: watch::Sender<usize>,
) -> Vec<Attempt> {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut open = FuturesUnordered::new();
    let mut attempts = Vec::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            _ = pace.tick(), if open.len() < AT_ONCE => match calls.next() {
                Some(call) => open.push(attempt(call)),
                None => break,
            },
            Some(ended) = open.next() => {
                attempts.push(ended);
                progress.send_replace(attempts.len());
            }
        }
    }
    attempts.extend(open.collect::<Vec<_>>().await);
    attempts
}

/// All of them, as fast as they come.
pub async fn all(client: &Resident, calls: Vec<Call>) -> Result<Vec<Attempt>, Failure> {
    let attempts = stream::iter(calls).map(attempt).buffer_unordered(AT_ONCE);
    client.run(attempts.collect()).await
}

/// One connection from its first packet to its last.
async fn attempt((target, number): Call) -> Attempt {
    let begun = Instant::now();
    let outcome = async {
        let mut talk = Conversation::open(target).await?;
        Ok(talk.ask(number).await?.origin)
    }
    .await;
    Attempt {
        target,
        begun,

        outcome,
    }
}
