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

/// What a weight is multiplied with, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Factor(u32);

impl Factor {
    pub const ONE: Factor = Factor(1000);
    /// More is of no use: the weight of an origin would count for nothing.
    const MAX: Factor = Factor(10_000);

    /// More than there can be counts as the most.
    pub fn of_thousandths(thousandths: u32) -> Self {
        Factor(thousandths.min(Self::MAX.0))
    }

    pub fn thousandths(self) -> u32 {
        self.0
    }

    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

/// Why the weight of a healthy origin is not the declared one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Factors {
    /// It came back lately: [`slow_start`](crate::slow_start).
    pub slow_start: Factor,
    /// It holds more or fewer connections than its share: [`load`](crate::load).
    pub load: Factor,
    /// It takes longer than it did: [`load`](crate::load).
    pub latency: Factor,
}

impl Factors {
    pub const NONE: Factors = Factors {
        slow_start: Factor::ONE,
        load: Factor::ONE,
        latency: Factor::ONE,
    };

    /// Each with its name.
    pub fn named(self) -> [(&'static str, Factor); 3] {
        [
            ("slow_start", self.slow_start),
            ("load", self.load),
            ("latency", self.latency),
        ]
    }

    /// What is above 0 stays above 0, and within the bounds of weights.
    fn of(self, declared: Weight) -> Weight {
        let declared = u64::from(declared.thousandths());
        let all = self.named().map(|(_, factor)| u64::from(factor.0));
        // 1,000,000 × 10,000³ at most.
        let product = all
            .iter()
            .fold(declared, |product, factor| product * factor);
        let thousandths = product.div_ceil(1000u64.pow(3));
        Weight::of_thousandths(u32::try_from(thousandths).unwrap_or(u32::MAX))
    }
}

/// What is known of an origin when it is weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// `None`: nothing.
    pub verdict: Option<Verdict>,
    /// Its probes pass: it is down only because it is held down.
    pub passes_while_held: bool,
    pub factors: Factors,
}

impl From<Option<Verdict>> for Known {
    fn from(verdict: Option<Verdict>) -> Self {
        Known {
            verdict,
            passes_while_held: false,
            factors: Factors::NONE,
        }
    }
}

/// The weights of one pool, origins in the pool's order.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolWeights {
    pub state: PoolState,
    /// Less than half of the weight is healthy, and there is no fallback: health
    /// is ignored, since what is left would be overrun. Before that, origins are
    /// no longer held down whose probes pass.
    pub panic: bool,
    pub origins: Vec<OriginWeight>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct OriginWeight {
    pub name: OriginName,
    pub health: OriginHealth,
    pub weight: Weight,
    /// What `weight` was multiplied with.
    pub factors: Factors,
}

impl PoolWeights {
    /// Weighs each origin by what is `known` of it.
    pub fn weigh<K: Into<Known>>(pool: &Pool, known: impl Fn(&OriginName) -> K) -> Self {
        let origins = pool.origins.iter();
        Self::weigh_in_order(pool, origins.map(|origin| known(&origin.name).into()))
    }

    /// As [`weigh`](Self::weigh), of `known` in the order of the pool's origins.
    pub fn weigh_in_order(pool: &Pool, known: impl IntoIterator<Item = Known>) -> Self {
        let origins = pool.origins.iter().zip(known);
        let health = |origin, known: Known| OriginHealth::of(pool, origin, known.verdict);
        let known = origins.map(|(origin, known)| (health(origin, known), known));
        let known: Vec<(OriginHealth, Known)> = known.collect();
        let health = |index: usize| known[index].0;
        let is_healthy = |index: usize| health(index).usable();
        let lifts_holds = panics(pool, is_healthy);
        let is_let_back = |index: usize| {
            let (health, known) = known[index];
            lifts_holds && health == OriginHealth::Down && known.passes_while_held
        };
        let is_usable = |index: usize| is_healthy(index) || is_let_back(index);
        let panic = panics(pool, is_usable);
        let alone = takers(pool, is_usable) < 2;
        let origins = pool.origins.iter().zip(&known).enumerate();
        let origins = origins.map(|(index, (origin, &(health, Known { factors, .. })))| {
            let (weight, factors) = match health {
                OriginHealth::Disabled => (Weight::ZERO, Factors::NONE),
                _ if panic => (origin.weight, Factors::NONE),
                _ if !is_usable(index) => (Weight::ZERO, Factors::NONE),
                _ if alone => (origin.weight, Factors::NONE),
                _ => (factors.of(origin.weight), factors),
            };
            OriginWeight {
                name: origin.name.clone(),
                health,
                weight,
                factors,
            }
        });
        Self {
            state: pool_state(pool, health),
            panic,
            origins: origins.collect(),
        }
    }

    /// Part of the pool's connections that origin `index` gets, 0 to 1.
    pub fn share(&self, index: usize) -> f64 {
        self.shares().nth(index).unwrap_or_default()
    }

    /// Of each origin, in their order.
    pub fn shares(&self) -> impl Iterator<Item = f64> {
        let weights = || self.origins.iter().map(|origin| origin.weight.as_f64());
        let total: f64 = weights().sum();
        weights().map(move |weight| if total > 0.0 { weight / total } else { 0.0 })
    }
}

/// A pool with a fallback gives way to it instead, where `minimum_origins` says
/// so; until then what is healthy carries it all.
fn panics(pool: &Pool, is_usable: impl Fn(usize) -> bool) -> bool {
    let weight_of = |counts: &dyn Fn(usize, &Origin) -> bool| -> u64 {
        let origins = pool.origins.iter().enumerate();
        let counted = origins.filter(|(index, origin)| counts(*index, origin));
        let weights = counted.map(|(_, origin)| u64::from(origin.weight.thousandths()));
        weights.sum()
    };
    let all = weight_of(&|_, origin| origin.enabled);
    let healthy = weight_of(&|index, _| is_usable(index));
    pool.monitor.is_some() && pool.fallback.is_none() && healthy * 2 < all
}

/// How many origins may take connections. One of weight 0 takes none, so it
/// stands in for none.
fn takers(pool: &Pool, is_usable: impl Fn(usize) -> bool) -> usize {
    let origins = pool.origins.iter().enumerate();
    let takes =
        |(index, origin): &(usize, &Origin)| is_usable(*index) && origin.weight > Weight::ZERO;
    origins.filter(takes).count()
}

fn pool_state(pool: &Pool, health: impl Fn(usize) -> OriginHealth) -> PoolState {
    let down = (0..pool.origins.len()).any(|index| health(index) == OriginHealth::Down);
    if takers(pool, |index| health(index).usable()) < pool.minimum_origins as usize {
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
    use proptest::prelude::*;

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

    #[test]
    fn with_less_than_half_of_the_weight_healthy_health_is_ignored() {
        let shares = |pool: &Pool, gone| {
            let weights = PoolWeights::weigh(pool, down(gone));
            let shares: Vec<f64> = (0..4).map(|index| weights.share(index)).collect();
            (weights.panic, weights.state, shares)
        };
        let (panic, state, spread) = shares(&pool(1), &["a", "b"]);
        assert_eq!((panic, state), (false, PoolState::Degraded), "half is left");
        assert_eq!(spread, [0.0, 0.0, 1.0, 0.0]);
        let all = [0.25, 0.25, 0.5, 0.0];
        let (panic, state, spread) = shares(&pool(1), &["a", "c"]);
        assert_eq!(
            (panic, state, &spread[..]),
            (true, PoolState::Degraded, &all[..])
        );
        let (panic, state, spread) = shares(&pool(1), &["a", "b", "c"]);
        assert_eq!(
            (panic, state, &spread[..]),
            (true, PoolState::Down, &all[..])
        );
    }

    #[test]
    fn before_a_panic_those_are_let_back_that_are_held_but_pass() {
        let shares = |down: &[&str], held: &[&str]| {
            let weights = PoolWeights::weigh(&pool(1), |name| {
                let is_held = held.contains(&name.as_str());
                let is_down = is_held || down.contains(&name.as_str());
                Known {
                    passes_while_held: is_held,
                    ..Some(if is_down { Verdict::Down } else { Verdict::Up }).into()
                }
            });
            let shares: Vec<f64> = (0..3).map(|index| weights.share(index)).collect();
            (weights.panic, shares)
        };
        let (panic, seen) = shares(&["a"], &["c"]);
        assert_eq!(
            (panic, seen[0], seen[2] > 0.6),
            (false, 0.0, true),
            "{seen:?}"
        );
        assert_eq!(
            shares(&["a"], &["b"]),
            (false, vec![0.0, 0.0, 1.0]),
            "no need"
        );
        assert_eq!(shares(&["c"], &["b"]), (false, vec![0.5, 0.5, 0.0]));
        assert_eq!(shares(&["b", "c"], &["a"]), (true, vec![0.25, 0.25, 0.5]));
    }

    #[test]
    fn a_pool_with_a_fallback_gives_way_and_does_not_panic() {
        let pool = Pool {
            fallback: Some("spare".parse().unwrap()),
            ..pool(1)
        };
        let weights = PoolWeights::weigh(&pool, down(&["b", "c"]));
        assert_eq!((weights.panic, weights.state), (false, PoolState::Degraded));
        assert_eq!(weights.share(0), 1.0);
        let weights = PoolWeights::weigh(&pool, down(&["a", "b", "c"]));
        assert_eq!((weights.panic, weights.state), (false, PoolState::Down));
        assert_eq!(weights.share(0), 0.0);
    }

    fn any_pool() -> impl Strategy<Value = (Pool, Vec<Known>)> {
        let verdict = prop::sample::select(vec![
            None,
            Some(Verdict::Unknown),
            Some(Verdict::Up),
            Some(Verdict::Down),
        ]);
        let factor = || (1u32..2000).prop_map(Factor::of_thousandths);
        let factors = (factor(), factor(), factor());
        let factors = factors.prop_map(|(slow_start, load, latency)| Factors {
            slow_start,
            load,
            latency,
        });
        let origin = (0u32..5, any::<bool>(), verdict, any::<bool>(), factors);
        (
            prop::collection::vec(origin, 1..8),
            1u32..4,
            any::<[bool; 2]>(),
        )
            .prop_map(|(origins, minimum_origins, [monitored, fallback])| {
                let known = origins
                    .iter()
                    .map(|(_, _, verdict, passes, factors)| Known {
                        verdict: *verdict,
                        passes_while_held: *passes && *verdict == Some(Verdict::Down),
                        factors: *factors,
                    });
                let known = known.collect();
                let declared = origins.iter().enumerate();
                let declared = declared.map(|(index, (weight, enabled, ..))| Origin {
                    name: format!("o{index}").parse().unwrap(),
                    address: "10.0.2.2:7000".parse().unwrap(),
                    weight: Weight::of_thousandths(weight * 250),
                    enabled: *enabled,
                });
                let pool = Pool {
                    monitor: monitored.then(|| "quick".parse().unwrap()),
                    fallback: fallback.then(|| "spare".parse().unwrap()),
                    origins: declared.collect(),
                    ..pool(minimum_origins)
                };
                (pool, known)
            })
    }

    proptest! {
        #[test]
        fn weights_are_true_whatever_is_known((pool, known) in any_pool()) {
            let known_of = |name: &OriginName| {
                let index: usize = name.as_str()[1..].parse().unwrap();
                known[index]
            };
            let weights = PoolWeights::weigh(&pool, known_of);
            let total: f64 = (0..pool.origins.len()).map(|index| weights.share(index)).sum();
            let declared = |origin: &Origin| origin.enabled && origin.weight > Weight::ZERO;
            let usable = pool.origins.iter().zip(&weights.origins);
            let usable = usable.filter(|(origin, w)| declared(origin) && w.health.usable()).count();
            // As if nobody were held.
            let unheld = PoolWeights::weigh(&pool, |name| {
                let known = known_of(name);
                let verdict = if known.passes_while_held { Some(Verdict::Up) } else { known.verdict };
                Known { verdict, passes_while_held: false, ..known }
            });
            let ignores_holds = PoolWeights::weigh(&pool, |name| known_of(name).verdict).panic;
            prop_assert_eq!(weights.panic, unheld.panic);
            if ignores_holds {
                for (held, unheld) in weights.origins.iter().zip(&unheld.origins) {
                    prop_assert_eq!(held.weight, unheld.weight, "a hold brings nobody to the dead");
                }
            }
            // Somebody gets something wherever somebody could take it.
            let some = usable > 0 || weights.panic || ignores_holds;
            prop_assert!((total - f64::from(u8::from(some))).abs() < 1e-9, "{total}");
            if pool.fallback.is_none() {
                prop_assert_eq!(some, pool.origins.iter().any(declared));
            }
            prop_assert_eq!(weights.state == PoolState::Down, usable < pool.minimum_origins as usize);
            for (origin, weight) in pool.origins.iter().zip(&weights.origins) {
                let gets = weight.weight > Weight::ZERO;
                let let_back = ignores_holds && known_of(&origin.name).passes_while_held;
                let takes = declared(origin) && (weight.health.usable() || weights.panic || let_back);
                prop_assert_eq!(gets, takes, "{:?}", weight);
            }
        }
    }
}
