//! Stopping without cutting anyone off: stop, grace, force.
//!
//! The first SIGTERM or SIGINT *begins* the drain: whoever accepts work stops
//! accepting, and says so to whoever balances over it. Work in progress holds a
//! [`DrainGuard`]; the owner waits in [`Drain::finished`] until every guard is gone
//! or its patience is. A second signal ends the process at once, whatever the
//! rest of it is doing.

use std::{io, process, thread, time::Duration};

use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// A handle on the one drain of a service. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
    work: TaskTracker,
}

/// Work that should come to its end before the process does. Held, not called:
/// dropping it is what reports the end.
#[derive(Clone, Debug)]
#[must_use = "the drain waits only for guards that are held"]
pub struct DrainGuard {
    _token: TaskTrackerToken,
}

/// The drain ran out of patience.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{left} unfinished after {}s of draining", limit.as_secs_f32())]
pub struct Unfinished {
    /// Guards still held.
    pub left: usize,
    /// How long was waited.
    pub limit: Duration,
}

impl Drain {
    /// A drain that only [`begin`](Self::begin) begins.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the drain. Beginning twice is the same as once.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// Has it begun?
    pub fn is_started(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Completes when the drain begins, at once if it has.
    pub async fn started(&self) {
        self.begun.cancelled().await;
    }

    /// A drain of its own for a part of this process: it begins with this one or
    /// before it, and has its own guards.
    pub fn child(&self) -> Self {
        Self {
            begun: self.begun.child_token(),
            work: TaskTracker::new(),
        }
    }

    /// Registers work that [`finished`](Self::finished) waits for.
    pub fn guard(&self) -> DrainGuard {
        DrainGuard {
            _token: self.work.token(),
        }
    }

    /// Waits until the drain has begun and every guard is dropped.
    ///
    /// # Errors
    /// [`Unfinished`] when guards are still held `limit` after the drain began.
    pub async fn finished(&self, limit: Duration) -> Result<(), Unfinished> {
        self.started().await;
        self.work.close();
        tokio::time::timeout(limit, self.work.wait())
            .await
            .map_err(|_| Unfinished {
                left: self.work.len(),
                limit,
            })
    }
}

/// A drain that SIGTERM or SIGINT begins. A second one of either exits at once
/// with 128 + the signal's number.
///
/// The signals are awaited on a thread of their own, so that the second is obeyed
/// even when every worker of the service's runtime is stuck.
///
/// # Errors
/// When the handlers cannot be installed or the thread not started.
pub fn signalled() -> io::Result<Drain> {
    let drain = Drain::new();
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    // Installed here rather than on the thread: a signal that arrives after this
    // function returned must never meet the default action.
    let mut signals = {
        let _context = runtime.enter();
        StopSignals::install()?
    };
    let begun_by_signal = drain.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                let first = signals.next().await;
                tracing::info!(
                    signal = first.name,
                    "draining; a second signal exits at once"
                );
                begun_by_signal.begin();
                let second = signals.next().await;
                tracing::warn!(
                    signal = second.name,
                    "second signal while draining, exiting now"
                );
                process::exit(128 + second.kind.as_raw_value());
            });
        })?;
    Ok(drain)
}

struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

struct Caught {
    name: &'static str,
    kind: SignalKind,
}

impl StopSignals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.terminate.recv() => Caught { name: "SIGTERM", kind: SignalKind::terminate() },
            _ = self.interrupt.recv() => Caught { name: "SIGINT", kind: SignalKind::interrupt() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    #[tokio::test]
    async fn every_clone_sees_the_drain_begin() {
        let drain = Drain::new();
        let seen = drain.clone();
        assert!(!seen.is_started());
        drain.begin();
        drain.begin();
        seen.started().await;
        assert!(seen.is_started());
    }

    #[tokio::test]
    async fn a_child_begins_with_its_parent_but_not_the_other_way_round() {
        let parent = Drain::new();
        let (first, second) = (parent.child(), parent.child());
        first.begin();
        assert!(!parent.is_started() && !second.is_started());
        parent.begin();
        assert!(second.is_started());
    }

    #[tokio::test]
    async fn finished_returns_when_the_last_guard_is_dropped() {
        let drain = Drain::new();
        let (one, other) = (drain.guard(), drain.guard());
        drain.begin();
        drop(one);
        let mut finished = pin!(drain.finished(Duration::from_secs(60)));
        tokio::select! {
            biased;
            _ = &mut finished => panic!("one guard is still held"),
            () = std::future::ready(()) => {}
        }
        drop(other);
        assert_eq!(finished.await, Ok(()));
    }

    #[tokio::test]
    async fn finished_says_how_much_is_left_when_patience_ends() {
        let drain = Drain::new();
        let _held = drain.guard();
        drain.begin();
        let limit = Duration::from_millis(30);
        let unfinished = drain.finished(limit).await.expect_err("a guard is held");
        assert_eq!(unfinished, Unfinished { left: 1, limit });
        assert_eq!(
            unfinished.to_string(),
            "1 unfinished after 0.03s of draining"
        );
    }
}
