//! Not more often than so: the first change goes out at once, those that follow
//! closely go out together.

use std::time::{Duration, Instant};

/// Watches a number that grows with every change, and says when it is time to
/// act on it.
#[derive(Debug)]
pub(crate) struct Pace {
    least: Duration,
    acted: Option<(u64, Instant)>,
}

impl Pace {
    /// At least `least` between two acts.
    pub(crate) fn new(least: Duration) -> Self {
        Self { least, acted: None }
    }

    /// When to act on `version`: a time that may be past; `None` if there is
    /// nothing to do.
    pub(crate) fn due(&self, version: u64, now: Instant) -> Option<Instant> {
        match self.acted {
            Some((acted, _)) if acted == version => None,
            Some((_, at)) => Some(at + self.least),
            None => Some(now),
        }
    }

    pub(crate) fn acted(&mut self, version: u64, now: Instant) {
        self.acted = Some((version, now));
    }
}

/// A steady rate, and a few at once: what is overdue does not start as one burst.
#[derive(Debug)]
pub(crate) struct Rate {
    gap: Duration,
    /// How long before its turn one may be.
    ahead: Duration,
    turn: Option<Instant>,
}

impl Rate {
    /// One each `gap`, and `at_once` after a pause.
    pub(crate) fn new(gap: Duration, at_once: u32) -> Self {
        Self {
            gap,
            ahead: gap * at_once.saturating_sub(1),
            turn: None,
        }
    }

    /// When the next one may be: a time that may be past.
    pub(crate) fn due(&self, now: Instant) -> Instant {
        let due = self.turn.and_then(|turn| turn.checked_sub(self.ahead));
        due.unwrap_or(now)
    }

    /// There is one now.
    pub(crate) fn took(&mut self, now: Instant) {
        let turn = self.turn.map_or(now, |turn| turn.max(now));
        self.turn = Some(turn + self.gap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_at_once_then_not_more_often_than_so() {
        let start = Instant::now();
        let mut pace = Pace::new(SECOND);
        assert_eq!(pace.due(0, start), Some(start));
        pace.acted(0, start);
        assert_eq!(pace.due(0, start + 9 * SECOND), None);
        assert_eq!(pace.due(1, start), Some(start + SECOND));
        assert_eq!(pace.due(5, start + 9 * SECOND), Some(start + SECOND));
    }

    #[test]
    fn what_waits_comes_a_few_at_once_and_then_at_the_rate() {
        let start = Instant::now();
        let millis = Duration::from_millis(1);
        let mut rate = Rate::new(millis, 10);
        let take_all = |rate: &mut Rate, now: Instant| {
            let mut taken = 0;
            while rate.due(now) <= now && taken < 1000 {
                rate.took(now);
                taken += 1;
            }
            taken
        };
        assert_eq!(take_all(&mut rate, start), 10);
        assert_eq!(rate.due(start), start + millis);
        assert_eq!(take_all(&mut rate, start + millis), 1);
        assert_eq!(take_all(&mut rate, start + 4 * millis), 3);
        // However long the pause: no more than the few.
        assert_eq!(take_all(&mut rate, start + 9 * SECOND), 10);
    }
}
