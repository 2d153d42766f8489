//! How long to wait before trying again: doubling, bounded, jittered so that
//! a fleet does not come back in step.

use std::time::Duration;

/// Growing pauses between attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `first`, doubling, up to `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            next: first.min(most),
        }
    }

    /// The next pause: between half and all of the present step. `random` is
    /// uniform over all 64 bits.
    pub fn pause(&mut self, random: u64) -> Duration {
        let step = self.next;
        self.next = step.saturating_mul(2).min(self.most);
        let fraction = 0.5 + (random as f64 / u64::MAX as f64) / 2.0;
        step.mul_f64(fraction)
    }

    /// An attempt worked: start over with the first pause.
    pub fn reset(&mut self) {
        self.next = self.first.min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pauses_grow_to_the_bound_and_start_over(randoms in prop::collection::vec(any::<u64>(), 1..40)) {
            let (first, most) = (Duration::from_millis(100), Duration::from_secs(5));
            let mut backoff = Backoff::new(first, most);
            let mut step = first;
            for random in randoms {
                let pause = backoff.pause(random);
                prop_assert!(pause >= step / 2 && pause <= step, "{pause:?} of {step:?}");
                step = (step * 2).min(most);
            }
            backoff.reset();
            prop_assert!(backoff.pause(u64::MAX) <= first);
        }
    }
}
