//! Where the set of balancers is kept.

use std::{fmt, time::Duration};

use anyport_model::balancers::BalancerSet;
use anyport_proto::sync;
use tokio::sync::watch;

use super::StoreError;

/// The latest set, and where it stands in the back end's own counting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// `None` before the first.
    pub set: Option<BalancerSet>,
    /// Changes with every write of it; 0 before the first.
    pub(super) written: u64,
    /// When it was read.
    pub(super) read: u64,
}

/// One set that all replicas share.
#[tonic::async_trait]
pub trait BalancerRecord: fmt::Debug + Send + Sync + 'static {
    async fn read(&self) -> Result<Stored, StoreError>;

    /// Stores `set`, if what is stored is still `seen`.
    async fn replace(&self, seen: &Stored, set: &BalancerSet) -> Result<(), StoreError>;

    /// Returns when it may have been written since `seen`. May return early.
    async fn moved(&self, seen: &Stored) -> Result<(), StoreError>;

    /// How long who was a member may take to come back, where there is no set yet.
    fn first(&self) -> Duration;
}

/// A set that lasts as long as the process, which has no other replica.
#[derive(Debug, Default)]
pub struct InMemory {
    stored: watch::Sender<Stored>,
}

#[tonic::async_trait]
impl BalancerRecord for InMemory {
    async fn read(&self) -> Result<Stored, StoreError> {
        Ok(self.stored.borrow().clone())
    }

    async fn replace(&self, seen: &Stored, set: &BalancerSet) -> Result<(), StoreError> {
        self.stored.send_if_modified(|stored| {
            let is_seen = stored.written == seen.written;
            if is_seen {
                stored.set = Some(set.clone());
                stored.written += 1;
            }
            is_seen
        });
        Ok(())
    }

    async fn moved(&self, seen: &Stored) -> Result<(), StoreError> {
        let mut stored = self.stored.subscribe();
        // Cannot fail: `self` holds the sender.
        let _ = stored.wait_for(|now| now.written != seen.written).await;
        Ok(())
    }

    /// Those who were members before a restart are back by then.
    fn first(&self) -> Duration {
        sync::LONGEST_PAUSE
    }
}
