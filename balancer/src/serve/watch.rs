//! The weights as a stream: the whole table, then what changed. Verdicts for other
//! balancers likewise, with signs of life between them.
//!
//! A reader pulls. What it is told next is the difference between what it was
//! told last and the latest table, so a slow one skips what is out of date and
//! nothing ever queues up for it.

use std::{sync::Arc, time::Duration};

use anyport_model::names::NodeName;
use anyport_proto::{convert::write_pool_weights, v1};
use futures_util::{Stream, stream};
use tokio::{sync::watch, time::timeout};

use crate::{
    driver::Tables,
    peers::Verdicts,
    weights::{Changes, Table},
};

/// Who tells.
#[derive(Debug, Clone)]
pub(super) struct Speaker {
    pub(super) balancer: NodeName,
}

/// Ends when the driver does.
pub(super) fn updates(speaker: Speaker, tables: Tables) -> impl Stream<Item = v1::WeightsUpdate> {
    stream::unfold(
        (speaker, tables, None),
        async |(speaker, mut tables, told)| {
            loop {
                let latest = tables.borrow_and_update().clone();
                if let Some(latest) = latest
                    && let Some(update) = speaker.tell(&latest, told.as_deref())
                {
                    return Some((update, (speaker, tables, Some(latest))));
                }
                tables.changed().await.ok()?;
            }
        },
    )
}

/// Each at most `pause` after the one before. Ends when the driver does.
pub(super) fn verdicts(
    speaker: Speaker,
    latest: watch::Receiver<Option<Arc<Verdicts>>>,
    pause: Duration,
) -> impl Stream<Item = v1::VerdictsUpdate> {
    let told: Option<Arc<Verdicts>> = None;
    stream::unfold(
        (speaker, latest, told, pause),
        async |(speaker, mut latest, told, pause)| {
            if told.is_some()
                && let Ok(changed) = timeout(pause, latest.changed()).await
            {
                changed.ok()?;
            }
            loop {
                let now = latest.borrow_and_update().clone();
                // Who asks may know of others sooner than this balancer.
                if let Some(now) = now {
                    let update = now.write(speaker.balancer.as_str(), told.as_deref());
                    return Some((update, (speaker, latest, Some(now), pause)));
                }
                latest.changed().await.ok()?;
            }
        },
    )
}

impl Speaker {
    /// What brings one who was told `told` to `latest`; `None` if that is
    /// nothing.
    fn tell(&self, latest: &Arc<Table>, told: Option<&Table>) -> Option<v1::WeightsUpdate> {
        let nothing = Table::default();
        let full = told.is_none();
        let told = told.unwrap_or(&nothing);
        let Changes { changed, removed } = latest.changes_since(told);
        let is_news = full
            || !changed.is_empty()
            || !removed.is_empty()
            || (latest.revision, latest.epoch) != (told.revision, told.epoch);
        is_news.then(|| v1::WeightsUpdate {
            balancer: self.balancer.to_string(),
            epoch: latest.epoch,
            revision: latest.revision.0,
            full,
            pools: changed
                .into_iter()
                .map(|(name, weights)| write_pool_weights(name, weights))
                .collect(),
            removed_pools: removed.into_iter().map(ToString::to_string).collect(),
        })
    }
}
