//! Keeps the set of balancers in step with who is connected, and tells it.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use anyport_model::balancers::BalancerSet;
use anyport_node::drain::Drain;
use tokio::{sync::watch, time::Instant};

use super::{registry::Nodes, roster::Roster};
use crate::{
    store::{StoreError, balancers::BalancerRecord, etcd::presence::LEASE_TTL},
    trouble::Trouble,
};

/// How long changes are gathered, and what other replicas say of theirs is waited for
/// after one.
const GATHER: Duration = Duration::from_millis(50);
/// Time passes although nobody comes or goes.
const LOOK: Duration = Duration::from_millis(500);
/// The record is read again at least this often: an event may get lost.
const REREAD: Duration = Duration::from_secs(20);

/// The latest set that is known. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Balancers {
    latest: watch::Sender<Option<Arc<BalancerSet>>>,
}

impl Balancers {
    /// Follows the latest set; `None` until one is known, and when it is too old to be told.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<BalancerSet>>> {
        self.latest.subscribe()
    }

    fn tell(&self, set: BalancerSet) {
        let members: Vec<&str> = set.members.keys().map(|name| name.as_str()).collect();
        tracing::info!(epoch = set.epoch.0, ?members, "the set of balancers");
        self.latest.send_replace(Some(Arc::new(set)));
    }

    fn is_known(&self) -> bool {
        self.latest.borrow().is_some()
    }
}

/// Keeps the record true to who is connected to any replica, until the drain begins:
/// from then on nothing is learned of other replicas.
pub async fn keep(
    nodes: &Nodes,
    record: &dyn BalancerRecord,
    balancers: &Balancers,
    drain: &Drain,
) {
    let mut roster = Roster::new(record.first());
    let mut trouble = Trouble::new("the set of balancers");
    // Since when the record could not be read; `None` while it can be.
    let mut cut_off = None;
    loop {
        let kept = tokio::select! {
            kept = keep_until_error(
                nodes, record, balancers, &mut roster, &mut trouble, &mut cut_off,
            ) => kept,
            () = drain.started() => return,
        };
        let error = match kept {
            Ok(never) => match never {},
            Err(error) => error,
        };
        // What is known of others is what could be read.
        roster.look(None, Instant::now());
        if cut_off.get_or_insert_with(Instant::now).elapsed() >= LEASE_TTL {
            // Others may have another one by now, and balancers are to ask them.
            balancers.latest.send_replace(None);
        }
        let pause = trouble.again(&error, rand::random());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = drain.started() => return,
        }
    }
}

async fn keep_until_error(
    nodes: &Nodes,
    record: &dyn BalancerRecord,
    balancers: &Balancers,
    roster: &mut Roster,
    trouble: &mut Trouble,
    cut_off: &mut Option<Instant>,
) -> Result<Infallible, StoreError> {
    let mut changes = nodes.changes();
    loop {
        let stored = record.read().await?;
        trouble.over();
        *cut_off = None;
        let is_news = roster.read(stored.set.clone());
        if let Some(set) = roster.latest()
            && (is_news || !balancers.is_known())
        {
            balancers.tell(set.clone());
        }
        let mut moved = pin!(tokio::time::timeout(REREAD, record.moved(&stored)));
        loop {
            tokio::time::sleep(GATHER).await;
            changes.borrow_and_update();
            roster.look(nodes.balancers(), Instant::now());
            if let Some(set) = roster.wanted(std::time::SystemTime::now()) {
                // Taken or not: what is there now is read.
                record.replace(&stored, &set).await?;
                break;
            }
            tokio::select! {
                moved = &mut moved => match moved {
                    Ok(moved) => { moved?; break }
                    Err(_) => break,
                },
                // Cannot fail: the sender is held by the argument.
                _ = changes.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}
