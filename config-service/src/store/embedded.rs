//! The store in one file, for a single config service.
//!
//! redb: a commit is on disk, whole, when it returns, and a process that dies at
//! any point leaves the last one. A whole write is one transaction of redb, so
//! that nothing is left over from one that was given up. After an error of the
//! disk the file is opened anew.

mod file;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyport_model::names::Revision;
use prost::bytes::Bytes;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::watch;

use self::file::File;
use super::{
    Committed, Head, Object, ObjectId, Record, Store, StoreError, Version, decode_record, verified,
};

const FILE: &str = "config.redb";

/// Makes the file readable by its owner alone, also where it is older than
/// that, or the directory was made by somebody else.
fn own_alone(path: &Path) -> io::Result<()> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

/// Revision to record. The head is the last one.
const RECORDS: TableDefinition<u64, &[u8]> = TableDefinition::new("records");
const OBJECTS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("objects");

/// A store in a file that this process alone has open.
#[derive(Debug)]
pub struct Embedded {
    file: Arc<File>,
    /// The latest revision; there is one writer, so it counts writes too.
    latest: watch::Sender<u64>,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("--store embedded:{}: cannot make the directory", directory.display())]
    Directory {
        directory: PathBuf,
        source: io::Error,
    },
    #[error("--store embedded:{}: {FILE} is in use by another process; a second config service needs a directory of its own, or both need etcd", directory.display())]
    InUse { directory: PathBuf },
    #[error("--store embedded:{}: cannot open {FILE}", directory.display())]
    Database {
        directory: PathBuf,
        source: redb::Error,
    },
    #[error("--store embedded:{}", directory.display())]
    Read {
        directory: PathBuf,
        source: StoreError,
    },
}

impl Embedded {
    /// Opens the store in `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// [`OpenError`], naming the directory.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let at = || directory.to_owned();
        // For nobody else: private keys of certificates are in it.
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory);
        made.map_err(|source| OpenError::Directory {
            directory: at(),
            source,
        })?;
        let path = directory.join(FILE);
        own_alone(&path).map_err(|source| OpenError::Directory {
            directory: at(),
            source,
        })?;
        let store = Self::on(move || Database::create(&path)).map_err(|error| match error {
            redb::Error::DatabaseAlreadyOpen => OpenError::InUse { directory: at() },
            source => OpenError::Database {
                directory: at(),
                source,
            },
        })?;
        let head = store.file.work("reading the head", read_head);
        head.map_err(|source| OpenError::Read {
            directory: at(),
            source,
        })?;
        Ok(store)
    }

    /// `open` is called again after an error of the disk.
    fn on<F>(open: F) -> Result<Self, redb::Error>
    where
        F: Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static,
    {
        let latest = watch::Sender::new(0);
        let told = latest.clone();
        let file = File::open(Box::new(move || {
            let database = open()?;
            prepare(&database, &told)?;
            Ok(database)
        }))?;
        Ok(Self {
            file: Arc::new(file),
            latest,
        })
    }

    /// Runs `work` where it may wait for the disk.
    async fn blocking<T, F>(&self, action: &'static str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    {
        let file = Arc::clone(&self.file);
        let done = tokio::task::spawn_blocking(move || file.work(action, work)).await;
        done.map_err(|error| StoreError::unavailable(action, error))?
    }
}

#[tonic::async_trait]
impl Store for Embedded {
    async fn head(&self) -> Result<Head, StoreError> {
        self.blocking("reading the head", read_head).await
    }

    async fn moved(&self, seen: &Head) -> Result<(), StoreError> {
        let mut latest = self.latest.subscribe();
        let moved = latest.wait_for(|latest| *latest != seen.version.written);
        moved
            .await
            .map(drop)
            .map_err(|error| StoreError::unavailable("waiting for a change", error))
    }

    async fn objects(&self, ids: &[ObjectId]) -> Result<Vec<Bytes>, StoreError> {
        let ids = ids.to_vec();
        self.blocking("reading a state", move |database| {
            let failed = |error: redb::Error| StoreError::unavailable("reading a state", error);
            let read = database.begin_read().map_err(|e| failed(e.into()))?;
            let objects = read.open_table(OBJECTS).map_err(|e| failed(e.into()))?;
            let get = |id: ObjectId| {
                let bytes = objects.get(id.as_bytes()).map_err(|e| failed(e.into()))?;
                verified(id, bytes.map(|bytes| Bytes::copy_from_slice(bytes.value())))
            };
            ids.into_iter().map(get).collect()
        })
        .await
    }

    async fn commit(
        &self,
        seen: &Head,
        record: &Record,
        objects: &[Object],
    ) -> Result<Committed, StoreError> {
        let (seen, record, objects) = (seen.clone(), record.clone(), objects.to_vec());
        let latest = self.latest.clone();
        self.blocking("writing a revision", move |database| {
            if !write(database, &seen, &record, &objects)
                .map_err(|error| StoreError::unavailable("writing a revision", error))?
            {
                return Ok(Committed::Conflict);
            }
            // Said here and not by the caller, who may have gone meanwhile.
            raise(&latest, record.revision.0);
            Ok(Committed::Done(version(record.revision.0)))
        })
        .await
    }

    async fn record(&self, revision: Revision) -> Result<Option<Record>, StoreError> {
        let below = Revision(revision.0.saturating_add(1));
        let found = self.records_below(below, 1).await?;
        Ok(found.into_iter().find(|record| record.revision == revision))
    }

    async fn records_below(
        &self,
        below: Revision,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.blocking("reading the history", move |database| {
            let failed = |error: redb::Error| StoreError::unavailable("reading the history", error);
            let read = database.begin_read().map_err(|e| failed(e.into()))?;
            let records = read.open_table(RECORDS).map_err(|e| failed(e.into()))?;
            let range = records.range(..below.0).map_err(|e| failed(e.into()))?;
            range
                .rev()
                .take(limit)
                .map(|entry| {
                    let (revision, bytes) = entry.map_err(|e| failed(e.into()))?;
                    decode_record(format_args!("revision {}", revision.value()), bytes.value())
                })
                .collect()
        })
        .await
    }

    async fn oldest(&self) -> Result<Option<Record>, StoreError> {
        self.blocking("reading the history", |database| {
            let failed = |error: redb::Error| StoreError::unavailable("reading the history", error);
            let read = database.begin_read().map_err(|e| failed(e.into()))?;
            let records = read.open_table(RECORDS).map_err(|e| failed(e.into()))?;
            let first = records.first().map_err(|e| failed(e.into()))?;
            let record = first.map(|(revision, bytes)| {
                decode_record(format_args!("revision {}", revision.value()), bytes.value())
            });
            record.transpose()
        })
        .await
    }

    async fn stored(&self) -> Result<Vec<ObjectId>, StoreError> {
        self.blocking("listing objects", |database| {
            stored(database).map_err(|error| StoreError::unavailable("listing objects", error))
        })
        .await
    }

    async fn forget(
        &self,
        seen: &Head,
        oldest_kept: Revision,
        unused: &[ObjectId],
    ) -> Result<bool, StoreError> {
        let (seen, unused) = (seen.clone(), unused.to_vec());
        self.blocking("forgetting old revisions", move |database| {
            forget(database, &seen, oldest_kept, &unused)
                .map_err(|error| StoreError::unavailable("forgetting old revisions", error))
        })
        .await
    }

    async fn takes_writes(&self) -> Result<(), StoreError> {
        const ACTION: &str = "asking whether it takes writes";
        self.blocking(ACTION, |database| {
            let nothing = database.begin_write().map_err(redb::Error::from);
            let written = nothing.and_then(|nothing| Ok(nothing.commit()?));
            written.map_err(|error| StoreError::unavailable(ACTION, error))
        })
        .await
    }
}

/// Also what a commit that failed half-way left is found out here.
fn prepare(database: &Database, told: &watch::Sender<u64>) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    let found = {
        // Reading a table that was never made would be an error of its own.
        write.open_table(OBJECTS)?;
        latest(&write.open_table(RECORDS)?)?
    };
    write.commit()?;
    told.send_if_modified(|told| std::mem::replace(told, found) != found);
    Ok(())
}

/// Commits come one after the other, but a thread may be held up between its own and
/// saying so, until a later one is said.
fn raise(latest: &watch::Sender<u64>, committed: u64) {
    latest.send_if_modified(|latest| {
        let is_later = committed > *latest;
        *latest = committed.max(*latest);
        is_later
    });
}

fn version(latest: u64) -> Version {
    Version {
        written: latest,
        read: latest,
    }
}

fn head_of(record: Option<Record>) -> Head {
    let latest = record.as_ref().map_or(0, |record| record.revision.0);
    Head {
        record,
        version: version(latest),
    }
}

fn read_head(database: &Database) -> Result<Head, StoreError> {
    let failed = |error: redb::Error| StoreError::unavailable("reading the head", error);
    let read = database.begin_read().map_err(|e| failed(e.into()))?;
    let records = read.open_table(RECORDS).map_err(|e| failed(e.into()))?;
    let last = records.last().map_err(|e| failed(e.into()))?;
    let record = last.map(|(revision, bytes)| {
        decode_record(format_args!("revision {}", revision.value()), bytes.value())
    });
    Ok(head_of(record.transpose()?))
}

/// False where the head is no longer `seen`.
fn write(
    database: &Database,
    seen: &Head,
    record: &Record,
    objects: &[Object],
) -> Result<bool, redb::Error> {
    let write = database.begin_write()?;
    {
        let mut records = write.open_table(RECORDS)?;
        if latest(&records)? != seen.version.written {
            return Ok(false);
        }
        records.insert(record.revision.0, record.encode().as_slice())?;
        let mut stored = write.open_table(OBJECTS)?;
        for object in objects {
            stored.insert(object.id().as_bytes(), object.bytes().as_ref())?;
        }
    }
    write.commit()?;
    Ok(true)
}

fn latest(records: &impl ReadableTable<u64, &'static [u8]>) -> Result<u64, redb::Error> {
    Ok(records.last()?.map_or(0, |(revision, _)| revision.value()))
}

fn stored(database: &Database) -> Result<Vec<ObjectId>, redb::Error> {
    let objects = database.begin_read()?.open_table(OBJECTS)?;
    let mut ids = Vec::new();
    for entry in objects.iter()? {
        ids.extend(ObjectId::from_slice(entry?.0.value()));
    }
    Ok(ids)
}

/// False where the head is no longer `seen`.
fn forget(
    database: &Database,
    seen: &Head,
    oldest_kept: Revision,
    unused: &[ObjectId],
) -> Result<bool, redb::Error> {
    let write = database.begin_write()?;
    {
        let mut records = write.open_table(RECORDS)?;
        if latest(&records)? != seen.version.written {
            return Ok(false);
        }
        records.retain(|revision, _| revision >= oldest_kept.0)?;
        let mut objects = write.open_table(OBJECTS)?;
        for id in unused {
            objects.remove(id.as_bytes())?;
        }
    }
    write.commit()?;
    Ok(true)
}

/// A store on a disk that can be full.
#[cfg(test)]
pub(crate) mod full_disk {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::{Builder, StorageBackend, backends::FileBackend};

    use super::*;

    /// Whether the disk is full; clones share it.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Full(Arc<AtomicBool>);

    impl Full {
        pub(crate) fn set(&self, full: bool) {
            self.0.store(full, Ordering::SeqCst);
        }

        fn check(&self) -> io::Result<()> {
            if self.0.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }
    }

    #[derive(Debug)]
    struct Disk {
        file: FileBackend,
        full: Full,
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.full.check()?;
            self.file.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.full.check()?;
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.full.check()?;
            self.file.write(offset, data)
        }

        fn close(&self) -> io::Result<()> {
            self.file.close()
        }
    }

    pub(crate) fn store(directory: &Path, full: &Full) -> Embedded {
        let (path, full) = (directory.join(FILE), full.clone());
        Embedded::on(move || {
            let mut options = fs::OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let file = FileBackend::new(options.open(&path).map_err(redb::StorageError::Io)?)?;
            let full = full.clone();
            Builder::new().create_with_backend(Disk { file, full })
        })
        .unwrap()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::SystemTime;

    use super::{
        full_disk::{Full, store},
        *,
    };

    fn record(revision: u64, object: &Object) -> Record {
        Record {
            revision: Revision(revision),
            committed_at: SystemTime::UNIX_EPOCH,
            author: Default::default(),
            message: String::new(),
            created: 0,
            updated: 0,
            deleted: 0,
            rollback_of: None,
            rollout: None,
            promotion_of: None,
            state_hash: object.id(),
            request: None,
            traceparent: String::new(),
            store: None,
        }
    }

    #[tokio::test]
    async fn a_commit_that_is_said_late_does_not_undo_a_later_one() {
        let store = Embedded::open(tempfile::tempdir().unwrap().path()).unwrap();
        raise(&store.latest, 6);
        let mut watcher = store.latest.subscribe();
        raise(&store.latest, 5);
        assert!(!watcher.has_changed().unwrap());
        assert_eq!(*watcher.borrow_and_update(), 6);
        raise(&store.latest, 7);
        assert_eq!(*watcher.borrow_and_update(), 7);
    }

    #[tokio::test]
    async fn a_disk_that_was_full_takes_writes_again_once_there_is_room() {
        let (directory, full) = (tempfile::tempdir().unwrap(), Full::default());
        let store = store(directory.path(), &full);
        let state = Object::new(b"state".to_vec());
        let write = async |revision| {
            let head = store.head().await?;
            let objects = std::slice::from_ref(&state);
            store
                .commit(&head, &record(revision, &state), objects)
                .await
        };
        write(1).await.unwrap();
        full.set(true);
        for _ in 0..3 {
            let error = write(2).await.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        }
        full.set(false);
        assert!(matches!(write(2).await.unwrap(), Committed::Done(_)));
        let head = store.head().await.unwrap();
        assert_eq!(head.revision(), Revision(2));
        assert_eq!(head.version.written, *store.latest.borrow());
        assert_eq!(store.objects(&[state.id()]).await.unwrap().len(), 1);
    }
}
