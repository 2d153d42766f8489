//! An origin that turns down again and again is held down longer each time, so
//! that clients are not sent back and forth with it.
//!
//! The first two times cost nothing: an origin that is restarted twice must be
//! back at once. From the third on the hold begins with [`FIRST`] and doubles,
//! up to [`LONGEST`]. For each [`FORGIVEN_AFTER`] that the origin stays up, one
//! time is forgotten.

use std::time::Duration;

/// Times that cost nothing.
const FREE: u32 = 2;
/// The shortest hold.
pub const FIRST: Duration = Duration::from_secs(10);
/// The longest hold.
pub const LONGEST: Duration = Duration::from_secs(300);
/// Time up for which one time down is forgotten.
pub const FORGIVEN_AFTER: Duration = Duration::from_secs(300);
/// No more are remembered: `FIRST` doubled as often exceeds `LONGEST`.
const COUNT_MAX: u32 = 8;

/// How often an origin turned down lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flaps(u32);

impl Flaps {
    pub fn count(self) -> u32 {
        self.0
    }

    /// At least so many were counted elsewhere.
    pub fn at_least(self, count: u32) -> Self {
        Flaps(self.0.max(count.min(COUNT_MAX)))
    }

    /// It turns down after it was up for so long. How long to hold it down at
    /// least, from now; none: as long as probes say.
    pub fn turned_down(&mut self, up_for: Duration) -> Option<Duration> {
        self.count_one(up_for);
        self.0.checked_sub(FREE + 1).map(doubled)
    }

    /// Probes say nothing of why it was taken away, so they cannot say when it is
    /// well again: how long to hold it down, from now, the first time too.
    pub fn ejected(&mut self, up_for: Duration) -> Duration {
        self.count_one(up_for);
        doubled(self.0 - 1)
    }

    /// What is left of them once it has been up for so long.
    pub fn after(self, up_for: Duration) -> Self {
        let forgiven = u32::try_from(forgiven(up_for)).unwrap_or(u32::MAX);
        Flaps(self.0.saturating_sub(forgiven))
    }

    fn count_one(&mut self, up_for: Duration) {
        self.0 = (self.after(up_for).0 + 1).min(COUNT_MAX);
    }
}

fn forgiven(up_for: Duration) -> u64 {
    up_for.as_secs() / FORGIVEN_AFTER.as_secs()
}

/// How long it is up when the next time is forgotten.
pub fn next_forgiven(up_for: Duration) -> Duration {
    Duration::from_secs((forgiven(up_for) + 1).saturating_mul(FORGIVEN_AFTER.as_secs()))
}

fn doubled(times: u32) -> Duration {
    FIRST.saturating_mul(1 << times.min(COUNT_MAX)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(up_for: Duration, times: usize) -> Vec<u64> {
        holds_of(&mut Flaps::default(), up_for, times)
    }

    fn holds_of(flaps: &mut Flaps, up_for: Duration, times: usize) -> Vec<u64> {
        let held = (0..times).map(|_| flaps.turned_down(up_for));
        held.map(|time| time.unwrap_or_default().as_secs())
            .collect()
    }

    #[test]
    fn the_third_time_costs_and_each_costs_double_up_to_a_bound() {
        let held = holds(Duration::from_secs(5), 10);
        assert_eq!(held, [0, 0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn who_stays_up_is_forgiven_one_by_one() {
        assert_eq!(holds(FORGIVEN_AFTER, 20), [0; 20]);
        let mut flaps = Flaps::default();
        holds_of(&mut flaps, Duration::ZERO, 20);
        assert_eq!(flaps.count(), COUNT_MAX);
        flaps.turned_down(3 * FORGIVEN_AFTER);
        assert_eq!(flaps.count(), COUNT_MAX - 2);
        flaps.turned_down(Duration::MAX);
        assert_eq!(flaps.count(), 1);
        assert_eq!(flaps.at_least(0).count(), 1);
        assert_eq!(flaps.at_least(3).count(), 3);
        assert_eq!(flaps.at_least(u32::MAX).count(), COUNT_MAX);
    }
}
