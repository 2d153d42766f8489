//! The store of a fleet: etcd, shared by several replicas.
//!
//! Objects are written first, in as many requests as they need, and then the
//! head with its record in one transaction, compared with the head that was
//! seen. Events are only a hint that something moved: what is true is what is
//! read afterwards, so a watch that lost its place to a compaction, or an event
//! that never came, costs time and not truth.

pub mod balancers;
mod keys;
mod members;
pub mod presence;

use std::{collections::HashMap, time::Duration};

use anyport_model::names::Revision;
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, GetOptions, GetResponse, KeyValue, KvClient,
    SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse, WatchOptions,
};
use prost::bytes::Bytes;

use keys::Keys;
pub use members::{ConnectError, Members, connect};

use super::{
    Committed, EtcdUrl, Head, OBJECT_MAX, Object, ObjectId, Record, Store, StoreError, Version,
    decode_record, verified,
};

/// Operations in one transaction; etcd's own limit is 128.
const OPERATIONS_MAX: usize = 100;
/// Bytes in one request, beside the last object; etcd's own limit is 1.5 MiB.
const REQUEST_MAX: usize = OBJECT_MAX / 4;
/// Objects asked for at once, each of [`OBJECT_MAX`] at most.
const READ_AT_ONCE: usize = 32;
const ANSWER_MAX: usize = 2 * READ_AT_ONCE * OBJECT_MAX;
/// Names of objects read at once.
const PAGE: i64 = 5_000;
/// After a watch that ended by itself: whatever ended it may end the next one.
const WATCH_PAUSE: Duration = Duration::from_millis(100);

/// Revisions in a cluster.
pub struct Etcd {
    members: Members,
    keys: Keys,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl Etcd {
    pub fn new(members: &Members, url: &EtcdUrl) -> Self {
        Self {
            members: members.clone(),
            keys: Keys::new(url.prefix()),
        }
    }

    async fn txn(&self, action: &'static str, txn: Txn) -> Result<TxnResponse, StoreError> {
        let ask = |client: &Client| {
            let (mut kv, txn) = (kv(client), txn.clone());
            async move { kv.txn(txn).await }
        };
        self.members.ask(action, ask).await
    }

    async fn get(
        &self,
        action: &'static str,
        key: impl Into<Vec<u8>>,
        options: GetOptions,
    ) -> Result<GetResponse, StoreError> {
        let key = key.into();
        let ask = |client: &Client| {
            let (mut kv, key, options) = (kv(client), key.clone(), options.clone());
            async move { kv.get(key, Some(options)).await }
        };
        self.members.ask(action, ask).await
    }

    /// When objects were last deleted, in etcd's counting; 0: never.
    async fn last_forgotten(&self) -> Result<i64, StoreError> {
        let key = self.keys.forgotten();
        let answer = self
            .get("writing a revision", key, GetOptions::new())
            .await?;
        Ok(answer.kvs().first().map_or(0, KeyValue::mod_revision))
    }

    async fn put_objects(&self, objects: &[Object]) -> Result<(), StoreError> {
        for batch in batches(objects) {
            let puts: Vec<TxnOp> = batch
                .iter()
                .map(|object| {
                    TxnOp::put(self.keys.object(object.id()), object.bytes().to_vec(), None)
                })
                .collect();
            self.txn("writing a state", Txn::new().and_then(puts))
                .await?;
        }
        Ok(())
    }

    fn head_is(&self, seen: &Head) -> Compare {
        // 0 stands for a key that is not there.
        let written = i64::try_from(seen.version.written).unwrap_or(i64::MAX);
        Compare::mod_revision(self.keys.head(), CompareOp::Equal, written)
    }
}

fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(ANSWER_MAX)
}

/// Cuts objects into requests that etcd takes.
fn batches(objects: &[Object]) -> Vec<&[Object]> {
    let mut batches = Vec::new();
    let mut start = 0;
    let mut bytes = 0;
    for (index, object) in objects.iter().enumerate() {
        let full = index - start >= OPERATIONS_MAX || bytes + object.bytes().len() > REQUEST_MAX;
        if full && index > start {
            batches.push(&objects[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += object.bytes().len();
    }
    if start < objects.len() {
        batches.push(&objects[start..]);
    }
    batches
}

fn counted(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

#[tonic::async_trait]
impl Store for Etcd {
    async fn head(&self) -> Result<Head, StoreError> {
        let key = self.keys.head();
        let answer = self.get("reading the head", key, GetOptions::new()).await?;
        let read = answer
            .header()
            .map_or(0, |header| counted(header.revision()));
        let Some(entry) = answer.kvs().first() else {
            let version = Version { written: 0, read };
            return Ok(Head {
                record: None,
                version,
            });
        };
        Ok(Head {
            record: Some(decode_record("the head", entry.value())?),
            version: Version {
                written: counted(entry.mod_revision()),
                read,
            },
        })
    }

    async fn moved(&self, seen: &Head) -> Result<(), StoreError> {
        // From where the head was read and not from its last write: that may be
        // compacted away long since.
        let from = i64::try_from(seen.version.read).unwrap_or(i64::MAX - 1) + 1;
        watch(&self.members, &self.keys.head(), WatchOptions::new(), from).await
    }

    async fn objects(&self, ids: &[ObjectId]) -> Result<Vec<Bytes>, StoreError> {
        let mut objects = Vec::with_capacity(ids.len());
        for some in ids.chunks(READ_AT_ONCE) {
            let gets: Vec<TxnOp> = some
                .iter()
                .map(|id| TxnOp::get(self.keys.object(*id), None))
                .collect();
            let answer = self
                .txn("reading a state", Txn::new().and_then(gets))
                .await?;
            let mut found: HashMap<Vec<u8>, Vec<u8>> =
                gotten(&answer).map(KeyValue::into_key_value).collect();
            for id in some {
                let bytes = found.remove(self.keys.object(*id).as_bytes());
                objects.push(verified(*id, bytes.map(Bytes::from))?);
            }
        }
        Ok(objects)
    }

    async fn commit(
        &self,
        seen: &Head,
        record: &Record,
        objects: &[Object],
    ) -> Result<Committed, StoreError> {
        // Objects may be deleted as unused between their writing and the moment
        // when the head names them.
        let conditions = if objects.len() < OPERATIONS_MAX {
            self.put_objects(objects).await?;
            let keys = objects.iter().map(|object| self.keys.object(object.id()));
            let are_there = keys.map(|key| Compare::create_revision(key, CompareOp::Greater, 0));
            are_there.chain([self.head_is(seen)]).collect()
        } else {
            // Too many for one request; but whoever deletes rewrites this key.
            let forgotten = self.last_forgotten().await?;
            self.put_objects(objects).await?;
            let mark = self.keys.forgotten();
            let unchanged = Compare::mod_revision(mark, CompareOp::Equal, forgotten);
            vec![unchanged, self.head_is(seen)]
        };
        let (bytes, record) = (record.encode(), self.keys.record(record.revision));
        let txn = Txn::new()
            .when(conditions)
            .and_then([
                TxnOp::put(self.keys.head(), bytes.clone(), None),
                TxnOp::put(record.clone(), bytes.clone(), None),
            ])
            // A member may have carried it out and died before it said so, and
            // then the next one is asked.
            .or_else([TxnOp::get(record, None)]);
        let answer = self.txn("writing a revision", txn).await?;
        let written = if answer.succeeded() {
            answer.header().map(|header| header.revision())
        } else {
            let found = gotten(&answer).next();
            let found = found.filter(|entry| entry.value() == bytes);
            found.map(|entry| entry.mod_revision())
        };
        Ok(match written.map(counted) {
            Some(written) => Committed::Done(Version {
                written,
                read: written,
            }),
            None => Committed::Conflict,
        })
    }

    async fn record(&self, revision: Revision) -> Result<Option<Record>, StoreError> {
        let key = self.keys.record(revision);
        let answer = self
            .get("reading the history", key, GetOptions::new())
            .await?;
        let entry = answer.kvs().first();
        entry
            .map(|entry| decode_record(format_args!("revision {revision}"), entry.value()))
            .transpose()
    }

    async fn records_below(
        &self,
        below: Revision,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let options = GetOptions::new()
            .with_range(self.keys.record(below))
            .with_sort(SortTarget::Key, SortOrder::Descend)
            .with_limit(i64::try_from(limit).unwrap_or(i64::MAX));
        let first = self.keys.record(Revision::EMPTY);
        let answer = self.get("reading the history", first, options).await?;
        answer
            .kvs()
            .iter()
            .map(|entry| decode_record(String::from_utf8_lossy(entry.key()), entry.value()))
            .collect()
    }

    async fn oldest(&self) -> Result<Option<Record>, StoreError> {
        let options = GetOptions::new()
            .with_range(self.keys.record(Revision(u64::MAX)))
            .with_sort(SortTarget::Key, SortOrder::Ascend)
            .with_limit(1);
        let first = self.keys.record(Revision::EMPTY);
        let answer = self.get("reading the history", first, options).await?;
        let entry = answer.kvs().first();
        entry
            .map(|entry| decode_record(String::from_utf8_lossy(entry.key()), entry.value()))
            .transpose()
    }

    async fn stored(&self) -> Result<Vec<ObjectId>, StoreError> {
        let all = self.keys.objects();
        // The byte after '/': the end of everything below it.
        let end = format!("{}0", all.trim_end_matches('/'));
        let mut ids = Vec::new();
        let mut from = all.clone().into_bytes();
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_keys_only()
                .with_sort(SortTarget::Key, SortOrder::Ascend)
                .with_limit(PAGE);
            let answer = self.get("listing objects", from, options).await?;
            let names = answer.kvs().iter().filter_map(|entry| {
                let name = entry.key().strip_prefix(all.as_bytes())?;
                std::str::from_utf8(name).ok()?.parse::<ObjectId>().ok()
            });
            ids.extend(names);
            match answer.kvs().last() {
                Some(last) if answer.more() => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => return Ok(ids),
            }
        }
    }

    async fn forget(
        &self,
        seen: &Head,
        oldest_kept: Revision,
        unused: &[ObjectId],
    ) -> Result<bool, StoreError> {
        const ACTION: &str = "forgetting old revisions";
        let first = self.keys.record(Revision::EMPTY);
        let old = DeleteOptions::new().with_range(self.keys.record(oldest_kept));
        // Before the objects: who finds a record finds its state.
        let records = vec![TxnOp::delete(first, Some(old))];
        let objects = unused.chunks(OPERATIONS_MAX - 1).map(|some| {
            let deletes = some
                .iter()
                .map(|id| TxnOp::delete(self.keys.object(*id), None));
            let mark = TxnOp::put(self.keys.forgotten(), Vec::new(), None);
            deletes.chain([mark]).collect()
        });
        let steps: Vec<Vec<TxnOp>> = [records].into_iter().chain(objects).collect();
        for step in steps {
            let txn = Txn::new().when([self.head_is(seen)]).and_then(step);
            if !self.txn(ACTION, txn).await?.succeeded() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn takes_writes(&self) -> Result<(), StoreError> {
        // Full or not is judged before what the condition says.
        let never = Compare::mod_revision(self.keys.head(), CompareOp::Less, 0);
        let write = TxnOp::put(self.keys.head(), Vec::new(), None);
        let txn = Txn::new().when([never]).and_then([write]);
        self.txn("asking whether it takes writes", txn)
            .await
            .map(drop)
    }
}

/// What a transaction has read.
fn gotten(answer: &TxnResponse) -> impl Iterator<Item = KeyValue> {
    answer
        .op_responses()
        .into_iter()
        .filter_map(|response| match response {
            TxnOpResponse::Get(mut answer) => answer.take_kvs().into_iter().next(),
            _ => None,
        })
}

/// Returns when something below `key` changed at `from` or later, in etcd's
/// counting, or when the watch cannot tell any more.
async fn watch(
    members: &Members,
    key: &str,
    options: WatchOptions,
    from: i64,
) -> Result<(), StoreError> {
    let options = options.with_start_revision(from);
    let ask = |client: &Client| {
        let (mut watch, options) = (client.watch_client(), options.clone());
        let key = key.to_owned();
        async move { watch.watch(key, Some(options)).await }
    };
    let (mut stream, place) = members.ask_whom("starting a watch", ask).await?;
    loop {
        match stream.message().await {
            Ok(Some(message)) if !message.events().is_empty() => return Ok(()),
            // `from` was compacted away. What happened since then is unknown.
            Ok(Some(message)) if message.compact_revision() > 0 => return Ok(()),
            Ok(Some(message)) if !message.canceled() => {}
            // Its member is gone, or has lost the others. What it did not tell is
            // read from them.
            Ok(_) | Err(_) => {
                members.distrust(place);
                tokio::time::sleep(WATCH_PAUSE).await;
                return Ok(());
            }
        }
    }
}
