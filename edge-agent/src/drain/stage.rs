//! How far out of service an edge is. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// How far an edge is out of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Serving,
    /// It takes connections until then, and is not ready any more.
    Leaving(Instant),
    /// It takes none.
    Left,
}

/// What an order asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Serve,
    /// Connections are taken for so long.
    Drain(Duration),
}

impl Stage {
    /// After an order at `now`. Of two orders to drain, the one that ends
    /// earlier counts.
    pub fn ordered(self, wanted: Wanted, now: Instant) -> Self {
        let grace = match wanted {
            Wanted::Serve => return Stage::Serving,
            Wanted::Drain(grace) => grace,
        };
        // A grace that no clock can hold is none that ends.
        let until = now.checked_add(grace);
        let stage = match (self, until) {
            (Stage::Serving, None) => Stage::Leaving(now + FOREVER),
            (Stage::Serving, Some(until)) => Stage::Leaving(until),
            (Stage::Leaving(at), Some(until)) => Stage::Leaving(at.min(until)),
            (stage, _) => stage,
        };
        stage.passed(now)
    }

    /// Once it is `now`.
    pub fn passed(self, now: Instant) -> Self {
        match self {
            Stage::Leaving(at) if at <= now => Stage::Left,
            stage => stage,
        }
    }
}

/// Thirty years.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_end_counts_and_an_undo_ends_everything() {
        let now = Instant::now();
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(60));
        let serving = Stage::Serving;
        let leaving = serving.ordered(Wanted::Drain(long), now);
        assert_eq!(leaving, Stage::Leaving(now + long));
        assert_eq!(leaving.passed(now + short), leaving);
        let sooner = leaving.ordered(Wanted::Drain(short), now);
        assert_eq!(sooner, Stage::Leaving(now + short));
        assert_eq!(sooner.ordered(Wanted::Drain(long), now), sooner);
        assert_eq!(sooner.passed(now + short), Stage::Left);
        let at_once = leaving.ordered(Wanted::Drain(Duration::ZERO), now);
        assert_eq!(at_once, Stage::Left);
        assert_eq!(at_once.ordered(Wanted::Drain(long), now), Stage::Left);
        for stage in [serving, leaving, at_once] {
            assert_eq!(stage.ordered(Wanted::Serve, now), serving);
        }
        let for_ever = serving.ordered(Wanted::Drain(Duration::MAX), now);
        assert_eq!(for_ever.passed(now + long), for_ever);
    }
}
