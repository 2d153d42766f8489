//! Pushes, a kernel that may refuse them, and restarts.

#![allow(clippy::unwrap_used)]

use anyport_node::ready::Readiness;
use tokio::{sync::watch, task::JoinHandle};

use super::*;
use crate::{
    control::Progress,
    kernel::{FakeKernel, FamilyPorts},
    table::TableWriter,
};

/// An agent without its data plane, and the config service's side of it.
struct Agent {
    applier: Applier<Arc<FakeKernel>>,
    kernel: Arc<FakeKernel>,
    readiness: Readiness,
    follower: JoinHandle<()>,
    directory: tempfile::TempDir,
}

impl Agent {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    async fn start_in(directory: tempfile::TempDir) -> Self {
        let kernel = Arc::new(FakeKernel::default());
        let readiness = Readiness::new();
        let stats = Arc::new(Stats::new(&prometheus::Registry::new()).unwrap());
        let cache = Cache::open(directory.path()).unwrap();
        let in_use = Arc::new(InUse::new(
            kernel.standing(),
            cache.clone(),
            Arc::clone(&stats),
            readiness.condition("configuration", "none was received yet"),
        ));
        let following = Arc::clone(&in_use);
        let mut applier = Applier {
            live: Live::of_workers(0).0,
            configuring: Arc::default(),
            kernel: Arc::clone(&kernel),
            table: SharedTable::new(TableWriter::new(Arc::clone(&stats))),
            cache,
            stats,
            steering: Steering::Tproxy,
            sockets: SteeredSockets::default(),
            listeners: ListenerPorts {
                v4: FamilyPorts {
                    tcp: std::num::NonZeroU16::MIN,
                    udp: std::num::NonZeroU16::MIN,
                },
                v6: None,
            },
            protected: Protected::new([&"http://203.0.113.5:7400".parse().unwrap()]),
            in_use,
            replica: Replica::default(),
            trial: watch::Sender::default(),
            begun: None,
        };
        applier.restore().await.unwrap();
        Self {
            applier,
            kernel,
            readiness,
            follower: tokio::spawn(async move { following.follow_kernel().await }),
            directory,
        }
    }

    /// On the same state directory, as after a crash.
    async fn restart(self) -> Self {
        self.follower.abort();
        Self::start_in(self.directory).await
    }

    /// Pushes a delta and gives what the acknowledgement rejects, by name.
    async fn push(
        &mut self,
        upserts: Vec<v1::Resource>,
        removals: &[(v1::Kind, &str)],
    ) -> Vec<String> {
        let base = self.applier.replica.revision.0;
        let removals = removals.iter().map(|(kind, name)| v1::ResourceRef {
            kind: (*kind).into(),
            name: (*name).to_owned(),
        });
        let revision = base + 1;
        let update = v1::Update {
            revision,
            base_revision: base,
            state_hash: vec![u8::try_from(revision).unwrap()],
            full: base == 0,
            upserts,
            removals: removals.collect(),
            ..Default::default()
        };
        let update = read_update(update).unwrap();
        let applied = self.applier.apply(update, Origin::default()).await.unwrap();
        let progress = self.applier.in_use.progress().borrow().clone();
        assert_eq!(
            applied.rejections, progress.rejections,
            "ack and status agree"
        );
        assert_eq!(
            self.applier.stats.rejected_resources.get(),
            i64::try_from(applied.rejections.len()).unwrap()
        );
        let name = |r: v1::Rejection| r.resource.map_or(r.reason, |resource| resource.name);
        applied.rejections.into_iter().map(name).collect()
    }

    async fn progress(&self, such: impl Fn(&Progress) -> bool) {
        let mut progress = self.applier.in_use.progress();
        let came = progress.wait_for(|progress| such(progress));
        let patience = Duration::from_secs(10);
        tokio::time::timeout(patience, came).await.unwrap().unwrap();
    }

    fn applied_revision(&self) -> i64 {
        self.applier.stats.applied_revision.get()
    }

    fn kept(&self) -> Option<(u64, Vec<u8>)> {
        let kept = self.applier.cache.load().unwrap()?;
        Some((kept.revision, kept.state_hash))
    }

    /// The label of the pool that would take a connection.
    fn pool_for(&self, destination: &str) -> Option<String> {
        let snapshot = self.applier.table.lock().reader().load_full();
        let target = snapshot.target(
            anyport_model::resource::Transport::Tcp,
            destination.parse().unwrap(),
        )?;
        Some(target.pool.id.label().to_owned())
    }

    fn steered(&self) -> Desired {
        self.kernel.granted().last().unwrap().clone()
    }
}

fn wire(kind: v1::resource::Kind) -> v1::Resource {
    v1::Resource { kind: Some(kind) }
}

fn prefix(cidr: &str) -> v1::Resource {
    let cidr = cidr.to_owned();
    wire(v1::resource::Kind::Prefix(v1::Prefix { cidr }))
}

fn pool(name: &str, origin: &str) -> v1::Resource {
    let origin = v1::Origin {
        name: "a".to_owned(),
        address: origin.to_owned(),
        ..Default::default()
    };
    wire(v1::resource::Kind::Pool(v1::Pool {
        name: name.to_owned(),
        origins: vec![origin],
        ..Default::default()
    }))
}

fn app(edge_ip: &str, pool: &str) -> v1::Resource {
    wire(v1::resource::Kind::App(v1::App {
        name: "web".to_owned(),
        protocol: "tcp/80".to_owned(),
        edge_ips: vec![edge_ip.to_owned()],
        origin_pool: pool.to_owned(),
        ..Default::default()
    }))
}

fn served() -> Vec<v1::Resource> {
    vec![
        prefix("198.51.100.0/24"),
        pool("good", "10.0.2.2:80"),
        app("198.51.100.7", "good"),
    ]
}

const EDGE: &str = "198.51.100.7:80";
const UNREADABLE: &str = "no address";

#[tokio::test]
async fn what_the_kernel_refuses_is_not_in_use_until_it_takes_it() {
    let mut agent = Agent::start().await;
    assert!(agent.push(served(), &[]).await.is_empty());
    assert!(agent.readiness.is_ready());
    agent.kernel.refuse();
    let rejected = agent.push(vec![prefix("203.0.113.128/25")], &[]).await;
    assert!(rejected[0].starts_with("kernel: "), "{rejected:?}");
    assert!(!agent.readiness.is_ready());
    agent.progress(|progress| progress.revision.0 == 1).await;
    assert_eq!(agent.applied_revision(), 1);
    assert_eq!(
        agent.kept(),
        Some((1, vec![1])),
        "the good one stays on disk"
    );

    agent.kernel.heal();
    let healed = |progress: &Progress| progress.revision.0 == 2 && progress.rejections.is_empty();
    agent.progress(healed).await;
    assert!(agent.readiness.is_ready());
    assert_eq!(agent.applied_revision(), 2);
    // Not kept before it is told, but by the time that anything else is.
    agent.applier.in_use.begin().await;
    assert_eq!(agent.kept(), Some((2, vec![2])));
}

#[tokio::test]
async fn a_fault_that_comes_later_shows_and_goes() {
    let mut agent = Agent::start().await;
    agent.push(served(), &[]).await;
    let mut changes = agent.readiness.changes();
    agent.kernel.break_down();
    while changes.report().is_ready() {
        changes.next().await;
    }
    agent
        .progress(|progress| !progress.rejections.is_empty())
        .await;
    agent.kernel.heal();
    agent.readiness.ready().await;
    agent
        .progress(|progress| progress.rejections.is_empty())
        .await;
}

#[tokio::test]
async fn a_kernel_that_nobody_watches_is_a_fault() {
    let (stand, standing) = watch::channel(crate::kernel::Standing::default());
    let mut agent = Agent::start().await;
    agent.push(served(), &[]).await;
    let readiness = Readiness::new();
    let in_use = InUse::new(
        standing,
        agent.applier.cache.clone(),
        Arc::clone(&agent.applier.stats),
        readiness.condition("configuration", "none was received yet"),
    );
    let configured = || Configured {
        revision: Revision(1),
        state_hash: Vec::new(),
        source: Source::ConfigService,
        rejections: Vec::new(),
        keep: None,
    };
    assert!(in_use.conclude(configured()).await.is_empty());
    drop(stand);
    in_use.follow_kernel().await;
    assert!(!readiness.is_ready());
}

#[tokio::test]
async fn what_was_rejected_once_is_said_each_time_and_asked_for_again() {
    let mut agent = Agent::start().await;
    let mut all = served();
    all.push(pool("bad", UNREADABLE));
    assert_eq!(agent.push(all, &[]).await, ["bad"]);
    let other = vec![pool("other", "10.0.2.4:80")];
    assert_eq!(
        agent.push(other, &[]).await,
        ["bad"],
        "a delta about something else"
    );
    assert_eq!(agent.applier.held(), (Revision::EMPTY, vec![]));
    assert_eq!(
        agent.kept(),
        Some((2, vec![])),
        "not the revision's own state"
    );

    let mut agent = agent.restart().await;
    assert_eq!(agent.pool_for(EDGE).as_deref(), Some("good"));
    assert_eq!(agent.applier.held(), (Revision::EMPTY, vec![]));
    let mut all = served();
    all.push(pool("bad", "10.0.2.5:80"));
    agent.applier.replica = Replica::default();
    assert!(agent.push(all, &[]).await.is_empty());
    assert_eq!(agent.applier.held(), (Revision(1), vec![1]));
}

#[tokio::test]
async fn an_app_that_moved_to_an_unreadable_pool_is_served_as_before_also_after_a_restart() {
    let mut agent = Agent::start().await;
    agent.push(served(), &[]).await;
    let moved = vec![pool("bad", UNREADABLE), app("198.51.100.8", "bad")];
    let rejected = agent.push(moved, &[(v1::Kind::Pool, "good")]).await;
    assert_eq!(rejected, ["bad", "web"]);
    assert_eq!(agent.pool_for(EDGE).as_deref(), Some("good"));

    let agent = agent.restart().await;
    assert_eq!(agent.pool_for(EDGE).as_deref(), Some("good"));
    assert_eq!(agent.steered().claims.len(), 1);
    assert_eq!(agent.applier.held(), (Revision::EMPTY, vec![]));
}

#[tokio::test]
async fn a_prefix_around_the_config_service_is_never_steered() {
    let mut agent = Agent::start().await;
    let mut all = served();
    all.extend([prefix("203.0.113.0/24"), app("203.0.113.80", "good")]);
    assert_eq!(agent.push(all, &[]).await, ["203.0.113.0/24"]);
    let good = ["198.51.100.0/24".parse().unwrap()];
    assert_eq!(agent.steered().prefixes, good);
    assert!(agent.steered().claims.is_empty());

    let agent = agent.restart().await;
    assert_eq!(agent.steered().prefixes, good);
    assert!(agent.steered().claims.is_empty());
}

/// A revision on trial, or one that is not any more.
async fn tries(agent: &mut Agent, revision: u64, trial: bool) -> Option<v1::TrialReport> {
    let update = v1::Update {
        revision,
        full: true,
        state_hash: vec![1],
        ..Default::default()
    };
    let origin = Origin {
        trial,
        ..Origin::default()
    };
    let update = read_update(update).unwrap();
    agent.applier.apply(update, origin).await.unwrap();
    let trial = agent.applier.trial.borrow();
    trial.as_ref().map(Trial::begun)
}

#[tokio::test]
async fn what_a_trial_is_held_against_outlives_the_agent() {
    let mut agent = Agent::start().await;
    let begun = tries(&mut agent, 3, true).await.unwrap();
    let mut kept = agent.applier.cache.load_trial().unwrap().unwrap();
    assert_eq!((&kept.state_hash, &kept.before), (&vec![1], &Some(begun)));
    let seen = v1::TrialReport {
        revision: 3,
        apps: vec![v1::AppTrial {
            app: "web".to_owned(),
            before: Some(v1::Outcomes {
                ended: 100,
                failed: 50,
            }),
            ..Default::default()
        }],
        since: None,
    };
    kept.before = Some(seen.clone());
    agent.applier.cache.save_trial(&kept).unwrap();
    let mut agent = agent.restart().await;
    assert_eq!(tries(&mut agent, 3, true).await, Some(seen));
    assert_eq!(tries(&mut agent, 4, false).await, None);
    let next = tries(&mut agent, 5, true).await.unwrap();
    assert_eq!((next.revision, next.apps.len()), (5, 0));
    // Another state under the same number, as after a restored store.
    kept.state_hash = vec![9];
    agent.applier.cache.save_trial(&kept).unwrap();
    let mut agent = agent.restart().await;
    assert_eq!(tries(&mut agent, 3, true).await.unwrap().apps, []);
}

#[test]
fn one_trial_is_kept_before_the_next_begins() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut agent = Agent::start().await;
        // So that nothing but the trial is kept.
        agent.kernel.refuse();
        let (let_go, held_up) = std::sync::mpsc::channel::<()>();
        let disk = tokio::task::spawn_blocking(move || held_up.recv());
        let mut progress = agent.applier.in_use.progress();
        let cache = agent.applier.cache.clone();
        let mut trying = std::pin::pin!(tries(&mut agent, 3, true));
        tokio::select! {
            biased;
            _ = &mut trying => panic!("its trial is yet to be kept"),
            told = progress.wait_for(|progress| !progress.rejections.is_empty()) => {
                told.unwrap();
            }
        }
        let_go.send(()).unwrap();
        disk.await.unwrap().unwrap();
        let begun = trying.await;
        assert!(begun.is_some());
        assert_eq!(cache.load_trial().unwrap().unwrap().before, begun);
    });
}
