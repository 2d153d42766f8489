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
}
