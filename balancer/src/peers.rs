//! The other balancers: which there are, which of them probes what, and what they
//! say of it.

mod follow;
mod set;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyport_model::{names::NodeName, opinion::Opinion};

use crate::membership::OriginKey;

pub(crate) use follow::follow;
pub(crate) use set::{PROBERS, Set};

/// All balancers are told of a new set at about the same time. One that still has
/// the old one after this long is not told any more.
const BEHIND_MAX: Duration = Duration::from_secs(3);

/// Who has just started, or was stopped, waits for what others hold for so long at most:
/// who is silent for so long is not believed either.
const LISTEN_MAX: Duration = Duration::from_secs(5);

/// What this balancer's own probes come to, for others.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Verdicts {
    pub(crate) epoch: u64,
    /// They are held, since nothing can be said of any origin from here.
    pub(crate) isolated: bool,
    /// It has weights for edges.
    pub(crate) serves: bool,
    pub(crate) own: Own,
}

/// By origin: what is asked, see [`Target::fingerprint`], and what is held.
///
/// [`Target::fingerprint`]: crate::membership::Target::fingerprint
pub(crate) type Own = BTreeMap<OriginKey, Spoken>;
type Spoken = (u64, Arc<Opinion>);

/// What another balancer says now.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Heard {
    pub(crate) epoch: u64,
    pub(crate) isolated: bool,
    pub(crate) serves: bool,
    /// `said` is all there is.
    pub(crate) full: bool,
    pub(crate) said: Own,
    pub(crate) withdrawn: BTreeSet<OriginKey>,
}

#[derive(Debug, Default)]
struct Peer {
    epoch: u64,
    isolated: bool,
    serves: bool,
    said: Own,
    /// What it said is of before this balancer was stopped.
    is_old: bool,
}

impl Peer {
    /// The epoch by which edges are better off there.
    fn serves_by(&self) -> Option<u64> {
        (self.serves && !self.isolated).then_some(self.epoch)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    /// This balancer and all that take part; `None`: nobody said.
    part: Option<(NodeName, Set)>,
    heard: BTreeMap<NodeName, Peer>,
    /// Since when another one goes by a later set.
    behind: Option<Instant>,
    /// Others may have watched while this balancer did not: until when they are waited
    /// for.
    listens_until: Option<Instant>,
}

impl Peers {
    /// `me` and all that take part from now on; whether that is news. Who is not of
    /// them is not believed any more, and to be judged without by the caller.
    pub(crate) fn take_part(&mut self, now: Instant, me: &NodeName, set: Set) -> bool {
        self.heard.retain(|name, _| set.members.contains_key(name));
        let part = Some((me.clone(), set));
        let is_news = self.part != part;
        let is_first = self.part.is_none();
        self.part = part;
        if is_first {
            self.listen(now);
        }
        self.compare(now);
        is_news
    }

    fn listen(&mut self, now: Instant) {
        let are_others = self.others().next().is_some();
        self.listens_until = are_others.then(|| now + LISTEN_MAX);
    }

    /// Those of the set that can be heard.
    fn others(&self) -> impl Iterator<Item = &NodeName> {
        let part = self.part.iter();
        part.flat_map(|(me, set)| set.peers(me).map(|(name, _)| name))
    }

    /// Until when others are waited for, who may have watched while this balancer did
    /// not; `None`: nobody is waited for.
    pub(crate) fn listens_until(&self) -> Option<Instant> {
        self.listens_until
    }

    /// Ends the wait where all were heard, or had the time; whether it did.
    pub(crate) fn have_been_heard(&mut self, now: Instant) -> bool {
        let Some(until) = self.listens_until else {
            return false;
        };
        let is_heard = |name| self.heard.get(name).is_some_and(|peer| !peer.is_old);
        let is_over = until <= now || self.others().all(is_heard);
        if is_over {
            self.listens_until = None;
        }
        is_over
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.part.as_ref().map_or(0, |(_, set)| set.epoch)
    }

    /// Was a set ever told?
    pub(crate) fn are_known(&self) -> bool {
        self.part.is_some()
    }

    pub(crate) fn are_there(&self) -> bool {
        let part = self.part.as_ref();
        part.is_some_and(|(me, set)| set.members.keys().any(|name| name != me))
    }

    /// Are there more than probe one origin?
    pub(crate) fn share_work(&self) -> bool {
        let part = self.part.as_ref();
        part.is_some_and(|(_, set)| set.members.len() > PROBERS)
    }

    /// How many are heard.
    pub(crate) fn heard_of(&self) -> usize {
        self.heard.len()
    }

    /// Does one of those that are to probe the origin say anything of it?
    pub(crate) fn is_spoken_for(&self, key: &OriginKey, asked: u64) -> bool {
        let Some((_, set)) = &self.part else {
            return false;
        };
        self.heard.iter().any(|(name, peer)| {
            let says = peer.said.get(key).is_some_and(|(of, _)| *of == asked);
            says && set.has_probe(name, key)
        })
    }

    /// Is the origin this balancer's to probe?
    pub(crate) fn is_mine(&self, key: &OriginKey) -> bool {
        let part = self.part.as_ref();
        part.is_none_or(|(me, set)| set.has_probe(me, key))
    }

    /// What those of the others say of an origin that see their own network, where
    /// they ask the same as is asked here, and have spoken since
    /// [`resume`](Self::resume).
    pub(crate) fn of(&self, key: &OriginKey, asked: u64) -> impl Iterator<Item = &Opinion> + Clone {
        let heard = self.heard.values();
        let see = heard.filter(|peer| !peer.isolated && !peer.is_old);
        let said = see.filter_map(move |peer| peer.said.get(key));
        said.filter(move |(of, _)| *of == asked)
            .map(|(_, opinion)| &**opinion)
    }

    /// Takes in what one says. Returns the origins to be judged anew.
    pub(crate) fn heard(
        &mut self,
        now: Instant,
        name: &NodeName,
        heard: Heard,
    ) -> BTreeSet<OriginKey> {
        let is_member = |(_, set): &(NodeName, Set)| set.members.contains_key(name);
        if !self.part.as_ref().is_some_and(is_member) {
            return BTreeSet::new();
        }
        let peer = self.heard.entry(name.clone()).or_default();
        let mut touched = heard.withdrawn.clone();
        touched.extend(heard.said.keys().cloned());
        let was_old = std::mem::take(&mut peer.is_old);
        if heard.full || was_old || heard.isolated != peer.isolated {
            touched.extend(peer.said.keys().cloned());
        }
        if heard.full {
            peer.said.clear();
        }
        for key in &heard.withdrawn {
            peer.said.remove(key);
        }
        peer.said.extend(heard.said);
        peer.isolated = heard.isolated;
        peer.serves = heard.serves;
        peer.epoch = heard.epoch;
        self.compare(now);
        touched
    }

    /// This balancer was stopped for a while: what others said before counts again when
    /// they say anything.
    pub(crate) fn resume(&mut self, now: Instant) {
        for peer in self.heard.values_mut() {
            peer.is_old = true;
        }
        self.listen(now);
    }

    /// One says nothing any more. Returns as [`heard`](Self::heard).
    pub(crate) fn unheard(&mut self, now: Instant, name: &NodeName) -> BTreeSet<OriginKey> {
        let gone = self.heard.remove(name).unwrap_or_default();
        self.compare(now);
        gone.said.into_keys().collect()
    }

    fn compare(&mut self, now: Instant) {
        let latest = self.heard.values().filter_map(Peer::serves_by).max();
        self.behind = match latest {
            Some(latest) if latest > self.epoch() => self.behind.or(Some(now)),
            _ => None,
        };
    }

    /// The epoch that others go by for some time already, if it is a later one.
    pub(crate) fn superseded_by(&self, now: Instant) -> Option<u64> {
        let behind = self.behind?;
        let late = now.saturating_duration_since(behind) >= BEHIND_MAX;
        let latest = self.heard.values().filter_map(Peer::serves_by).max();
        latest.filter(|_| late)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::SystemTime;

    use anyport_model::health::Verdict;

    use super::*;
    use crate::membership::fixtures::key;

    fn name(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn set(epoch: u64, members: &[&str]) -> Set {
        let member = |it: &&str| (name(it), format!("http://{it}:7410"));
        Set {
            epoch,
            members: members.iter().map(member).collect(),
        }
    }

    fn says(epoch: u64, origins: &[&str]) -> Heard {
        let up = Opinion {
            verdict: Verdict::Up,
            ..Opinion::none(SystemTime::UNIX_EPOCH)
        };
        let said = |origin: &&str| (key("game", origin), (7, Arc::new(up.clone())));
        Heard {
            epoch,
            serves: true,
            said: origins.iter().map(said).collect(),
            ..Heard::default()
        }
    }

    fn keys(origins: &[&str]) -> BTreeSet<OriginKey> {
        origins.iter().map(|origin| key("game", origin)).collect()
    }

    #[test]
    fn what_is_said_counts_until_it_is_withdrawn_or_its_speaker_is_gone() {
        let now = Instant::now();
        let mut peers = Peers::default();
        assert_eq!(peers.heard(now, &name("b"), says(1, &["o"])), keys(&[]));
        assert!(peers.take_part(now, &name("a"), set(1, &["a", "b", "c"])));
        assert!(!peers.take_part(now, &name("a"), set(1, &["a", "b", "c"])));
        let count = |peers: &Peers, origin| peers.of(&key("game", origin), 7).count();

        let touched = peers.heard(now, &name("b"), says(1, &["o", "p"]));
        assert_eq!((touched, count(&peers, "o")), (keys(&["o", "p"]), 1));
        assert_eq!(
            peers.of(&key("game", "o"), 8).count(),
            0,
            "asked something else"
        );
        peers.heard(now, &name("c"), says(1, &["o"]));
        assert_eq!(count(&peers, "o"), 2);

        let withdrawn = Heard {
            withdrawn: keys(&["o"]),
            ..says(1, &[])
        };
        assert_eq!(peers.heard(now, &name("c"), withdrawn), keys(&["o"]));
        let full = Heard {
            full: true,
            ..says(1, &["q"])
        };
        assert_eq!(peers.heard(now, &name("b"), full), keys(&["o", "p", "q"]));
        assert_eq!(
            ["o", "p", "q"].map(|origin| count(&peers, origin)),
            [0, 0, 1]
        );
        let isolated = Heard {
            isolated: true,
            ..says(1, &[])
        };
        assert_eq!(peers.heard(now, &name("b"), isolated), keys(&["q"]));
        assert_eq!(count(&peers, "q"), 0);
        peers.heard(now, &name("b"), says(1, &[]));
        assert_eq!(count(&peers, "q"), 1);
        peers.resume(now);
        assert_eq!(count(&peers, "q"), 0, "it is of before");
        assert_eq!(peers.heard(now, &name("b"), says(1, &[])), keys(&["q"]));
        assert_eq!(count(&peers, "q"), 1);
        assert_eq!(peers.unheard(now, &name("b")), keys(&["q"]));
        assert_eq!(count(&peers, "q"), 0);

        peers.heard(now, &name("c"), says(1, &["o"]));
        peers.take_part(now, &name("a"), set(2, &["a", "b"]));
        assert_eq!(count(&peers, "o"), 0, "it takes no part any more");
    }

    #[test]
    fn who_misses_a_set_is_superseded_when_others_have_gone_by_it_for_a_while() {
        let start = Instant::now();
        let later = start + BEHIND_MAX;
        let mut peers = Peers::default();
        peers.take_part(start, &name("a"), set(1, &["a", "b"]));
        peers.heard(start, &name("b"), says(1, &[]));
        assert_eq!(peers.superseded_by(later), None);
        peers.heard(start, &name("b"), says(2, &[]));
        assert_eq!(peers.superseded_by(start), None, "it comes any moment");
        assert_eq!(peers.superseded_by(later), Some(2));
        let isolated = Heard {
            isolated: true,
            ..says(2, &[])
        };
        peers.heard(later, &name("b"), isolated);
        assert_eq!(
            peers.superseded_by(later + BEHIND_MAX),
            None,
            "it knows no better"
        );
        peers.heard(later, &name("b"), says(2, &[]));
        assert_eq!(peers.superseded_by(later + BEHIND_MAX), Some(2));
        peers.unheard(later, &name("b"));
        assert_eq!(
            peers.superseded_by(later + BEHIND_MAX),
            None,
            "nobody else is there"
        );
        peers.heard(later, &name("b"), says(2, &[]));
        peers.take_part(later, &name("a"), set(2, &["a", "b"]));
        assert_eq!(peers.superseded_by(later + BEHIND_MAX), None);
    }
}
