//! Weights as verdicts, load and the passing of time make them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use anyport_model::{
    health::{Now, Verdict},
    load,
    names::{OriginName, PoolName},
    resource::Weight,
    slow_start,
    weights::{Known, PoolWeights},
};

use super::Engine;
use crate::{
    health::{Turn, Watched},
    membership::OriginKey,
};

impl Engine {
    pub(super) fn mark(&mut self, pool: &PoolName) {
        // Most have been already.
        if !self.unweighed.contains(pool) {
            self.unweighed.insert(pool.clone());
        }
    }

    /// May [`weigh`](Self::weigh) change something?
    pub(crate) fn is_to_weigh(&self) -> bool {
        !self.unweighed.is_empty()
    }

    /// Makes the weights what all that happened until now comes to.
    pub(crate) fn weigh(&mut self, now: Now) {
        for name in std::mem::take(&mut self.unweighed) {
            self.weigh_pool(now.instant, &name);
        }
    }

    fn weigh_pool(&mut self, now: Instant, name: &PoolName) {
        let Some(pool) = self.pools.get(name) else {
            return;
        };
        let watched = self.origins.of_pool(pool);
        let known = |watched: &Option<&Watched>| match watched {
            Some(watched) => watched.known(now),
            None => Known::from(None),
        };
        let weights = PoolWeights::weigh_in_order(pool, watched.iter().map(known));
        let next = watched.iter().flatten();
        match next.filter_map(|watched| watched.next_step(now)).min() {
            Some(at) => self.steps.put(name.clone(), at),
            None => self.steps.remove(name),
        }
        if self.weights.get(name).is_none_or(|held| **held != weights) {
            self.weights.insert(name.clone(), Arc::new(weights));
            self.weights_version += 1;
            self.health_version += 1;
        }
    }

    /// Moves what load and latency make of weights by one step.
    pub(super) fn measure(&mut self, now: Instant, name: &PoolName) {
        let (Some(pool), Some(weights)) = (self.pools.get(name), self.weights.get(name)) else {
            return;
        };
        let measured = pool.origins.iter().map(|origin| {
            let watched = self.origins.get_mut(&OriginKey::of(name, &origin.name))?;
            let measured = watched.measure(now)?;
            let counts = !weights.panic && origin.weight > Weight::ZERO;
            counts.then_some((origin.weight, measured))
        });
        let measured: Vec<_> = measured.collect();
        let balance = self.balances.entry(name.clone()).or_default();
        let wanted = balance.wanted(pool.policy, &measured);
        let mut all_at_rest = true;
        for (origin, wanted) in pool.origins.iter().zip(wanted) {
            if let Some(watched) = self.origins.get_mut(&OriginKey::of(name, &origin.name)) {
                all_at_rest &= watched.follow(wanted);
            }
        }
        if !all_at_rest {
            self.measures.put(name.clone(), now + load::STEP);
        }
        self.mark(name);
    }

    pub(super) fn turned(&mut self, now: Now, turn: &Turn) {
        let beat = self.next_beat(now.instant);
        let returns = turn.verdict == Verdict::Up && self.was_missed(&turn.key);
        if let Some(watched) = self.origins.get_mut(&turn.key).filter(|_| returns) {
            watched.starts_slowly(beat);
        }
        self.mark(&turn.key.pool);
    }

    /// Did the origin get no connections, while others of its pool got some? If
    /// none did, there is nobody to share them with while it takes them up.
    fn was_missed(&self, key: &OriginKey) -> bool {
        let (Some(watched), Some(weights)) = (self.origins.get(key), self.weights.get(&key.pool))
        else {
            return false;
        };
        let own = weights.origins.get(watched.target.place);
        let gets_none = own.is_some_and(|own| own.weight == Weight::ZERO);
        gets_none && weights.origins.iter().any(|o| o.weight > Weight::ZERO)
    }

    /// Those of which that is so, where weights are of the configuration before.
    pub(super) fn missed(&self, fresh: &[OriginKey]) -> BTreeSet<OriginKey> {
        let mut takers: BTreeMap<&PoolName, BTreeSet<&OriginName>> = BTreeMap::new();
        let missed = fresh.iter().filter(|key| {
            let takers = takers.entry(&key.pool).or_insert_with(|| {
                let weights = self.weights.get(&key.pool);
                let origins = weights.into_iter().flat_map(|weights| &weights.origins);
                let takes = origins.filter(|origin| origin.weight > Weight::ZERO);
                takes.map(|origin| &origin.name).collect()
            });
            !takers.is_empty() && !takers.contains(&key.origin)
        });
        missed.cloned().collect()
    }

    pub(super) fn next_beat(&mut self, now: Instant) -> Instant {
        slow_start::next_beat(*self.first_beat.get_or_insert(now), now)
    }
}
