//! Endless answers: the latest, then each later one, none queued in between.

use std::{sync::Arc, time::Duration};

use anyport_model::{diff::Diff, names::Revision, resource::Kind};
use anyport_node::drain::Drain;
use anyport_proto::{
    convert::{write_redacted, write_reference},
    sync::UPDATE_MAX,
    v1,
};
use prost::{Message, bytes::Bytes};
use tokio::sync::mpsc;
use tonic::Status;

use super::status;
use crate::{
    nodes::{Nodes, Role},
    offload::offload,
    state::{Keeper, Snapshot},
    store::ObjectId,
    wire::{Once, prefix},
};

/// A fleet that applies a revision speaks all at once; watchers see it in steps.
const NODES_PACE: Duration = Duration::from_millis(50);
/// Answers kept encoded.
const KEPT: usize = 4;

type Answers<T> = mpsc::Sender<Result<T, Status>>;

/// All who watch the state. Clones share what they are sent.
#[derive(Debug, Clone)]
pub(super) struct Watches {
    keeper: Keeper,
    drain: Drain,
    /// What clients take, in bytes.
    longest: usize,
    made: Arc<Once<Key, Option<Parts>>>,
}

/// From which state to which; `None`: from nothing.
type Key = (Option<Version>, Version);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    revision: Revision,
    hash: ObjectId,
    /// A revision may be made twice, where the store went back in between.
    written: u64,
}

/// A change by kind, each part encoded. Messages of protobuf can be joined, so whatever
/// kinds a watcher asks for, it is sent these.
type Parts = [Bytes; Kind::ALL.len()];

impl Watches {
    pub(super) fn new(keeper: Keeper, drain: Drain) -> Self {
        Self {
            keeper,
            drain,
            longest: UPDATE_MAX,
            made: Arc::new(Once::new(KEPT)),
        }
    }

    /// Sends the state and then its changes, in parts of messages, until the watcher is
    /// gone or the drain begins. No kinds: all of them.
    pub(super) async fn follow(&self, kinds: Vec<Kind>, parts: Answers<Bytes>) {
        let mut present = self.keeper.subscribe();
        let mut sent: Option<Arc<Snapshot>> = None;
        loop {
            if let Some(latest) = present.latest() {
                let message = self.message(sent.as_ref(), &latest, &kinds);
                let message = match message.await {
                    Ok(message) => message,
                    Err(status) => {
                        let _ = parts.send(Err(status)).await;
                        return;
                    }
                };
                for part in message {
                    if parts.send(Ok(part)).await.is_err() {
                        return;
                    }
                }
                sent = Some(latest);
            }
            tokio::select! {
                // Cannot fail: `self` holds the sender.
                () = present.changed() => {}
                () = parts.closed() => return,
                () = self.drain.started() => return farewell(&parts).await,
            }
        }
    }

    /// The parts of a message; the first of them says how long it is.
    async fn message(
        &self,
        sent: Option<&Arc<Snapshot>>,
        latest: &Arc<Snapshot>,
        kinds: &[Kind],
    ) -> Result<Vec<Bytes>, Status> {
        let message = join(
            sent.is_none(),
            latest,
            kinds,
            self.parts(sent, latest).await?,
        );
        if sent.is_none() || length(&message) <= self.longest {
            return Ok(message);
        }
        // What is new and the names of what is gone can take more than any state.
        Ok(join(true, latest, kinds, self.parts(None, latest).await?))
    }

    async fn parts(
        &self,
        sent: Option<&Arc<Snapshot>>,
        latest: &Arc<Snapshot>,
    ) -> Result<Parts, Status> {
        let key = (sent.map(|sent| version(sent)), version(latest));
        let (sent, latest) = (sent.cloned(), Arc::clone(latest));
        let make = offload(move || difference(sent.as_deref(), &latest));
        let made = self.made.get(key, async { make.await.ok() }).await;
        made.ok_or_else(|| Status::internal("encoding the state failed"))
    }
}

fn version(snapshot: &Snapshot) -> Version {
    Version {
        revision: snapshot.revision(),
        hash: snapshot.hash(),
        written: snapshot.head().version.written,
    }
}

fn length(message: &[Bytes]) -> usize {
    message.iter().map(Bytes::len).sum()
}

fn join(full: bool, latest: &Snapshot, kinds: &[Kind], parts: Parts) -> Vec<Bytes> {
    let head = v1::WatchResponse {
        revision: latest.revision().0,
        full,
        ..Default::default()
    };
    let parts = Kind::ALL.into_iter().zip(parts);
    let wanted = parts.filter(|(kind, _)| kinds.is_empty() || kinds.contains(kind));
    let rest = wanted.map(|(_, part)| part).filter(|part| !part.is_empty());
    let mut message = vec![Bytes::new()];
    message.extend(rest);
    let head = head.encode_to_vec();
    let mut first = prefix(false, head.len() + length(&message)).to_vec();
    first.extend(head);
    message[0] = first.into();
    message
}

fn difference(sent: Option<&Snapshot>, latest: &Snapshot) -> Parts {
    let none = Default::default();
    let diff = Diff::between(
        sent.map_or(&none, |sent| sent.resources()),
        latest.resources(),
    );
    Kind::ALL.map(|kind| {
        let upserts = diff.upserts.iter();
        let removals = diff.removals.iter();
        let part = v1::WatchResponse {
            upserts: upserts
                .filter(|resource| resource.kind() == kind)
                .map(write_redacted)
                .collect(),
            removals: removals
                .filter(|reference| reference.kind() == kind)
                .map(write_reference)
                .collect(),
            ..Default::default()
        };
        part.encode_to_vec().into()
    })
}

/// Sends all nodes of the role, again each time one of them or the revision
/// changed.
pub(super) async fn nodes(
    keeper: Keeper,
    nodes: Nodes,
    role: Option<Role>,
    drain: Drain,
    answers: Answers<v1::WatchNodesResponse>,
) {
    let mut present = keeper.subscribe();
    let mut changes = nodes.changes();
    loop {
        changes.borrow_and_update();
        let latest = present.latest();
        let latest = latest.as_deref();
        let answer = v1::WatchNodesResponse {
            nodes: super::nodes::list(&nodes, role, latest),
            revision: latest.map_or(0, |latest| latest.revision().0),
            rollout: latest.and_then(|latest| super::nodes::rollout(&nodes, latest)),
        };
        if answers.send(Ok(answer)).await.is_err() {
            return;
        }
        tokio::time::sleep(NODES_PACE).await;
        tokio::select! {
            // Neither can fail: both senders are held by the arguments.
            _ = present.changed() => {}
            _ = changes.changed() => {}
            () = answers.closed() => return,
            () = drain.started() => return farewell(&answers).await,
        }
    }
}

async fn farewell<T>(answers: &Answers<T>) {
    // Only a watcher that is gone does not take it.
    let _ = answers.send(Err(status::stopping())).await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::SystemTime;

    use anyport_proto::v1::resource::Kind as Wire;

    use super::*;
    use crate::{
        admit::{Conditions, Intent, Writer, read_apply},
        store::embedded::Embedded,
        wire::PREFIX,
    };

    fn resources(monitors: impl IntoIterator<Item = u8>) -> Vec<v1::Resource> {
        let prefix = Wire::Prefix(v1::Prefix {
            cidr: "198.51.100.0/24".to_owned(),
        });
        let monitors = monitors.into_iter().map(|index| {
            Wire::Monitor(v1::Monitor {
                name: format!("m-{index}"),
                ..Default::default()
            })
        });
        let kinds = [prefix].into_iter().chain(monitors);
        kinds
            .map(|kind| v1::Resource { kind: Some(kind) })
            .collect()
    }

    async fn apply(keeper: &Keeper, resources: Vec<v1::Resource>) -> Arc<Snapshot> {
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
        keeper.present().unwrap()
    }

    fn read(message: &[Bytes]) -> v1::WatchResponse {
        let bytes = message.concat();
        let said = u32::from_be_bytes(bytes[1..PREFIX].try_into().unwrap());
        assert_eq!((bytes[0], said as usize), (0, bytes.len() - PREFIX));
        v1::WatchResponse::decode(&bytes[PREFIX..]).unwrap()
    }

    #[tokio::test]
    async fn whatever_kinds_are_watched_the_same_bytes_are_sent() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(Arc::new(Embedded::open(directory.path()).unwrap()));
        let one = apply(&keeper, resources(0..40)).await;
        let other = apply(&keeper, resources(40..80)).await;
        let mut watches = Watches::new(keeper, Drain::new());
        let [prefix, monitor] = [&[Kind::Prefix], &[Kind::Monitor]];
        let message = async |watches: &Watches, kinds: &[Kind]| {
            watches.message(None, &one, kinds).await.unwrap()
        };
        let [all, prefixes, monitors] = [
            message(&watches, &[]).await,
            message(&watches, prefix).await,
            message(&watches, monitor).await,
        ];
        let count = |message| read(message).upserts.len();
        assert_eq!([&all, &prefixes, &monitors].map(|m| count(m)), [41, 1, 40]);
        assert!(read(&all).full && read(&all).revision == 1);
        let at = |message: &[Bytes], part: usize| message[part].as_ptr();
        assert_eq!(at(&all, 1), at(&prefixes, 1));
        assert_eq!(at(&all, 2), at(&monitors, 1));

        let changed = watches.message(Some(&one), &other, &[]).await.unwrap();
        let change = read(&changed);
        assert!(!change.full);
        assert_eq!((change.upserts.len(), change.removals.len()), (40, 40));
        let changed_prefixes = watches.message(Some(&one), &other, prefix).await.unwrap();
        assert_eq!(read(&changed_prefixes).upserts.len(), 0);
        // What is longer than clients take is the whole.
        watches.longest = length(&changed) - 1;
        let whole = read(&watches.message(Some(&one), &other, &[]).await.unwrap());
        assert!(whole.full);
        assert_eq!(
            (whole.revision, whole.upserts.len(), whole.removals.len()),
            (2, 41, 0)
        );
    }
}
