//! What every kind of load has in common: where to, how much, how long.

use std::net::IpAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::target::Targets;

/// No run is longer, so that a slip of the hand cannot load a machine for ever.
pub const LONGEST_RUN: Duration = Duration::from_secs(24 * 60 * 60);

/// The part of a plan that is the same for every kind of load.
#[derive(Clone, Debug)]
pub struct Load {
    /// What to connect to.
    pub targets: Targets,
    /// The client addresses to connect from, in turn. Empty: the kernel chooses.
    pub sources: Vec<IpAddr>,
    /// Decides every random choice: the same seed draws the same targets.
    pub seed: u64,
    /// How many connections there are at once, over all threads.
    pub connections: NonZeroUsize,
    /// How many threads they are spread over; not more than there are connections.
    pub threads: NonZeroUsize,
    /// When to stop at the latest, at most [`LONGEST_RUN`].
    pub duration: Duration,
    /// After how many operations to stop, over all connections. An operation that fails counts.
    pub count: Option<NonZeroU64>,
    /// How long one step (a connect, a write, a read) may take before it is a failure.
    pub timeout: Duration,
    /// A view of the running load, and the means to end it.
    pub control: Control,
}

impl Load {
    /// One connection on one thread for at most ten seconds, with five for a step.
    pub fn on(targets: impl Into<Targets>) -> Self {
        Self {
            targets: targets.into(),
            sources: Vec::new(),
            seed: 1,
            connections: NonZeroUsize::MIN,
            threads: NonZeroUsize::MIN,
            duration: Duration::from_secs(10),
            count: None,
            timeout: Duration::from_secs(5),
            control: Control::default(),
        }
    }

    /// The source address for connection attempt number `attempt`, to a target of the given family.
    pub(super) fn source(&self, attempt: usize, is_ipv6: bool) -> Option<IpAddr> {
        let fitting = || {
            self.sources
                .iter()
                .filter(|source| source.is_ipv6() == is_ipv6)
        };
        match fitting().count() {
            0 => None,
            count => fitting().nth(attempt % count).copied(),
        }
    }

    pub(super) fn check(&self) -> Result<(), PlanError> {
        for (field, value) in [("duration", self.duration), ("timeout", self.timeout)] {
            if value.is_zero() || value > LONGEST_RUN {
                return Err(PlanError::Time { field, value });
            }
        }
        if self.sources.is_empty() {
            return Ok(());
        }
        match self
            .targets
            .sets()
            .iter()
            .find(|set| self.source(0, set.is_ipv6()).is_none())
        {
            Some(set) => Err(PlanError::NoSource {
                target: set.to_string(),
            }),
            None => Ok(()),
        }
    }
}

/// Why a plan cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A time is zero or too long.
    #[error("{field}: {value:?} has to be above zero and at most {LONGEST_RUN:?}")]
    Time {
        /// Which.
        field: &'static str,
        /// The value given.
        value: Duration,
    },
    /// Source addresses are given, and none has the family of this target.
    #[error("sources: none has the address family of the target {target}")]
    NoSource {
        /// The target.
        target: String,
    },
}

/// Watches a run from another thread, and can end it. Clones see the same run.
#[derive(Clone, Debug, Default)]
pub struct Control {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: CancellationToken,
    opened: AtomicU64,
    operations: AtomicU64,
    failures: AtomicU64,
}

impl Control {
    /// Ends the run: no operation is begun after this, and what is held is let go. A step that is
    /// under way may still take its timeout.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// Connections opened so far.
    pub fn opened(&self) -> u64 {
        self.shared.opened.load(Ordering::Relaxed)
    }

    /// Operations done so far.
    pub fn operations(&self) -> u64 {
        self.shared.operations.load(Ordering::Relaxed)
    }

    /// Operations failed so far.
    pub fn failures(&self) -> u64 {
        self.shared.failures.load(Ordering::Relaxed)
    }

    pub(super) fn stopped(&self) -> &CancellationToken {
        &self.shared.stop
    }

    pub(super) fn count_opened(&self) {
        self.shared.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_operation(&self) {
        self.shared.operations.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_failure(&self) {
        self.shared.failures.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::load::target::TargetSet;

    fn load() -> Load {
        let targets = ["10.0.0.1:1", "[fd00::1]:1"].map(|text| text.parse::<TargetSet>().unwrap());
        Load::on(Targets::new(targets.to_vec()).unwrap())
    }

    #[test]
    fn a_run_without_an_end_is_refused() {
        assert_eq!(load().check(), Ok(()));
        for value in [Duration::ZERO, Duration::MAX] {
            let endless = Load {
                duration: value,
                ..load()
            };
            assert_eq!(
                endless.check(),
                Err(PlanError::Time {
                    field: "duration",
                    value
                })
            );
            let endless = Load {
                timeout: value,
                ..load()
            };
            assert_eq!(
                endless.check(),
                Err(PlanError::Time {
                    field: "timeout",
                    value
                })
            );
        }
    }

    #[test]
    fn sources_are_taken_in_turn_and_must_fit_every_target() {
        let v4 = ["10.0.0.2", "10.0.0.3"].map(|text| text.parse::<IpAddr>().unwrap());
        let v6: IpAddr = "fd00::2".parse().unwrap();
        let load = Load {
            sources: vec![v4[0], v6, v4[1]],
            ..load()
        };
        assert_eq!(load.check(), Ok(()));
        let taken = [0, 1, 2].map(|index| load.source(index, false));
        assert_eq!(taken, [Some(v4[0]), Some(v4[1]), Some(v4[0])]);
        assert_eq!(load.source(1, true), Some(v6));
        let lacking = Load {
            sources: v4.to_vec(),
            ..load
        };
        let target = "[fd00::1]:1".to_owned();
        assert_eq!(lacking.check(), Err(PlanError::NoSource { target }));
    }
}
