//! The weights as a stream: the whole table, then what changed.
//!
//! A reader pulls. What it is told next is the difference between what it was
//! told last and the latest table, so a slow one skips what is out of date and
//! nothing ever queues up for it.

use std::sync::Arc;

use anyport_model::names::NodeName;
use anyport_proto::{convert::write_pool_weights, v1};
use futures_util::{Stream, stream};

use crate::{
    driver::Tables,
    weights::{Changes, Table},
};

/// Who tells: a balancer, in one run of it.
#[derive(Debug, Clone)]
pub(super) struct Speaker {
    pub(super) balancer: NodeName,
    /// An edge that meets another epoch takes a full table.
    pub(super) epoch: u64,
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

impl Speaker {
    /// What brings one who was told `told` to `latest`; `None` if that is
    /// nothing.
    fn tell(&self, latest: &Arc<Table>, told: Option<&Table>) -> Option<v1::WeightsUpdate> {
        let nothing = Table::default();
        let full = told.is_none();
        let told = told.unwrap_or(&nothing);
        let Changes { changed, removed } = latest.changes_since(told);
        let is_news =
            full || !changed.is_empty() || !removed.is_empty() || latest.revision != told.revision;
        is_news.then(|| v1::WeightsUpdate {
            balancer: self.balancer.to_string(),
            epoch: self.epoch,
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
