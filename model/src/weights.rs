//! From what was declared of a pool and what is known of its origins to what
//! edges balance by.

use crate::{
    health::Verdict,
    names::OriginName,
    resource::{Origin, Pool, Weight},
};

/// What is known of an origin, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginHealth {
    /// Probed, no verdict yet; treated as up.
    Unknown,
    Up,
    Down,
    /// Disabled by its declaration.
    Disabled,
    /// The pool has no monitor; treated as up.
    Unmonitored,
}

impl OriginHealth {
    pub fn of(pool: &Pool, origin: &Origin, verdict: Option<Verdict>) -> Self {
        match verdict {
            _ if !origin.enabled => OriginHealth::Disabled,
            _ if pool.monitor.is_none() => OriginHealth::Unmonitored,
            None | Some(Verdict::Unknown) => OriginHealth::Unknown,
            Some(Verdict::Up) => OriginHealth::Up,
            Some(Verdict::Down) => OriginHealth::Down,
        }
    }

    /// Whether connections may go there.
    pub fn usable(self) -> bool {
        match self {
            OriginHealth::Unknown | OriginHealth::Up | OriginHealth::Unmonitored => true,
            OriginHealth::Down | OriginHealth::Disabled => false,
        }
    }
}

/// What is known of a pool as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolState {
    /// No monitor: health is not considered.
    Unmonitored,
    Healthy,
    /// Some origin is down, but not so many that the pool is.
    Degraded,
    /// Fewer than `minimum_origins` are healthy.
    Down,
}

/// The weights of one pool, origins in the pool's order.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolWeights {
    pub state: PoolState,
    pub origins: Vec<OriginWeight>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct OriginWeight {
    pub name: OriginName,
    pub health: OriginHealth,
    pub weight: Weight,
}

impl PoolWeights {
    /// Weighs each origin by `verdict`, which is `None` where nothing is known.
    pub fn weigh(pool: &Pool, verdict: impl Fn(&OriginName) -> Option<Verdict>) -> Self {
        let origins: Vec<OriginWeight> = pool
            .origins
            .iter()
            .map(|origin| {
                let health = OriginHealth::of(pool, origin, verdict(&origin.name));
                OriginWeight {
                    name: origin.name.clone(),
                    health,
                    weight: if health.usable() {
                        origin.weight
                    } else {
                        Weight::ZERO
                    },
                }
            })
            .collect();
        let state = pool_state(pool, &origins);
        Self { state, origins }
    }

    /// Part of the pool's connections that origin `index` gets, 0 to 1.
    pub fn share(&self, index: usize) -> f64 {
        let total: f64 = self.origins.iter().map(|o| o.weight.as_f64()).sum();
        match self.origins.get(index) {
            Some(origin) if total > 0.0 => origin.weight.as_f64() / total,
            _ => 0.0,
        }
    }
}

fn pool_state(pool: &Pool, origins: &[OriginWeight]) -> PoolState {
    // An origin of weight 0 takes no connections, so it stands in for none.
    let usable = origins.iter().filter(|o| o.weight > Weight::ZERO).count();
    let down = origins.iter().any(|o| o.health == OriginHealth::Down);
    if usable < pool.minimum_origins as usize {
        PoolState::Down
    } else if pool.monitor.is_none() {
        PoolState::Unmonitored
    } else if down {
        PoolState::Degraded
    } else {
        PoolState::Healthy
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::resource::Policy;

    fn pool(minimum_origins: u32) -> Pool {
        let origin = |name: &str, weight: f64, enabled| Origin {
            name: name.parse().unwrap(),
            address: "10.0.2.2:7000".parse().unwrap(),
            weight: Weight::new(weight).unwrap(),
            enabled,
        };
        Pool {
            name: "game".parse().unwrap(),
            monitor: Some("quick".parse().unwrap()),
            policy: Policy::Weighted,
            minimum_origins,
            fallback: None,
            origins: vec![
                origin("a", 0.25, true),
                origin("b", 0.25, true),
                origin("c", 0.5, true),
                origin("off", 1.0, false),
            ],
        }
    }

    fn down(names: &'static [&'static str]) -> impl Fn(&OriginName) -> Option<Verdict> {
        |name| {
            Some(if names.contains(&name.as_str()) {
                Verdict::Down
            } else {
                Verdict::Up
            })
        }
    }

    #[test]
    fn the_share_of_one_that_fails_is_spread_over_the_others() {
        let weights = PoolWeights::weigh(&pool(1), down(&["c"]));
        assert_eq!(weights.state, PoolState::Degraded);
        let shares: Vec<f64> = (0..4).map(|index| weights.share(index)).collect();
        assert_eq!(shares, [0.5, 0.5, 0.0, 0.0]);
    }

    #[test]
    fn fewer_than_the_minimum_and_the_pool_is_down() {
        assert_eq!(
            PoolWeights::weigh(&pool(2), down(&["a"])).state,
            PoolState::Degraded
        );
        assert_eq!(
            PoolWeights::weigh(&pool(2), down(&["a", "b"])).state,
            PoolState::Down
        );
        assert_eq!(
            PoolWeights::weigh(&pool(1), down(&[])).state,
            PoolState::Healthy
        );
    }

    #[test]
    fn an_origin_without_weight_stands_in_for_none() {
        let mut pool = pool(1);
        pool.origins[1].weight = Weight::ZERO;
        pool.origins[2].weight = Weight::ZERO;
        assert_eq!(
            PoolWeights::weigh(&pool, down(&["a"])).state,
            PoolState::Down
        );
    }

    #[test]
    fn without_a_monitor_a_verdict_counts_for_nothing() {
        let pool = Pool {
            monitor: None,
            ..pool(1)
        };
        let weights = PoolWeights::weigh(&pool, down(&["a", "b", "c"]));
        assert_eq!(weights.state, PoolState::Unmonitored);
        assert_eq!(weights.origins[0].weight, Weight::new(0.25).unwrap());
    }
}
