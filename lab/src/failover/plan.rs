//! How much is measured.

use std::time::Duration;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Turns of each contender and each way to die.
    pub outage_rounds: usize,
    /// How long clients come before an origin dies, and after.
    pub healthy: Duration,
    /// See [`healthy`](Self::healthy).
    pub dead: Duration,
    /// Turns of each contender with origins at distances.
    pub distance_rounds: usize,
    /// How long the distances are as at the beginning; the first second of it is not counted.
    pub even: Duration,
    /// How long the nearest origin is slow.
    pub slow: Duration,
    /// How long clients come when it no longer is.
    pub recovered: Duration,
}

impl Plan {
    /// Enough to rely on: about eight minutes.
    pub const FULL: Self = Self {
        outage_rounds: 3,
        healthy: Duration::from_secs(3),
        dead: Duration::from_secs(6),
        distance_rounds: 2,
        even: Duration::from_secs(6),
        slow: Duration::from_secs(6),
        recovered: Duration::from_secs(20),
    };

    /// Enough to see that all of it works, and nothing to rely on.
    pub const QUICK: Self = Self {
        outage_rounds: 1,
        healthy: Duration::from_millis(500),
        dead: Duration::from_secs(2),
        distance_rounds: 1,
        even: Duration::from_secs(3),
        slow: Duration::from_millis(500),
        recovered: Duration::from_millis(500),
    };
}
