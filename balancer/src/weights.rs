//! The weights of all pools, as one value that is published whole: a reader
//! never sees half of a change.

use std::{collections::BTreeMap, sync::Arc};

use anyport_model::{
    names::{PoolName, Revision},
    weights::PoolWeights,
};

/// Pools that did not change share their weights with the table before.
pub(crate) type Pools = BTreeMap<PoolName, Arc<PoolWeights>>;

/// The weights of all pools at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Table {
    /// Of the set of balancers that it was computed with.
    pub(crate) epoch: u64,
    /// The configuration that it was computed from.
    pub(crate) revision: Revision,
    pub(crate) pools: Pools,
}

/// From one table to a later one.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes<'a> {
    pub(crate) changed: Vec<(&'a PoolName, &'a PoolWeights)>,
    pub(crate) removed: Vec<&'a PoolName>,
}

impl Table {
    /// What a reader of `old` must be told to have this one.
    pub(crate) fn changes_since<'a>(&'a self, old: &'a Table) -> Changes<'a> {
        let is_new = |name: &PoolName, weights: &Arc<PoolWeights>| match old.pools.get(name) {
            Some(held) => !Arc::ptr_eq(held, weights) && held != weights,
            None => true,
        };
        let changed = self
            .pools
            .iter()
            .filter(|(name, weights)| is_new(name, weights))
            .map(|(name, weights)| (name, weights.as_ref()))
            .collect();
        let removed = old
            .pools
            .keys()
            .filter(|name| !self.pools.contains_key(*name))
            .collect();
        Changes { changed, removed }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyport_model::health::Verdict;
    use proptest::prelude::*;

    use super::*;
    use crate::membership::fixtures::pool;

    /// Pool `p<n>` in one of three conditions.
    fn table(pools: &BTreeMap<u8, u8>) -> Table {
        let weights = |(number, condition): (&u8, &u8)| {
            let name = format!("p{number}");
            let pool = pool(&name, Some("quick"), &[("a", "10.0.2.2:7000")]);
            let verdict = [Verdict::Unknown, Verdict::Up, Verdict::Down][usize::from(*condition)];
            let weights = PoolWeights::weigh(&pool, |_| Some(verdict));
            (pool.name, Arc::new(weights))
        };
        Table {
            epoch: 0,
            revision: Revision(1),
            pools: pools.iter().map(weights).collect(),
        }
    }

    proptest! {
        #[test]
        fn changes_lead_from_any_table_to_any_other_and_are_the_least(
            old in prop::collection::btree_map(0u8..6, 0u8..3, 0..6),
            new in prop::collection::btree_map(0u8..6, 0u8..3, 0..6),
        ) {
            let (old, new) = (table(&old), table(&new));
            let changes = new.changes_since(&old);
            for (name, weights) in &changes.changed {
                prop_assert_ne!(old.pools.get(*name).map(Arc::as_ref), Some(*weights));
            }
            let mut reached = old.pools.clone();
            for name in changes.removed {
                prop_assert!(reached.remove(name).is_some());
            }
            for (name, weights) in changes.changed {
                reached.insert(name.clone(), Arc::new(weights.clone()));
            }
            prop_assert_eq!(reached, new.pools);
        }
    }
}
