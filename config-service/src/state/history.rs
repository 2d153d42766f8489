//! How long revisions are kept.

use std::collections::HashSet;

use anyport_model::names::Revision;

use super::{keeper::Keeper, layout::Layout, snapshot::Snapshot};
use crate::store::{ObjectId, StoreError};

/// Revisions that can be brought back. With 10,000 apps and changes of one app
/// each, they take about 20 MB.
const KEPT: u64 = 1_000;
/// Old ones are forgotten whenever the revision is a multiple of this.
const EVERY: u64 = 100;
const RECORDS_AT_ONCE: usize = 250;

/// Is it time to forget old revisions?
pub fn is_due(revision: Revision) -> bool {
    revision.0 > KEPT && revision.0.is_multiple_of(EVERY)
}

/// Forgets revisions that are too old, and what only they needed. Returns how
/// many objects went.
pub async fn forget_old(keeper: &Keeper, present: &Snapshot) -> Result<usize, StoreError> {
    let oldest = Revision(present.revision().0.saturating_sub(KEPT - 1));
    forget_below(keeper, present, oldest).await
}

/// Forgets revisions below `oldest`, but never the present one, and what only
/// they needed. Returns how many objects went.
pub async fn forget_below(
    keeper: &Keeper,
    present: &Snapshot,
    oldest: Revision,
) -> Result<usize, StoreError> {
    let store = keeper.store();
    let mut layouts: HashSet<ObjectId> = [present.hash()].into();
    let mut below = present.revision();
    while below > oldest {
        let records = store.records_below(below, RECORDS_AT_ONCE).await?;
        let Some(last) = records.last() else { break };
        below = last.revision;
        let kept = records.iter().filter(|record| record.revision >= oldest);
        layouts.extend(kept.map(|record| record.state_hash));
    }
    // The layout of no resources is known without being stored.
    let empty = Layout::empty().id();
    let layouts: Vec<ObjectId> = layouts.into_iter().filter(|id| *id != empty).collect();
    let mut kept: HashSet<ObjectId> = HashSet::new();
    for some in layouts.chunks(RECORDS_AT_ONCE) {
        for (id, bytes) in some.iter().zip(store.objects(some).await?) {
            let layout = Layout::decode(&bytes)
                .map_err(|error| StoreError::corrupt(format_args!("object {id}"), error))?;
            kept.extend(layout.objects());
        }
    }
    store.forget(present.head(), oldest, &kept).await
}
