//! What is counted of an app, and the metrics of it.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyport_model::{names::AppName, outcome::Status, target::Forbidden};
use anyport_node::metrics::registered;
use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector, exponential_buckets,
};

use super::{PoolId, counters, histogram};
use crate::{
    endings::Endings,
    shield::{self, Tally},
};

/// The metrics with a label for the app.
pub(super) struct Families {
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

impl Families {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name, help, labels: &[&str]| counters(registry, name, help, labels);
        Ok(Self {
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
        })
    }

    pub(super) fn of(&self, name: &AppName) -> AppStats {
        let app = &[name.as_str()];
        let bytes = |direction| self.bytes.with_label_values(&[name.as_str(), direction]);
        AppStats {
            name: name.clone(),
            opened: self.opened.with_label_values(app),
            open: self.open.with_label_values(app),
            from_client: bytes("in"),
            from_origin: bytes("out"),
            duration: self.duration.with_label_values(app),
            closed: self.closed.clone(),
            blocked: self.blocked.clone(),
            sessions: self.sessions.clone(),
            refused: self.refused.clone(),
            tally: Tally::default(),
            waiting: Tally::default(),
            closed_by_order: AtomicBool::new(false),
            closed_with: Default::default(),
        }
    }

    /// A dial to an origin succeeded after `took`.
    pub(super) fn dialled(&self, app: &AppName, pool: &PoolId, origin: &str, took: Duration) {
        let labels = &[app.as_str(), pool.label(), origin];
        let histogram = self.connect.with_label_values(labels);
        histogram.observe(took.as_secs_f64());
    }

    /// Origins that an app's name no longer stands for leave no series.
    pub(super) fn forget_origins(&self, app: &AppName, labels: &[Arc<str>]) {
        for label in labels {
            let labels = [app.as_str(), "", label.as_ref()];
            let _ = self.connect.remove_label_values(&labels);
        }
    }

    /// An absent series is what is wanted, so that it was absent is no error.
    pub(super) fn remove(&self, app: &AppName) {
        let app = app.as_str();
        let _ = self.opened.remove_label_values(&[app]);
        let _ = self.open.remove_label_values(&[app]);
        let _ = self.duration.remove_label_values(&[app]);
        let _ = self.sessions.remove_label_values(&[app]);
        for why in Forbidden::WORDS {
            let _ = self.blocked.remove_label_values(&[app, why]);
        }
        for cause in shield::causes() {
            let _ = self.refused.remove_label_values(&[app, cause]);
        }
        for direction in ["in", "out"] {
            let _ = self.bytes.remove_label_values(&[app, direction]);
        }
        for status in Status::ALL {
            let code = status.to_string();
            let _ = self.closed.remove_label_values(&[app, &code]);
        }
    }

    /// Which origins an app's connections were dialled to is known only from
    /// the series themselves.
    pub(super) fn remove_dials(&self, gone: &[AppName]) {
        let connect = &self.connect;
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
    /// An agent that took over has ordered that its connections are closed at once.
    closed_by_order: AtomicBool,
    /// Of `closed`, by number of the status, as they come to be needed.
    closed_with: [OnceLock<IntCounter>; Status::ALL.len()],
}

impl AppStats {
    /// Connections open now.
    pub(super) fn open(&self) -> i64 {
        self.open.get()
    }

    pub fn name(&self) -> &AppName {
        &self.name
    }

    /// What is ordered by an agent that took over: the table of one that finishes
    /// does not change any more.
    pub fn set_closed_by_order(&self, closed: bool) {
        self.closed_by_order.store(closed, Relaxed);
    }

    pub fn is_closed_by_order(&self) -> bool {
        self.closed_by_order.load(Relaxed)
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

    pub(super) fn endings(&self) -> Endings {
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
