//! Encoded updates, each made once for all who need it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use anyport_model::{diff::Diff, names::Revision, resource::Kind};
use anyport_proto::{
    convert::{write_reference, write_resource},
    v1,
};
use prost::{
    Message,
    bytes::{BufMut, Bytes, BytesMut},
};
use tokio::sync::OnceCell;

use crate::{
    nodes::Role,
    state::{Keeper, StateAt, Target},
    store::ObjectId,
};

/// Updates kept encoded. A fleet is at one or two revisions at a time, so this
/// is plenty; a snapshot of the largest state has 64 MiB.
const KEPT: usize = 8;

/// What a subscriber holds: a revision, and the hash that came with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub revision: Revision,
    pub hash: ObjectId,
}

/// An update, ready to be sent.
#[derive(Debug, Clone)]
pub struct Frame {
    /// A `SyncResponse`, as a message of a gRPC stream.
    pub bytes: Bytes,
    /// What a subscriber holds that took it.
    pub leads_to: Held,
    /// The whole state, not a change of one.
    pub full: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    role: Role,
    from: Option<Held>,
    to: Held,
    /// See [`Target::written`].
    written: u64,
    trial: bool,
}

/// `None`: what was to be changed is not known.
type Slot = Arc<OnceCell<Option<Frame>>>;

/// Makes updates and keeps the latest.
#[derive(Debug)]
pub struct Frames {
    keeper: Keeper,
    kept: Mutex<VecDeque<(Key, Slot)>>,
}

impl Frames {
    pub fn new(keeper: Keeper) -> Self {
        Self {
            keeper,
            kept: Default::default(),
        }
    }

    /// The change that leads a subscriber from what it holds to `to`; `None`
    /// where the state it holds is not known.
    pub async fn change(&self, role: Role, from: Held, to: &Target) -> Option<Frame> {
        let slot = self.slot(role, Some(from), to);
        let made = slot.get_or_init(|| self.make_change(role, from, to)).await;
        made.clone()
    }

    /// The whole of `to`.
    pub async fn whole(&self, role: Role, to: &Target) -> Frame {
        let slot = self.slot(role, None, to);
        let made = slot
            .get_or_init(async || Some(encode(to, whole(role, to))))
            .await;
        match made {
            Some(whole) => whole.clone(),
            None => encode(to, whole(role, to)),
        }
    }

    fn slot(&self, role: Role, from: Option<Held>, to: &Target) -> Slot {
        let key = Key {
            role,
            from,
            to: held(to),
            written: to.written,
            trial: to.trial,
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, slot)) = kept.iter().find(|(other, _)| *other == key) {
            return Arc::clone(slot);
        }
        let slot = Slot::default();
        kept.push_back((key, Arc::clone(&slot)));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        slot
    }

    async fn make_change(&self, role: Role, from: Held, to: &Target) -> Option<Frame> {
        let known = self.known(from).await?;
        Some(encode(to, change(role, &known, to)))
    }

    /// The state that a subscriber says it holds, if it is one of ours.
    async fn known(&self, from: Held) -> Option<Arc<StateAt>> {
        match self.keeper.at(from.revision).await {
            Ok(state) => state.filter(|state| state.hash() == from.hash),
            Err(error) => {
                // The whole state is in memory, so nobody has to wait for the
                // store to come back.
                tracing::warn!(revision = from.revision.0, %error, "cannot read an old state; sending the whole new one");
                None
            }
        }
    }
}

pub fn held(target: &Target) -> Held {
    Held {
        revision: target.state.revision,
        hash: target.state.hash(),
    }
}

fn encode(to: &Target, update: v1::Update) -> Frame {
    let full = update.full;
    let update = v1::Update {
        revision: to.state.revision.0,
        state_hash: to.state.hash().to_vec(),
        committed_at: to.committed_at.map(Into::into),
        traceparent: to.traceparent.clone(),
        trial: to.trial,
        ..update
    };
    let response = v1::SyncResponse {
        update: Some(update),
    };
    Frame {
        bytes: message(&response),
        leads_to: held(to),
        full,
    }
}

/// A message with what goes before it in a gRPC stream: one byte that says
/// whether it is compressed, and its length, most significant byte first.
fn message(response: &v1::SyncResponse) -> Bytes {
    const PREFIX: usize = 5;
    let length = response.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    // Admission keeps every state below 64 MiB.
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // Cannot fail: a buffer that grows has room.
    let _ = response.encode(&mut bytes);
    bytes.freeze()
}

/// Balancers have no use for where an app answers, and private keys go to
/// nobody who has no use for them.
fn concerns(role: Role, kind: Kind) -> bool {
    match role {
        Role::Edge => true,
        Role::Balancer => matches!(kind, Kind::Monitor | Kind::Pool),
    }
}

fn whole(role: Role, to: &Target) -> v1::Update {
    let upserts = to.state.resources.values();
    let upserts = upserts.filter(|resource| concerns(role, resource.kind()));
    v1::Update {
        full: true,
        upserts: upserts.map(write_resource).collect(),
        ..Default::default()
    }
}

fn change(role: Role, known: &StateAt, to: &Target) -> v1::Update {
    let diff = Diff::between(&known.resources, &to.state.resources);
    let upserts = diff.upserts.iter();
    let removals = diff.removals.iter();
    v1::Update {
        full: false,
        base_revision: known.revision.0,
        upserts: upserts
            .filter(|resource| concerns(role, resource.kind()))
            .map(write_resource)
            .collect(),
        removals: removals
            .filter(|reference| concerns(role, reference.kind()))
            .map(write_reference)
            .collect(),
        ..Default::default()
    }
}
