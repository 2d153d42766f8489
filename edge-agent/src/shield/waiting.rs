//! Who waits until it is known which app they ask for. Until then no app's
//! limits can count them.

use std::{fmt, net::IpAddr, num::NonZeroU32, sync::Arc, time::Instant};

use anyport_model::limits::{Limits, Source};

use crate::stats::AppStats;

/// A connection that is counted among those of its source that wait, until this
/// is dropped.
pub struct Waiting {
    first: Arc<AppStats>,
    source: Option<Box<Source>>,
}

/// Too many of its source wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowded {
    most: NonZeroU32,
    source: Source,
}

/// Lets a client wait at a place that apps share by name, where not more than
/// `most` of its source may. All wait at the `first` of the apps.
pub fn wait_for_name(
    first: &Arc<AppStats>,
    most: NonZeroU32,
    client: IpAddr,
) -> Result<Waiting, Crowded> {
    let (source, limits) = (client.into(), at_most(most));
    let waits = first.waiting.enter(&limits, source, Instant::now());
    let source = waits.map_err(|_| {
        first.refused(Crowded::CAUSE);
        Crowded { most, source }
    })?;
    let first = Arc::clone(first);
    Ok(Waiting { first, source })
}

fn at_most(most: NonZeroU32) -> Limits {
    Limits {
        connections_per_source: Some(most),
        ..Limits::default()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.first.waiting.leave(self.source.take());
    }
}

impl Crowded {
    /// The label `cause` of `anyport_connections_refused_total`.
    pub(super) const CAUSE: &str = "client_hello";
}

impl fmt::Display for Crowded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { most, source } = self;
        write!(
            f,
            "{most} connections from {source} wait for their ClientHello"
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stats::Stats;
    use prometheus::Registry;

    #[test]
    fn so_many_of_a_source_wait_and_there_is_room_when_one_no_longer_does() {
        let registry = Registry::new();
        let stats = Stats::new(&registry).unwrap();
        let first = stats.app(&"first".parse().unwrap());
        let most = NonZeroU32::new(3).unwrap();
        let waits = |client: &str| wait_for_name(&first, most, client.parse().unwrap());
        let mut waiting: Vec<_> = (0..3).map(|_| waits("203.0.113.5").unwrap()).collect();
        let crowded = waits("203.0.113.5").err().unwrap();
        assert_eq!(
            crowded.to_string(),
            "3 connections from 203.0.113.5 wait for their ClientHello"
        );
        assert!(waits("203.0.113.6").is_ok());
        waiting.pop();
        assert!(waits("203.0.113.5").is_ok());
        drop(waiting);
        let all: Vec<_> = (0..4).map(|_| waits("203.0.113.5").is_ok()).collect();
        assert_eq!(all, [true; 4], "each is gone before the next");
        let counted = registry.gather();
        let refused = "anyport_connections_refused_total";
        let refused = counted
            .iter()
            .find(|family| family.name() == refused)
            .unwrap();
        assert_eq!(refused.get_metric()[0].get_counter().get_value(), 1.0);
    }
}
