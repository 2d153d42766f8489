//! What the balancer counts.

use std::{collections::HashSet, sync::Arc, time::Duration};

use anyport_model::{
    names::{OriginName, PoolName, Revision},
    weights::PoolWeights,
};
use anyport_node::metrics::{Registry, prometheus, registered};
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntGauge, IntGaugeVec, Opts};

use crate::{
    probe::Outcome,
    weights::{Changes, Table},
};

/// Upper bounds in seconds: from a server next door to the longest timeout.
const PROBE_SECONDS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 60.0,
];

#[derive(Debug)]
pub(crate) struct Metrics {
    healthy: IntGaugeVec,
    weight: GaugeVec,
    factor: GaugeVec,
    panic: IntGaugeVec,
    probes: HistogramVec,
    revision: IntGauge,
    isolated: IntGauge,
    epoch: IntGauge,
    members: IntGauge,
    heard: IntGauge,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let of_origin = &["pool", "origin"];
        Ok(Self {
            healthy: registered(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "anyport_origin_healthy",
                        "1: the origin may get connections. 0: it is down or disabled.",
                    ),
                    of_origin,
                ),
            )?,
            weight: registered(
                registry,
                GaugeVec::new(
                    Opts::new("anyport_origin_weight", "What edges balance by."),
                    of_origin,
                ),
            )?,
            factor: registered(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "anyport_origin_weight_factor",
                        "What the declared weight is multiplied with, by the reason.",
                    ),
                    &["pool", "origin", "factor"],
                ),
            )?,
            panic: registered(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "anyport_pool_panic",
                        "1: less than half of the pool's weight is healthy, so health is ignored.",
                    ),
                    &["pool"],
                ),
            )?,
            probes: registered(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "anyport_probe_seconds",
                        "Time from the start of a probe to its result, retries included.",
                    )
                    .buckets(PROBE_SECONDS.to_vec()),
                    &["result"],
                ),
            )?,
            revision: registered(
                registry,
                IntGauge::with_opts(
                    Opts::new(
                        "anyport_config_revision",
                        "The configuration revision in use.",
                    )
                    .const_label("service", "balancer"),
                ),
            )?,
            epoch: registered(
                registry,
                IntGauge::new(
                    "anyport_balancer_set_epoch",
                    "Rises with every change of the set of balancers. 0: none was told.",
                ),
            )?,
            members: registered(
                registry,
                IntGauge::new(
                    "anyport_balancer_set_members",
                    "Balancers that take part, this one among them.",
                ),
            )?,
            heard: registered(
                registry,
                IntGauge::new(
                    "anyport_balancer_peers_heard",
                    "Other balancers that say what their probes show.",
                ),
            )?,
            isolated: registered(
                registry,
                IntGauge::new(
                    "anyport_balancer_isolated",
                    "1: no probe leaves this host, so all verdicts are held.",
                ),
            )?,
        })
    }

    pub(crate) fn probed(&self, took: Duration, outcome: &Outcome) {
        let result = match outcome {
            Ok(_) => "passed",
            Err(failure) => failure.cause().as_str(),
        };
        let series = self.probes.with_label_values(&[result]);
        series.observe(took.as_secs_f64());
    }

    pub(crate) fn isolated(&self, isolated: bool) {
        self.isolated.set(i64::from(isolated));
    }

    pub(crate) fn takes_part(&self, epoch: u64, members: usize) {
        self.epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
        self.members.set(i64::try_from(members).unwrap_or(i64::MAX));
    }

    pub(crate) fn hears(&self, peers: usize) {
        self.heard.set(i64::try_from(peers).unwrap_or(i64::MAX));
    }

    pub(crate) fn configured(&self, revision: Revision) {
        self.revision
            .set(i64::try_from(revision.0).unwrap_or(i64::MAX));
    }

    /// Shows `table` instead of `old`; series of origins that are gone vanish.
    pub(crate) fn published(&self, table: &Table, old: &Table) {
        let Changes { changed, removed } = table.changes_since(old);
        for (pool, weights) in changed {
            let before = old.pools.get(pool).map(Arc::as_ref);
            if let Some(before) = before.filter(|before| !names(before).eq(names(weights))) {
                let kept: HashSet<&OriginName> = names(weights).collect();
                self.remove(pool, before, |name| !kept.contains(name));
            }
            let shown = |place: usize| before?.origins.get(place);
            let origins = weights.origins.iter().enumerate();
            let changed = origins.filter(|(place, origin)| shown(*place) != Some(*origin));
            for (_, origin) in changed {
                let labels = [pool.as_str(), origin.name.as_str()];
                let healthy = i64::from(origin.health.usable());
                self.healthy.with_label_values(&labels).set(healthy);
                let weight = origin.weight.as_f64();
                self.weight.with_label_values(&labels).set(weight);
                for (factor, value) in origin.factors.named() {
                    let labels = [pool.as_str(), origin.name.as_str(), factor];
                    self.factor.with_label_values(&labels).set(value.as_f64());
                }
            }
            let panic = self.panic.with_label_values(&[pool.as_str()]);
            panic.set(i64::from(weights.panic));
        }
        for pool in removed {
            if let Some(before) = old.pools.get(pool) {
                self.remove(pool, before, |_| true);
            }
            let _ = self.panic.remove_label_values(&[pool.as_str()]);
        }
    }

    fn remove(&self, pool: &PoolName, weights: &PoolWeights, gone: impl Fn(&OriginName) -> bool) {
        for origin in weights.origins.iter().filter(|origin| gone(&origin.name)) {
            let labels = [pool.as_str(), origin.name.as_str()];
            // Fails only where there is no such series, which is what is wanted.
            let _ = self.healthy.remove_label_values(&labels);
            let _ = self.weight.remove_label_values(&labels);
            for (factor, _) in origin.factors.named() {
                let labels = [pool.as_str(), origin.name.as_str(), factor];
                let _ = self.factor.remove_label_values(&labels);
            }
        }
    }
}

fn names(weights: &PoolWeights) -> impl Iterator<Item = &OriginName> {
    weights.origins.iter().map(|origin| &origin.name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyport_model::health::Verdict;
    use anyport_node::metrics::encode;

    use super::*;
    use crate::membership::fixtures::pool;

    fn table(revision: u64, origins: &[(&str, &str)], down: &str) -> Table {
        let pool = pool("game", Some("quick"), origins);
        let weights = PoolWeights::weigh(&pool, |name| {
            Some(if name.as_str() == down {
                Verdict::Down
            } else {
                Verdict::Up
            })
        });
        Table {
            epoch: 0,
            revision: Revision(revision),
            pools: [(pool.name, Arc::new(weights))].into(),
        }
    }

    #[test]
    fn series_follow_the_table_and_vanish_with_their_origins() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let both = table(1, &[("a", "10.0.2.2:1"), ("b", "10.0.2.3:1")], "b");
        metrics.configured(both.revision);
        metrics.published(&both, &Table::default());
        let text = encode(&registry).unwrap();
        for line in [
            r#"anyport_origin_healthy{origin="a",pool="game"} 1"#,
            r#"anyport_origin_healthy{origin="b",pool="game"} 0"#,
            r#"anyport_origin_weight{origin="a",pool="game"} 1"#,
            r#"anyport_origin_weight{origin="b",pool="game"} 0"#,
            r#"anyport_origin_weight_factor{factor="slow_start",origin="a",pool="game"} 1"#,
            r#"anyport_pool_panic{pool="game"} 0"#,
            r#"anyport_config_revision{service="balancer"} 1"#,
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} not in {text}");
        }
        let one = table(2, &[("b", "10.0.2.3:1")], "");
        metrics.published(&one, &both);
        let text = encode(&registry).unwrap();
        assert!(!text.contains(r#"origin="a""#), "{text}");
        assert!(text.contains(r#"anyport_origin_healthy{origin="b",pool="game"} 1"#));
        metrics.published(&Table::default(), &one);
        let text = encode(&registry).unwrap();
        assert!(!text.contains("pool="), "{text}");
    }
}
