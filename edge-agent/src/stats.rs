//! What the agent counts. Metric names are those of the user's interface.
//!
//! Each app and each origin keeps its handles from route table to route table,
//! so that a connection pays atomic additions for what it counts; series of
//! apps that are gone are removed.

mod app;
mod pool;
mod reason;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyport_model::names::{AppName, PoolName};
use anyport_node::metrics::registered;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, exponential_buckets,
};

use self::app::Families;
pub use self::{
    app::AppStats,
    pool::{OpenGuard, OriginCounts, OriginStats, PoolId, PoolStats},
    reason::{DropReason, Shed},
};
use crate::{endings::Endings, origin::DnsStats};

/// All metrics of one agent.
pub struct Stats {
    families: Families,
    apps: Mutex<BTreeMap<AppName, Arc<AppStats>>>,
    pools: Mutex<BTreeMap<PoolId, Arc<PoolStats>>>,
    /// Revision that the agent was last given.
    pub revision: IntGauge,
    pub applied_revision: IntGauge,
    pub rejected_resources: IntGauge,
    pub apply_time: Histogram,
    pub drift_repaired: IntCounterVec,
    pub dropped_packets: IntCounterVec,
    connections_shed: IntCounterVec,
    worker_connections: IntGaugeVec,
    /// TLS handshakes that succeeded, with clients and with origins.
    pub tls_handshake: HistogramVec,
    /// Connections that no app took: they came while the kernel's rules and
    /// the route table were between two revisions, or past the rules.
    pub unclaimed: IntCounter,
    /// Connections that their origin sees as the client's own.
    pub transparent: IntGauge,
    /// Connections to apps that accept none without a PROXY header.
    pub headers_refused: IntCounterVec,
    pub dns: DnsStats,
    /// Updates of weights by balancers that went by an older set of balancers.
    pub weights_refused: IntCounter,
    /// Events that a reader of the event log was too slow for.
    pub events_lost: IntCounter,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is under these locks is valid after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn histogram(
    name: &str,
    help: &str,
    buckets: prometheus::Result<Vec<f64>>,
) -> prometheus::Result<HistogramOpts> {
    Ok(HistogramOpts::new(name, help).buckets(buckets?))
}

impl Stats {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name, help, labels: &[&str]| counters(registry, name, help, labels);
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help));
        let service = Opts::new("anyport_config_revision", "Revision last received.")
            .const_label("service", "edge-agent");
        let stats = Self {
            families: Families::register(registry)?,
            apps: Mutex::default(),
            pools: Mutex::default(),
            revision: registered(registry, IntGauge::with_opts(service))?,
            applied_revision: gauge(
                "anyport_edge_applied_revision",
                "Revision that the kernel and the route table are at.",
            )?,
            rejected_resources: gauge(
                "anyport_edge_rejected_resources",
                "Resources of the applied revision that an earlier version stands in for.",
            )?,
            apply_time: registered(
                registry,
                Histogram::with_opts(histogram(
                    "anyport_edge_apply_seconds",
                    "From an update's arrival to its being in use.",
                    exponential_buckets(0.0005, 2.0, 16),
                )?),
            )?,
            drift_repaired: counter(
                "anyport_kernel_drift_repaired_total",
                "Kernel state that others had changed and the agent put right.",
                &["what"],
            )?,
            dropped_packets: counter(
                "anyport_dropped_packets_total",
                "Packets for claimed ports that were turned away, by the reason.",
                &["reason"],
            )?,
            connections_shed: counter(
                "anyport_connections_shed_total",
                "Connections reset as soon as they were accepted, by the reason.",
                &["reason"],
            )?,
            worker_connections: registered(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "anyport_worker_connections",
                        "Connections of TCP that a worker thread has open.",
                    ),
                    &["worker"],
                ),
            )?,
            tls_handshake: registered(
                registry,
                HistogramVec::new(
                    histogram(
                        "anyport_tls_handshake_seconds",
                        "TLS handshakes that succeeded, with the client or the origin.",
                        // A tenth of a millisecond to 6.6 seconds.
                        exponential_buckets(0.0001, 2.0, 17),
                    )?,
                    &["side"],
                ),
            )?,
            unclaimed: registered(
                registry,
                IntCounter::new(
                    "anyport_connections_unclaimed_total",
                    "Connections that were accepted and that no app took.",
                ),
            )?,
            transparent: gauge(
                "anyport_connections_transparent_open",
                "Connections open now that origins see as the client's own.",
            )?,
            headers_refused: counter(
                "anyport_proxy_header_refused_total",
                "Connections refused for want of a PROXY header from a trusted sender.",
                &["reason"],
            )?,
            dns: DnsStats::new(registry)?,
            weights_refused: registered(
                registry,
                IntCounter::new(
                    "anyport_edge_weights_refused_total",
                    "Updates of weights that were not taken, since their balancer went by an older set of balancers.",
                ),
            )?,
            events_lost: registered(
                registry,
                IntCounter::new(
                    "anyport_events_lost_total",
                    "Events that a reader of the event log was too slow for.",
                ),
            )?,
        };
        // All series exist from the start, so that the first drop is an
        // increase that a dashboard can see.
        for reason in DropReason::ALL {
            stats.dropped(reason, 0);
        }
        for reason in Shed::ALL {
            stats.connections_shed.with_label_values(&[reason.as_str()]);
        }
        Ok(stats)
    }

    /// The handles of an app, the same ones each time.
    pub fn app(&self, name: &AppName) -> Arc<AppStats> {
        let mut apps = lock(&self.apps);
        let app = apps.entry(name.clone());
        Arc::clone(app.or_insert_with(|| Arc::new(self.families.of(name))))
    }

    /// The counters of a pool, the same ones each time.
    pub fn pool(&self, id: &PoolId) -> Arc<PoolStats> {
        Arc::clone(lock(&self.pools).entry(id.clone()).or_default())
    }

    /// Forgets apps and pools that are gone. An app of which something is open
    /// is kept until a later call: should it be declared again, its limits know
    /// what is open, and what closes it finds it.
    pub fn retain(&self, apps: &BTreeSet<AppName>, pools: &BTreeSet<PoolId>) {
        lock(&self.pools).retain(|id, _| pools.contains(id));
        let gone: Vec<AppName> = {
            let mut known = lock(&self.apps);
            let is_gone =
                |name: &AppName, app: &Arc<AppStats>| !apps.contains(name) && app.open() == 0;
            let gone = known.iter().filter(|(name, app)| is_gone(name, app));
            let gone = gone.map(|(name, _)| name.clone()).collect();
            known.retain(|name, app| !is_gone(name, app));
            gone
        };
        for app in &gone {
            self.families.remove(app);
        }
        if !gone.is_empty() {
            self.families.remove_dials(&gone);
        }
    }

    /// How connections have ended so far, by app.
    pub fn endings(&self) -> BTreeMap<AppName, Endings> {
        let apps = lock(&self.apps);
        let each = apps.iter().map(|(name, app)| (name.clone(), app.endings()));
        each.collect()
    }

    /// Connections open now, over all apps.
    pub fn open_connections(&self) -> u64 {
        let open = lock(&self.apps).values().map(|app| app.open()).sum::<i64>();
        u64::try_from(open).unwrap_or(0)
    }

    /// A dial of `app` to an origin succeeded after `took`.
    pub fn connected(&self, app: &AppStats, pool: &PoolId, origin: &str, took: Duration) {
        self.families.dialled(app.name(), pool, origin, took);
    }

    /// Datagrams went no further.
    pub fn dropped(&self, reason: DropReason, count: u64) {
        let counter = self.dropped_packets.with_label_values(&[reason.as_str()]);
        counter.inc_by(count);
    }

    /// How many datagrams went no further for this reason.
    pub fn dropped_of(&self, reason: DropReason) -> u64 {
        let counter = self.dropped_packets.with_label_values(&[reason.as_str()]);
        counter.get()
    }

    /// A connection was reset as soon as it was accepted.
    pub fn shed(&self, reason: Shed) {
        let counter = self.connections_shed.with_label_values(&[reason.as_str()]);
        counter.inc();
    }

    /// What a worker has open, by its number from 0.
    pub fn worker_connections(&self, worker: usize) -> IntGauge {
        let worker = worker.to_string();
        self.worker_connections.with_label_values(&[&worker])
    }

    /// How many were, for this reason.
    pub fn shed_of(&self, reason: Shed) -> u64 {
        let counter = self.connections_shed.with_label_values(&[reason.as_str()]);
        counter.get()
    }

    /// Origins that an app's name no longer stands for leave no series.
    pub fn forget_origins(&self, app: &AppName, labels: &[Arc<str>]) {
        self.families.forget_origins(app, labels);
    }

    /// The origins of declared pools, with their counters.
    pub fn declared_origins(&self) -> Vec<SeenOrigin> {
        let pools = lock(&self.pools);
        let declared = pools.iter().filter_map(|(id, pool)| match id {
            PoolId::Declared(name) => Some((name, pool.origins())),
            PoolId::DirectOf(_) => None,
        });
        let each = declared.flat_map(|(pool, origins)| {
            origins.into_iter().map(|(label, stats)| SeenOrigin {
                pool: pool.clone(),
                label,
                stats,
            })
        });
        each.collect()
    }
}

/// An origin of a declared pool and what was seen of it.
pub struct SeenOrigin {
    pub pool: PoolName,
    pub label: Arc<str>,
    pub stats: Arc<OriginStats>,
}

/// One open connection that its origin sees as the client's own.
pub struct TransparentGuard(IntGauge);

impl TransparentGuard {
    pub fn new(stats: &Stats) -> Self {
        let gauge = stats.transparent.clone();
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for TransparentGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyport_model::outcome::Status;

    use super::*;

    #[test]
    fn an_app_that_is_gone_leaves_no_series() {
        let registry = Registry::new();
        let stats = Stats::new(&registry).unwrap();
        let name: AppName = "ssh".parse().unwrap();
        let app = stats.app(&name);
        app.opened();
        let pool = PoolId::Declared("servers".parse().unwrap());
        stats.connected(&app, &pool, "a", Duration::from_millis(1));
        app.moved(1, 2);
        let text = || anyport_node::metrics::encode(&registry).unwrap();
        stats.retain(&BTreeSet::new(), &BTreeSet::new());
        assert_eq!(stats.open_connections(), 1);
        assert!(Arc::ptr_eq(&app, &stats.app(&name)), "it counts anew");
        app.closed(Status::OriginReset, Duration::from_secs(1));
        for line in [
            "anyport_connections_opened_total{app=\"ssh\"} 1",
            "anyport_connections_open{app=\"ssh\"} 0",
            "anyport_connections_closed_total{app=\"ssh\",status=\"444\"} 1",
            "anyport_bytes_total{app=\"ssh\",direction=\"out\"} 2",
        ] {
            assert!(text().contains(line), "{line} in\n{}", text());
        }
        stats.retain(&BTreeSet::new(), &BTreeSet::new());
        assert!(!text().contains("ssh"), "{}", text());
    }

    #[test]
    fn a_pool_knows_whether_anything_is_against_its_origins() {
        let pool = PoolStats::default();
        let [a, b] = ["a", "b"].map(|label| pool.origin(label));
        let (well, ill) = (Ok(Duration::ZERO), Err(&"no" as &dyn std::fmt::Display));
        assert!(!pool.is_troubled());
        for (origin, outcome, troubled) in [
            (&a, ill, true),
            (&a, ill, true),
            (&b, ill, true),
            (&a, well, true),
            (&b, well, false),
            (&b, well, false),
            (&b, ill, true),
        ] {
            origin.dialled(outcome);
            assert_eq!(pool.is_troubled(), troubled);
        }
        pool.retain(&["a"].into());
        drop(b);
        assert!(!pool.is_troubled(), "the other one is gone");
    }

    #[test]
    fn handles_are_kept_by_name() {
        let stats = Stats::new(&Registry::new()).unwrap();
        let id = PoolId::Declared("game".parse().unwrap());
        let guard = stats.pool(&id).origin("a").hold();
        assert_eq!(stats.pool(&id).origin("a").open(), 1);
        drop(guard);
        assert_eq!(stats.pool(&id).origin("a").open(), 0);
    }
}
