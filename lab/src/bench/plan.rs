//! How much is measured.

use std::num::NonZeroUsize;
use std::time::Duration;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Turns of each contender.
    pub rounds: usize,
    /// No round is begun later than this, so that a slow machine ends in time as well.
    pub no_round_after: Duration,
    /// How long each load is on.
    pub load: Duration,
    /// Idle connections held.
    pub idle: NonZeroUsize,
}

impl Plan {
    /// Enough to rely on: about four minutes.
    pub const FULL: Self = Self {
        rounds: 7,
        no_round_after: Duration::from_secs(225),
        load: Duration::from_secs(2),
        idle: NonZeroUsize::MIN.saturating_add(4_999),
    };

    /// Enough to see that all of it works, and nothing to rely on.
    pub const QUICK: Self = Self {
        rounds: 1,
        no_round_after: Duration::from_secs(60),
        load: Duration::from_secs(1),
        idle: NonZeroUsize::MIN.saturating_add(49),
    };

    /// Connections that a proxy has to have room for.
    pub(super) fn sockets(&self) -> usize {
        // The loads that keep moving have a few dozen, and the ends of short connections linger.
        self.idle.get() + 1000
    }

    /// Files that one process may have to open: HAProxy keeps two for each connection, and half of
    /// one for pipes to splice with.
    pub(super) fn descriptors(&self) -> u64 {
        self.sockets() as u64 * 3
    }
}
