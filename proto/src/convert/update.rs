use anyport_model::{
    fault::Fault,
    names::Revision,
    replica::{Rejected, Replica, Scope, Update},
    state::Resources,
};

use super::{read_reference, read_resource, write_reference, write_resource};
use crate::v1;

/// Bytes of a state's hash. In what a subscriber keeps, the name of its store follows.
const HASH: usize = 32;

/// Reads an update; a resource that is wrong is rejected alone.
pub fn read_update(wire: v1::Update) -> Result<Update, Fault> {
    let mut unreadable = Rejected::new();
    let mut upserts = Vec::with_capacity(wire.upserts.len());
    for resource in wire.upserts {
        match read_resource(resource) {
            Ok(resource) => upserts.push(resource),
            Err(bad) => {
                let faults: Vec<_> = bad.faults.iter().map(Fault::to_string).collect();
                unreadable.insert(bad.reference, faults.join("; "));
            }
        }
    }
    let scope = if wire.full {
        Scope::Full
    } else {
        let removals = wire.removals.iter().enumerate();
        let removals = removals.map(|(index, removal)| {
            read_reference(removal)
                .map_err(|f| Fault::new(format!("removals[{index}].{}", f.field), f.problem))
        });
        Scope::Since {
            base: Revision(wire.base_revision),
            removals: removals.collect::<Result<_, _>>()?,
        }
    };
    let mut state_hash = wire.state_hash;
    state_hash.extend(wire.store);
    Ok(Update {
        revision: Revision(wire.revision),
        state_hash,
        scope,
        upserts,
        unreadable,
    })
}

/// The hash of a state and the name of its store, of what [`read_update`] made one of.
pub(crate) fn split_hash(mut state_hash: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let store = state_hash.split_off(HASH.min(state_hash.len()));
    (state_hash, store)
}

/// What a replica could not read, to be said in every acknowledgement.
pub fn write_rejections(replica: &Replica) -> Vec<v1::Rejection> {
    let rejected = replica.rejected.iter();
    let rejections = rejected.map(|(reference, reason)| v1::Rejection {
        resource: reference.as_ref().map(write_reference),
        reason: reason.clone(),
    });
    rejections.collect()
}

/// `resources` as one update: what an edge keeps on disk as its last known
/// good. `state_hash` is empty where they are not exactly the state of
/// `revision`.
pub fn write_full_update(
    revision: Revision,
    state_hash: Vec<u8>,
    resources: &Resources,
) -> v1::Update {
    v1::Update {
        revision: revision.0,
        state_hash,
        full: true,
        upserts: resources.values().map(write_resource).collect(),
        ..Default::default()
    }
}
