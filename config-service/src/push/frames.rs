//! Encoded updates, each made once for all who need it.

use std::sync::Arc;

use anyport_model::{diff::Diff, names::Revision, resource::Kind};
use anyport_proto::{
    convert::{write_reference, write_resource},
    sync::UPDATE_MAX,
    v1,
};
use prost::{Message, bytes::Bytes};

use crate::{
    nodes::Role,
    offload::offload,
    state::{Keeper, StateAt, Target},
    store::{ObjectId, StoreName},
    wire::{Coding, Once, made, message},
};

/// Updates kept encoded. A fleet is at one or two revisions at a time, so this is
/// plenty.
const CHANGES: usize = 8;
/// The largest state has 64 MiB where it is not compressed.
const WHOLE: usize = 4;

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
    coding: Coding,
    from: Option<Held>,
    to: Held,
    /// See [`Target::written`].
    written: u64,
    trial: bool,
}

/// Makes updates and keeps the latest.
#[derive(Debug)]
pub struct Frames {
    keeper: Keeper,
    /// What subscribers take, in bytes.
    longest: usize,
    changes: Once<Key, Option<Frame>>,
    whole: Once<Key, Frame>,
}

impl Frames {
    pub fn new(keeper: Keeper) -> Self {
        Self {
            keeper,
            longest: UPDATE_MAX,
            changes: Once::new(CHANGES),
            whole: Once::new(WHOLE),
        }
    }

    /// The change that leads a subscriber from what it holds to `to`; `None` where
    /// it has to be sent the whole: the state it holds is not known, or the change is
    /// larger than subscribers take.
    pub async fn change(
        &self,
        role: Role,
        from: Held,
        to: &Arc<Target>,
        coding: Coding,
    ) -> Option<Frame> {
        let make = make_change(
            self.keeper.clone(),
            self.longest,
            (role, from),
            Arc::clone(to),
            coding,
        );
        self.changes
            .get(Key::new(role, Some(from), to, coding), make)
            .await
    }

    /// The whole of `to`.
    pub async fn whole(&self, role: Role, to: &Arc<Target>, coding: Coding) -> Frame {
        let target = Arc::clone(to);
        let make = apart(move || {
            let response = response(&target, whole(role, &target));
            encode(&target, &response, coding)
        });
        self.whole.get(Key::new(role, None, to, coding), make).await
    }
}

impl Key {
    fn new(role: Role, from: Option<Held>, to: &Target, coding: Coding) -> Self {
        Self {
            role,
            coding,
            from,
            to: held(to),
            written: to.written,
            trial: to.trial,
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

fn encode(to: &Target, response: &v1::SyncResponse, coding: Coding) -> Frame {
    Frame {
        bytes: message(response, coding),
        leads_to: held(to),
        full: response.update.as_ref().is_some_and(|update| update.full),
    }
}

async fn make_change(
    keeper: Keeper,
    longest: usize,
    (role, from): (Role, Held),
    to: Arc<Target>,
    coding: Coding,
) -> Option<Frame> {
    let known = known(&keeper, from).await?;
    apart(move || {
        let response = response(&to, change(role, &known, &to));
        // What is new and the names of what is gone can take more than any state.
        (response.encoded_len() <= longest).then(|| encode(&to, &response, coding))
    })
    .await
}

/// The state that a subscriber says it holds, if it is one of ours.
async fn known(keeper: &Keeper, from: Held) -> Option<Arc<StateAt>> {
    match keeper.at(from.revision).await {
        Ok(state) => state.filter(|state| state.hash() == from.hash),
        Err(error) => {
            // The whole new state is in memory: who was let in while the store
            // answered is not held up by what it has become since.
            tracing::warn!(revision = from.revision.0, %error, "cannot read an old state; sending the whole new one");
            None
        }
    }
}

/// As if it were done here, so that a panic ends who asked.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    made(offload(work).await).await
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
    use std::{io::Read, time::SystemTime};

    use anyport_proto::v1::resource::Kind as Wire;

    use super::*;
    use crate::{
        admit::{Conditions, Intent, STATE_MAX, Writer, read_apply},
        state::{Layout, StoreKeys},
        store::embedded::Embedded,
        wire::PREFIX,
    };

    const PLAIN: Coding = Coding::Identity;

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
            frames.change(Role::Edge, from, &to, PLAIN).await.unwrap(),
            frames.whole(Role::Edge, &to, PLAIN).await,
        ];
        let [change, whole] = [change, whole].map(|frame| frame.bytes.len() - PREFIX);
        assert!(change > whole + 5_000, "{change} of a change, {whole}");
        for (longest, is_sent) in [(change, true), (change - 1, false), (whole, false)] {
            frames = Frames {
                longest,
                ..Frames::new(frames.keeper)
            };
            let sent = frames.change(Role::Edge, from, &to, PLAIN).await;
            assert_eq!(sent.is_some(), is_sent, "{longest}");
        }
    }

    fn apps(count: u16) -> impl Iterator<Item = v1::Resource> {
        (1..=count).map(|port| {
            resource(Wire::App(v1::App {
                name: format!("app-{port}"),
                protocol: format!("tcp/{port}"),
                edge_ips: vec!["198.51.100.0/24".to_owned()],
                origin_direct: vec![format!("tcp://10.0.{}.{}:7000", port / 250, port % 250)],
                ..Default::default()
            }))
        })
    }

    /// How large, how much smaller, and that it is the same.
    #[tokio::test]
    async fn a_whole_state_is_compressed_once_for_all_who_take_it_and_a_change_is_not() {
        const APPS: u16 = 10_000;
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(Arc::new(Embedded::open(directory.path()).unwrap()));
        let prefix = resource(Wire::Prefix(v1::Prefix {
            cidr: "198.51.100.0/24".to_owned(),
        }));
        let all = |count| [prefix.clone()].into_iter().chain(apps(count)).collect();
        let from = held(&*apply(&keeper, all(APPS - 1)).await);
        let to = apply(&keeper, all(APPS)).await;
        let frames = Frames::new(keeper);
        let plain = frames.whole(Role::Edge, &to, PLAIN).await.bytes;
        let (one, other) = tokio::join!(
            frames.whole(Role::Edge, &to, Coding::Gzip),
            frames.whole(Role::Edge, &to, Coding::Gzip),
        );
        let (one, other) = (one.bytes, other.bytes);
        eprintln!(
            "{APPS} apps: {} bytes, {} compressed",
            plain.len(),
            one.len()
        );
        assert_eq!(one.as_ptr(), other.as_ptr(), "the same bytes");
        assert!(
            one.len() < plain.len() / 8,
            "{} of {}",
            one.len(),
            plain.len()
        );
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(&one[PREFIX..])
            .read_to_end(&mut read)
            .unwrap();
        assert!(read == plain[PREFIX..]);
        assert_eq!((plain[0], one[0]), (0, 1), "each says which it is");
        let change = frames.change(Role::Edge, from, &to, Coding::Gzip).await;
        assert_eq!(change.unwrap().bytes[0], 0);
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
        let prefixes = (0..256).map(|index| {
            resource(Wire::Prefix(v1::Prefix {
                cidr: format!("10.0.{index}.0/24"),
            }))
        });
        let all = certificates.chain(apps(500)).chain(prefixes);
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
