//! Which origins are this balancer's to probe, of all balancers that take part,
//! and when what it and they know of an origin counts.

use std::{collections::BTreeSet, time::Duration};

use anyport_model::{health::Now, names::NodeName, opinion::majority};

use super::{Engine, settling::Phase};
use crate::{
    health::Turn,
    membership::OriginKey,
    peers::{Heard, Set},
    probe::schedule::first_pause,
};

/// How often it is looked whether all origins are spoken for.
pub(super) const LOOK: Duration = Duration::from_secs(5);

impl Engine {
    /// Takes the set of balancers that take part into use; returns the verdicts that
    /// it turned.
    pub(crate) fn take_part(&mut self, now: Now, me: &NodeName, set: Set) -> Vec<Turn> {
        if !self.peers.take_part(now.instant, me, set) {
            return Vec::new();
        }
        self.weights_version += 1;
        self.verdicts_version += 1;
        self.next_look = self.peers.share_work().then(|| now.instant + LOOK);
        let all: Vec<_> = self.origins.iter().map(|(key, _)| key).collect();
        if self.peers.listens_until().is_some() {
            for key in &all {
                self.origins.wait_for_others(now, key);
            }
            if !matches!(self.phase, Phase::Unconfigured) {
                self.hold_back(now);
            }
        }
        let mut turns = self.share_out(now, all);
        turns.extend(self.listen(now));
        turns
    }

    /// Probes of `keys` those that are this balancer's to probe, and no others.
    pub(super) fn share_out(&mut self, now: Now, keys: Vec<OriginKey>) -> Vec<Turn> {
        let mut fresh = Vec::new();
        let mut turns = Vec::new();
        let mut had_time = None;
        for key in keys {
            let mine = self.is_mine(&key);
            let was_mine = self.origins.get(&key).is_some_and(|o| o.own.is_some());
            match (was_mine, mine) {
                (true, false) if !self.leaving.contains(&key) => {
                    let had_time =
                        had_time.get_or_insert_with(|| now.instant + self.time_for_verdicts());
                    self.leaving.put(key.clone(), *had_time);
                }
                (false, true) => {
                    self.origins.assign(now, &key, true);
                    self.verdicts_version += 1;
                    fresh.push(key.clone());
                }
                (_, true) => self.leaving.remove(&key),
                (_, false) => {}
            }
            turns.extend(self.judge(now, &key));
        }
        let count = fresh.len();
        for (index, key) in fresh.into_iter().enumerate() {
            if let Some(watched) = self.origins.get(&key) {
                let wait = first_pause(index, count, watched.target.monitor.interval);
                self.vantage.add(key.clone(), watched.target.origin.ip());
                self.schedule.put(key, now.instant + wait);
            }
        }
        turns
    }

    /// Others have probed it for long enough.
    pub(super) fn leave(&mut self, now: Now, key: &OriginKey) -> Option<Turn> {
        if !self.is_mine(key) && self.origins.assign(now, key, false) {
            self.verdicts_version += 1;
            self.schedule.remove(key);
            self.vantage.remove(key);
            self.fades.remove(key);
        }
        self.judge(now, key)
    }

    /// Once all were heard who may know more, what probes from here showed counts.
    pub(super) fn listen(&mut self, now: Now) -> Vec<Turn> {
        if !self.peers.have_been_heard(now.instant) {
            return Vec::new();
        }
        let proven = self
            .origins
            .iter()
            .filter(|(_, watched)| watched.is_proven());
        let proven: Vec<_> = proven.map(|(key, _)| key).collect();
        for key in &proven {
            self.count(now, key);
        }
        self.judge_all(now, proven)
    }

    /// What probes showed of an origin counts from now on, unless others are to be heard
    /// first.
    pub(super) fn count(&mut self, now: Now, key: &OriginKey) {
        let Some(watched) = self.origins.get(key) else {
            return;
        };
        if !watched.is_proven() || self.peers.listens_until().is_some() {
            return;
        }
        let others = majority(self.peers.of(key, watched.asked));
        if self.origins.count(now, key, others.as_ref()) {
            self.verdicts_version += 1;
            self.fade_later(now, key);
        }
    }

    /// Takes in what another balancer says; returns the verdicts that it turned.
    pub(crate) fn heard(&mut self, now: Now, peer: &NodeName, heard: Heard) -> Vec<Turn> {
        let touched = self.peers.heard(now.instant, peer, heard);
        let mut turns = self.judge_all(now, touched);
        turns.extend(self.listen(now));
        turns
    }

    /// Another balancer says nothing any more.
    pub(crate) fn unheard(&mut self, now: Now, peer: &NodeName) -> Vec<Turn> {
        let touched = self.peers.unheard(now.instant, peer);
        self.judge_all(now, touched)
    }

    fn is_mine(&self, key: &OriginKey) -> bool {
        self.peers.is_mine(key) || self.adopted.contains(key)
    }

    /// Those who are to probe an origin may all be out of this balancer's hearing: it
    /// probes for itself then, until one of them is heard.
    pub(super) fn look_who_is_spoken_for(&mut self, now: Now) -> Vec<Turn> {
        self.next_look = Some(now.instant + LOOK);
        let of_others = self
            .origins
            .iter()
            .filter(|(key, _)| !self.peers.is_mine(key));
        let (spoken, unspoken): (Vec<_>, Vec<_>) =
            of_others.partition(|(key, watched)| self.peers.is_spoken_for(key, watched.asked));
        let mut changed = Vec::new();
        for (key, _) in spoken {
            if self.adopted.contains(&key) {
                changed.push((key, false));
            }
        }
        let mut still_unspoken = BTreeSet::new();
        for (key, _) in unspoken {
            if self.unspoken.contains(&key) && !self.adopted.contains(&key) {
                changed.push((key.clone(), true));
            }
            still_unspoken.insert(key);
        }
        self.unspoken = still_unspoken;
        let keys = changed.into_iter().map(|(key, adopts)| {
            match adopts {
                true => self.adopted.insert(key.clone()),
                false => self.adopted.remove(&key),
            };
            key
        });
        let keys = keys.collect();
        self.share_out(now, keys)
    }
}
