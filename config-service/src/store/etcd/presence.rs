//! What replicas tell each other of the nodes that are connected to them.
//!
//! Every replica writes its own nodes under a lease: when the replica dies, they
//! vanish with it. The keys carry the replica's own number and not the lease's,
//! so that a replica whose lease ran out takes its keys over with the next one.
//!
//! A member that hung may carry out a write long after another one was asked in its
//! place, and has carried out later ones. So each write also rewrites a key of the
//! replica, and counts only where that key is still as the write before left it.

use std::time::Duration;

use anyport_proto::v1;
use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn,
    TxnOp, WatchOptions,
};
use prost::Message;

use super::{Members, gotten, keys::Keys, watch};
use crate::{
    nodes::NodeKey,
    store::{EtcdUrl, OBJECT_MAX, StoreError},
};

/// A replica that says nothing for this long is dead, and its nodes are gone.
pub const LEASE_TTL: Duration = Duration::from_secs(15);

/// Statuses in one transaction, and in one page of reading.
const AT_ONCE: usize = 64;
/// One page of reading, in bytes.
const ANSWER_MAX: usize = 2 * AT_ONCE * OBJECT_MAX;

/// One replica's part of the shared book.
pub struct Presence {
    members: Members,
    keys: Keys,
    /// Told apart from other replicas, and from this one before a restart.
    replica: u64,
}

/// The right to be seen, for [`LEASE_TTL`] after it was last kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    id: i64,
    /// When something was told last, in etcd's counting; 0: not under any lease that lives.
    told: i64,
}

/// A change of what others see of us.
#[derive(Debug, Clone)]
pub struct Publication<'a> {
    pub key: &'a NodeKey,
    /// `None`: gone.
    pub status: Option<&'a v1::NodeStatus>,
}

/// What other replicas have said, and when that was read in etcd's counting.
#[derive(Debug, Clone, Default)]
pub struct Elsewhere {
    pub nodes: Vec<v1::NodeStatus>,
    read: i64,
}

impl Presence {
    /// `replica` is a random number.
    pub fn new(members: &Members, url: &EtcdUrl, replica: u64) -> Self {
        Self {
            members: members.clone(),
            keys: Keys::new(url.prefix()),
            replica,
        }
    }

    fn ours(&self) -> String {
        format!("{}{:016x}/", self.keys.nodes(), self.replica)
    }

    /// Rewritten with all that is told.
    fn mark(&self) -> String {
        self.keys.replica(self.replica)
    }

    pub async fn grant(&self) -> Result<Lease, StoreError> {
        let ttl = i64::try_from(LEASE_TTL.as_secs()).unwrap_or(i64::MAX);
        let ask = |client: &Client| {
            let mut lease = client.lease_client();
            async move { lease.grant(ttl, None).await }
        };
        let granted = self.members.ask("taking a lease", ask).await?;
        let ask = |client: &Client| {
            let (mut kv, mark) = (client.kv_client(), self.mark());
            async move { kv.get(mark, None).await }
        };
        let mark = self.members.ask("taking a lease", ask).await?;
        let mut lease = Lease {
            id: granted.id(),
            told: mark.kvs().first().map_or(0, KeyValue::mod_revision),
        };
        // What was asked for under the lease before counts no more from here on.
        self.tell(&mut lease, Vec::new()).await?;
        Ok(lease)
    }

    /// Keeps the lease for another [`LEASE_TTL`]; an error if it is gone.
    pub async fn keep(&self, lease: Lease) -> Result<(), StoreError> {
        let ask = |client: &Client| {
            let mut client = client.lease_client();
            // The first answer of the stream says whether the lease lives.
            async move { client.keep_alive(lease.id).await }
        };
        self.members.ask("keeping a lease", ask).await.map(drop)
    }

    /// Our nodes vanish for everyone.
    pub async fn revoke(&self, lease: Lease) -> Result<(), StoreError> {
        let ask = |client: &Client| {
            let mut client = client.lease_client();
            async move { client.revoke(lease.id).await }
        };
        self.members.ask("giving up a lease", ask).await.map(drop)
    }

    /// Tells the others what changed of our nodes. After an error it is not known what
    /// they were told: all is told anew, under another lease.
    pub async fn publish(
        &self,
        lease: &mut Lease,
        changes: &[Publication<'_>],
    ) -> Result<(), StoreError> {
        let ours = self.ours();
        let under_lease = PutOptions::new().with_lease(lease.id);
        let mut operations = Vec::new();
        let mut bytes = 0;
        for Publication { key, status } in changes {
            let name = format!("{ours}{key}");
            let value = status.map(encode);
            let length = value.as_ref().map_or(0, Vec::len);
            if operations.len() == AT_ONCE || bytes + length > OBJECT_MAX {
                self.tell(lease, std::mem::take(&mut operations)).await?;
                bytes = 0;
            }
            bytes += length;
            operations.push(match value {
                None => TxnOp::delete(name, None),
                Some(value) => TxnOp::put(name, value, Some(under_lease.clone())),
            });
        }
        if operations.is_empty() {
            return Ok(());
        }
        self.tell(lease, operations).await
    }

    async fn tell(&self, lease: &mut Lease, mut operations: Vec<TxnOp>) -> Result<(), StoreError> {
        const ACTION: &str = "telling of connected nodes";
        let (mark, this) = (self.mark(), format!("{:x}/{}", lease.id, lease.told));
        // Under the lease, so that all of it is refused once the lease has ended, and
        // the mark with it.
        let under_lease = PutOptions::new().with_lease(lease.id);
        operations.push(TxnOp::put(mark.clone(), this.clone(), Some(under_lease)));
        let is_next = Compare::mod_revision(mark.clone(), CompareOp::Equal, lease.told);
        let txn = Txn::new()
            .when([is_next])
            .and_then(operations)
            // It may have been carried out by a member that did not say so.
            .or_else([TxnOp::get(mark, None)]);
        let ask = |client: &Client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        };
        let answer = self.members.ask(ACTION, ask).await?;
        let told = if answer.succeeded() {
            answer.header().map(|header| header.revision())
        } else {
            let found = gotten(&answer).find(|entry| entry.value() == this.as_bytes());
            found.map(|entry| entry.mod_revision())
        };
        let unknown = "the lease has ended, or a write that was given up came after all";
        lease.told = told.ok_or_else(|| StoreError::unavailable(ACTION, unknown))?;
        Ok(())
    }

    /// What all other replicas have said.
    pub async fn elsewhere(&self) -> Result<Elsewhere, StoreError> {
        let all = self.keys.nodes();
        let ours = self.ours();
        // The byte after '/': the end of everything below it.
        let end = format!("{}0", all.trim_end_matches('/'));
        let mut elsewhere = Elsewhere::default();
        let mut from = all.into_bytes();
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_sort(SortTarget::Key, SortOrder::Ascend)
                .with_limit(AT_ONCE as i64);
            let ask = |client: &Client| {
                let kv = client.kv_client();
                let mut kv = kv.max_decoding_message_size(ANSWER_MAX);
                let (from, options) = (from.clone(), options.clone());
                async move { kv.get(from, Some(options)).await }
            };
            let answer = self.members.ask("reading who is connected", ask).await?;
            if elsewhere.read == 0 {
                elsewhere.read = answer.header().map_or(0, |header| header.revision());
            }
            for entry in answer.kvs() {
                if entry.key().starts_with(ours.as_bytes()) {
                    continue;
                }
                match v1::NodeStatus::decode(entry.value()) {
                    Ok(status) => elsewhere.nodes.push(status),
                    Err(error) => tracing::warn!(
                        key = %String::from_utf8_lossy(entry.key()), %error,
                        "another replica told something unreadable of a node"
                    ),
                }
            }
            match answer.kvs().last() {
                Some(last) if answer.more() => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => return Ok(elsewhere),
            }
        }
    }

    /// Returns when something may have changed since `seen`, ours or others'.
    pub async fn moved(&self, seen: &Elsewhere) -> Result<(), StoreError> {
        let options = WatchOptions::new().with_prefix();
        watch(
            &self.members,
            &self.keys.nodes(),
            options,
            seen.read.saturating_add(1),
        )
        .await
    }
}

/// A status that etcd takes. A balancer's pools may be too many for that; the
/// rest of what it said still counts.
fn encode(status: &v1::NodeStatus) -> Vec<u8> {
    let bytes = status.encode_to_vec();
    if bytes.len() <= OBJECT_MAX / 2 {
        return bytes;
    }
    tracing::warn!(
        node = status.name,
        bytes = bytes.len(),
        "its status is too large to be shared with other replicas; they will not show its pools"
    );
    let short = v1::NodeStatus {
        pools: Vec::new(),
        rejections: status
            .rejections
            .iter()
            .take(REJECTIONS_SHARED)
            .cloned()
            .collect(),
        ..status.clone()
    };
    short.encode_to_vec()
}

const REJECTIONS_SHARED: usize = 100;
