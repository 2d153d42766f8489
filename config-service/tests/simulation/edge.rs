//! An edge that checks, each time it takes an update, that it serves what it may.

use std::sync::{Arc, Mutex};

use anyport_config_service::{
    state::{Layout, StoreKeys},
    store::ObjectId,
};
use anyport_model::{
    names::Revision,
    replica::{Gap, Replica, Scope, Update},
};
use anyport_proto::{
    sync::{Applied, Identity, Origin, Subscriber},
    v1,
};
use tonic::Status;

use crate::{chance::Chance, disk::Disk};

/// What outlives a crash of it.
#[derive(Debug, Default)]
pub struct Kept {
    pub replica: Replica,
    pub applied: u64,
    pub whole: u64,
}

pub struct Edge {
    pub name: String,
    pub kept: Arc<Mutex<Kept>>,
    pub truth: Arc<Disk>,
    pub chance: Chance,
}

impl Edge {
    pub fn identity(&self) -> Identity {
        Identity {
            role: v1::NodeRole::Edge,
            name: self.name.clone(),
            region: String::new(),
            version: String::new(),
            steering: String::new(),
            address: String::new(),
        }
    }

    fn check(&self, before: &Replica, now: &Replica) {
        let name = &self.name;
        let (revision, hash) = (now.revision, content(now));
        assert!(
            now.state_hash.starts_with(hash.as_bytes()),
            "{name} serves something else than it was told revision {revision} is"
        );
        assert!(
            revision == Revision::EMPTY || self.truth.was_committed(revision, hash),
            "{name} serves revision {revision}, which was never committed like that"
        );
        assert!(
            revision >= before.revision || !self.truth.has_kept(before.revision, content(before)),
            "{name} went from revision {} back to {revision}, although the store holds both",
            before.revision
        );
    }
}

/// The hash of what is held, whatever it is said to be.
pub fn content(replica: &Replica) -> ObjectId {
    let all: Vec<_> = replica.resources.keys().cloned().collect();
    let keys = StoreKeys::default();
    let (layout, _) = Layout::empty().rewrite(&replica.resources, &all, &keys);
    layout.id()
}

impl Subscriber for Edge {
    fn held(&self) -> (Revision, Vec<u8>) {
        self.kept.lock().unwrap().replica.held()
    }

    async fn apply(&mut self, update: Update, _: Origin) -> Result<Applied, Gap> {
        // It may crash meanwhile, before or after.
        tokio::time::sleep(self.chance.milliseconds(100)).await;
        let whole = matches!(update.scope, Scope::Full);
        let mut kept = self.kept.lock().unwrap();
        let mut replica = kept.replica.clone();
        replica.apply(update)?;
        self.check(&kept.replica, &replica);
        kept.replica = replica;
        kept.applied += 1;
        kept.whole += u64::from(whole);
        Ok(Applied::default())
    }

    fn connection(&mut self, state: Result<(), &Status>) {
        if std::env::var_os("ANYPORT_SEED").is_some() {
            eprintln!("{:?} {} {state:?}", tokio::time::Instant::now(), self.name);
        }
    }
}
