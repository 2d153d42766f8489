//! Somebody who writes, and tries again with the same request id until an answer comes.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use anyport_config_service::{
    admit::{Conditions, Intent, Outcome, WriteError, Writer, read_apply},
    state::Keeper,
    store::{ObjectId, RequestMark},
};
use anyport_model::{names::Revision, rollout::Canary};
use anyport_proto::v1::{self, resource::Kind};
use tokio::time::Instant;

use crate::{chance::Chance, disk::Disk};

const APPS: usize = 12;
/// A client that hears nothing for so long asks elsewhere.
const PATIENCE: Duration = Duration::from_secs(5);

/// A write that was acknowledged.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    pub id: String,
    pub revision: Revision,
    /// How often the store had gone back when it was asked for.
    pub rewinds: u64,
}

pub struct Client {
    pub chance: Chance,
    pub truth: Arc<Disk>,
    /// Of the replicas that run.
    pub keepers: Arc<Mutex<Vec<Option<Keeper>>>>,
    pub edges: usize,
    pub acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    pub trials: Arc<Mutex<u64>>,
}

impl Client {
    /// Writes so many times, one after the other.
    pub async fn run(self, number: usize, writes: usize) {
        for write in 0..writes {
            tokio::time::sleep(self.chance.milliseconds(5_000)).await;
            self.write(format!("client{number}-{write}")).await;
        }
    }

    async fn write(&self, id: String) {
        let (intent, canary) = self.wish();
        let conditions = Conditions {
            request: Some(RequestMark {
                digest: ObjectId::of(id.as_bytes()),
                id: id.clone(),
            }),
            allow_mass_deletion: true,
            canary,
            ..Conditions::default()
        };
        let started = Instant::now();
        // Later than this, the id may be forgotten.
        while started.elapsed() < Duration::from_secs(60) {
            // Before: it may go back between the look at it and the answer.
            let rewinds = self.truth.rewinds();
            if let Some(answer) = self.ask(&intent, &conditions).await {
                self.answered(id, &conditions, answer, rewinds);
                return;
            }
            tokio::time::sleep(self.chance.milliseconds(1_000)).await;
        }
    }

    fn answered(
        &self,
        id: String,
        conditions: &Conditions,
        answer: Result<(Revision, Outcome), WriteError>,
        rewinds: u64,
    ) {
        match answer {
            Ok((revision, Outcome::Committed | Outcome::Repeated)) => {
                *self.trials.lock().unwrap() += u64::from(conditions.canary.is_some());
                self.acknowledged.lock().unwrap().push(Acknowledged {
                    id,
                    revision,
                    rewinds,
                });
            }
            Ok((_, Outcome::Unchanged | Outcome::DryRun)) | Err(WriteError::Refused(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }

    /// At one of the replicas; `None`: no answer, or none that says what became of it.
    async fn ask(
        &self,
        intent: &Intent,
        conditions: &Conditions,
    ) -> Option<Result<(Revision, Outcome), WriteError>> {
        let keeper = {
            let keepers = self.keepers.lock().unwrap();
            keepers[self.chance.below(keepers.len())].clone()
        };
        let writer = Writer::new(keeper?);
        let virtual_now = || SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let write = writer.write(intent.clone(), conditions.clone(), virtual_now);
        match tokio::time::timeout(PATIENCE, write).await {
            Ok(Err(WriteError::Store(_) | WriteError::Contended)) | Err(_) => None,
            Ok(answer) => Some(answer.map(|written| (written.revision, written.outcome))),
        }
    }

    fn wish(&self) -> (Intent, Option<Canary>) {
        let chance = &self.chance;
        let latest = self.truth.head().map_or(0, |head| head.revision.0);
        match chance.below(10) {
            0 => {
                let name = format!("app{}", chance.below(APPS));
                let reference = anyport_model::resource::ResourceRef::App(name.parse().unwrap());
                (Intent::Delete(reference), None)
            }
            1 if latest > 1 => {
                let revision = Revision(1 + chance.number() % (latest - 1));
                let records = self.truth.records();
                let known = records.iter().any(|record| record.revision == revision);
                match known.then(|| self.state_of(revision)).flatten() {
                    Some(resources) => (
                        Intent::Rollback {
                            revision,
                            resources,
                        },
                        None,
                    ),
                    None => (Intent::Promote(None), None),
                }
            }
            2 => (Intent::Promote(None), None),
            3 => {
                let edge = format!("edge{}", chance.below(self.edges));
                let canary = Canary {
                    edges: [edge.parse().unwrap()].into(),
                    promote_after: None,
                };
                (self.some_apps(), Some(canary))
            }
            _ => (self.some_apps(), None),
        }
    }

    /// Of a revision that a replica still has in memory.
    fn state_of(&self, revision: Revision) -> Option<anyport_model::state::Resources> {
        let keepers = self.keepers.lock().unwrap();
        let mut states = keepers.iter().flatten().filter_map(Keeper::present);
        let found = states.find(|present| present.revision() == revision)?;
        Some(found.resources().clone())
    }

    fn some_apps(&self) -> Intent {
        let chance = &self.chance;
        let prefix = v1::Prefix {
            cidr: "198.51.100.0/24".to_owned(),
        };
        let mut resources = vec![Kind::Prefix(prefix)];
        for _ in 0..=chance.below(3) {
            let number = chance.below(APPS);
            resources.push(Kind::App(v1::App {
                name: format!("app{number}"),
                protocol: format!("tcp/{}", 1000 + number),
                edge_ips: vec!["198.51.100.7".to_owned()],
                origin_direct: vec![format!("tcp://10.0.0.1:{}", 1 + chance.below(9_999))],
                ..Default::default()
            }));
        }
        resources.dedup_by_key(|kind| match kind {
            Kind::App(app) => app.name.clone(),
            _ => String::new(),
        });
        let resources = resources
            .into_iter()
            .map(|kind| v1::Resource { kind: Some(kind) });
        Intent::Apply {
            request: read_apply(resources.collect()),
            prune: chance.one_in(20),
        }
    }
}
