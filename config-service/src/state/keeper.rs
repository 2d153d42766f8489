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
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyport_model::{
    names::Revision,
    resource::{Kind, ResourceRef},
    state::Resources,
};
use anyport_node::ready::Condition;
use tokio::sync::watch;

use super::{
    latest::{Latest, News},
    layout::{Layout, LayoutError, is_sealed_with_first},
    rewind::{Book, Rewind, Rewinds},
    seal::StoreKeys,
    snapshot::{REMEMBERED, Recent, Snapshot, StateAt, Target},
};
use crate::{
    random::Random,
    store::{Committed, Head, Object, ObjectId, Record, Store, StoreError, StoreName},
    trouble::Trouble,
};

/// The store is read again at least this often: an event may get lost.
const REREAD: Duration = Duration::from_secs(20);
/// And this often while it takes no writes.
const REFUSED_REREAD: Duration = Duration::from_secs(2);
/// States kept in memory, for subscribers and pages that are a little behind.
const HELD: usize = 16;
/// Chunks read at once, to look how they are sealed.
const CHUNKS_AT_ONCE: usize = 32;

/// Holds the present state. Clones share it.
#[derive(Debug, Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    keys: StoreKeys,
    /// That a private key is stored as it is was said.
    warned: AtomicBool,
    /// `None` until the store was read for the first time.
    present: Latest<Option<Arc<Snapshot>>>,
    held: Mutex<VecDeque<Arc<StateAt>>>,
    moving: tokio::sync::Mutex<()>,
    /// Why a commit failed last. Reading may go on where writing does not.
    failed_commit: watch::Sender<Option<String>>,
    /// When the store last could not be asked, and why.
    out_of_reach: Mutex<Option<(Instant, &'static str, String)>>,
    rewinds: Book,
    random: Random,
}

/// The right to move the present state: nothing else of this replica does
/// meanwhile.
pub struct Turn<'a> {
    keeper: &'a Keeper,
    _lock: tokio::sync::MutexGuard<'a, ()>,
}

/// A state that is not stored yet.
#[derive(Debug)]
pub struct Draft {
    state: StateAt,
    objects: Vec<Object>,
}

impl Draft {
    pub fn state(&self) -> &StateAt {
        &self.state
    }
}

impl Keeper {
    /// Knows nothing until it is [`follow`]ed or refreshed. Private keys are stored
    /// as they are.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self::sealing(store, StoreKeys::default())
    }

    /// As [`new`](Self::new), where private keys are sealed with `keys`.
    pub fn sealing(store: Arc<dyn Store>, keys: StoreKeys) -> Self {
        Self {
            shared: Arc::new(Shared {
                store,
                keys,
                warned: AtomicBool::new(false),
                present: Latest::new(None),
                held: Mutex::default(),
                moving: tokio::sync::Mutex::default(),
                failed_commit: watch::Sender::new(None),
                out_of_reach: Mutex::default(),
                rewinds: Book::default(),
                random: Random::default(),
            }),
        }
    }

    /// As [`new`](Self::new), where pauses are as long as these numbers say.
    pub fn with_random(store: Arc<dyn Store>, random: Random) -> Self {
        let mut keeper = Self::new(store);
        if let Some(shared) = Arc::get_mut(&mut keeper.shared) {
            shared.random = random;
        }
        keeper
    }

    /// Uniform over all 64 bits.
    pub fn random(&self) -> u64 {
        self.shared.random.next()
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// The latest state known; `None` until the store was read.
    pub fn present(&self) -> Option<Arc<Snapshot>> {
        self.shared.present.get()
    }

    /// The next revision after `present`, of which `changed` resources differ.
    pub fn draft(&self, present: &StateAt, resources: Resources, changed: &[ResourceRef]) -> Draft {
        let Shared { keys, warned, .. } = &*self.shared;
        let stores_key = |reference: &ResourceRef| {
            is_certificate(reference) && resources.contains_key(reference)
        };
        if keys.are_none()
            && changed.iter().any(stores_key)
            && !warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("private keys are stored as they are; --store-key seals them");
        }
        let (layout, objects) = present.layout.rewrite(&resources, changed, keys);
        Draft {
            state: StateAt {
                revision: present.revision.next(),
                layout,
                resources,
            },
            objects,
        }
    }

    /// The key that seals, by its name, where private keys of this state are stored
    /// otherwise: sealed with another one, or as they are.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn seals_anew(&self, state: &StateAt) -> Result<Option<String>, StoreError> {
        let Shared { keys, store, .. } = &*self.shared;
        let Some(first) = keys.first() else {
            return Ok(None);
        };
        let certificates = state
            .resources
            .keys()
            .filter(|reference| is_certificate(reference));
        let chunks = state.layout.chunks_of(certificates);
        for some in chunks.chunks(CHUNKS_AT_ONCE) {
            for chunk in store.objects(some).await? {
                let sealed = is_sealed_with_first(&chunk, keys);
                if !sealed.map_err(|error| damaged(state.revision, error))? {
                    return Ok(Some(first));
                }
            }
        }
        Ok(None)
    }

    /// Follows the latest state.
    pub fn subscribe(&self) -> News<Option<Arc<Snapshot>>> {
        self.shared.present.news()
    }

    /// Follows how often the store was found to have gone back.
    pub fn rewinds(&self) -> watch::Receiver<Rewinds> {
        self.shared.rewinds.subscribe()
    }

    /// Follows how often the present state of this replica was found to be lost. What
    /// nodes tell does not count: anyone may say what it holds.
    pub fn own_rewinds(&self) -> watch::Receiver<u64> {
        self.shared.rewinds.own()
    }

    /// Makes sure that whoever holds a revision, with the hash of its state and the
    /// name of its store where that is known, is not led back by a replica that merely
    /// has not heard of it yet: the store is asked. Where it does not know it either,
    /// that is noted, unless it is another store's.
    ///
    /// # Errors
    /// Where the store would have to be asked, and cannot be; where it is empty.
    pub async fn catch_up_with(
        &self,
        revision: Revision,
        hash: ObjectId,
        store: Option<StoreName>,
        node: &str,
    ) -> Result<(), StoreError> {
        let Some(present) = self.present() else {
            return Ok(());
        };
        if self.knows(&present, revision, hash).await? {
            return Ok(());
        }
        // Not by its number alone: after the store went back, what is in memory here
        // may be the revision of that number that is lost.
        let present = self.turn().await?.refresh().await?;
        if self.knows(&present, revision, hash).await? {
            return Ok(());
        }
        let latest = present.revision();
        match (store, present.store()) {
            (Some(theirs), Some(ours)) if theirs != ours => {
                tracing::warn!(
                    node,
                    revision = revision.0,
                    "a node comes with a revision of another store; it is led to what this one holds"
                );
            }
            _ => self.note_rewind((revision, hash), latest, Some(node)),
        }
        match latest {
            Revision::EMPTY => Err(emptied(revision)),
            _ => Ok(()),
        }
    }

    /// Is it a revision of the store, as far as is known at `present`?
    async fn knows(
        &self,
        present: &Snapshot,
        revision: Revision,
        hash: ObjectId,
    ) -> Result<bool, StoreError> {
        let latest = present.revision();
        if revision == Revision::EMPTY {
            return Ok(true);
        }
        if revision >= latest {
            return Ok(revision == latest && hash == present.hash());
        }
        let held = self
            .held()
            .iter()
            .rev()
            .find(|s| s.revision == revision)
            .map(|s| s.hash());
        let known = match held {
            Some(hash) => Some(hash),
            None => {
                let record = self.shared.store.record(revision).await?;
                record.map(|record| record.state_hash)
            }
        };
        // Where it is not kept any more, nobody can tell.
        Ok(known.is_none_or(|known| known == hash))
    }

    fn note_rewind(
        &self,
        (lost, hash): (Revision, ObjectId),
        latest: Revision,
        node: Option<&str>,
    ) {
        let noticed_at = SystemTime::now();
        let rewind = Rewind {
            lost,
            latest,
            noticed_at,
        };
        self.shared.rewinds.note(rewind, hash, node);
    }

    /// Is what was the latest record still in the history, as far as that can be
    /// told?
    async fn leads_on_from(&self, record: &Record, head: &Head) -> Result<bool, StoreError> {
        if record.revision >= head.revision() {
            return Ok(head.record.as_ref() == Some(record));
        }
        let found = self.shared.store.record(record.revision).await?;
        Ok(found.is_none_or(|found| found == *record))
    }

    /// Waits for the right to move the present state.
    ///
    /// # Errors
    /// Where the store was found out of reach meanwhile: to find that out takes
    /// seconds, and those who wait do not do it one after the other.
    pub async fn turn(&self) -> Result<Turn<'_>, StoreError> {
        let began = Instant::now();
        let turn = Turn {
            keeper: self,
            _lock: self.shared.moving.lock().await,
        };
        let found = self.out_of_reach();
        match &*found {
            Some((at, action, why)) if *at > began => {
                Err(StoreError::unavailable(action, why.clone()))
            }
            _ => Ok(turn),
        }
    }

    fn out_of_reach(&self) -> MutexGuard<'_, Option<(Instant, &'static str, String)>> {
        let found = self.shared.out_of_reach.lock();
        found.unwrap_or_else(PoisonError::into_inner)
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
        let store = &self.shared.store;
        let Some(record) = store.record(revision).await? else {
            return Ok(None);
        };
        match self.load(&record).await {
            // Forgotten while it was read?
            Err(StoreError::Corrupt { .. }) if store.record(revision).await?.is_none() => Ok(None),
            loaded => loaded.map(Some),
        }
    }

    /// A revision that nodes have while some try a later one.
    async fn target(
        &self,
        revision: Revision,
        written: u64,
        store: Option<StoreName>,
    ) -> Result<Arc<Target>, StoreError> {
        let record = match revision {
            Revision::EMPTY => None,
            _ => self.shared.store.record(revision).await?,
        };
        match self.at(revision).await? {
            Some(state) => Ok(Target::of(record.as_ref(), state, written, store)),
            None => Err(StoreError::corrupt(
                format_args!("revision {revision}"),
                "is gone, and all have it that do not try the latest",
            )),
        }
    }

    /// Reads the state of a record; what the present one shares with it is not
    /// read again.
    async fn load(&self, record: &Record) -> Result<Arc<StateAt>, StoreError> {
        let damaged = |error| damaged(record.revision, error);
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
            .complete(&known.resources, &chunks, &self.shared.keys)
            .map_err(damaged)?;
        Ok(Arc::new(StateAt {
            revision: record.revision,
            layout,
            resources,
        }))
    }

    async fn read(&self, head: Head) -> Result<Snapshot, StoreError> {
        let (state, recent) = match &head.record {
            None => (Arc::new(StateAt::empty()), Recent::default()),
            Some(record) => {
                let below = record.revision.next();
                let records = self.shared.store.records_below(below, REMEMBERED).await?;
                (self.load(record).await?, Recent::of(&records))
            }
        };
        let tried = head.record.as_ref();
        let stable = match tried.and_then(|record| record.rollout.as_ref()) {
            Some(rollout) => {
                let target = self.target(rollout.stable, head.version.written, recent.store());
                Some(target.await?)
            }
            None => None,
        };
        Ok(Snapshot::new(head, state, stable, recent))
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
        self.shared.present.replace(Some(Arc::clone(&snapshot)));
        snapshot
    }

    fn held(&self) -> MutexGuard<'_, VecDeque<Arc<StateAt>>> {
        // Every change to it is a single step, so a panic leaves it sound.
        self.shared
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_certificate(reference: &ResourceRef) -> bool {
    reference.kind() == Kind::Certificate
}

fn damaged(revision: Revision, error: LayoutError) -> StoreError {
    let what = format!("revision {revision}");
    match error {
        LayoutError::Sealed(error) => StoreError::Sealed(format!("{what}: {error}")),
        error => StoreError::corrupt(what, error),
    }
}

/// A store that lost all that it held is no state to lead anybody to: every edge
/// would drop every app. What is held stays until there is a first revision again.
fn emptied(held: Revision) -> StoreError {
    StoreError::corrupt(
        "it",
        format_args!(
            "is empty, and revision {held} was in it; restore it from a copy, or restart the \
             config services and apply everything anew: until then edges keep what they have"
        ),
    )
}

impl Turn<'_> {
    /// Whose state moves.
    pub fn keeper(&self) -> &Keeper {
        self.keeper
    }

    /// Takes what the store says.
    pub async fn refresh(&self) -> Result<Arc<Snapshot>, StoreError> {
        let refreshed = self.take_latest().await;
        if let Err(StoreError::Unavailable { action, source }) = &refreshed {
            let found = (Instant::now(), *action, source.to_string());
            *self.keeper.out_of_reach() = Some(found);
        }
        refreshed
    }

    async fn take_latest(&self) -> Result<Arc<Snapshot>, StoreError> {
        let store = &self.keeper.shared.store;
        let mut head = store.head().await?;
        loop {
            let present = self.keeper.present();
            if let Some(present) = &present
                && present.head().is_same_write(&head)
            {
                return Ok(Arc::clone(present));
            }
            let ours = present.as_ref().and_then(|p| p.head().record.as_ref());
            let lost = match ours {
                Some(ours) if head.record.is_none() => return Err(emptied(ours.revision)),
                Some(ours) if !self.keeper.leads_on_from(ours, &head).await? => {
                    Some((ours.revision, ours.state_hash))
                }
                _ => None,
            };
            let damaged = match self.keeper.read(head.clone()).await {
                Ok(snapshot) => {
                    if lost.is_some() {
                        // A number that is lost may mean another state by now.
                        self.keeper.held().clear();
                    }
                    let restored = self.keeper.publish(snapshot);
                    if let Some(lost) = lost {
                        self.keeper.note_rewind(lost, restored.revision(), None);
                    }
                    return Ok(restored);
                }
                Err(error @ StoreError::Corrupt { .. }) => error,
                Err(error) => return Err(error),
            };
            // What is old by now may have been forgotten while it was read.
            let now = store.head().await?;
            if now.is_same_write(&head) {
                return Err(damaged);
            }
            head = now;
        }
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
        let committed = shared.store.commit(present.head(), &record, &draft.objects);
        let committed = committed.await.inspect_err(|error| {
            tracing::error!(revision, %error, "the store did not take a revision");
            shared.failed_commit.send_replace(Some(error.to_string()));
        })?;
        match committed {
            Committed::Conflict => Ok(None),
            Committed::Done(version) => {
                shared.failed_commit.send_replace(None);
                let mut recent = present.recent().clone();
                recent.add(&record);
                let stable = record.rollout.is_some();
                let stable = stable.then(|| Arc::clone(present.latest()));
                let head = Head {
                    record: Some(record),
                    version,
                };
                let snapshot = Snapshot::new(head, Arc::new(draft.state), stable, recent);
                Ok(Some(self.keeper.publish(snapshot)))
            }
        }
    }
}

/// Keeps the present state true, without end. `readiness` says whether the store
/// can be reached, and takes writes, as far as it is known.
pub async fn follow(keeper: &Keeper, readiness: &Condition) -> Infallible {
    let mut trouble = Trouble::new("the store");
    loop {
        let error = match follow_until_error(keeper, readiness, &mut trouble).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let pause = trouble.again(&error, keeper.random());
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
        // Read before the state is: what comes after it wakes the next wait.
        let head = keeper.store().head().await?;
        keeper.turn().await?.refresh().await?;
        trouble.over();
        let failed = failed_commit.borrow_and_update().is_some();
        let taken = match failed {
            true => keeper.store().takes_writes().await,
            false => Ok(()),
        };
        let again = match taken {
            Ok(()) => {
                if failed {
                    keeper.shared.failed_commit.send_replace(None);
                }
                readiness.set_ready();
                REREAD
            }
            Err(error) => {
                readiness.set_not_ready(error.to_string());
                REFUSED_REREAD
            }
        };
        let mut moved = pin!(keeper.store().moved(&head));
        let mut reread = pin!(tokio::time::sleep(again));
        loop {
            tokio::select! {
                // In this order, so that a simulation can be replayed.
                biased;
                moved = &mut moved => {
                    moved?;
                    break;
                }
                () = &mut reread => break,
                // Cannot fail: `keeper` holds the sender. Told until a commit is
                // good, or the store is asked again.
                _ = failed_commit.changed() => {
                    let failed = failed_commit.borrow_and_update().clone();
                    match failed {
                        Some(error) => {
                            readiness.set_not_ready(error);
                            let soon = tokio::time::Instant::now() + REFUSED_REREAD;
                            reread.as_mut().reset(soon);
                        }
                        None => readiness.set_ready(),
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
        store::embedded::{
            Embedded,
            full_disk::{self, Full},
        },
    };

    const PATIENCE: Duration = Duration::from_secs(60);

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

    /// As while replicas are replaced, one after the other.
    #[tokio::test]
    async fn a_store_keeps_its_name_where_a_replica_that_knows_no_names_writes() {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(directory.path()).unwrap());
        let writer = Writer::new(Keeper::new(Arc::clone(&store)));
        let write = async |cidr: &str| {
            let kind = v1::resource::Kind::Prefix(v1::Prefix {
                cidr: cidr.to_owned(),
            });
            let intent = Intent::Apply {
                request: read_apply(vec![v1::Resource { kind: Some(kind) }]),
                prune: false,
            };
            let written = writer.write(intent, Conditions::default(), SystemTime::now);
            let written = written.await.unwrap();
            let record = store.record(written.revision).await.unwrap();
            record.unwrap()
        };
        let named = write("198.51.100.0/24").await;
        assert!(named.store.is_some());

        let older = Keeper::new(Arc::clone(&store));
        let turn = older.turn().await.unwrap();
        let present = turn.refresh().await.unwrap();
        let draft = older.draft(present.state(), present.resources().clone(), &[]);
        let nameless = Record {
            revision: draft.state().revision,
            store: None,
            ..named.clone()
        };
        let committed = turn.commit(&present, draft, nameless).await.unwrap();
        assert_eq!(committed.unwrap().store(), named.store);

        let anew = Keeper::new(Arc::clone(&store));
        let present = anew.turn().await.unwrap().refresh().await.unwrap();
        assert_eq!(present.store(), named.store);
        assert_eq!(present.stable().store, named.store);
        assert_eq!(write("203.0.113.0/24").await.store, named.store);
    }
}
