//! The set of balancers in etcd: one record, replaced by compare-and-swap.

use std::time::Duration;

use anyport_model::balancers::BalancerSet;
use anyport_proto::{
    convert::{read_balancer_set, write_balancer_set},
    v1,
};
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp, WatchOptions};
use prost::Message;

use super::{Members, counted, keys::Keys, presence::LEASE_TTL, watch};
use crate::store::{
    EtcdUrl, StoreError,
    balancers::{BalancerRecord, Stored},
};

const WHAT: &str = "the set of balancers";

/// The record of one cluster.
pub struct EtcdBalancers {
    members: Members,
    keys: Keys,
}

impl std::fmt::Debug for EtcdBalancers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdBalancers")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl EtcdBalancers {
    pub fn new(members: &Members, url: &EtcdUrl) -> Self {
        Self {
            members: members.clone(),
            keys: Keys::new(url.prefix()),
        }
    }
}

#[tonic::async_trait]
impl BalancerRecord for EtcdBalancers {
    async fn read(&self) -> Result<Stored, StoreError> {
        let ask = |client: &Client| {
            let (mut kv, key) = (client.kv_client(), self.keys.balancers());
            async move { kv.get(key, None).await }
        };
        let answer = self
            .members
            .ask("reading the set of balancers", ask)
            .await?;
        let read = answer.header().map_or(0, |header| header.revision());
        let entry = answer.kvs().first();
        Ok(Stored {
            set: entry.map(|entry| decode(entry.value())).transpose()?,
            written: entry.map_or(0, |entry| counted(entry.mod_revision())),
            read: counted(read),
        })
    }

    async fn replace(&self, seen: &Stored, set: &BalancerSet) -> Result<(), StoreError> {
        // 0 stands for a key that is not there.
        let written = i64::try_from(seen.written).unwrap_or(i64::MAX);
        let key = self.keys.balancers();
        let is_seen = Compare::mod_revision(key.clone(), CompareOp::Equal, written);
        let value = write_balancer_set(set, LEASE_TTL).encode_to_vec();
        let txn = Txn::new()
            .when([is_seen])
            .and_then([TxnOp::put(key, value, None)]);
        let ask = |client: &Client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        };
        let written = self.members.ask("writing the set of balancers", ask).await;
        written.map(drop)
    }

    async fn moved(&self, seen: &Stored) -> Result<(), StoreError> {
        let from = i64::try_from(seen.read).unwrap_or(i64::MAX - 1) + 1;
        let key = self.keys.balancers();
        watch(&self.members, &key, WatchOptions::new(), from).await
    }

    /// The record outlives every replica.
    fn first(&self) -> Duration {
        Duration::ZERO
    }
}

fn decode(bytes: &[u8]) -> Result<BalancerSet, StoreError> {
    let wire = v1::BalancerSet::decode(bytes).map_err(|error| StoreError::corrupt(WHAT, error))?;
    read_balancer_set(wire).map_err(|fault| StoreError::corrupt(WHAT, fault))
}
