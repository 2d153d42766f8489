//! Keeps replicas in the know of each other's nodes.
//!
//! A fleet that applies a revision speaks all at once, so changes are gathered
//! for a moment before they are written, and before they are read.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use anyport_node::drain::Drain;
use anyport_proto::v1;
use tokio::time::{Instant, MissedTickBehavior};

use super::registry::{NodeKey, Nodes};
use crate::{
    store::{
        StoreError,
        etcd::presence::{LEASE_TTL, Lease, Presence, Publication},
    },
    trouble::Trouble,
};

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(50);
/// What others said is read again at least this often: an event may get lost.
const REREAD: Duration = Duration::from_secs(20);
/// For giving up the lease, when the process stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// Tells other replicas of our nodes and learns of theirs, until the drain
/// begins.
pub async fn share(nodes: &Nodes, presence: &Presence, drain: &Drain) {
    let mut trouble = Trouble::new("sharing who is connected");
    // Since when nothing was learned of others; `None` while that works.
    let mut cut_off = None;
    loop {
        let tenure = async {
            let lease = presence.grant().await?;
            trouble.over();
            let ended = tokio::select! {
                ended = tell(nodes, presence, lease) => ended,
                ended = learn(nodes, presence, &mut cut_off) => ended,
                () = drain.started() => {
                    // At worst the nodes vanish when the lease runs out.
                    let _ = tokio::time::timeout(FAREWELL, presence.revoke(lease)).await;
                    return Ok(());
                }
            };
            ended.map(|never| match never {})
        };
        let error: StoreError = match tenure.await {
            Ok(()) => return,
            Err(error) => error,
        };
        nodes.set_elsewhere_known(false);
        if cut_off.get_or_insert_with(Instant::now).elapsed() >= LEASE_TTL {
            // To them our nodes are gone by now; theirs may be as well.
            nodes.lose_elsewhere();
        }
        let pause = trouble.again(&error, rand::random());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = drain.started() => return,
        }
    }
}

async fn tell(
    nodes: &Nodes,
    presence: &Presence,
    mut lease: Lease,
) -> Result<Infallible, StoreError> {
    let mut changes = nodes.changes_here();
    let mut keep = tokio::time::interval(LEASE_TTL / 3);
    keep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = BTreeMap::new();
    loop {
        changes.borrow_and_update();
        let here = nodes.here();
        presence
            .publish(&mut lease, &difference(&told, &here))
            .await?;
        told = here;
        tokio::select! {
            // Cannot fail: `nodes` holds the sender.
            _ = changes.changed() => tokio::time::sleep(GATHER).await,
            _ = keep.tick() => presence.keep(lease).await?,
        }
    }
}

async fn learn(
    nodes: &Nodes,
    presence: &Presence,
    cut_off: &mut Option<Instant>,
) -> Result<Infallible, StoreError> {
    loop {
        let seen = presence.elsewhere().await?;
        *cut_off = None;
        nodes.set_elsewhere(seen.nodes.clone());
        nodes.set_elsewhere_known(true);
        if let Ok(moved) = tokio::time::timeout(REREAD, presence.moved(&seen)).await {
            moved?;
            tokio::time::sleep(GATHER).await;
        }
    }
}

type Statuses = BTreeMap<NodeKey, Arc<v1::NodeStatus>>;

fn difference<'a>(told: &'a Statuses, here: &'a Statuses) -> Vec<Publication<'a>> {
    let said = here.iter().filter(|(key, status)| {
        let before = told.get(*key);
        !before.is_some_and(|before| Arc::ptr_eq(before, status))
    });
    let gone = told.keys().filter(|key| !here.contains_key(*key));
    said.map(|(key, status)| Publication {
        key,
        status: Some(&**status),
    })
    .chain(gone.map(|key| Publication { key, status: None }))
    .collect()
}
