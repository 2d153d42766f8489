//! One simulated edge.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyport_model::names::Revision;
use anyport_model::replica::{Gap, Replica, Scope, Update};
use anyport_proto::sync::{Applied, Identity, Origin, Subscriber};
use anyport_proto::v1;
use tonic::Status;

use super::book::Book;

/// What an edge holds.
#[derive(Clone, Debug)]
pub(super) enum Holding {
    /// The configuration, as an agent does: a witness.
    All(Arc<Mutex<Replica>>),
    /// What it takes to go on from a revision, and nothing of it.
    Mark(Revision, Vec<u8>),
}

/// Takes updates and acknowledges them at once.
pub(super) struct SimulatedEdge {
    pub(super) index: usize,
    pub(super) holding: Holding,
    pub(super) book: Arc<Book>,
}

impl SimulatedEdge {
    pub(super) fn identity(&self) -> Identity {
        Identity {
            role: v1::NodeRole::Edge,
            name: format!("edge{:04}", self.index),
            region: "swarm".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            steering: "sk-lookup".to_owned(),
            address: format!("http://edge{:04}.example:7420", self.index),
        }
    }
}

impl Subscriber for SimulatedEdge {
    fn held(&self) -> (Revision, Vec<u8>) {
        match &self.holding {
            Holding::All(replica) => locked(replica).held(),
            Holding::Mark(revision, hash) => (*revision, hash.clone()),
        }
    }

    async fn apply(&mut self, update: Update, origin: Origin) -> Result<Applied, Gap> {
        let committed = origin.committed_at.and_then(|at| at.try_into().ok());
        let committed: Option<SystemTime> = committed;
        match &mut self.holding {
            Holding::All(replica) => locked(replica).apply(update.clone())?,
            Holding::Mark(held, hash) => {
                if let Scope::Since { base, .. } = update.scope
                    && base != *held
                {
                    return Err(Gap { base, held: *held });
                }
                *held = update.revision;
                hash.clone_from(&update.state_hash);
            }
        }
        self.book.took(self.index, &update, committed);
        Ok(Applied::default())
    }

    fn connection(&mut self, state: Result<(), &Status>) {
        self.book.connected(self.index, state.is_ok());
    }
}

pub(super) fn locked(replica: &Mutex<Replica>) -> std::sync::MutexGuard<'_, Replica> {
    // An update that panicked half-way is a bug that the comparison will show.
    replica.lock().unwrap_or_else(PoisonError::into_inner)
}
