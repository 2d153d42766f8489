//! The subscriber's side of the configuration stream: what an edge or a
//! balancer holds, and how an update changes it.

use std::collections::BTreeSet;

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
    /// Hash of the state at `revision`, as the config service computed it.
    pub state_hash: Vec<u8>,
    pub scope: Scope,
    pub upserts: Vec<Resource>,
    /// Resources that were sent, but could not be read: an earlier version of
    /// them stays.
    pub unreadable: BTreeSet<ResourceRef>,
}

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
    pub state_hash: Vec<u8>,
    pub resources: Resources,
}

impl Replica {
    pub fn apply(&mut self, update: Update) -> Result<(), Gap> {
        match update.scope {
            Scope::Full => {
                self.resources
                    .retain(|reference, _| update.unreadable.contains(reference));
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
                Diff {
                    upserts: update.upserts,
                    removals,
                }
                .apply(&mut self.resources);
            }
        }
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
            state_hash: vec![],
            scope,
            upserts,
            unreadable: BTreeSet::new(),
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
        full.unreadable.insert(prefix(1).reference());
        replica.apply(full).unwrap();
        assert_eq!(replica.resources, resources(&[1, 2].into()));
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
