//! An origin that just refused is left alone for a while.
//!
//! The balancer decides what is healthy. Until it has, or while it is gone,
//! each connection that chose a dead origin would pay for finding out, up to a
//! whole time-out; so this edge remembers.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(15);

/// Failures in a row and the end of the rest, in one word: 16 bits of count
/// above 48 bits of milliseconds (8,900 years).
#[derive(Debug, Default)]
pub struct Rest(AtomicU64);

const TIME_BITS: u32 = 48;

impl Rest {
    /// A dial failed, `now` after any fixed point in time. The rest doubles
    /// with each failure in a row; dials that were under way when it began say
    /// nothing new.
    pub fn failed(&self, now: Duration) {
        if self.is_resting(now) {
            return;
        }
        let failures = (self.0.load(Relaxed) >> TIME_BITS).min(u64::from(u16::MAX) - 1);
        let doubled = FIRST.saturating_mul(1 << failures.min(16));
        let until = (now + doubled.min(LONGEST)).as_millis() as u64;
        let until = until & ((1 << TIME_BITS) - 1);
        // Two failures at once may count as one.
        self.0.store((failures + 1) << TIME_BITS | until, Relaxed);
    }

    pub fn succeeded(&self) {
        if self.0.load(Relaxed) != 0 {
            self.0.store(0, Relaxed);
        }
    }

    pub fn is_resting(&self, now: Duration) -> bool {
        let state = self.0.load(Relaxed);
        state != 0 && (now.as_millis() as u64) < state & ((1 << TIME_BITS) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest_after(rest: &Rest, now: Duration) -> Duration {
        let step = Duration::from_millis(1);
        let mut length = Duration::ZERO;
        while rest.is_resting(now + length) {
            length += step;
        }
        length
    }

    #[test]
    fn rests_double_up_to_a_bound_and_end_with_a_success() {
        let rest = Rest::default();
        let mut now = Duration::from_secs(5);
        assert!(!rest.is_resting(now));
        for expected in [500, 1000, 2000, 4000, 8000, 15_000, 15_000] {
            rest.failed(now);
            let length = rest_after(&rest, now);
            assert_eq!(length, Duration::from_millis(expected));
            now += length;
        }
        rest.succeeded();
        assert!(!rest.is_resting(now));
        rest.failed(now);
        assert_eq!(rest_after(&rest, now), FIRST);
    }

    #[test]
    fn any_number_of_failures_is_counted_without_harm() {
        let rest = Rest::default();
        let mut now = Duration::ZERO;
        for _ in 0..100_000 {
            rest.failed(now);
            now += LONGEST;
        }
        rest.failed(now);
        assert!(rest.is_resting(now));
        assert!(!rest.is_resting(now + LONGEST));
    }

    #[test]
    fn dials_that_fail_together_are_one_failure() {
        let rest = Rest::default();
        let now = Duration::from_secs(1);
        for _ in 0..50 {
            rest.failed(now);
        }
        assert_eq!(rest_after(&rest, now), FIRST);
    }
}
