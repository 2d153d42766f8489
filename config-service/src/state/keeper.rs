//! The one place that moves the present state.
//!
//! Readers take the latest [`Snapshot`] and wait for the next. It moves by a
//! write of this replica or by one of another, and both go through one lock, so
//! that it never moves back to what was read before a write. What the store
//! says is true, even where its revision is lower than ours: then it was
//! restored from a backup.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyport_model::{names::Revision, resource::ResourceRef, state::Resources};
use anyport_node::ready::Condition;
use tokio::sync::{MutexGuard, watch};

use super::{
    layout::{Layout, LayoutError},
    snapshot::{REMEMBERED, Recent, Snapshot, StateAt},
};
use crate::{
    store::{Committed, Head, Object, Record, Store, StoreError},
    trouble::Trouble,
};

/// The store is read again at least this often: an event may get lost.
const REREAD: Duration = Duration::from_secs(20);
/// States kept in memory, for subscribers and pages that are a little behind.
const HELD: usize = 16;

/// Holds the present state. Clones share it.
#[derive(Debug, Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    /// `None` until the store was read for the first time.
    present: watch::Sender<Option<Arc<Snapshot>>>,
    held: Mutex<VecDeque<Arc<StateAt>>>,
    moving: tokio::sync::Mutex<()>,
    /// Why a commit failed last. Reading may go on where writing does not.
    failed_commit: watch::Sender<Option<String>>,
}

/// The right to move the present state: nothing else of this replica does
/// meanwhile.
pub struct Turn<'a> {
    keeper: &'a Keeper,
    _lock: MutexGuard<'a, ()>,
}

/// A state that is not stored yet.
#[derive(Debug)]
pub struct Draft {
    state: StateAt,
    objects: Vec<Object>,
}

impl Draft {
    /// The next revision after `present`, of which `changed` resources differ.
    pub fn new<'a>(
        present: &StateAt,
        resources: Resources,
        changed: impl IntoIterator<Item = &'a ResourceRef>,
    ) -> Self {
        let (layout, objects) = present.layout.rewrite(&resources, changed);
        let revision = present.revision.next();
        Self {
            state: StateAt {
                revision,
                layout,
                resources,
            },
            objects,
        }
    }

    pub fn state(&self) -> &StateAt {
        &self.state
    }
}

impl Keeper {
    /// Knows nothing until it is [`follow`]ed or refreshed.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            shared: Arc::new(Shared {
                store,
                present: watch::Sender::new(None),
                held: Mutex::default(),
                moving: tokio::sync::Mutex::default(),
                failed_commit: watch::Sender::new(None),
            }),
        }
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// The latest state known; `None` until the store was read.
    pub fn present(&self) -> Option<Arc<Snapshot>> {
        self.shared.present.borrow().clone()
    }

    /// Follows the latest state.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.shared.present.subscribe()
    }

    /// Waits for the right to move the present state.
    pub async fn turn(&self) -> Turn<'_> {
        Turn {
            keeper: self,
            _lock: self.shared.moving.lock().await,
        }
    }

    /// The state of a revision that is still kept.
    pub async fn at(&self, revision: Revision) -> Result<Option<Arc<StateAt>>, StoreError> {
        if revision == Revision::EMPTY {
            return Ok(Some(Arc::new(StateAt::empty())));
        }
        let held = {
            let held = self.held();
            held.iter()
                .rev()
                .find(|state| state.revision == revision)
                .cloned()
        };
        if held.is_some() {
            return Ok(held);
        }
        match self.shared.store.record(revision).await? {
            Some(record) => self.load(&record).await.map(Some),
            None => Ok(None),
        }
    }

    /// Reads the state of a record; what the present one shares with it is not
    /// read again.
    async fn load(&self, record: &Record) -> Result<Arc<StateAt>, StoreError> {
        let what = || format!("revision {}", record.revision);
        let damaged = |error: LayoutError| StoreError::corrupt(what(), error);
        let known = match self.present() {
            Some(present) => Arc::clone(present.state()),
            None => Arc::new(StateAt::empty()),
        };
        let layout = if record.state_hash == known.hash() {
            known.layout.clone()
        } else if record.state_hash == Layout::empty().id() {
            Layout::empty()
        } else {
            let bytes = self.shared.store.objects(&[record.state_hash]).await?;
            Layout::decode(bytes.first().map_or(&[], AsRef::as_ref)).map_err(damaged)?
        };
        let beyond = layout.beyond(&known.layout);
        let chunks = self.shared.store.objects(beyond.chunks()).await?;
        let resources = beyond
            .complete(&known.resources, &chunks)
            .map_err(damaged)?;
        Ok(Arc::new(StateAt {
            revision: record.revision,
            layout,
            resources,
        }))
    }

    fn publish(&self, snapshot: Snapshot) -> Arc<Snapshot> {
        let snapshot = Arc::new(snapshot);
        {
            let mut held = self.held();
            // After a restore from a backup, a revision may come a second time
            // with another state.
            held.retain(|state| state.revision < snapshot.revision());
            held.push_back(Arc::clone(snapshot.state()));
            if held.len() > HELD {
                held.pop_front();
            }
        }
        self.shared
            .present
            .send_replace(Some(Arc::clone(&snapshot)));
        snapshot
    }

    fn held(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<StateAt>>> {
        // Every change to it is a single step, so a panic leaves it sound.
        self.shared
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Takes what the store says.
    pub async fn refresh(&self) -> Result<Arc<Snapshot>, StoreError> {
        let Keeper { shared } = self.keeper;
        let head = shared.store.head().await?;
        let present = self.keeper.present();
        if let Some(present) = present
            && present.head.is_same_write(&head)
        {
            return Ok(present);
        }
        let (state, recent) = match &head.record {
            None => (Arc::new(StateAt::empty()), Recent::default()),
            Some(record) => {
                let below = record.revision.next();
                let records = shared.store.records_below(below, REMEMBERED).await?;
                (self.keeper.load(record).await?, Recent::of(&records))
            }
        };
        Ok(self.keeper.publish(Snapshot {
            head,
            state,
            recent,
        }))
    }

    /// Stores a draft made from `present`, and makes it the present state;
    /// `None` where another replica was first.
    pub async fn commit(
        &self,
        present: &Snapshot,
        draft: Draft,
        record: Record,
    ) -> Result<Option<Arc<Snapshot>>, StoreError> {
        let Keeper { shared } = self.keeper;
        let revision = record.revision.0;
        let committed = shared.store.commit(&present.head, &record, &draft.objects);
        let committed = committed.await.inspect_err(|error| {
            tracing::error!(revision, %error, "the store did not take a revision");
            shared.failed_commit.send_replace(Some(error.to_string()));
        })?;
        match committed {
            Committed::Conflict => Ok(None),
            Committed::Done(version) => {
                let mut recent = present.recent.clone();
                recent.add(&record);
                let head = Head {
                    record: Some(record),
                    version,
                };
                Ok(Some(self.keeper.publish(Snapshot {
                    head,
                    state: Arc::new(draft.state),
                    recent,
                })))
            }
        }
    }
}

/// Keeps the present state true, without end. `readiness` says whether the store
/// can be reached, and took the latest revision.
pub async fn follow(keeper: &Keeper, readiness: &Condition) -> Infallible {
    let mut trouble = Trouble::new("the store");
    loop {
        let error = match follow_until_error(keeper, readiness, &mut trouble).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let pause = trouble.again(&error, rand::random());
        readiness.set_not_ready(error.to_string());
        tokio::time::sleep(pause).await;
    }
}

async fn follow_until_error(
    keeper: &Keeper,
    readiness: &Condition,
    trouble: &mut Trouble,
) -> Result<Infallible, StoreError> {
    let mut failed_commit = keeper.shared.failed_commit.subscribe();
    loop {
        failed_commit.mark_unchanged();
        // Read before the state is: what comes after it wakes the next wait.
        let head = keeper.store().head().await?;
        keeper.turn().await.refresh().await?;
        readiness.set_ready();
        trouble.over();
        let mut moved = pin!(keeper.store().moved(&head));
        let mut reread = pin!(tokio::time::sleep(REREAD));
        loop {
            tokio::select! {
                moved = &mut moved => {
                    moved?;
                    break;
                }
                () = &mut reread => break,
                // Cannot fail: `keeper` holds the sender. Told until the state
                // is read again, which a later commit brings about.
                _ = failed_commit.changed() => {
                    if let Some(error) = failed_commit.borrow_and_update().clone() {
                        readiness.set_not_ready(error);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::SystemTime;

    use anyport_node::ready::Readiness;
    use anyport_proto::v1;

    use super::*;
    use crate::{
        admit::{Conditions, Intent, Writer, read_apply},
        store::embedded::full_disk::{self, Full},
    };

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn until(readiness: &Readiness, ready: bool) -> String {
        let mut changes = readiness.changes();
        let found = tokio::time::timeout(PATIENCE, async {
            while changes.report().is_ready() != ready {
                changes.next().await;
            }
        });
        found.await.expect("readiness changes");
        readiness.report().to_string()
    }

    #[tokio::test]
    async fn a_commit_that_fails_makes_the_service_not_ready_until_one_is_good() {
        let (directory, full) = (tempfile::tempdir().unwrap(), Full::default());
        let keeper = Keeper::new(Arc::new(full_disk::store(directory.path(), &full)));
        let readiness = Readiness::new();
        let condition = readiness.condition("store", "not read yet");
        let following = tokio::spawn({
            let keeper = keeper.clone();
            async move { follow(&keeper, &condition).await }
        });
        until(&readiness, true).await;
        let writer = Writer::new(keeper);
        let write = async || {
            let kind = v1::resource::Kind::Prefix(v1::Prefix {
                cidr: "198.51.100.0/24".to_owned(),
            });
            let intent = Intent::Apply {
                request: read_apply(vec![v1::Resource { kind: Some(kind) }]),
                prune: false,
            };
            writer
                .write(intent, Conditions::default(), SystemTime::now)
                .await
        };
        full.set(true);
        write().await.unwrap_err();
        let said = until(&readiness, false).await;
        assert!(said.contains("store: the store is out of reach"), "{said}");
        full.set(false);
        write().await.unwrap();
        until(&readiness, true).await;
        following.abort();
    }
}
