//! The health of one origin as a machine over evidence.
//!
//! Unknown turns up with the first pass, because refusing traffic to an origin
//! that answers helps nobody; it turns down only after as many failures in a
//! row as an origin that was up gets, so that one lost packet at start-up is
//! no outage. Between up and down the thresholds of the monitor decide.

use std::time::{Duration, SystemTime};

use crate::resource::Thresholds;

/// What is held of an origin that is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Unknown,
    Up,
    Down,
}

/// What one probe, or one real dial, showed: the time it took, or why it
/// failed.
pub type Evidence = Result<Duration, String>;

/// The health machine of one origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    verdict: Verdict,
    since: SystemTime,
    passes: u32,
    failures: u32,
    reason: String,
    last_pass: Option<Duration>,
}

impl Health {
    pub fn new(now: SystemTime) -> Self {
        Self {
            verdict: Verdict::Unknown,
            since: now,
            passes: 0,
            failures: 0,
            reason: "not probed yet".to_owned(),
            last_pass: None,
        }
    }

    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// When the verdict last changed.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Why the verdict is what it is; for an origin that is up with failures
    /// already counted, the last of them.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// How long the last passed probe took.
    pub fn last_pass(&self) -> Option<Duration> {
        self.last_pass
    }

    /// Takes evidence in; returns the new verdict if it changed.
    pub fn observe(
        &mut self,
        now: SystemTime,
        thresholds: Thresholds,
        evidence: Evidence,
    ) -> Option<Verdict> {
        match evidence {
            Ok(took) => {
                self.failures = 0;
                self.passes = self.passes.saturating_add(1);
                self.last_pass = Some(took);
                let enough = self.verdict == Verdict::Unknown
                    || self.verdict == Verdict::Down && self.passes >= thresholds.up.get();
                if self.verdict == Verdict::Up || enough {
                    self.reason = String::new();
                }
                enough.then(|| self.turn(now, Verdict::Up))
            }
            Err(reason) => {
                self.passes = 0;
                self.failures = self.failures.saturating_add(1);
                self.reason = reason;
                let enough =
                    self.verdict != Verdict::Down && self.failures >= thresholds.down.get();
                enough.then(|| self.turn(now, Verdict::Down))
            }
        }
    }

    fn turn(&mut self, now: SystemTime, verdict: Verdict) -> Verdict {
        self.verdict = verdict;
        self.since = now;
        verdict
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::num::NonZeroU32;

    fn thresholds(up: u32, down: u32) -> Thresholds {
        Thresholds {
            up: NonZeroU32::new(up).unwrap(),
            down: NonZeroU32::new(down).unwrap(),
        }
    }

    const PASS: Evidence = Ok(Duration::from_millis(1));

    fn fail() -> Evidence {
        Err("connect: connection refused".to_owned())
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    #[test]
    fn the_first_pass_ends_unknown() {
        let mut health = Health::new(at(0));
        assert_eq!(
            health.observe(at(1), thresholds(5, 5), PASS),
            Some(Verdict::Up)
        );
        assert_eq!((health.since(), health.reason()), (at(1), ""));
    }

    #[test]
    fn unknown_turns_down_after_the_threshold() {
        let mut health = Health::new(at(0));
        assert_eq!(health.observe(at(1), thresholds(1, 2), fail()), None);
        assert_eq!(
            health.observe(at(2), thresholds(1, 2), fail()),
            Some(Verdict::Down)
        );
        assert_eq!(health.reason(), "connect: connection refused");
    }

    #[test]
    fn a_pass_in_between_starts_the_count_again() {
        let mut health = Health::new(at(0));
        health.observe(at(0), thresholds(1, 3), PASS);
        for second in 0..10 {
            assert_eq!(health.observe(at(second), thresholds(1, 3), fail()), None);
            assert_eq!(health.observe(at(second), thresholds(1, 3), fail()), None);
            assert_eq!(health.observe(at(second), thresholds(1, 3), PASS), None);
        }
        assert_eq!(health.verdict(), Verdict::Up);
    }

    proptest! {
        #[test]
        fn only_a_full_run_changes_the_verdict(
            up in 1u32..5, down in 1u32..5, evidence in prop::collection::vec(any::<bool>(), 0..200)
        ) {
            let mut health = Health::new(at(0));
            let (mut run, mut last) = (0u32, None);
            for passed in evidence {
                run = if last == Some(passed) { run + 1 } else { 1 };
                last = Some(passed);
                let before = health.verdict();
                let turned = health.observe(at(1), thresholds(up, down), if passed { PASS } else { fail() });
                let expected = match (before, passed) {
                    (Verdict::Unknown, true) => Some(Verdict::Up),
                    (Verdict::Down, true) if run >= up => Some(Verdict::Up),
                    (Verdict::Unknown | Verdict::Up, false) if run >= down => Some(Verdict::Down),
                    _ => None,
                };
                prop_assert_eq!(turned, expected);
                prop_assert_eq!(health.verdict(), expected.unwrap_or(before));
            }
        }
    }
}
