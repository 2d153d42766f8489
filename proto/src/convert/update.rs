use std::collections::BTreeSet;

use anyport_model::{
    fault::Fault,
    names::Revision,
    replica::{Replica, Scope, Update},
};

use super::{read_reference, read_resource, write_reference, write_resource};
use crate::v1;

/// An update as far as it could be read, and what could not.
#[derive(Debug, Clone)]
pub struct ReadUpdate {
    pub update: Update,
    /// To be said in the acknowledgement.
    pub rejections: Vec<v1::Rejection>,
}

/// Reads an update; a resource that is wrong is rejected alone.
pub fn read_update(wire: v1::Update) -> Result<ReadUpdate, Fault> {
    let mut rejections = Vec::new();
    let mut unreadable = BTreeSet::new();
    let mut upserts = Vec::with_capacity(wire.upserts.len());
    for resource in wire.upserts {
        match read_resource(resource) {
            Ok(resource) => upserts.push(resource),
            Err(bad) => {
                rejections.push(v1::Rejection {
                    resource: bad.reference.as_ref().map(write_reference),
                    reason: bad
                        .faults
                        .iter()
                        .map(Fault::to_string)
                        .collect::<Vec<_>>()
                        .join("; "),
                });
                unreadable.extend(bad.reference);
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
    Ok(ReadUpdate {
        update: Update {
            revision: Revision(wire.revision),
            state_hash: wire.state_hash,
            scope,
            upserts,
            unreadable,
        },
        rejections,
    })
}

/// The whole of what a replica holds, as one update: what an edge keeps on
/// disk as its last known good.
pub fn write_full_update(replica: &Replica) -> v1::Update {
    v1::Update {
        revision: replica.revision.0,
        state_hash: replica.state_hash.clone(),
        full: true,
        upserts: replica.resources.values().map(write_resource).collect(),
        ..Default::default()
    }
}
