//! All that is ordered, numbered, for other agents of the edge.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyport_model::names::AppName;
use nix::time::{ClockId, clock_gettime};

/// Tells of two orders which one is later, whichever agents gave them: by the
/// kernel's monotonic clock, in nanoseconds. All agents of an edge are on one
/// host, and none outlives its boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderId(pub u64);

impl OrderId {
    /// Of an order that is given now, and was not before this one.
    fn next(self) -> Self {
        // Linux has this clock.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
        let now = now.unwrap_or_default().as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        Self(now.max(self.0.saturating_add(1)))
    }
}

/// All that is ordered now, for agents that know other apps, or know them as
/// they were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ordered {
    pub id: OrderId,
    /// Whose connections are closed at once.
    pub close: BTreeSet<AppName>,
    /// While the edge is drained.
    pub drain: Option<Drained>,
}

/// A drain that goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drained {
    /// The order that began it. None: it began before this agent did, so who
    /// drains already goes on.
    pub since: Option<OrderId>,
    pub windows: NamedWindows,
}

/// As [`Windows`](super::Windows), by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedWindows {
    pub of_apps: BTreeMap<AppName, Duration>,
    pub limit: Option<Duration>,
}

impl Ordered {
    /// Nothing, as of now.
    pub(super) fn nothing() -> Self {
        Self {
            id: OrderId::default().next(),
            ..Self::default()
        }
    }

    /// False where it is so already.
    pub(super) fn close(&mut self, apps: BTreeSet<AppName>) -> bool {
        let is_new = self.close != apps;
        if is_new {
            self.id = self.id.next();
            self.close = apps;
        }
        is_new
    }

    pub(super) fn drain(&mut self, windows: NamedWindows, begins: Begins) {
        self.id = self.id.next();
        let since = (begins == Begins::Now).then_some(self.id);
        self.drain = Some(Drained { since, windows });
    }

    pub(super) fn undrain(&mut self) {
        self.id = self.id.next();
        self.drain = None;
    }
}

/// When a drain began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    Now,
    /// Before this agent started.
    Before,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_is_later_than_all_before_it_also_those_of_other_agents() {
        let mut one = Ordered::nothing();
        let mut last = one.id;
        let mut is_later = |id| {
            assert!(id > last, "{id:?} after {last:?}");
            last = id;
        };
        one.drain(NamedWindows::default(), Begins::Now);
        is_later(one.id);
        assert_eq!(
            one.drain.as_ref().and_then(|drain| drain.since),
            Some(one.id)
        );
        one.undrain();
        is_later(one.id);
        let mut next = Ordered::nothing();
        is_later(next.id);
        next.drain(NamedWindows::default(), Begins::Before);
        is_later(next.id);
        assert_eq!(next.drain.and_then(|drain| drain.since), None);
    }

    #[test]
    fn what_is_so_already_is_no_order() {
        let mut ordered = Ordered::nothing();
        let apps = || BTreeSet::from(["a".parse().expect("a name")]);
        assert!(ordered.close(apps()));
        let before = ordered.id;
        assert!(!ordered.close(apps()));
        assert_eq!(ordered.id, before);
    }
}
