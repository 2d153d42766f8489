//! The subscriber's side of the configuration stream: what an edge or a
//! balancer holds, and how an update changes it.

use std::collections::BTreeMap;

use crate::{
    diff::Diff,
    names::Revision,
    resource::{Resource, ResourceRef},
    state::Resources,
};

/// One message of the stream, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    pub revision: Revision,
    /// Names the state at `revision`, as the config service does: its hash of 32
    /// bytes, and after it what names the store, if it said that.
    pub state_hash: Vec<u8>,
    pub scope: Scope,
    pub upserts: Vec<Resource>,
    /// Resources that were sent, but could not be read, each with why: an
    /// earlier version of them stays.
    pub unreadable: Rejected,
}

/// Why resources could not be read. Those that could not even be named are
/// one.
pub type Rejected = BTreeMap<Option<ResourceRef>, String>;

/// How an update relates to what is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The upserts are the whole state.
    Full,
    /// The upserts and removals change the state at `base`.
    Since {
        base: Revision,
        removals: Vec<ResourceRef>,
    },
}

/// The delta does not start where the replica stands: subscribe anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the update changes revision {base}, but revision {held} is held")]
pub struct Gap {
    pub base: Revision,
    pub held: Revision,
}

/// What a subscriber holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replica {
    pub revision: Revision,
    /// Empty: what is held is not exactly the state of `revision`.
    pub state_hash: Vec<u8>,
    pub resources: Resources,
    /// What the state at `revision` has and could not be read, until it comes
    /// readable or goes; what has no name, until the next full update.
    pub rejected: Rejected,
}

impl Replica {
    /// Revision and hash to resume from: those of what is held if that is the
    /// whole state of its revision, else the start, so that all of it is sent
    /// again, to a version perhaps that can read it.
    pub fn held(&self) -> (Revision, Vec<u8>) {
        if self.state_hash.is_empty() || !self.rejected.is_empty() {
            return (Revision::EMPTY, Vec::new());
        }
        (self.revision, self.state_hash.clone())
    }

    pub fn apply(&mut self, update: Update) -> Result<(), Gap> {
        match update.scope {
            Scope::Full => {
                self.rejected.clear();
                self.resources.retain(|reference, _| {
                    update.unreadable.contains_key(&Some(reference.clone()))
                });
                Diff {
                    upserts: update.upserts,
                    removals: Vec::new(),
                }
                .apply(&mut self.resources);
            }
            Scope::Since { base, .. } if base != self.revision => {
                return Err(Gap {
                    base,
                    held: self.revision,
                });
            }
            Scope::Since { removals, .. } => {
                let read = update.upserts.iter().map(Resource::reference);
                for reference in read.chain(removals.iter().cloned()) {
                    self.rejected.remove(&Some(reference));
                }
                Diff {
                    upserts: update.upserts,
                    removals,
                }
                .apply(&mut self.resources);
            }
        }
        self.rejected.extend(update.unreadable);
        self.revision = update.revision;
        self.state_hash = update.state_hash;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::resource::Prefix;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn prefix(number: u8) -> Resource {
        Resource::Prefix(Prefix::new(format!("198.51.{number}.0/24").parse().unwrap()).unwrap())
    }

    fn resources(numbers: &BTreeSet<u8>) -> Resources {
        numbers
            .iter()
            .map(|n| (prefix(*n).reference(), prefix(*n)))
            .collect()
    }

    fn update(revision: u64, scope: Scope, upserts: Vec<Resource>) -> Update {
        Update {
            revision: Revision(revision),
            state_hash: vec![7],
            scope,
            upserts,
            unreadable: Rejected::new(),
        }
    }

    #[test]
    fn a_delta_from_elsewhere_changes_nothing() {
        let mut replica = Replica::default();
        replica
            .apply(update(5, Scope::Full, vec![prefix(1)]))
            .unwrap();
        let before = replica.clone();
        let base = Revision(4);
        let stray = update(
            6,
            Scope::Since {
                base,
                removals: vec![prefix(1).reference()],
            },
            vec![],
        );
        assert_eq!(
            replica.apply(stray),
            Err(Gap {
                base,
                held: Revision(5)
            })
        );
        assert_eq!(replica, before);
    }

    #[test]
    fn what_could_not_be_read_stays_as_it_was() {
        let mut replica = Replica::default();
        replica
            .apply(update(
                1,
                Scope::Full,
                vec![prefix(1), prefix(2), prefix(3)],
            ))
            .unwrap();
        let mut full = update(2, Scope::Full, vec![prefix(2)]);
        full.unreadable
            .insert(Some(prefix(1).reference()), "why".to_owned());
        replica.apply(full).unwrap();
        assert_eq!(replica.resources, resources(&[1, 2].into()));
    }

    #[test]
    fn what_could_not_be_read_is_remembered_until_it_can_be_or_is_gone() {
        let unreadable = |update: &mut Update, names: &[Option<u8>]| {
            let named = |name: &Option<u8>| (name.map(|n| prefix(n).reference()), "why".to_owned());
            update.unreadable = names.iter().map(named).collect();
        };
        let since = |base, removed: &[u8]| Scope::Since {
            base: Revision(base),
            removals: removed.iter().map(|n| prefix(*n).reference()).collect(),
        };
        let mut replica = Replica::default();
        let mut full = update(1, Scope::Full, vec![prefix(9)]);
        unreadable(&mut full, &[Some(1), Some(2)]);
        replica.apply(full).unwrap();
        assert_eq!(replica.rejected.len(), 2);

        replica
            .apply(update(2, since(1, &[]), vec![prefix(3)]))
            .unwrap();
        assert_eq!(replica.rejected.len(), 2, "a delta about something else");
        assert_eq!(replica.held(), (Revision::EMPTY, vec![]));

        replica
            .apply(update(3, since(2, &[1]), vec![prefix(2)]))
            .unwrap();
        assert_eq!(replica.rejected, Rejected::new(), "one went, one was read");
        assert_eq!(replica.held(), (Revision(3), vec![7]));

        let mut nameless = update(4, since(3, &[]), vec![]);
        unreadable(&mut nameless, &[None]);
        replica.apply(nameless).unwrap();
        assert_eq!(replica.held(), (Revision::EMPTY, vec![]));
        replica.apply(update(5, Scope::Full, vec![])).unwrap();
        assert_eq!(replica.held(), (Revision(5), vec![7]));
    }

    #[test]
    fn a_state_of_unknown_hash_is_asked_for_again() {
        let mut replica = Replica::default();
        let mut kept = update(1, Scope::Full, vec![prefix(1)]);
        kept.state_hash.clear();
        replica.apply(kept).unwrap();
        assert_eq!(replica.held(), (Revision::EMPTY, vec![]));
    }

    proptest! {
        #[test]
        fn deltas_lead_to_the_same_state(states in prop::collection::vec(prop::collection::btree_set(0u8..20, 0..12), 1..8)) {
            let mut replica = Replica::default();
            for (step, wanted) in states.iter().enumerate() {
                let diff = Diff::between(&replica.resources, &resources(wanted));
                let scope = Scope::Since { base: Revision(step as u64), removals: diff.removals };
                replica.apply(update(step as u64 + 1, scope, diff.upserts)).unwrap();
                prop_assert_eq!(&replica.resources, &resources(wanted));
            }
        }
    }
}
