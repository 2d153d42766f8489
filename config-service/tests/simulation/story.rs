//! One story: two replicas, some edges and clients, trouble for a minute, and then none.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyport_config_service::{
    Metrics, Random,
    nodes::{Balancers, Nodes},
    push::{DiscoveryServer, Push},
    serve::Intake,
    state::{Keeper, follow},
};
use anyport_model::names::Revision;
use anyport_node::{drain::Drain, metrics::Registry, ready::Readiness};
use anyport_proto::sync;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::Status;

use crate::{
    chance::Chance,
    client::{Acknowledged, Client},
    disk::{Disk, Reach},
    edge::{Edge, Kept, content},
    gate::Gate,
    wire::Wire,
};

const REPLICAS: usize = 2;
const TROUBLE: Duration = Duration::from_secs(60);
/// A lost event is noticed after 20 s, and a pause is at most 5 s.
const CALM: Duration = Duration::from_secs(90);

/// What happened, to be told from what happened in another story.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    pub commits: u64,
    pub applied: u64,
    pub whole: u64,
    pub replica_crashes: u64,
    pub edge_crashes: u64,
    pub cuts: u64,
    pub outages: u64,
    pub answers_lost: u64,
    pub trials: u64,
    pub rewinds: u64,
    /// The last number of chance: it differs where anything did.
    last: u64,
}

impl Told {
    pub fn and(self, other: Self) -> Self {
        Self {
            commits: self.commits + other.commits,
            applied: self.applied + other.applied,
            whole: self.whole + other.whole,
            replica_crashes: self.replica_crashes + other.replica_crashes,
            edge_crashes: self.edge_crashes + other.edge_crashes,
            cuts: self.cuts + other.cuts,
            outages: self.outages + other.outages,
            answers_lost: self.answers_lost + other.answers_lost,
            trials: self.trials + other.trials,
            rewinds: self.rewinds + other.rewinds,
            last: 0,
        }
    }
}

/// Tells the story of a seed; panics where something does not hold.
pub fn run(seed: u64) -> Told {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(Story::begin(Chance::of(seed)).tell())
}

struct Replica {
    store: Gate,
    /// Each edge's connection to it.
    links: Vec<Gate>,
    running: Option<Running>,
}

struct Running {
    server: DiscoveryServer,
    tasks: JoinSet<()>,
}

struct Story {
    chance: Chance,
    disk: Arc<Disk>,
    troubled: Gate,
    replicas: Arc<Mutex<Vec<Replica>>>,
    keepers: Arc<Mutex<Vec<Option<Keeper>>>>,
    edges: Vec<(Arc<Mutex<Kept>>, JoinSet<()>)>,
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    trials: Arc<Mutex<u64>>,
    told: Told,
}

impl Story {
    fn begin(chance: Chance) -> Self {
        let edges = 2 + chance.below(3);
        let replica = |_| Replica {
            store: Gate::open(),
            links: (0..edges).map(|_| Gate::open()).collect(),
            running: None,
        };
        Self {
            disk: Arc::default(),
            troubled: Gate::open(),
            replicas: Arc::new(Mutex::new((0..REPLICAS).map(replica).collect())),
            keepers: Arc::new(Mutex::new(vec![None; REPLICAS])),
            edges: (0..edges).map(|_| Default::default()).collect(),
            acknowledged: Arc::default(),
            trials: Arc::default(),
            told: Told::default(),
            chance,
        }
    }

    async fn tell(mut self) -> Told {
        (0..REPLICAS).for_each(|replica| self.start_replica(replica));
        (0..self.edges.len()).for_each(|edge| self.start_edge(edge));
        let mut clients = JoinSet::new();
        for number in 0..2 {
            let client = Client {
                chance: self.chance.clone(),
                truth: Arc::clone(&self.disk),
                keepers: Arc::clone(&self.keepers),
                edges: self.edges.len(),
                acknowledged: Arc::clone(&self.acknowledged),
                trials: Arc::clone(&self.trials),
            };
            clients.spawn(client.run(number, 12));
        }
        let end = Instant::now() + TROUBLE;
        while Instant::now() < end {
            sleep(self.chance.milliseconds(3_000)).await;
            self.something_happens();
        }
        self.all_is_well();
        while let Some(ended) = clients.join_next().await {
            ended.expect("a client found something wrong");
        }
        sleep(CALM).await;
        self.check();
        self.told.commits = self.disk.commits();
        self.told.rewinds = self.disk.rewinds();
        self.told.answers_lost = self.disk.answers_lost();
        self.told.trials = *self.trials.lock().unwrap();
        for (kept, _) in &self.edges {
            let kept = kept.lock().unwrap();
            self.told.applied += kept.applied;
            self.told.whole += kept.whole;
        }
        self.told.last = self.chance.number();
        self.told
    }

    fn something_happens(&mut self) {
        let replica = self.chance.below(REPLICAS);
        let edge = self.chance.below(self.edges.len());
        match self.chance.below(40) {
            0..4 => {
                self.crash_replica(replica);
                self.told.replica_crashes += 1;
            }
            4..12 => self.start_replica(replica),
            12..15 => {
                self.edges[edge].1 = JoinSet::new();
                self.told.edge_crashes += 1;
            }
            15..21 => self.start_edge(edge),
            21..25 => {
                self.replicas.lock().unwrap()[replica].links[edge].set(false);
                self.told.cuts += 1;
            }
            25..31 => {
                // The old connection is cut; new ones are whole.
                let mut replicas = self.replicas.lock().unwrap();
                let link = &mut replicas[replica].links[edge];
                std::mem::replace(link, Gate::open()).set(false);
            }
            31..34 => {
                self.replicas.lock().unwrap()[replica].store.set(false);
                self.told.outages += 1;
            }
            34..39 => {
                self.replicas.lock().unwrap()[replica].store.set(true);
            }
            _ => {
                if self.chance.one_in(4) {
                    self.disk.go_back(&self.chance);
                }
            }
        }
    }

    fn all_is_well(&mut self) {
        self.troubled.set(false);
        for replica in self.replicas.lock().unwrap().iter_mut() {
            replica.store.set(true);
            for link in &mut replica.links {
                if !link.is_open() {
                    *link = Gate::open();
                }
            }
        }
        (0..REPLICAS).for_each(|replica| self.start_replica(replica));
        (0..self.edges.len()).for_each(|edge| self.start_edge(edge));
    }

    /// Nothing, where it runs.
    fn start_replica(&mut self, index: usize) {
        let mut replicas = self.replicas.lock().unwrap();
        let replica = &mut replicas[index];
        if replica.running.is_some() {
            return;
        }
        let store = Reach {
            disk: Arc::clone(&self.disk),
            chance: self.chance.clone(),
            way: replica.store.clone(),
            troubled: self.troubled.clone(),
        };
        let chance = self.chance.clone();
        let keeper = Keeper::with_random(Arc::new(store), Random::new(move || chance.number()));
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let push = Push::new(
            keeper.clone(),
            Nodes::default(),
            metrics,
            Drain::new(),
            format!("replica{index}"),
        );
        let mut tasks = JoinSet::new();
        let followed = keeper.clone();
        tasks.spawn(async move {
            let readiness = Readiness::new().condition("store", "not read yet");
            match follow(&followed, &readiness).await {}
        });
        replica.running = Some(Running {
            server: DiscoveryServer::new(
                push,
                Balancers::default(),
                Drain::new(),
                Intake::default(),
            ),
            tasks,
        });
        self.keepers.lock().unwrap()[index] = Some(keeper);
    }

    fn crash_replica(&mut self, index: usize) {
        self.keepers.lock().unwrap()[index] = None;
        let replica = &mut self.replicas.lock().unwrap()[index];
        if let Some(mut running) = replica.running.take() {
            running.tasks.abort_all();
        }
        // With it, every connection.
        for link in &mut replica.links {
            let was = std::mem::replace(link, Gate::open());
            link.set(was.is_open());
            was.set(false);
        }
    }

    /// Nothing, where it runs.
    fn start_edge(&mut self, index: usize) {
        let (kept, task) = &mut self.edges[index];
        if !task.is_empty() {
            return;
        }
        let mut edge = Edge {
            name: format!("edge{index}"),
            kept: Arc::clone(kept),
            truth: Arc::clone(&self.disk),
            chance: self.chance.clone(),
        };
        let dials = (0..REPLICAS).map(|replica| {
            let (replicas, chance) = (Arc::clone(&self.replicas), self.chance.clone());
            move || dial(Arc::clone(&replicas), chance.clone(), replica, index)
        });
        let dials: Vec<_> = dials.collect();
        let chance = self.chance.clone();
        task.spawn(async move {
            let (_report, report) = watch::channel(None);
            let random = move || chance.number();
            sync::follow(dials, edge.identity(), report, &mut edge, random).await;
        });
    }

    fn check(&mut self) {
        for (kept, task) in &mut self.edges {
            // One that found something wrong has ended with that.
            if let Some(ended) = task.try_join_next() {
                ended.expect("an edge found something wrong");
            }
            drop(kept.lock().expect("no edge found something wrong"));
        }
        let head = self.disk.head();
        let records = self.disk.records();
        for (index, (kept, _)) in self.edges.iter().enumerate() {
            let kept = kept.lock().unwrap();
            let wanted = head.as_ref().map(|head| match &head.rollout {
                Some(rollout)
                    if !rollout
                        .canary
                        .edges
                        .iter()
                        .any(|e| e.as_str() == format!("edge{index}")) =>
                {
                    records
                        .iter()
                        .find(|record| record.revision == rollout.stable)
                }
                _ => Some(head),
            });
            // Revision 0 has no record.
            let wanted = wanted
                .flatten()
                .map(|record| (record.revision, record.state_hash));
            let has = (kept.replica.revision, content(&kept.replica));
            match wanted {
                Some(wanted) => {
                    assert_eq!(has, wanted, "edge{index} does not have what it is to have")
                }
                None => assert_eq!(has.0, Revision::EMPTY, "edge{index} has what is not there"),
            }
        }
        for Acknowledged {
            id,
            revision,
            rewinds,
        } in self.acknowledged.lock().unwrap().iter()
        {
            let of_it = |record: &&_| {
                let record: &&anyport_config_service::store::Record = record;
                record.request.as_ref().is_some_and(|mark| mark.id == *id)
            };
            let times = records.iter().filter(of_it).count();
            let lost = *rewinds < self.disk.rewinds();
            assert!(
                times == 1 || times == 0 && lost,
                "{id}, acknowledged as revision {revision}, is in the store {times} times"
            );
        }
    }
}

async fn dial(
    replicas: Arc<Mutex<Vec<Replica>>>,
    chance: Chance,
    replica: usize,
    edge: usize,
) -> Result<Wire, Status> {
    sleep(chance.milliseconds(200)).await;
    let replicas = replicas.lock().unwrap();
    let Replica { links, running, .. } = &replicas[replica];
    match running {
        Some(running) if links[edge].is_open() => Ok(Wire {
            server: running.server.clone(),
            whole: links[edge].clone(),
            chance,
        }),
        _ => Err(Status::unavailable("nobody answers")),
    }
}
