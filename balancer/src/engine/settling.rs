//! Weights are held back until every origin is judged, after the start of this
//! balancer and where it did not run for a while beside others.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyport_model::health::Now;

use super::{Engine, UNKNOWN_INTERVAL};
use crate::membership::OriginKey;

/// Nothing is published until every origin has a verdict, or had the time for
/// one, but for at most this long. Edges keep the weights they have meanwhile; a
/// balancer that restarts must not bring back origins that are down.
pub(super) const SETTLE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) enum Phase {
    Unconfigured,
    Settling {
        undecided: BTreeSet<OriginKey>,
        until: Instant,
    },
    Settled,
}

impl Engine {
    /// Nothing is published until each origin is judged anew, or had the time for it.
    pub(super) fn hold_back(&mut self, now: Now) {
        // Then all of it, to who has come meanwhile.
        self.weights_version += 1;
        let until = now.instant + self.time_for_verdicts();
        self.phase = Phase::Settling {
            undecided: self.origins.iter().map(|(key, _)| key).collect(),
            until: until.max(self.peers.listens_until().unwrap_or(until)),
        };
    }

    /// How long an origin may take to be found down if it gives no answer at
    /// all: the longest of all.
    pub(super) fn time_for_verdicts(&self) -> Duration {
        let longest = self.origins.iter().map(|(_, watched)| {
            let monitor = &watched.target.monitor;
            let attempts = monitor.retries.saturating_add(1);
            let probe = monitor.timeout.saturating_mul(attempts);
            let probe = probe.saturating_add(UNKNOWN_INTERVAL);
            probe.saturating_mul(monitor.thresholds.down.get())
        });
        longest.max().unwrap_or_default().min(SETTLE_MAX)
    }

    /// While nothing can be said of any origin, no time passes towards a verdict.
    pub(super) fn settle_later(&mut self, now: Now) {
        let Phase::Settling { .. } = self.phase else {
            return;
        };
        let later = now.instant + self.time_for_verdicts();
        if let Phase::Settling { until, .. } = &mut self.phase {
            *until = later;
        }
    }

    /// Until when weights are held back for want of verdicts; `None` while they
    /// are not, or time alone does not end it.
    pub(crate) fn settles_at(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Settling { until, .. } if self.isolated().is_none() => Some(*until),
            Phase::Settling { .. } | Phase::Unconfigured | Phase::Settled => None,
        }
    }

    /// May the weights be published?
    pub(crate) fn settle(&mut self, now: Now) -> bool {
        if let Phase::Settling { undecided, until } = &self.phase
            && (undecided.is_empty() || (now.instant >= *until && self.isolated().is_none()))
        {
            self.phase = Phase::Settled;
            self.verdicts_version += 1;
        }
        matches!(self.phase, Phase::Settled)
    }

    pub(super) fn decided(&mut self, key: &OriginKey) {
        if let Phase::Settling { undecided, .. } = &mut self.phase {
            undecided.remove(key);
        }
    }
}
