//! Puts one agent together and runs it to the end of its drain.

use std::{sync::Arc, time::Instant};

use anyhow::Context;
use anyport_node::{
    admin::AdminServer,
    boot::log_config,
    drain::Drain,
    identity::Identity,
    ready::Readiness,
    rpc::{self, Channel, Server, Urls},
};
use anyport_proto::{DESCRIPTORS, sync, v1};
use prometheus::Registry;
use tokio::{sync::watch, task::JoinSet};

use crate::{
    admin::Admin,
    config::Config,
    control::{Applier, Cache, InUse, SharedTable, follow_weights, report},
    kernel::{Drift, Kernel, Reconciler},
    listen::{Listeners, Workers},
    protect::Protected,
    stats::Stats,
    table::TableWriter,
    tcp::Service,
};

/// Runs an edge agent until `drain` begins and its connections have ended or
/// run out of time.
///
/// # Errors
/// What keeps it from starting: flags that do not fit, an address or state
/// directory that cannot be used, missing privileges. Once it runs, nothing of
/// the control plane can end it.
pub async fn run(config: Config, drain: Drain) -> anyhow::Result<()> {
    log_config(&config);
    let started = Instant::now();
    let name = config.node_name()?;
    let identity = config.tls.load()?;
    let cache = Cache::open(&config.state_dir)?;
    let registry = Registry::new();
    let readiness = Readiness::new();
    let stats = Arc::new(Stats::new(&registry)?);
    let server = Server::bind("--listen", config.listen, &identity)?;
    let admin = AdminServer::bind("--admin", config.admin, &identity)?;
    let replicas = endpoints(&config.config_service, &identity)?;
    let balancers = channels(&config.balancer, &identity)?;

    let writer = TableWriter::new(Arc::clone(&stats));
    let service = Arc::new(Service {
        table: writer.reader(),
        stats: Arc::clone(&stats),
    });
    let table = SharedTable::new(writer);
    let listeners = Listeners::bind(config.workers())?;
    let ports = listeners.ports;

    let (kernel, reconciler) = Reconciler::open(count_repairs(Arc::clone(&stats)))?;
    tokio::spawn(async move {
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
    let mut applier = Applier {
        kernel,
        table: table.clone(),
        cache,
        stats: Arc::clone(&stats),
        listeners: ports,
        protected: Protected::new([&config.config_service, &config.balancer]),
        in_use: Arc::clone(&in_use),
        replica: Default::default(),
    };
    // Workers first: what the kernel still steers from the last run is served
    // from the moment that the rules lead to the new listeners.
    let connections = drain.child();
    let workers = Workers::start(
        listeners.workers,
        &service,
        &connections,
        config.drain_timeout,
    )?;
    applier.restore().await?;

    let admin = admin.spawn(registry, readiness.clone(), drain.clone());
    tracing::info!(listen = %server.address(), admin = %admin.address(), "edge agent started");
    let who = sync::Identity {
        role: v1::NodeRole::Edge,
        name: name.to_string(),
        region: config.region.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let (followed, followed_seen) = watch::channel(None);
    let about = Admin {
        name: name.to_string(),
        region: config.region.clone(),
        steering: config.steering.as_str(),
        workers: config.workers(),
        started,
        stats: Arc::clone(&stats),
        progress: in_use.progress(),
        balancer: followed_seen.clone(),
    };
    // A task each: none of them may hold up another.
    let mut control = JoinSet::new();
    control.spawn(follow_weights(balancers, name.to_string(), table, followed));
    control.spawn(report(stats, name.to_string(), followed_seen));
    control.spawn(async move { in_use.follow_kernel().await });
    control.spawn(async move {
        // An edge has nothing to report to the config service but its acks.
        let (_keep, no_reports) = watch::channel(None);
        sync::follow(replicas, who, no_reports, &mut applier).await;
    });
    let server = server
        .descriptors(DESCRIPTORS)
        .service(v1::edge_service_server::EdgeServiceServer::new(about));
    let served = server.serve(&readiness, &drain).await;
    drain.begin();
    if let Err(unfinished) = connections.finished(config.drain_timeout).await {
        tracing::warn!(%unfinished, "connections are cut");
    }
    tokio::task::spawn_blocking(move || workers.join())
        .await
        .context("waiting for the workers")?;
    control.abort_all();
    served.context("gRPC server")
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

fn endpoints(urls: &Urls, identity: &Identity) -> anyhow::Result<Vec<tonic::transport::Endpoint>> {
    let endpoints = urls.iter().map(|url| rpc::endpoint(url, identity));
    endpoints
        .collect::<Result<_, _>>()
        .context("--config-service")
}

fn channels(urls: &Urls, identity: &Identity) -> anyhow::Result<Vec<Channel>> {
    let channels = urls.iter().map(|url| Channel::lazy(url, identity));
    channels.collect::<Result<_, _>>().context("--balancer")
}
