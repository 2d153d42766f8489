//! What the agent counts. Metric names are those of the user's interface.
//!
//! Each app and each origin keeps its handles from route table to route table,
//! so that a connection pays atomic additions for what it counts; series of
//! apps that are gone are removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyport_model::{
    latency::PeakEwma,
    limits::Limit,
    names::{AppName, PoolName},
    outcome::Status,
    pick::Load,
    target::Forbidden,
};
use anyport_node::metrics::registered;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, core::Collector, exponential_buckets,
};

use crate::{
    endings::Endings,
    origin::{DnsStats, Rest, Unheard},
    shield::{self, Refusal, Tally},
};

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

struct Families {
    opened: IntCounterVec,
    open: IntGaugeVec,
    closed: IntCounterVec,
    bytes: IntCounterVec,
    duration: HistogramVec,
    connect: HistogramVec,
    sessions: IntGaugeVec,
    blocked: IntCounterVec,
    refused: IntCounterVec,
}

/// Why a datagram went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// No app takes it.
    Unclaimed,
    /// Its source is no address and port that could be answered.
    Unanswerable,
    /// There are as many flows as may be.
    SessionsFull,
    /// Connections and flows have all descriptors that they may have.
    Descriptors,
    /// The edge was taken out of service a moment ago.
    Drained,
    /// The edge's address and port has as many flows as one may have.
    PlaceSessionsFull,
    /// The source has as many flows as one may have.
    SourceSessionsFull,
    /// The app's access rules do not let its client in.
    AccessDenied,
    /// One flow more is against a limit of the app.
    LimitConnections,
    LimitConnectionsPerSource,
    LimitNewConnectionsPerSource,
    /// The flow moves as many bytes a second as it may.
    LimitBytesPerSecond,
    /// The app has no origin that could be tried.
    NoOrigin,
    /// This host is out of descriptors, ports or memory.
    System,
    /// More would have gone back than the client has sent, and it has not yet
    /// shown that it is who it says.
    Amplification,
    /// On a flow's socket to its origin, and not from that origin.
    Stray,
    /// An origin's answer without the Simple Proxy Protocol header of its flow.
    SimpleHeader,
    /// The path, or UDP, takes nothing as large.
    TooLarge,
    /// A socket's buffer is full, or the system refuses.
    NotSent,
}

impl DropReason {
    pub const ALL: [DropReason; 19] = [
        DropReason::Unclaimed,
        DropReason::Unanswerable,
        DropReason::SessionsFull,
        DropReason::PlaceSessionsFull,
        DropReason::Descriptors,
        DropReason::Drained,
        DropReason::SourceSessionsFull,
        DropReason::AccessDenied,
        DropReason::LimitConnections,
        DropReason::LimitConnectionsPerSource,
        DropReason::LimitNewConnectionsPerSource,
        DropReason::LimitBytesPerSecond,
        DropReason::NoOrigin,
        DropReason::System,
        DropReason::Amplification,
        DropReason::Stray,
        DropReason::SimpleHeader,
        DropReason::TooLarge,
        DropReason::NotSent,
    ];

    /// The `reason` label.
    pub fn as_str(self) -> &'static str {
        match self {
            DropReason::Unclaimed => "unclaimed",
            DropReason::Unanswerable => "unanswerable",
            DropReason::SessionsFull => "sessions_full",
            DropReason::Descriptors => "descriptors",
            DropReason::Drained => "drained",
            DropReason::PlaceSessionsFull => "place_sessions_full",
            DropReason::SourceSessionsFull => "source_sessions_full",
            DropReason::AccessDenied => "access_denied",
            DropReason::LimitConnections => "limit_connections",
            DropReason::LimitConnectionsPerSource => "limit_connections_per_source",
            DropReason::LimitNewConnectionsPerSource => "limit_new_connections_per_source",
            DropReason::LimitBytesPerSecond => "limit_bytes_per_second",
            DropReason::NoOrigin => "no_origin",
            DropReason::System => "system",
            DropReason::Amplification => "amplification",
            DropReason::Stray => "stray",
            DropReason::SimpleHeader => "simple_header",
            DropReason::TooLarge => "too_large",
            DropReason::NotSent => "not_sent",
        }
    }
}

/// Why a connection was reset as soon as it was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// Connections and flows have all descriptors that they may have.
    Descriptors,
    /// The process, or the host, has none, whatever the agent counts.
    System,
    /// The edge was taken out of service a moment ago.
    Drained,
}

impl Shed {
    pub const ALL: [Shed; 3] = [Shed::Descriptors, Shed::System, Shed::Drained];

    /// The `reason` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Shed::Descriptors => "descriptors",
            Shed::System => "system",
            Shed::Drained => "drained",
        }
    }
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Access(_) => DropReason::AccessDenied,
            Refusal::Limit(reached) => match reached.limit {
                Limit::Connections => DropReason::LimitConnections,
                Limit::ConnectionsPerSource => DropReason::LimitConnectionsPerSource,
                Limit::NewConnectionsPerSource => DropReason::LimitNewConnectionsPerSource,
            },
        }
    }
}

/// The origins that an app's connections can go to: a declared pool, or the
/// app's own `origin_direct` or `origin_dns`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolId {
    Declared(PoolName),
    DirectOf(AppName),
}

impl PoolId {
    /// The `pool` label; an app's own origins are in none.
    pub fn label(&self) -> &str {
        match self {
            PoolId::Declared(name) => name.as_str(),
            PoolId::DirectOf(_) => "",
        }
    }
}

/// Handles of one app.
pub struct AppStats {
    name: AppName,
    opened: IntCounter,
    open: IntGauge,
    from_client: IntCounter,
    from_origin: IntCounter,
    duration: Histogram,
    closed: IntCounterVec,
    blocked: IntCounterVec,
    sessions: IntGaugeVec,
    refused: IntCounterVec,
    /// What limits count.
    pub tally: Tally,
    /// Connections of which it is not known yet whether they are for this app or
    /// for one that shares its place.
    pub waiting: Tally,
    /// Of `closed`, by number of the status, as they come to be needed.
    closed_with: [OnceLock<IntCounter>; Status::ALL.len()],
}

/// Counters of one pool's origins, and whose turn it is.
#[derive(Default)]
pub struct PoolStats {
    /// How many of the origins have failed and not succeeded since.
    troubled: Arc<AtomicUsize>,
    /// Goes up by one with each connection that an origin is chosen for.
    pub turn: AtomicUsize,
    origins: Mutex<BTreeMap<Arc<str>, Arc<OriginStats>>>,
}

/// What was seen of one origin, over all apps.
pub struct OriginStats {
    /// What [`Rest`] counts from.
    since: Instant,
    rest: Rest,
    /// Those of the pool that something is against.
    troubled: Arc<AtomicUsize>,
    open: AtomicU32,
    /// A [`PeakEwma`], where the pool's policy asks for it.
    answers: AtomicU64,
    dials: AtomicU64,
    failures: AtomicU64,
    connect_micros: AtomicU64,
    last_failure: Mutex<Option<String>>,
}

/// Counts of an origin that only grow, as of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OriginCounts {
    pub dials: u64,
    pub failures: u64,
    /// Of the dials that succeeded, all together.
    pub connect_time: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is under these locks is valid after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stats {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help));
        let histogram = |name: &str, help: &str, buckets: prometheus::Result<Vec<f64>>| {
            Ok::<_, prometheus::Error>(HistogramOpts::new(name, help).buckets(buckets?))
        };
        let service = Opts::new("anyport_config_revision", "Revision last received.")
            .const_label("service", "edge-agent");
        let stats = Self {
            families: Families {
                opened: counter(
                    "anyport_connections_opened_total",
                    "Connections accepted for an app.",
                    &["app"],
                )?,
                open: registered(
                    registry,
                    IntGaugeVec::new(
                        Opts::new("anyport_connections_open", "Connections open now."),
                        &["app"],
                    ),
                )?,
                closed: counter(
                    "anyport_connections_closed_total",
                    "Connections ended, by status code.",
                    &["app", "status"],
                )?,
                bytes: counter(
                    "anyport_bytes_total",
                    "Bytes read from clients (in) and from origins (out).",
                    &["app", "direction"],
                )?,
                duration: registered(
                    registry,
                    HistogramVec::new(
                        histogram(
                            "anyport_connection_duration_seconds",
                            "From accept to close.",
                            // A millisecond to 4.7 hours.
                            exponential_buckets(0.001, 4.0, 13),
                        )?,
                        &["app"],
                    ),
                )?,
                connect: registered(
                    registry,
                    HistogramVec::new(
                        histogram(
                            "anyport_origin_connect_seconds",
                            "Dials to origins that succeeded.",
                            // A tenth of a millisecond to 3.3 seconds.
                            exponential_buckets(0.0001, 2.0, 16),
                        )?,
                        &["app", "pool", "origin"],
                    ),
                )?,
                sessions: registered(
                    registry,
                    IntGaugeVec::new(
                        Opts::new("anyport_udp_sessions_open", "Flows of UDP open now."),
                        &["app"],
                    ),
                )?,
                blocked: counter(
                    "anyport_origins_blocked_total",
                    "Dials that were not made, since the address is one that is never dialled.",
                    &["app", "why"],
                )?,
                refused: counter(
                    "anyport_connections_refused_total",
                    "Connections, and datagrams of no flow, that access rules or limits turned away.",
                    &["app", "cause"],
                )?,
            },
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
        let make = || {
            let app = &[name.as_str()];
            let bytes = |direction| {
                let labels = &[name.as_str(), direction];
                self.families.bytes.with_label_values(labels)
            };
            Arc::new(AppStats {
                name: name.clone(),
                opened: self.families.opened.with_label_values(app),
                open: self.families.open.with_label_values(app),
                from_client: bytes("in"),
                from_origin: bytes("out"),
                duration: self.families.duration.with_label_values(app),
                closed: self.families.closed.clone(),
                blocked: self.families.blocked.clone(),
                sessions: self.families.sessions.clone(),
                refused: self.families.refused.clone(),
                tally: Tally::default(),
                waiting: Tally::default(),
                closed_with: Default::default(),
            })
        };
        let mut apps = lock(&self.apps);
        Arc::clone(apps.entry(name.clone()).or_insert_with(make))
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
                |name: &AppName, app: &Arc<AppStats>| !apps.contains(name) && app.open.get() == 0;
            let gone = known.iter().filter(|(name, app)| is_gone(name, app));
            let gone = gone.map(|(name, _)| name.clone()).collect();
            known.retain(|name, app| !is_gone(name, app));
            gone
        };
        for app in &gone {
            self.remove_series(app);
        }
        if !gone.is_empty() {
            self.remove_connect_series(&gone);
        }
    }

    /// Which origins an app's connections were dialled to is known only from
    /// the series themselves.
    fn remove_connect_series(&self, gone: &[AppName]) {
        let connect = &self.families.connect;
        for family in connect.collect() {
            for metric in family.get_metric() {
                let label = |name| {
                    let labels = metric.get_label().iter();
                    labels
                        .filter(|l| l.name() == name)
                        .map(|l| l.value())
                        .next()
                        .unwrap_or("")
                };
                let (app, pool, origin) = (label("app"), label("pool"), label("origin"));
                if gone.iter().any(|name| name.as_str() == app) {
                    let _ = connect.remove_label_values(&[app, pool, origin]);
                }
            }
        }
    }

    /// An absent series is what is wanted, so that it was absent is no error.
    fn remove_series(&self, app: &AppName) {
        let app = app.as_str();
        let families = &self.families;
        let _ = families.opened.remove_label_values(&[app]);
        let _ = families.open.remove_label_values(&[app]);
        let _ = families.duration.remove_label_values(&[app]);
        let _ = families.sessions.remove_label_values(&[app]);
        for why in Forbidden::WORDS {
            let _ = families.blocked.remove_label_values(&[app, why]);
        }
        for cause in shield::causes() {
            let _ = families.refused.remove_label_values(&[app, cause]);
        }
        for direction in ["in", "out"] {
            let _ = families.bytes.remove_label_values(&[app, direction]);
        }
        for status in Status::ALL {
            let code = status.to_string();
            let _ = families.closed.remove_label_values(&[app, &code]);
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
        let open = lock(&self.apps)
            .values()
            .map(|app| app.open.get())
            .sum::<i64>();
        u64::try_from(open).unwrap_or(0)
    }

    /// A dial of `app` to an origin succeeded after `took`.
    pub fn connected(&self, app: &AppStats, pool: &PoolId, origin: &str, took: Duration) {
        let labels = &[app.name.as_str(), pool.label(), origin];
        let histogram = self.families.connect.with_label_values(labels);
        histogram.observe(took.as_secs_f64());
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

    /// How many were, for this reason.
    pub fn shed_of(&self, reason: Shed) -> u64 {
        let counter = self.connections_shed.with_label_values(&[reason.as_str()]);
        counter.get()
    }

    /// Origins that an app's name no longer stands for leave no series.
    pub fn forget_origins(&self, app: &AppName, labels: &[Arc<str>]) {
        for label in labels {
            let labels = [app.as_str(), "", label.as_ref()];
            let _ = self.families.connect.remove_label_values(&labels);
        }
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

impl AppStats {
    pub fn name(&self) -> &AppName {
        &self.name
    }

    pub fn opened(&self) {
        self.opened.inc();
        self.open.inc();
    }

    pub fn closed(&self, status: Status, lasted: Duration) {
        self.open.dec();
        self.duration.observe(lasted.as_secs_f64());
        let make = || {
            let labels = &[self.name.as_str(), &status.to_string()];
            self.closed.with_label_values(labels)
        };
        match self.closed_with.get(status as usize) {
            Some(counter) => counter.get_or_init(make).inc(),
            None => make().inc(),
        }
    }

    fn endings(&self) -> Endings {
        let mut endings = Endings::default();
        for status in Status::ALL {
            let counter = self.closed_with.get(status as usize);
            let counter = counter.and_then(OnceLock::get);
            endings.add(status, counter.map_or(0, IntCounter::get));
        }
        endings
    }

    /// A flow of UDP, which is counted as a connection too.
    pub fn session_opened(&self) {
        self.sessions.with_label_values(&[self.name.as_str()]).inc();
    }

    pub fn session_closed(&self) {
        self.sessions.with_label_values(&[self.name.as_str()]).dec();
    }

    /// A client was not let in.
    pub fn refused(&self, cause: &'static str) {
        let labels = &[self.name.as_str(), cause];
        self.refused.with_label_values(labels).inc();
    }

    /// An origin was not dialled.
    pub fn blocked(&self, why: Forbidden) {
        let labels = &[self.name.as_str(), why.as_str()];
        self.blocked.with_label_values(labels).inc();
    }

    pub fn moved(&self, from_client: u64, from_origin: u64) {
        self.from_client.inc_by(from_client);
        self.from_origin.inc_by(from_origin);
    }
}

impl PoolStats {
    /// The counters of an origin, the same ones each time.
    pub fn origin(&self, label: &str) -> Arc<OriginStats> {
        let mut origins = lock(&self.origins);
        match origins.get(label) {
            Some(stats) => Arc::clone(stats),
            None => {
                let stats = Arc::new(OriginStats::new(Arc::clone(&self.troubled)));
                Arc::clone(origins.entry(label.into()).or_insert(stats))
            }
        }
    }

    /// Forgets origins that are gone, and names them.
    pub fn retain(&self, labels: &BTreeSet<&str>) -> Vec<Arc<str>> {
        let mut origins = lock(&self.origins);
        let gone = |label: &&Arc<str>| !labels.contains(label.as_ref());
        let gone: Vec<Arc<str>> = origins.keys().filter(gone).cloned().collect();
        origins.retain(|label, _| labels.contains(label.as_ref()));
        gone
    }

    /// Something is against some of the origins.
    pub fn is_troubled(&self) -> bool {
        self.troubled.load(Relaxed) > 0
    }

    fn origins(&self) -> Vec<(Arc<str>, Arc<OriginStats>)> {
        let origins = lock(&self.origins);
        let pairs = origins
            .iter()
            .map(|(label, stats)| (Arc::clone(label), Arc::clone(stats)));
        pairs.collect()
    }
}

impl OriginStats {
    fn new(troubled: Arc<AtomicUsize>) -> Self {
        Self {
            since: Instant::now(),
            rest: Rest::default(),
            troubled,
            open: AtomicU32::new(0),
            answers: AtomicU64::new(0),
            dials: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            connect_micros: AtomicU64::new(0),
            last_failure: Mutex::default(),
        }
    }

    /// It refused lately and should not be the first choice.
    pub fn is_resting(&self, now: Instant) -> bool {
        self.rest
            .is_resting(now.saturating_duration_since(self.since))
    }

    /// Whether a connection may use it that has found it at rest no longer: see
    /// [`Rest::may_try`].
    pub fn may_try(&self, now: Instant, patience: Duration, unheard: Unheard) -> bool {
        let now = now.saturating_duration_since(self.since);
        self.rest.may_try(now, patience, unheard)
    }

    /// What a choice goes by.
    pub fn load(&self, now: Instant) -> Load {
        Load {
            open: self.open(),
            answers: PeakEwma::from_bits(self.answers.load(Relaxed)),
            now: now.saturating_duration_since(self.since),
        }
    }

    /// It took so long to connect, before any answer: better than to know
    /// nothing of it, or nothing any more.
    pub fn connected_after(&self, took: Duration) {
        let now = self.since.elapsed();
        let after = |bits| {
            let after = PeakEwma::from_bits(bits).at_least(now, took).to_bits();
            (after != bits).then_some(after)
        };
        let _ = self.answers.fetch_update(Relaxed, Relaxed, after);
    }

    /// It took so long to connect and to answer.
    pub fn answered_after(&self, took: Duration) {
        let now = self.since.elapsed();
        let after = |bits| Some(PeakEwma::from_bits(bits).observe(now, took).to_bits());
        let _ = self.answers.fetch_update(Relaxed, Relaxed, after);
    }

    /// Connections open or being opened.
    pub fn open(&self) -> u32 {
        self.open.load(Relaxed)
    }

    /// Counts a connection from before its dial until the guard is dropped:
    /// pending ones load an origin too.
    pub fn hold(self: &Arc<Self>) -> OpenGuard {
        self.open.fetch_add(1, Relaxed);
        OpenGuard(Arc::clone(self))
    }

    /// What an origin showed just now.
    pub fn dialled(&self, outcome: Result<Duration, &dyn std::fmt::Display>) {
        self.dialled_since(Instant::now(), outcome);
    }

    /// What became of a dial that `began` then.
    pub fn dialled_since(&self, began: Instant, outcome: Result<Duration, &dyn std::fmt::Display>) {
        self.dials.fetch_add(1, Relaxed);
        match outcome {
            Ok(took) => {
                if self.rest.succeeded(self.since.elapsed()) {
                    self.troubled.fetch_sub(1, Relaxed);
                }
                let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.connect_micros.fetch_add(micros, Relaxed);
            }
            Err(why) => {
                let began = began.saturating_duration_since(self.since);
                if self.rest.failed(began, self.since.elapsed()) {
                    self.troubled.fetch_add(1, Relaxed);
                }
                self.failures.fetch_add(1, Relaxed);
                *lock(&self.last_failure) = Some(why.to_string());
            }
        }
    }

    pub fn counts(&self) -> OriginCounts {
        OriginCounts {
            dials: self.dials.load(Relaxed),
            failures: self.failures.load(Relaxed),
            connect_time: Duration::from_micros(self.connect_micros.load(Relaxed)),
        }
    }

    pub fn last_failure(&self) -> Option<String> {
        lock(&self.last_failure).clone()
    }
}

impl Drop for OriginStats {
    fn drop(&mut self) {
        if self.rest.succeeded(self.since.elapsed()) {
            self.troubled.fetch_sub(1, Relaxed);
        }
    }
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

/// One open connection to an origin.
pub struct OpenGuard(Arc<OriginStats>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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
