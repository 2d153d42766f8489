//! Decides which balancers take part.
//!
//! Who is connected to any replica does so at once, who is away from all of them no
//! more after [`LEASE_TTL`]. Every replica decides for itself, by what it knows of
//! the others' nodes, and what one of them has stored counts for all.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use anyport_model::{
    balancers::{BalancerSet, MEMBERS_MAX},
    names::NodeName,
};
use tokio::time::Instant;

use crate::store::etcd::presence::LEASE_TTL;

/// Who has not looked for longer than this was asleep, and what it knows of others
/// may be old.
const ASLEEP: Duration = Duration::from_secs(2);

/// Balancers by name, each with its URL.
pub type Connected = BTreeMap<NodeName, String>;

/// One replica's view. The caller reads what is stored, looks at who is connected, and
/// stores what is [`wanted`](Self::wanted).
#[derive(Debug)]
pub struct Roster {
    first: Duration,
    latest: Option<BalancerSet>,
    /// What is stored is no later than `latest` and not the same.
    gone_back: bool,
    looked: Option<Look>,
    /// Members that are connected nowhere, since when that is known.
    away: BTreeMap<NodeName, Instant>,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    connected: Connected,
    /// Since when anybody was seen.
    anybody: Option<Instant>,
}

impl Roster {
    /// `first`: how long the first set of all is waited for, once there is somebody
    /// in it. Where sets do not outlive the process, this is for those who were members
    /// and are about to come back.
    pub fn new(first: Duration) -> Self {
        Self {
            first,
            latest: None,
            gone_back: false,
            looked: None,
            away: BTreeMap::new(),
        }
    }

    /// The latest set that was ever read, to be told to others.
    pub fn latest(&self) -> Option<&BalancerSet> {
        self.latest.as_ref()
    }

    /// Takes what is stored; whether it is the latest from now on.
    pub fn read(&mut self, stored: Option<BalancerSet>) -> bool {
        self.gone_back = false;
        if stored == self.latest {
            return false;
        }
        let epoch = |set: &Option<BalancerSet>| set.as_ref().map(|set| set.epoch);
        if epoch(&stored) > epoch(&self.latest) {
            self.latest = stored;
            return true;
        }
        self.gone_back = true;
        false
    }

    /// Takes who is connected to any replica; `None`: that is not known.
    pub fn look(&mut self, connected: Option<Connected>, now: Instant) {
        let before = self.looked.take();
        let before = before.filter(|before| now.duration_since(before.at) <= ASLEEP);
        if before.is_none() {
            self.away.clear();
        }
        let Some(connected) = connected else { return };
        let members = self.latest.iter().flat_map(|set| set.members.keys());
        let away = members.filter(|name| !connected.contains_key(*name));
        self.away = away
            .map(|name| {
                let since = self.away.get(name);
                (name.clone(), since.copied().unwrap_or(now))
            })
            .collect();
        let anybody = before.and_then(|before| before.anybody);
        self.looked = Some(Look {
            at: now,
            anybody: anybody.or((!connected.is_empty()).then_some(now)),
            connected,
        });
    }

    /// The set that is to be stored, by the last look; `None`: what is stored is
    /// right, as far as that is known. `clock` is what an epoch is made of.
    pub fn wanted(&self, clock: SystemTime) -> Option<BalancerSet> {
        let look = self.looked.as_ref()?;
        let members = self.members(look);
        match &self.latest {
            None if !self.is_first_due(look) => return None,
            Some(latest) if latest.members == members && !self.gone_back => return None,
            _ => {}
        }
        let latest = self.latest.as_ref().map(|latest| latest.epoch);
        Some(BalancerSet {
            epoch: latest.unwrap_or_default().next(clock),
            members,
        })
    }

    fn is_first_due(&self, look: &Look) -> bool {
        let since = look.anybody.map(|since| look.at.duration_since(since));
        since.is_some_and(|since| since >= self.first)
    }

    fn members(&self, look: &Look) -> Connected {
        let is_over = |since: &Instant| look.at.duration_since(*since) >= LEASE_TTL;
        let latest = self.latest.iter().flat_map(|set| &set.members);
        let staying = latest.filter(|(name, _)| !self.away.get(*name).is_some_and(is_over));
        let mut members: Connected = staying
            .map(|(name, address)| (name.clone(), address.clone()))
            .collect();
        for (name, address) in &look.connected {
            if members.len() < MEMBERS_MAX || members.contains_key(name) {
                members.insert(name.clone(), address.clone());
            }
        }
        members
    }
}

#[cfg(test)]
mod tests;
