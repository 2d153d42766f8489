//! How long nothing has moved.

use std::{pin::Pin, time::Duration};

use tokio::time::{Instant, Sleep};

/// Counts silence in steps, so that a byte moved costs no clock and no timer.
pub(super) struct Silence {
    /// How long without a byte is too long.
    pub(super) limit: Duration,
    so_far: Duration,
    /// What the timer is set to.
    pub(super) step: Duration,
    often: bool,
}

impl Silence {
    const STEPS: u32 = 8;
    /// While a sender is not being read, its faults are looked for this often.
    pub(super) const OFTEN: Duration = Duration::from_secs(1);
    /// The first look is no later than this.
    const FIRST: Duration = Duration::from_secs(5);

    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            so_far: Duration::ZERO,
            step: (limit / Self::STEPS).min(Self::FIRST),
            often: false,
        }
    }

    pub(super) fn look_often(&mut self, timer: Pin<&mut Sleep>, often: bool) {
        self.often = often;
        if often && self.step > Self::OFTEN {
            self.next_step(timer);
        }
    }

    pub(super) fn next_step(&mut self, timer: Pin<&mut Sleep>) {
        let step = self.limit / Self::STEPS;
        self.step = if self.often {
            step.min(Self::OFTEN)
        } else {
            step
        };
        timer.reset(Instant::now() + self.step);
    }

    /// Takes in that a step is over.
    pub(super) fn step_is_over(&mut self, silent: bool) {
        self.so_far = if silent {
            self.so_far + self.step
        } else {
            Duration::ZERO
        };
    }

    /// It has lasted as long as it may, which is `most` at most.
    pub(super) fn is_over(&self, most: Duration) -> bool {
        self.so_far >= self.limit.min(most)
    }
}
