//! Which balancers take part.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::names::NodeName;

/// Members at most: each of them talks to every other one.
pub const MEMBERS_MAX: usize = 100;

/// Tells one set from every other: a later set has a greater one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// The balancers that share the probing of origins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BalancerSet {
    pub epoch: Epoch,
    /// URL of each one's gRPC service; empty: others cannot reach it.
    pub members: BTreeMap<NodeName, String>,
}

impl Epoch {
    /// The one that follows, at this time: at least microseconds since 1970, so that
    /// a store that lost some does not give them again.
    #[must_use]
    pub fn next(self, now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(1).max(clock))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_epoch_follows_the_clock_and_rises_where_that_goes_back() {
        let at = |micros| UNIX_EPOCH + Duration::from_micros(micros);
        assert_eq!(Epoch(0).next(at(1_000)), Epoch(1_000));
        assert_eq!(Epoch(1_000).next(at(1_000)), Epoch(1_001));
        assert_eq!(Epoch(1_000).next(at(500)), Epoch(1_001));
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(Epoch(7).next(before), Epoch(8));
    }
}
