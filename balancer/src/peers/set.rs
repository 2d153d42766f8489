//! Which balancers probe an origin.
//!
//! Rendezvous hashing (Thaler and Ravishankar, 1998): every balancer ranks all of
//! them for each origin by a hash of both names, and the first few probe it. All come
//! to the same without a word between them, and where one goes, only its origins
//! move.

use std::collections::BTreeMap;

use anyport_model::{balancers::BalancerSet, names::NodeName, sip::Sip};

use crate::membership::OriginKey;

/// So many probe an origin, where there are so many: enough that one that sees
/// wrongly is outvoted.
pub(crate) const PROBERS: usize = 3;

/// Any number would do, as long as all have the same.
const RANK: Sip = Sip::new(0x616e_7970_6f72_7421, 0x7072_6f62_6572_7321);

/// The balancers that take part, as the config service says them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Set {
    /// Rises with every change of the set; 0: none was told.
    pub(crate) epoch: u64,
    /// With the URL of each; empty: it cannot be asked by others.
    pub(crate) members: BTreeMap<NodeName, String>,
}

impl From<BalancerSet> for Set {
    fn from(set: BalancerSet) -> Self {
        Self {
            epoch: set.epoch.0,
            members: set.members,
        }
    }
}

impl Set {
    /// Whether `me` is to probe the origin. Who cannot be heard, or is not of the
    /// set, probes for itself.
    pub(crate) fn has_probe(&self, me: &NodeName, key: &OriginKey) -> bool {
        if self.members.get(me).is_none_or(String::is_empty) {
            return true;
        }
        let mine = (rank(me, key), me);
        let heard = self.members.iter().filter(|(_, url)| !url.is_empty());
        let before = heard.filter(|(other, _)| (rank(other, key), *other) > mine);
        before.take(PROBERS).count() < PROBERS
    }

    /// The others, with where they can be asked.
    pub(crate) fn peers(&self, me: &NodeName) -> impl Iterator<Item = (&NodeName, &str)> {
        let others = self.members.iter().filter(move |(name, _)| *name != me);
        let others = others.map(|(name, url)| (name, url.as_str()));
        others.filter(|(_, url)| !url.is_empty())
    }
}

fn rank(balancer: &NodeName, key: &OriginKey) -> u64 {
    // No name has a slash.
    RANK.hash(format!("{balancer}/{key}").as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::membership::fixtures::key;

    fn set(names: &[String]) -> Set {
        let url = |name: &String| format!("http://{name}:7410");
        let members = names.iter().map(|name| (name.parse().unwrap(), url(name)));
        Set {
            epoch: 1,
            members: members.collect(),
        }
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("b{number}")).collect()
    }

    fn probers(set: &Set, key: &OriginKey) -> Vec<NodeName> {
        let all = set.members.keys().cloned();
        all.filter(|name| set.has_probe(name, key)).collect()
    }

    #[test]
    fn who_is_alone_not_of_the_set_or_not_heard_probes_all() {
        let me = "me".parse().unwrap();
        let a = key("game", "a");
        assert!(Set::default().has_probe(&me, &a));
        let mut all = set(&names(9));
        assert!(all.has_probe(&me, &a));
        all.members.insert(me.clone(), String::new());
        assert!(all.has_probe(&me, &a));
        assert_eq!(probers(&all, &a).len(), PROBERS + 1);
        assert!(
            all.peers(&"b0".parse().unwrap())
                .all(|(name, _)| *name != me)
        );
    }

    #[test]
    fn work_is_shared_evenly() {
        let five = set(&names(5));
        let mut counts = BTreeMap::new();
        for number in 0..5000 {
            for prober in probers(&five, &key("game", &format!("o{number}"))) {
                *counts.entry(prober).or_insert(0u32) += 1;
            }
        }
        // 3,000 each; four deviations of that are 140.
        assert!(
            counts.values().all(|count| (2860..3140).contains(count)),
            "{counts:?}"
        );
    }

    proptest! {
        #[test]
        fn three_probe_an_origin_or_all_there_are(count in 0usize..8, number: u16) {
            let set = set(&names(count));
            let probers = probers(&set, &key("game", &format!("o{number}")));
            prop_assert_eq!(probers.len(), count.min(PROBERS));
        }

        /// Where one goes, all others keep what they have.
        #[test]
        fn only_what_was_its_own_moves(count in 2usize..8, gone: prop::sample::Index, number: u16) {
            let all = names(count);
            let key = key("game", &format!("o{number}"));
            let before = probers(&set(&all), &key);
            let mut left = all.clone();
            let gone: NodeName = left.remove(gone.index(count)).parse().unwrap();
            let after = probers(&set(&left), &key);
            for prober in before.iter().filter(|prober| **prober != gone) {
                prop_assert!(after.contains(prober));
            }
        }
    }
}
