//! What balancers hold of the origins of each pool.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use anyport_proto::v1::{self, HealthState, PoolState};
use serde::Serialize;

use crate::{
    ages::age,
    console::{Cell, Mood},
};

/// A pool's health, as JSON and YAML have it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PoolHealth {
    pub(super) name: String,
    /// `unmonitored`, `healthy`, `degraded`, `down`, or `unknown` where no
    /// balancer speaks of it.
    pub(super) state: &'static str,
    /// Less than half of the weight is healthy, and there is no fallback pool:
    /// health is ignored.
    pub(super) panic: bool,
    /// Who says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) balancer: Option<String>,
    pub(super) origins: Vec<OriginHealth>,
    /// What other balancers hold of the same origins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) disagreements: Vec<Disagreement>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct OriginHealth {
    pub(super) name: String,
    pub(super) address: String,
    /// `unknown`, `up`, `down`, `disabled`, `unmonitored`.
    pub(super) health: &'static str,
    /// What edges balance by; 0: no connections.
    pub(super) weight: f64,
    /// Part of the pool's connections, 0 to 1.
    pub(super) share: f64,
    reason: String,
    /// RFC 3339.
    since: Option<String>,
    /// How long the last passed probe took.
    probe_seconds: Option<f64>,
    /// What the weight is the product of.
    #[serde(skip_serializing_if = "Option::is_none")]
    factors: Option<Factors>,
    /// RFC 3339; it stays down until then, whatever probes say.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_until: Option<String>,
    /// How often it turned down lately.
    recent_downs: u32,
    #[serde(skip)]
    changed: Option<prost_types::Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Factors {
    declared: f64,
    slow_start: f64,
    load: f64,
    latency: f64,
}

impl Factors {
    fn new(wire: &v1::WeightFactors) -> Self {
        Self {
            declared: wire.declared,
            slow_start: wire.slow_start,
            load: wire.load,
            latency: wire.latency,
        }
    }

    /// What moves the weight away from what was declared.
    fn words(&self) -> impl Iterator<Item = String> {
        let all = [
            ("slow start", self.slow_start),
            ("load", self.load),
            ("latency", self.latency),
        ];
        let moving = all.into_iter().filter(|(_, factor)| *factor != 1.0);
        moving.map(|(name, factor)| format!("{name} {:.0}%", factor * 100.0))
    }
}

/// A balancer that holds something else of an origin than the one that is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Disagreement {
    balancer: String,
    origin: String,
    health: &'static str,
}

impl Disagreement {
    pub(super) fn line(&self) -> String {
        let Self {
            balancer,
            origin,
            health,
        } = self;
        format!("balancer {balancer} says that {origin} is {health}")
    }
}

/// The health of every pool that a balancer speaks of. Of several balancers the
/// one with the latest configuration is believed, and where others hold another
/// view of an origin, that is noted.
pub(super) fn by_name(nodes: &[v1::NodeStatus]) -> BTreeMap<String, PoolHealth> {
    let of_role = nodes.iter().filter(|n| n.role() == v1::NodeRole::Balancer);
    let mut balancers: Vec<&v1::NodeStatus> = of_role.collect();
    balancers.sort_by(|a, b| {
        let latest_first = b.applied_revision.cmp(&a.applied_revision);
        latest_first.then_with(|| a.name.cmp(&b.name))
    });
    let mut pools: BTreeMap<String, PoolHealth> = BTreeMap::new();
    for balancer in balancers {
        for wire in &balancer.pools {
            match pools.get_mut(&wire.pool) {
                Some(pool) => pool.compare(&balancer.name, wire),
                None => {
                    let pool = PoolHealth::new(&balancer.name, wire);
                    pools.insert(wire.pool.clone(), pool);
                }
            }
        }
    }
    pools
}

impl PoolHealth {
    fn new(balancer: &str, wire: &v1::PoolHealth) -> Self {
        let origin = |wire: &v1::OriginHealth| OriginHealth {
            name: wire.origin.clone(),
            address: wire.address.clone(),
            health: health_word(wire.health()),
            weight: wire.weight,
            share: wire.share,
            reason: wire.reason.clone(),
            since: wire.since.map(|time| time.to_string()),
            probe_seconds: wire.probe_seconds,
            factors: wire.factors.as_ref().map(Factors::new),
            held_until: wire.held_until.map(|time| time.to_string()),
            recent_downs: wire.recent_downs,
            changed: wire.since,
        };
        Self {
            name: wire.pool.clone(),
            state: state_word(wire.state()),
            panic: wire.panic,
            balancer: Some(balancer.to_owned()),
            origins: wire.origins.iter().map(origin).collect(),
            disagreements: Vec::new(),
        }
    }

    /// A pool that no balancer speaks of: its origins as they are declared.
    pub(super) fn unheard(pool: &v1::Pool) -> Self {
        let weight = |origin: &v1::Origin| match origin.enabled {
            Some(false) => 0.0,
            _ => origin.weight.unwrap_or(1.0),
        };
        let total: f64 = pool.origins.iter().map(weight).sum();
        let origin = |origin: &v1::Origin| OriginHealth {
            name: origin.name.clone(),
            address: origin.address.clone(),
            health: match origin.enabled {
                Some(false) => "disabled",
                _ => "unknown",
            },
            weight: weight(origin),
            share: if total > 0.0 {
                weight(origin) / total
            } else {
                0.0
            },
            reason: "no balancer speaks of it".to_owned(),
            since: None,
            probe_seconds: None,
            factors: None,
            held_until: None,
            recent_downs: 0,
            changed: None,
        };
        Self {
            name: pool.name.clone(),
            state: "unknown",
            panic: false,
            balancer: None,
            origins: pool.origins.iter().map(origin).collect(),
            disagreements: Vec::new(),
        }
    }

    fn compare(&mut self, balancer: &str, wire: &v1::PoolHealth) {
        for other in &wire.origins {
            let health = health_word(other.health());
            let same = |origin: &&OriginHealth| origin.name == other.origin;
            let differs = self
                .origins
                .iter()
                .find(same)
                .is_some_and(|origin| origin.health != health);
            if differs {
                self.disagreements.push(Disagreement {
                    balancer: balancer.to_owned(),
                    origin: other.origin.clone(),
                    health,
                });
            }
        }
    }

    pub(super) fn is_down(&self) -> bool {
        self.state == state_word(PoolState::Down)
    }

    pub(super) fn mood(&self) -> Mood {
        match self.state {
            "healthy" => Mood::Good,
            "degraded" => Mood::Notable,
            "down" => Mood::Bad,
            _ => Mood::Plain,
        }
    }

    /// The words for its state: `degraded, 1 of 3 down`.
    pub(super) fn words(&self) -> String {
        let down = self.origins.iter().filter(|o| o.health == "down").count();
        let panic = if self.panic {
            ", so health is ignored"
        } else {
            ""
        };
        match down {
            0 => self.state.to_owned(),
            down => format!(
                "{}, {down} of {} down{panic}",
                self.state,
                self.origins.len()
            ),
        }
    }
}

impl OriginHealth {
    pub(super) fn mood(&self) -> Mood {
        match self.health {
            "up" => Mood::Good,
            "down" => Mood::Bad,
            "disabled" => Mood::Faint,
            _ => Mood::Plain,
        }
    }

    /// `31%`.
    pub(super) fn share_words(&self) -> String {
        format!("{:.0}%", self.share * 100.0)
    }

    /// How long it has been so, and why, if that says more than the health does.
    pub(super) fn why(&self, now: SystemTime) -> Cell {
        let mut words = Vec::new();
        if self.changed.is_some() {
            words.push(format!("for {}", age(now, self.changed)));
        }
        match self.probe_seconds {
            Some(seconds) if self.health == "up" => {
                let took = Duration::try_from_secs_f64(seconds).unwrap_or_default();
                words.push(format!("probe {:.1} ms", took.as_secs_f64() * 1000.0));
            }
            _ => words.push(self.reason.clone()),
        }
        words.extend(self.factors.iter().flat_map(Factors::words));
        words.retain(|word| !word.is_empty());
        Cell::from(words.join(", "))
    }
}

fn state_word(state: PoolState) -> &'static str {
    match state {
        PoolState::Unspecified => "unknown",
        PoolState::Unmonitored => "unmonitored",
        PoolState::Healthy => "healthy",
        PoolState::Degraded => "degraded",
        PoolState::Down => "down",
    }
}

fn health_word(health: HealthState) -> &'static str {
    match health {
        HealthState::Unspecified | HealthState::Unknown => "unknown",
        HealthState::Up => "up",
        HealthState::Down => "down",
        HealthState::Disabled => "disabled",
        HealthState::Unmonitored => "unmonitored",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balancer(name: &str, revision: u64, health: HealthState) -> v1::NodeStatus {
        v1::NodeStatus {
            role: v1::NodeRole::Balancer.into(),
            name: name.to_owned(),
            applied_revision: revision,
            pools: vec![v1::PoolHealth {
                pool: "game".to_owned(),
                state: PoolState::Healthy.into(),
                origins: vec![v1::OriginHealth {
                    origin: "a".to_owned(),
                    health: health.into(),
                    ..Default::default()
                }],
                panic: false,
            }],
            ..Default::default()
        }
    }

    #[test]
    fn what_is_not_as_declared_is_told_in_words() {
        let mut node = balancer("one", 1, HealthState::Up);
        let pool = &mut node.pools[0];
        pool.state = PoolState::Down.into();
        pool.panic = true;
        pool.origins[0].factors = Some(v1::WeightFactors {
            declared: 1.0,
            slow_start: 0.3,
            load: 1.0,
            latency: 0.85,
        });
        pool.origins.push(v1::OriginHealth {
            origin: "b".to_owned(),
            health: HealthState::Down.into(),
            ..Default::default()
        });
        let pools = by_name(&[node]);
        let game = &pools["game"];
        assert_eq!(game.words(), "down, 1 of 2 down, so health is ignored");
        let why = game.origins[0].why(SystemTime::UNIX_EPOCH);
        assert!(
            format!("{why:?}").contains("slow start 30%, latency 85%"),
            "{why:?}"
        );
    }

    #[test]
    fn the_balancer_with_the_latest_configuration_is_believed() {
        let pools = by_name(&[
            balancer("one", 6, HealthState::Down),
            balancer("three", 7, HealthState::Up),
            balancer("two", 7, HealthState::Up),
        ]);
        let game = &pools["game"];
        assert_eq!(game.balancer.as_deref(), Some("three"));
        assert_eq!(game.origins[0].health, "up");
        let lines: Vec<String> = game.disagreements.iter().map(Disagreement::line).collect();
        assert_eq!(lines, ["balancer one says that a is down"]);
    }
}
