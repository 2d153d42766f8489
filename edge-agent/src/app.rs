//! Puts one agent together and runs it to the end of its drain.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use anyport_node::{
    access::Role,
    admin::AdminServer,
    boot::log_config,
    drain::Drain,
    identity::{self, Expiry, Identity},
    ready::Readiness,
    rpc::{Channel, Endpoint, Server, Urls, advertised},
};
use anyport_proto::{DESCRIPTORS, sync, v1};
use prometheus::Registry;
use tokio::{sync::watch, task::JoinSet};

use crate::{
    admin::Admin,
    config::Config,
    control::{Applier, Cache, InUse, SharedTable, follow_weights, report, tell_trial},
    descriptors::{Budget, tell_shortages},
    drain::{Duty, Gate, Parts},
    earlier::{Earlier, Finishing},
    events::{Connections, EventFile, EventLog, Writer},
    handover::{
        self, Estate, Generations, HandedOver, Key, Notice, Offering, Standstill, Start, StateLock,
        notify,
    },
    kernel::{self, Drift, Dropped, Kernel, ListenerPorts, Reconciler, Sole},
    listen::{Listeners, Phases, Spread, Workers},
    live::Live,
    origin::{Resolver, follow_dns},
    protect::Protected,
    stats::Stats,
    table::TableWriter,
    tcp::Service,
};

/// Workers have this long to take the datagrams that have come when a successor
/// takes over.
const LAST_DATAGRAMS: Duration = Duration::from_secs(1);

/// Workers have taken by then what waited for them since their predecessor took no
/// more.
const FIRST_DATAGRAMS: Duration = Duration::from_millis(100);

/// A successor waits this long for the balancer's weights before it serves.
const WEIGHTS_PATIENCE: Duration = Duration::from_secs(2);

/// Runs an edge agent until `drain` begins or another agent has taken
/// over, and its connections have ended or run out of time.
///
/// # Errors
/// What keeps it from starting: flags that do not fit, an address or state
/// directory that cannot be used, missing privileges. Once it runs, nothing of
/// the control plane can end it.
pub async fn run(config: Config, drain: Drain) -> anyhow::Result<()> {
    log_config(&config);
    let started = Instant::now();
    let name = config.node_name()?;
    let identity = config.tls.load_as(Role::Edge, Some(name.as_str()))?;
    let cache = Cache::open(&config.state_dir)?;
    let begun = tokio::select! {
        begun = handover::begin(&config.state_dir, name.as_str()) => begun?,
        () = drain.started() => return Ok(()),
    };
    let (lock, sole, mut predecessor) = match begun {
        Start::First(lock) => (lock, Some(Sole::take().await?), None),
        // The predecessor is it until it is gone.
        Start::Successor(mut predecessor) => (predecessor.state_lock()?, None, Some(predecessor)),
    };
    let registry = Registry::new();
    let readiness = Readiness::new();
    let stats = Arc::new(Stats::new(&registry)?);
    let mut inherited = |key| {
        let fd = predecessor.as_mut()?.estate.take(key)?;
        Some(std::net::TcpListener::from(fd))
    };
    let grpc = inherited(Key::Grpc);
    let server = Server::bind_or_inherit("--listen", config.listen, &identity, grpc)?;
    let pages = inherited(Key::Admin);
    let admin = AdminServer::bind_or_inherit("--admin", config.admin, &identity, pages)?;
    let replicas = endpoints(&config.config_service, &identity)?;
    let balancers = channels(&config.balancer, &identity)?;

    let writer = TableWriter::new(Arc::clone(&stats));
    let open = Arc::new(Connections::default());
    let events = Arc::new(EventLog::new(stats.events_lost.clone()));
    let teller = Writer {
        name: name.to_string(),
        region: config.region.clone(),
    };
    let event_file = match &config.event_log {
        Some(path) => Some(EventFile::start(path, &events, teller.clone())?),
        None => None,
    };
    let reader = writer.reader();
    let questions = writer.questions();
    let table = SharedTable::new(writer);
    let steering = kernel::choose(config.steering.asked()).context("--steering")?;
    tracing::info!(
        steering = steering.as_str(),
        "how the kernel hands connections over"
    );
    let listeners = match &mut predecessor {
        None => Listeners::bind(config.workers(), steering)?,
        Some(predecessor) => {
            let estate = &mut predecessor.estate;
            let listeners = Listeners::inherit(config.workers(), steering, estate)?;
            predecessor.check_nothing_is_left()?;
            listeners
        }
    };
    let ports = listeners.ports;
    let sockets = listeners.steered().context("listeners")?;
    let estate = estate(&lock, &server, &admin, &listeners).context("duplicating descriptors")?;

    let own = [server.address(), admin.address()]
        .into_iter()
        .chain(steered_to(ports));

    let (kernel, reconciler) = Reconciler::open(count_repairs(Arc::clone(&stats)))?;
    let reconciler = reconciler.on_drop(count_drops(&stats));
    let (transparent, earlier) = (stats.transparent.clone(), Earlier::expected());
    let also = earlier.clone();
    let reconciler = reconciler
        .keep_return_path_while(move || transparent.get() > 0 || also.may_be_transparent());
    let reconciling = tokio::spawn(async move {
        if let Err(error) = reconciler.run().await {
            tracing::error!(%error, "kernel state is no longer watched");
        }
    });

    let in_use = Arc::new(InUse::new(
        kernel.standing(),
        cache.clone(),
        Arc::clone(&stats),
        readiness.condition("configuration", "none was received yet"),
    ));
    let (live, orders) = Live::of_workers(config.workers());
    let configuring = Arc::default();
    let gate = Gate::new(kernel.clone());
    let (tried, trial) = watch::channel(None);
    let mut applier = Applier {
        kernel: gate.clone(),
        table: table.clone(),
        cache,
        stats: Arc::clone(&stats),
        steering,
        listeners: ports,
        sockets,
        protected: Protected::new([&config.config_service, &config.balancer]).listening(own),
        in_use: Arc::clone(&in_use),
        live: live.clone(),
        configuring: Arc::clone(&configuring),
        replica: Default::default(),
        trial: tried,
        begun: None,
    };
    // What the kernel still steers from the last run is served from the moment
    // that the rules lead to the new listeners. A successor waits for its turn.
    let phases = Phases::until(drain.child(), config.drain_timeout);
    let (spread, loads) = Spread::prepare(&listeners.workers).context("listeners")?;
    let mut spread = Some(spread);
    if predecessor.is_none() {
        if let Some(spread) = spread.take() {
            spread.begin();
        }
        phases.accepting.cancel();
        phases.taking.cancel();
    }
    let descriptors = Arc::new(Budget::of_process(listeners.workers.len()));
    descriptors.register(&registry)?;
    let service = Arc::new(Service {
        table: reader,
        stats: Arc::clone(&stats),
        connections: Arc::clone(&open),
        events: Arc::clone(&events),
        descriptors: Arc::clone(&descriptors),
        drained: AtomicBool::new(false),
    });
    let parts = Parts {
        gate,
        live: live.clone(),
        service: Arc::clone(&service),
        ready: readiness.condition("drain", "the agent starts"),
        configuring: Arc::clone(&configuring),
        limit: config.drain_timeout,
    };
    let duty = Duty::resume(&config.state_dir, parts).await;
    let mut joining = listeners.joining;
    let workers = Workers::start(listeners.workers, loads, orders, &service, &phases)?;
    applier.restore().await?;
    if let Some(predecessor) = &predecessor {
        if let Some(fault) = kernel.fault() {
            bail!("the running edge agent goes on, because the kernel refuses this one: {fault}");
        }
        predecessor.check_revision(in_use.progress().borrow().revision)?;
    }

    // A task each: none of them may hold up another.
    let mut control = JoinSet::new();
    control.spawn(Sole::keep(sole));
    let resolver = Resolver::new(config.resolver.clone());
    let names = follow_dns(questions, resolver, table.clone(), Arc::clone(&stats));
    control.spawn(names);
    let remark = readiness.remark("descriptors");
    control.spawn(tell_shortages(descriptors, Arc::clone(&stats), remark));
    let (drainer, obeying) = duty.start();
    control.spawn(obeying);
    let (followed, mut followed_seen) = watch::channel(false);
    let of_weights = (table, Arc::clone(&stats));
    let weights = follow_weights(balancers.clone(), name.to_string(), of_weights, followed);
    control.spawn(weights);
    let mut generations = Generations::default();
    if let Some(predecessor) = predecessor {
        // The predecessor knows which origins are down. Without a balancer so
        // does nobody.
        let known = followed_seen.wait_for(|following| *following);
        tokio::select! {
            _ = tokio::time::timeout(WEIGHTS_PATIENCE, known) => {}
            () = drain.started() => return Ok(()),
        }
        // From here on it may be ours already, and nobody else's. Whatever is
        // asked of this agent, it has to know first.
        let departing = predecessor.succeed().await?;
        joining.take_connections();
        if let Some(spread) = spread.take() {
            spread.begin();
        }
        phases.accepting.cancel();
        generations = departing.gone().await;
        phases.taking.cancel();
        if !joining.is_empty() {
            // What begins a flow is to be taken first from where it waits: what
            // comes next may be given to another worker.
            tokio::time::sleep(FIRST_DATAGRAMS).await;
            joining.take_datagrams();
        }
    }
    let follow = earlier.clone().follow(
        config.state_dir.clone(),
        generations.clone(),
        live.ordered(),
    );
    control.spawn(follow);
    let offering = if config.hand_over {
        let standstill = Standstill {
            configuring,
            kernel,
            progress: in_use.progress(),
        };
        let offering = Offering::open(
            &config.state_dir,
            name.as_str(),
            estate,
            generations,
            standstill,
        );
        // It serves all the same, and by now nobody else would.
        let offering = offering.inspect_err(|error| {
            tracing::error!(%error, "--state-dir: no successor can take over");
        });
        offering.ok()
    } else {
        // Listeners are to be closed when workers close them.
        drop(estate);
        None
    };

    let expiry = Expiry::register(&identity, &registry)?;
    let remark = readiness.remark("identity");
    let (followed_identity, expires) = (identity.clone(), expiry);
    control.spawn(async move {
        identity::follow(followed_identity, expires, remark).await;
    });
    let admin = admin.spawn(registry, readiness.clone(), drain.clone());
    tracing::info!(listen = %server.address(), admin = %admin.address(), "edge agent started");
    let who = sync::Identity {
        role: v1::NodeRole::Edge,
        name: name.to_string(),
        region: config.region.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        steering: steering.as_str().to_owned(),
        address: advertised(config.advertise.as_ref(), server.address(), &identity),
    };
    let serving = drain.child();
    let about = Admin {
        writer: teller,
        steering: steering.as_str(),
        workers: config.workers(),
        started,
        stats: Arc::clone(&stats),
        progress: in_use.progress(),
        balancer: followed_seen,
        connections: open,
        events,
        drain: serving.clone(),
        drainer: drainer.clone(),
        earlier: earlier.clone(),
    };
    let finishing = Admin {
        drain: Drain::new(),
        earlier: Earlier::default(),
        ..about.clone()
    };
    let (tell, reports) = watch::channel(None);
    let counts = Arc::clone(&stats);
    let open = move || counts.open_connections() + earlier.open();
    control.spawn(drainer.report(open, tell.clone()));
    control.spawn(tell_trial(Arc::clone(&stats), trial, tell));
    for balancer in balancers {
        control.spawn(report(Arc::clone(&stats), name.to_string(), balancer));
    }
    control.spawn(async move { in_use.follow_kernel().await });
    control.spawn(async move {
        let replicas = replicas.into_iter().map(Endpoint::into_dial).collect();
        sync::follow(replicas, who, reports, &mut applier, rand::random).await;
    });
    notify(Notice::Ready);

    let server = server
        .descriptors(DESCRIPTORS)
        .service(v1::edge_service_server::EdgeServiceServer::new(about));
    let served = async {
        let served = server.serve(&readiness, &serving).await;
        serving.begin();
        served
    };
    // What this agent gives up, whichever way it ends, it gives up here.
    let ending = async {
        let handed_over = tokio::select! {
            () = serving.started() => None,
            handed_over = taken(offering) => Some(handed_over),
        };
        serving.begin();
        phases.drain.begin();
        let Some(handed_over) = handed_over else {
            notify(Notice::Stopping);
            return (Some((admin, control, lock)), None);
        };
        let successor = handed_over.successor();
        // It takes datagrams when it is told that this agent is gone.
        if let Err(unfinished) = phases.taken.finished(LAST_DATAGRAMS).await {
            tracing::warn!(%unfinished, "workers still take datagrams");
        }
        control.shutdown().await;
        reconciling.abort();
        // Aborted or ended, it is over.
        let _ = reconciling.await;
        let finishing = Finishing::start(&config.state_dir, finishing, live, Arc::clone(&service));
        let finishing = finishing.inspect_err(|error| {
            tracing::error!(%error, "what this agent finishes is neither listed nor closed by order");
        });
        drop((admin, lock, handed_over));
        let open = service.stats.open_connections();
        tracing::info!(successor, open, "handed over; finishing open connections");
        (None, finishing.ok())
    };
    // What is not handed over is kept until the last connection has ended.
    let (served, _kept) = tokio::join!(served, ending);
    join(workers, &phases.drain).await?;
    if let Some(event_file) = event_file {
        tokio::task::spawn_blocking(move || event_file.finish())
            .await
            .context("waiting for the event log")?;
    }
    served.context("gRPC server")
}

/// A descriptor of everything that a successor needs.
fn estate(
    lock: &StateLock,
    server: &Server,
    admin: &AdminServer,
    listeners: &Listeners,
) -> io::Result<Estate> {
    let own = [
        (Key::StateLock, lock.duplicate()?),
        (Key::Grpc, server.listener().try_clone_to_owned()?),
        (Key::Admin, admin.listener().try_clone_to_owned()?),
    ];
    Ok(own.into_iter().chain(listeners.duplicates()?).collect())
}

/// Without an offer, it is never taken.
async fn taken(offering: Option<Offering>) -> HandedOver {
    match offering {
        Some(offering) => offering.taken().await,
        None => std::future::pending().await,
    }
}

/// Waits for the workers, which end with their last connection.
async fn join(workers: Workers, connections: &Drain) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || workers.join())
        .await
        .context("waiting for the workers")?;
    if let Err(unfinished) = connections.finished(Duration::ZERO).await {
        tracing::warn!(%unfinished, "connections are cut");
    }
    Ok(())
}

/// Where the kernel steers to.
fn steered_to(ports: ListenerPorts) -> impl Iterator<Item = SocketAddr> {
    let v4 = (IpAddr::from(Ipv4Addr::LOCALHOST), ports.v4);
    let v6 = ports.v6.map(|ports| (Ipv6Addr::LOCALHOST.into(), ports));
    [v4].into_iter()
        .chain(v6)
        .flat_map(|(ip, ports)| [ports.tcp, ports.udp].map(|port| SocketAddr::new(ip, port.get())))
}

fn count_repairs(stats: Arc<Stats>) -> impl FnMut(Drift, u64) + Send {
    // All series exist from the start, so that the first repair is an increase
    // that a dashboard can see.
    for drift in Drift::ALL {
        stats.drift_repaired.with_label_values(&[drift.as_str()]);
    }
    move |drift, count| {
        stats
            .drift_repaired
            .with_label_values(&[drift.as_str()])
            .inc_by(count);
    }
}

/// The kernel says how many there ever were.
fn count_drops(stats: &Stats) -> impl FnMut(Dropped, u64) + Send + use<> {
    let counters = Dropped::ALL.map(|reason| {
        let counter = stats.dropped_packets.with_label_values(&[reason.as_str()]);
        (reason, counter)
    });
    move |reason, count| {
        let counter = counters.iter().find(|(of, _)| *of == reason);
        if let Some((_, counter)) = counter {
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }
}

fn endpoints(urls: &Urls, identity: &Identity) -> anyhow::Result<Vec<Endpoint>> {
    let endpoints = urls
        .iter()
        .map(|url| Endpoint::new(url, identity, Role::ConfigService));
    endpoints
        .collect::<Result<_, _>>()
        .context("--config-service")
}

fn channels(urls: &Urls, identity: &Identity) -> anyhow::Result<Vec<Channel>> {
    let channels = urls
        .iter()
        .map(|url| Channel::lazy(url, identity, Role::Balancer));
    channels.collect::<Result<_, _>>().context("--balancer")
}
