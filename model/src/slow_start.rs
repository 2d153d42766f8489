//! An origin that comes back takes up its load little by little: caches are
//! cold, and whoever waited would come all at once.
//!
//! Its weight begins at a tenth and grows by a tenth every [`STEP`], so that it
//! is whole after nine of them, and what is left of the one that it returned in:
//! 9 s to 10 s. Few steps, as each is sent to every edge, and all origins take
//! theirs at the same moments, [`next_beat`].

use std::time::{Duration, Instant};

use crate::weights::Factor;

/// Between two weights.
pub const STEP: Duration = Duration::from_secs(1);
const STEPS: u32 = 10;

/// From when, at or after `now`, the steps of an origin are counted that returns
/// now: a whole number of them after `first`.
pub fn next_beat(first: Instant, now: Instant) -> Instant {
    let passed = now.saturating_duration_since(first).as_nanos();
    let steps = passed.div_ceil(STEP.as_nanos());
    first + STEP.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

/// The part of its weight that an origin has `passed` after it came back.
pub fn part(passed: Duration) -> Factor {
    Factor::of_thousandths((steps(passed) + 1) * 1000 / STEPS)
}

/// When, counted from its return, it gets more; none: it has all.
pub fn next_step(passed: Duration) -> Option<Duration> {
    let done = steps(passed);
    (done + 1 < STEPS).then(|| STEP * (done + 1))
}

fn steps(passed: Duration) -> u32 {
    let steps = passed.as_millis() / STEP.as_millis();
    u32::try_from(steps).unwrap_or(u32::MAX).min(STEPS - 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn from_a_tenth_to_all_in_equal_steps() {
        let (mut passed, mut parts) = (Duration::ZERO, vec![part(Duration::ZERO)]);
        while let Some(next) = next_step(passed) {
            assert_eq!(
                part(next - Duration::from_millis(1)),
                *parts.last().unwrap()
            );
            passed = next;
            parts.push(part(passed));
        }
        let tenths: Vec<Factor> = (1..=10).map(|n| Factor::of_thousandths(n * 100)).collect();
        assert_eq!((parts, passed), (tenths, 9 * STEP));
        assert_eq!(part(Duration::MAX), Factor::ONE);
    }

    #[test]
    fn steps_are_taken_at_the_same_moments() {
        let first = Instant::now();
        let beat = |millis| next_beat(first, first + Duration::from_millis(millis)) - first;
        let seconds = [0, 1, 999, 1000, 1001, 86_400_001].map(|millis| beat(millis).as_secs());
        assert_eq!(seconds, [0, 1, 1, 1, 2, 86_401]);
        let early = first - Duration::from_secs(3);
        assert_eq!(next_beat(first, early), first, "no time before it");
    }
}
