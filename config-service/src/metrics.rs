//! What this service counts.

use std::time::Duration;

use anyport_model::balancers::BalancerSet;
use anyport_node::metrics::{
    Registry,
    prometheus::{
        self, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    },
    registered,
};

use crate::nodes::Role;

/// Handles on the metrics of one service. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    revision: IntGauge,
    rewinds: IntCounter,
    propagation: Histogram,
    writes: IntCounterVec,
    nodes: IntGaugeVec,
    balancers: IntGauge,
    balancer_epoch: IntGauge,
    updates: IntCounterVec,
    update_bytes: IntCounterVec,
}

/// From a local commit to a slow fleet, in seconds.
const PROPAGATION_BUCKETS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

impl Metrics {
    /// # Errors
    /// When the registry has one of these names already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            registered(registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let revision = gauge(
            "anyport_config_revision",
            "Latest revision that the service knows.",
            &["service"],
        )?;
        let propagation = HistogramOpts::new(
            "anyport_config_propagation_seconds",
            "From the commit of a revision to its acknowledgement by a connected node.",
        );
        Ok(Self {
            revision: revision.with_label_values(&["config-service"]),
            rewinds: registered(
                registry,
                IntCounter::new(
                    "anyport_config_store_rewinds_total",
                    "Times that the store was found to have lost revisions that it held.",
                ),
            )?,
            propagation: registered(
                registry,
                Histogram::with_opts(propagation.buckets(PROPAGATION_BUCKETS.to_vec())),
            )?,
            writes: counter(
                "anyport_config_writes_total",
                "Writes by method and by what they came to.",
                &["method", "result"],
            )?,
            nodes: gauge(
                "anyport_config_nodes",
                "Nodes that are connected to this replica.",
                &["role"],
            )?,
            balancers: registered(
                registry,
                IntGauge::new(
                    "anyport_config_balancers",
                    "Balancers that take part, at whatever replica they are.",
                ),
            )?,
            balancer_epoch: registered(
                registry,
                IntGauge::new(
                    "anyport_config_balancers_epoch",
                    "Rises with each change of which balancers take part; 0: not known yet.",
                ),
            )?,
            updates: counter(
                "anyport_config_updates_total",
                "Updates sent to nodes; full ones hold the whole state.",
                &["role", "full"],
            )?,
            update_bytes: counter(
                "anyport_config_update_bytes_total",
                "Bytes of updates sent to nodes.",
                &["role"],
            )?,
        })
    }

    /// The state moved to this revision.
    pub fn moved_to(&self, revision: u64) {
        self.revision
            .set(i64::try_from(revision).unwrap_or(i64::MAX));
    }

    /// The store was found to have gone back so often.
    pub fn rewound(&self, count: u64) {
        self.rewinds
            .inc_by(count.saturating_sub(self.rewinds.get()));
    }

    /// A node had applied a commit after this long.
    pub fn propagated(&self, after: Duration) {
        self.propagation.observe(after.as_secs_f64());
    }

    pub fn wrote(&self, method: &str, result: &str) {
        self.writes.with_label_values(&[method, result]).inc();
    }

    pub fn connected(&self, role: Role, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.nodes.with_label_values(&[role.as_str()]).set(count);
    }

    pub fn take_part(&self, set: &BalancerSet) {
        let count = i64::try_from(set.members.len()).unwrap_or(i64::MAX);
        self.balancers.set(count);
        let epoch = i64::try_from(set.epoch.0).unwrap_or(i64::MAX);
        self.balancer_epoch.set(epoch);
    }

    pub fn pushed(&self, role: Role, full: bool, bytes: usize) {
        let full = if full { "true" } else { "false" };
        self.updates.with_label_values(&[role.as_str(), full]).inc();
        self.update_bytes
            .with_label_values(&[role.as_str()])
            .inc_by(bytes as u64);
    }
}
