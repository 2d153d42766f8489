//! Encoded updates, each made once for all who need it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use anyport_model::{diff::Diff, names::Revision, resource::Kind};
use anyport_proto::{
    convert::{write_reference, write_resource},
    sync::UPDATE_MAX,
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
    store::{ObjectId, StoreName},
};

/// Updates kept encoded. A fleet is at one or two revisions at a time, so this
/// is plenty; a snapshot of the largest state has 64 MiB.
const KEPT: usize = 8;

/// Bytes before a message of a gRPC stream.
const PREFIX: usize = 5;

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

/// `None`: what was to be changed is not known, or the change is larger than what
/// subscribers take.
type Slot = Arc<OnceCell<Option<Frame>>>;

/// Makes updates and keeps the latest.
#[derive(Debug)]
pub struct Frames {
    keeper: Keeper,
    /// What subscribers take, in bytes.
    longest: usize,
    kept: Mutex<VecDeque<(Key, Slot)>>,
}

impl Frames {
    pub fn new(keeper: Keeper) -> Self {
        Self {
            keeper,
            longest: UPDATE_MAX,
            kept: Default::default(),
        }
    }

    /// The change that leads a subscriber from what it holds to `to`; `None` where
    /// it has to be sent the whole: the state it holds is not known, or the change is
    /// larger than subscribers take.
    pub async fn change(&self, role: Role, from: Held, to: &Target) -> Option<Frame> {
        let slot = self.slot(role, Some(from), to);
        let made = slot.get_or_init(|| self.make_change(role, from, to)).await;
        made.clone()
    }

    /// The whole of `to`.
    pub async fn whole(&self, role: Role, to: &Target) -> Frame {
        let slot = self.slot(role, None, to);
        let made = slot
            .get_or_init(async || Some(encode(to, &response(to, whole(role, to)))))
            .await;
        match made {
            Some(whole) => whole.clone(),
            None => encode(to, &response(to, whole(role, to))),
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
        let response = response(to, change(role, &known, to));
        // What is new and the names of what is gone can take more than any state does.
        (response.encoded_len() <= self.longest).then(|| encode(to, &response))
    }

    /// The state that a subscriber says it holds, if it is one of ours.
    async fn known(&self, from: Held) -> Option<Arc<StateAt>> {
        match self.keeper.at(from.revision).await {
            Ok(state) => state.filter(|state| state.hash() == from.hash),
            Err(error) => {
                // The whole new state is in memory: who was let in while the store
                // answered is not held up by what it has become since.
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

fn response(to: &Target, update: v1::Update) -> v1::SyncResponse {
    let update = v1::Update {
        revision: to.state.revision.0,
        state_hash: to.state.hash().to_vec(),
        committed_at: to.committed_at.map(Into::into),
        traceparent: to.traceparent.clone(),
        trial: to.trial,
        store: to.store.map_or_else(Vec::new, StoreName::to_vec),
        ..update
    };
    v1::SyncResponse {
        update: Some(update),
    }
}

fn encode(to: &Target, response: &v1::SyncResponse) -> Frame {
    Frame {
        bytes: message(response),
        leads_to: held(to),
        full: response.update.as_ref().is_some_and(|update| update.full),
    }
}

/// A message with what goes before it in a gRPC stream: one byte that says
/// whether it is compressed, and its length, most significant byte first.
fn message(response: &v1::SyncResponse) -> Bytes {
    let length = response.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    // No state is that long (`admit`), and no change that is longer is sent.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::SystemTime;

    use anyport_proto::v1::resource::Kind as Wire;

    use super::*;
    use crate::{
        admit::{Conditions, Intent, STATE_MAX, Writer, read_apply},
        state::{Layout, StoreKeys},
        store::embedded::Embedded,
    };

    fn resource(kind: Wire) -> v1::Resource {
        v1::Resource { kind: Some(kind) }
    }

    /// Names are long, since removals are little else.
    fn monitors(letter: char, count: usize) -> Vec<v1::Resource> {
        let name = |index| format!("{}-{index}", String::from(letter).repeat(50));
        let monitor = |index| v1::Monitor {
            name: name(index),
            ..Default::default()
        };
        let monitors = (0..count).map(|index| resource(Wire::Monitor(monitor(index))));
        monitors.collect()
    }

    async fn apply(keeper: &Keeper, resources: Vec<v1::Resource>) -> Arc<Target> {
        let intent = Intent::Apply {
            request: read_apply(resources),
            prune: true,
        };
        let conditions = Conditions {
            allow_mass_deletion: true,
            ..Default::default()
        };
        let writer = Writer::new(keeper.clone());
        let written = writer.write(intent, conditions, SystemTime::now).await;
        written.unwrap();
        Arc::clone(keeper.present().unwrap().stable())
    }

    #[tokio::test]
    async fn a_change_that_is_longer_than_subscribers_take_is_the_whole() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(Arc::new(Embedded::open(directory.path()).unwrap()));
        let from = held(&*apply(&keeper, monitors('a', 100)).await);
        let to = apply(&keeper, monitors('b', 100)).await;
        let mut frames = Frames::new(keeper);
        let [change, whole] = [
            frames.change(Role::Edge, from, &to).await.unwrap(),
            frames.whole(Role::Edge, &to).await,
        ];
        let [change, whole] = [change, whole].map(|frame| frame.bytes.len() - PREFIX);
        assert!(change > whole + 5_000, "{change} of a change, {whole}");
        for (longest, is_sent) in [(change, true), (change - 1, false), (whole, false)] {
            frames = Frames {
                longest,
                ..Frames::new(frames.keeper)
            };
            let sent = frames.change(Role::Edge, from, &to).await;
            assert_eq!(sent.is_some(), is_sent, "{longest}");
        }
    }

    /// What a write may store at most leaves room for all that an update has besides,
    /// whatever it is that is stored, and sealed or not.
    #[test]
    fn the_whole_of_the_largest_state_is_not_too_long() {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let certificates = (0..50).map(|index| {
            resource(Wire::Certificate(v1::Certificate {
                name: format!("certificate-{index}"),
                cert: made.cert.pem(),
                key: made.signing_key.serialize_pem(),
            }))
        });
        let apps = (1..=500).map(|port| {
            resource(Wire::App(v1::App {
                name: format!("app-{port}"),
                protocol: format!("tcp/{port}"),
                edge_ips: vec!["198.51.100.0/24".to_owned()],
                origin_direct: vec!["tcp://10.0.2.2:7000".to_owned()],
                ..Default::default()
            }))
        });
        let prefixes = (0..256).map(|index| {
            resource(Wire::Prefix(v1::Prefix {
                cidr: format!("10.0.{index}.0/24"),
            }))
        });
        let all = certificates.chain(apps).chain(prefixes);
        let read = read_apply(all.chain(monitors('m', 500)).collect());
        assert!(read.violations.is_empty(), "{:?}", read.violations);
        let resources: anyport_model::state::Resources = read
            .resources
            .into_iter()
            .map(|(reference, (_, resource))| (reference, resource))
            .collect();
        let changed: Vec<_> = resources.keys().cloned().collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "07".repeat(32)).unwrap();
        for keys in [StoreKeys::default(), StoreKeys::read(file.path()).unwrap()] {
            let (layout, _) = Layout::empty().rewrite(&resources, &changed, &keys);
            let stored = layout.bytes();
            let to = Target {
                state: Arc::new(StateAt {
                    revision: Revision(u64::MAX),
                    layout,
                    resources: resources.clone(),
                }),
                committed_at: Some(SystemTime::now()),
                traceparent: "t".repeat(1_000),
                written: 0,
                trial: true,
                store: Some(StoreName::new([u64::MAX; 2])),
            };
            let sent = response(&to, whole(Role::Edge, &to)).encoded_len() as u64;
            let besides = UPDATE_MAX as u64 - STATE_MAX;
            assert!(sent <= stored + besides, "{sent} sent of {stored} stored");
            // Not by that room only, which is for what does not grow.
            assert!(sent <= stored + 2_000, "{sent} sent of {stored} stored");
        }
    }
}
