//! A store that can be out of reach, lose answers and events, and go back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyport_config_service::{
    state::Latest,
    store::{Committed, Head, Object, ObjectId, Record, Store, StoreError, Version},
};
use anyport_model::names::Revision;
use prost::bytes::Bytes;

use crate::{chance::Chance, gate::Gate};

/// A replica gives up on a store that does not answer for so long.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the replicas share.
#[derive(Debug)]
pub struct Disk {
    kept: Mutex<Kept>,
    moved: Latest<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    head: Option<Record>,
    written: u64,
    records: BTreeMap<Revision, Record>,
    objects: BTreeMap<ObjectId, Bytes>,
    /// Every state that ever was the head's, by its revision, lost ones too.
    committed: BTreeSet<(Revision, ObjectId)>,
    /// States that were the head's, by their revision, until it went back.
    lost: BTreeSet<(Revision, ObjectId)>,
    rewinds: u64,
    answers_lost: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            moved: Latest::new(0),
        }
    }
}

impl Disk {
    pub fn head(&self) -> Option<Record> {
        self.kept().head.clone()
    }

    pub fn records(&self) -> Vec<Record> {
        self.kept().records.values().cloned().collect()
    }

    pub fn was_committed(&self, revision: Revision, hash: ObjectId) -> bool {
        self.kept().committed.contains(&(revision, hash))
    }

    /// Is it one of its revisions, and was never another time before it went back? (A write that is
    /// tried again may make the same one once more.)
    pub fn has_kept(&self, revision: Revision, hash: ObjectId) -> bool {
        let kept = self.kept();
        let record = kept.records.get(&revision);
        record.is_some_and(|record| record.state_hash == hash)
            && !kept.lost.contains(&(revision, hash))
    }

    pub fn commits(&self) -> u64 {
        self.kept().committed.len() as u64
    }

    pub fn rewinds(&self) -> u64 {
        self.kept().rewinds
    }

    pub fn answers_lost(&self) -> u64 {
        self.kept().answers_lost
    }

    /// As if it were restored from a copy that was made at one of its revisions.
    pub fn go_back(&self, chance: &Chance) {
        let mut kept = self.kept();
        let revisions: Vec<Revision> = kept.records.keys().copied().collect();
        let Some((_, old)) = revisions.split_last().filter(|(_, old)| !old.is_empty()) else {
            return;
        };
        let to = old[chance.below(old.len())];
        let lost = kept.records.split_off(&to.next()).into_values();
        kept.lost
            .extend(lost.map(|record| (record.revision, record.state_hash)));
        kept.head = kept.records.get(&to).cloned();
        // Its counter went on elsewhere.
        kept.written += 1_000;
        kept.rewinds += 1;
        let written = kept.written;
        drop(kept);
        self.moved.replace(written);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }
}

/// One replica's way to it.
#[derive(Debug)]
pub struct Reach {
    pub disk: Arc<Disk>,
    pub chance: Chance,
    /// Shut: it is out of reach.
    pub way: Gate,
    /// Shut: from now on everything works.
    pub troubled: Gate,
}

fn out_of_reach(action: &'static str) -> StoreError {
    StoreError::Unavailable {
        action,
        source: "the way to it is cut".into(),
    }
}

impl Reach {
    async fn go(&self, action: &'static str) -> Result<(), StoreError> {
        tokio::time::sleep(self.chance.milliseconds(20)).await;
        let there = tokio::time::timeout(PATIENCE, self.way.becomes(true)).await;
        if there.is_err() || self.fails(50) {
            return Err(out_of_reach(action));
        }
        Ok(())
    }

    fn fails(&self, one_in: usize) -> bool {
        self.troubled.is_open() && self.chance.one_in(one_in)
    }
}

#[tonic::async_trait]
impl Store for Reach {
    async fn head(&self) -> Result<Head, StoreError> {
        self.go("reading the head").await?;
        let kept = self.disk.kept();
        let (written, read) = (kept.written, kept.written);
        Ok(Head {
            record: kept.head.clone(),
            version: Version { written, read },
        })
    }

    async fn moved(&self, seen: &Head) -> Result<(), StoreError> {
        self.go("following the head").await?;
        if self.fails(5) {
            // An event that gets lost.
            return std::future::pending().await;
        }
        let mut moved = self.disk.moved.news();
        while moved.latest() == seen.version.written {
            tokio::select! {
                biased;
                () = self.way.becomes(false) => return Err(out_of_reach("following the head")),
                () = moved.changed() => {}
            }
        }
        Ok(())
    }

    async fn objects(&self, ids: &[ObjectId]) -> Result<Vec<Bytes>, StoreError> {
        self.go("reading objects").await?;
        let kept = self.disk.kept();
        let missing = |id: &ObjectId| StoreError::Corrupt {
            what: format!("object {id}"),
            problem: "is missing".to_owned(),
        };
        let found = ids
            .iter()
            .map(|id| kept.objects.get(id).cloned().ok_or_else(|| missing(id)));
        found.collect()
    }

    async fn commit(
        &self,
        seen: &Head,
        record: &Record,
        objects: &[Object],
    ) -> Result<Committed, StoreError> {
        for object in objects {
            // One by one, as a large commit on etcd; what a crash leaves is nobody's.
            self.go("storing an object").await?;
            let bytes = Bytes::copy_from_slice(object.bytes());
            self.disk.kept().objects.insert(object.id(), bytes);
        }
        self.go("moving the head").await?;
        let written = {
            let mut kept = self.disk.kept();
            if kept.written != seen.version.written {
                return Ok(Committed::Conflict);
            }
            kept.written += 1;
            kept.head = Some(record.clone());
            kept.records.insert(record.revision, record.clone());
            kept.committed.insert((record.revision, record.state_hash));
            kept.written
        };
        self.disk.moved.replace(written);
        if self.fails(10) {
            self.disk.kept().answers_lost += 1;
            return Err(out_of_reach("moving the head"));
        }
        let read = written;
        Ok(Committed::Done(Version { written, read }))
    }

    async fn record(&self, revision: Revision) -> Result<Option<Record>, StoreError> {
        self.go("reading a record").await?;
        Ok(self.disk.kept().records.get(&revision).cloned())
    }

    async fn records_below(
        &self,
        below: Revision,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.go("reading records").await?;
        let kept = self.disk.kept();
        let below = kept.records.range(..below).rev().take(limit);
        Ok(below.map(|(_, record)| record.clone()).collect())
    }

    async fn oldest(&self) -> Result<Option<Record>, StoreError> {
        self.go("reading a record").await?;
        Ok(self.disk.kept().records.values().next().cloned())
    }

    async fn stored(&self) -> Result<Vec<ObjectId>, StoreError> {
        self.go("listing objects").await?;
        Ok(self.disk.kept().objects.keys().copied().collect())
    }

    /// Nothing is forgotten in these stories.
    async fn forget(&self, _: &Head, _: Revision, _: &[ObjectId]) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn takes_writes(&self) -> Result<(), StoreError> {
        self.go("asking whether it takes writes").await
    }
}
