//! What load and latency of its origins ask of a pool's weights.
//!
//! The two are only measured where a connection is made and closed, so they say
//! little, and may move weights little:
//!
//! - **load** is open connections for each unit of declared weight, against the
//!   median of the pool. An origin that holds more than its share serves them
//!   more slowly; one that holds less, since it was away, may take more. The
//!   root of the relation is asked for, so that the answer to a factor, which
//!   comes only as fast as connections end, never overshoots it by much. Where
//!   an origin has [`OPEN_MIN`] on average, chance moves it little; from then on
//!   it counts while there are half as many.
//! - **latency** is how many times longer than at its best an origin takes to
//!   accept (of UDP: to answer first), against the median of the pool: distance
//!   cancels out, and so does a network that slows down for all. It only ever
//!   takes away: to be close is no merit.
//!
//! `least_connections` minds the load by itself, `latency` both, and with `hash`
//! a client stays where it is: there the factor in question is one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::resource::{Policy, Weight};

/// Between two steps of a factor.
pub const STEP: Duration = Duration::from_secs(5);
/// Open connections that origins of the pool have on average when load begins to
/// count.
pub const OPEN_MIN: f64 = 1000.0;
/// And when it ends to. Those who keep theirs for long get fewer, which makes all
/// fewer, but by the bounds of the factor never less than half: so load that
/// counts does not end itself.
const OPEN_LEAST: f64 = OPEN_MIN * LOAD.0 / LOAD.1;
/// Bounds of the two, so that their product stays within about half and
/// one and a half.
const LOAD: (f64, f64) = (0.7, 1.4);
const LATENCY_MIN: f64 = 0.7;

/// Differences of less are the network's own.
const NOISE: Duration = Duration::from_millis(5);
/// In this time, what was the best is forgotten.
const BEST_FOR: Duration = Duration::from_secs(600);
/// In this time, a change is believed.
const BELIEVED: Duration = Duration::from_secs(15);
/// What an edge said longer ago is over: it says so every second.
const FRESH: Duration = Duration::from_secs(10);

/// What edges report of one origin.
#[derive(Debug)]
pub struct Observed<E> {
    edges: BTreeMap<E, Seen>,
}

/// By one edge.
#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    open: u64,
    latency: Option<Latency>,
}

#[derive(Debug, Clone, Copy)]
struct Latency {
    at: Instant,
    /// Seconds, [`NOISE`] counted in.
    now: f64,
    best: f64,
}

/// What all edges report of one origin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    pub open: f64,
    /// How many times longer than at its best it takes; `None`: not dialled.
    pub stretch: Option<f64>,
}

/// What is asked of the factors of an origin; `None`: nothing is known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Wanted {
    pub load: Option<f64>,
    pub latency: Option<f64>,
}

impl<E> Default for Observed<E> {
    fn default() -> Self {
        Self {
            edges: BTreeMap::new(),
        }
    }
}

impl<E: Ord + Clone> Observed<E> {
    /// Connections open at an edge, and the mean time that those took which were
    /// made since it said so last.
    pub fn saw(&mut self, now: Instant, edge: &E, open: u64, took: Option<Duration>) {
        let before = self.edges.get(edge).and_then(|seen| seen.latency);
        let latency = match (before, took) {
            (before, None) => before,
            (None, Some(took)) => Some(Latency::new(now, took)),
            (Some(before), Some(took)) => Some(before.after(now, took)),
        };
        let seen = Seen {
            at: now,
            open,
            latency,
        };
        self.edges.insert(edge.clone(), seen);
    }

    /// What all edges together have; those that speak no more are left out.
    pub fn measure(&mut self, now: Instant) -> Measured {
        let kept = |at: Instant, time| now.saturating_duration_since(at) < time;
        self.edges.retain(|_, seen| kept(seen.at, BEST_FOR));
        let fresh = || self.edges.values().filter(|seen| kept(seen.at, FRESH));
        let stretches = fresh().filter_map(|seen| seen.latency);
        let stretches: Vec<f64> = stretches
            .filter(|latency| kept(latency.at, FRESH))
            .map(|latency| latency.now / latency.best)
            .collect();
        let mean = stretches.iter().sum::<f64>() / stretches.len() as f64;
        Measured {
            open: fresh().map(|seen| seen.open as f64).sum(),
            stretch: (!stretches.is_empty()).then_some(mean),
        }
    }
}

impl Latency {
    fn new(at: Instant, took: Duration) -> Self {
        let now = seconds(took);
        Self { at, now, best: now }
    }

    fn after(self, at: Instant, took: Duration) -> Self {
        let passed = at.saturating_duration_since(self.at);
        let part = |of: Duration| (passed.as_secs_f64() / of.as_secs_f64()).min(1.0);
        let took = seconds(took);
        let now = self.now + (took - self.now) * part(BELIEVED);
        let forgotten = self.best + (now - self.best).max(0.0) * part(BEST_FOR);
        Self {
            at,
            now,
            best: forgotten.min(now),
        }
    }
}

fn seconds(took: Duration) -> f64 {
    (took + NOISE).as_secs_f64()
}

/// What is asked of the weights of one pool, time after time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Balance {
    /// There are, or were, connections enough for load to count.
    loaded: bool,
}

impl Balance {
    /// For each origin: its declared weight, and what was measured of it; `None`:
    /// it is not to be compared, as it takes no connections or not all of its own.
    pub fn wanted(
        &mut self,
        policy: Policy,
        origins: &[Option<(Weight, Measured)>],
    ) -> Vec<Wanted> {
        let (by_load, by_latency) = match policy {
            Policy::Weighted | Policy::RoundRobin => (true, true),
            Policy::LeastConnections => (false, true),
            Policy::Latency | Policy::Hash => (false, false),
        };
        let loads = values(origins, |weight, measured| {
            Some(measured.open / weight.as_f64()).filter(|load| by_load && load.is_finite())
        });
        let stretches = values(origins, |_, measured| {
            measured.stretch.filter(|_| by_latency)
        });
        let open = origins.iter().flatten().map(|(_, measured)| measured.open);
        let load = median(&loads);
        self.loaded = load.is_some() && {
            let least = if self.loaded { OPEN_LEAST } else { OPEN_MIN };
            open.sum::<f64>() >= least * loads.iter().flatten().count() as f64
        };
        let load = load.filter(|median| self.loaded && *median > 0.0);
        let stretch = median(&stretches);
        let of = |index: usize| Wanted {
            load: load
                .zip(loads[index])
                .map(|(median, load)| (median / load).sqrt().clamp(LOAD.0, LOAD.1)),
            latency: stretch
                .zip(stretches[index])
                .map(|(median, stretch)| (median / stretch).clamp(LATENCY_MIN, 1.0)),
        };
        (0..origins.len()).map(of).collect()
    }
}

fn values(
    origins: &[Option<(Weight, Measured)>],
    value: impl Fn(Weight, Measured) -> Option<f64>,
) -> Vec<Option<f64>> {
    let origins = origins.iter().copied();
    let value = |origin: Option<(Weight, Measured)>| origin.and_then(|(w, m)| value(w, m));
    origins.map(value).collect()
}

/// Of two in the middle, the less; `None` of fewer than two, which nothing can
/// be compared with.
fn median(values: &[Option<f64>]) -> Option<f64> {
    let mut known: Vec<f64> = values.iter().flatten().copied().collect();
    known.sort_by(f64::total_cmp);
    (known.len() > 1).then(|| known[(known.len() - 1) / 2])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::damped::Damped;
    use proptest::prelude::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn open(open: f64) -> Option<(Weight, Measured)> {
        let stretch = None;
        Some((Weight::ONE, Measured { open, stretch }))
    }

    fn stretched(stretch: f64) -> Option<(Weight, Measured)> {
        let stretch = Some(stretch);
        Some((Weight::ONE, Measured { open: 0.0, stretch }))
    }

    fn wanted(policy: Policy, origins: &[Option<(Weight, Measured)>]) -> Vec<Wanted> {
        Balance::default().wanted(policy, origins)
    }

    fn loads(policy: Policy, origins: &[Option<(Weight, Measured)>]) -> Vec<Option<f64>> {
        let wanted = wanted(policy, origins);
        wanted.iter().map(|wanted| wanted.load).collect()
    }

    #[test]
    fn who_holds_more_than_its_share_is_asked_to_take_less() {
        let three = [open(2000.0), open(2000.0), open(8000.0)];
        assert_eq!(
            loads(Policy::Weighted, &three),
            [Some(1.0), Some(1.0), Some(0.7)]
        );
        // By declared weight: this is its share.
        let heavy = Weight::new(4.0).unwrap();
        let fair = [
            open(2000.0),
            open(2000.0),
            open(8000.0).map(|(_, m)| (heavy, m)),
        ];
        assert_eq!(loads(Policy::RoundRobin, &fair), [Some(1.0); 3]);
    }

    #[test]
    fn few_connections_and_single_origins_say_nothing() {
        assert_eq!(
            loads(Policy::Weighted, &[open(10.0), open(90.0)]),
            [None; 2]
        );
        assert_eq!(loads(Policy::Weighted, &[open(9000.0), None]), [None; 2]);
        assert_eq!(loads(Policy::Weighted, &[]), []);
    }

    #[test]
    fn load_that_counts_goes_on_to_until_there_are_half_as_many_connections() {
        let mut balance = Balance::default();
        let mut counts = |average: f64| {
            let two = [open(average + 100.0), open(average - 100.0)];
            balance.wanted(Policy::Weighted, &two)[0].load.is_some()
        };
        let seen = [999.0, 1000.0, 999.0, 501.0, 499.0, 999.0, 1001.0].map(&mut counts);
        assert_eq!(seen, [false, true, true, true, false, false, true]);
        balance.wanted(Policy::Weighted, &[None, None]);
        let two = [open(900.0), open(900.0)];
        assert_eq!(balance.wanted(Policy::Weighted, &two)[0].load, None, "anew");
    }

    #[test]
    fn what_the_policy_minds_by_itself_is_not_counted_twice() {
        let uneven = [open(1000.0), open(9000.0)];
        let asked = |policy| loads(policy, &uneven)[1].is_some();
        assert_eq!(Policy::ALL.map(asked), [true, true, false, false, false]);
        let slow = [stretched(1.0), stretched(9.0)];
        let asked = |policy| wanted(policy, &slow)[1].latency.is_some();
        assert_eq!(Policy::ALL.map(asked), [true, true, true, false, false]);
    }

    #[test]
    fn latency_only_takes_away_and_only_from_who_got_slower_than_the_others() {
        let latencies = |origins: &[Option<(Weight, Measured)>]| -> Vec<Option<f64>> {
            let wanted = wanted(Policy::Weighted, origins);
            wanted.iter().map(|wanted| wanted.latency).collect()
        };
        let one = [stretched(1.0), stretched(1.2), stretched(9.0)];
        assert_eq!(latencies(&one), [Some(1.0), Some(1.0), Some(0.7)]);
        let all = [stretched(9.0), stretched(9.0), stretched(9.0)];
        assert_eq!(latencies(&all), [Some(1.0); 3], "the network did");
    }

    /// What is measured of an origin that takes as long as this, one second each.
    fn stretch(took: impl IntoIterator<Item = u64>) -> f64 {
        let (mut now, mut observed) = (Instant::now(), Observed::default());
        for took in took {
            now += Duration::from_secs(1);
            observed.saw(now, &"edge", 0, Some(ms(took)));
        }
        observed.measure(now).stretch.unwrap()
    }

    #[test]
    fn distance_is_not_slowness_and_slowness_is_believed_slowly() {
        assert_eq!(stretch([80; 60]), 1.0);
        let slower = |seconds| stretch([20; 60].into_iter().chain((0..seconds).map(|_| 200)));
        assert!(slower(2) < 2.5, "{}", slower(2));
        assert!(slower(60) > 4.0, "{}", slower(60));
        assert!(slower(3000) < 1.2, "a new normal: {}", slower(3000));
        let noise = stretch((0..600).map(|second| second % 2));
        assert!(noise < 1.2, "{noise}");
    }

    #[test]
    fn edges_that_speak_no_more_are_not_counted() {
        let (start, mut observed) = (Instant::now(), Observed::default());
        observed.saw(start, &"a", 70, Some(ms(1)));
        observed.saw(start + ms(9000), &"b", 30, None);
        assert_eq!(observed.measure(start + ms(9000)).open, 100.0);
        let later = observed.measure(start + FRESH);
        assert_eq!((later.open, later.stretch), (30.0, None));
        observed.measure(start + 2 * BEST_FOR);
        assert!(observed.edges.is_empty());
    }

    /// Origins whose connections last so long, in seconds, under so many new ones a
    /// second: the weights after every step of the factors.
    fn run(lasts: &[f64], rate: f64, steps: usize) -> Vec<Vec<u32>> {
        let mut balance = Balance::default();
        let mut open = vec![0.0; lasts.len()];
        let mut factors = vec![Damped::default(); lasts.len()];
        let mut seen = Vec::new();
        for _ in 0..steps {
            let weights: Vec<f64> = factors.iter().map(|f| f.factor().as_f64()).collect();
            let total: f64 = weights.iter().sum();
            for (index, open) in open.iter_mut().enumerate() {
                let settled = rate * lasts[index] * weights[index] / total;
                *open += (settled - *open) * (1.0 - (-STEP.as_secs_f64() / lasts[index]).exp());
            }
            let measured = open.iter().map(|&open| {
                let stretch = None;
                Some((Weight::ONE, Measured { open, stretch }))
            });
            let wanted = balance.wanted(Policy::Weighted, &measured.collect::<Vec<_>>());
            for (factor, wanted) in factors.iter_mut().zip(wanted) {
                factor.step(wanted.load);
            }
            seen.push(factors.iter().map(|f| f.factor().thousandths()).collect());
        }
        seen
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_loop_over_connections_of_any_length_comes_to_rest(
            lasts in prop::collection::vec(1.0f64..2000.0, 2..6),
        ) {
            // Connections may last half an hour, which are 400 steps.
            let seen = run(&lasts, 10_000.0, 4000);
            for index in 0..lasts.len() {
                let path: Vec<u32> = seen.iter().map(|weights| weights[index]).collect();
                prop_assert!(turns(&path) <= 3, "{lasts:?}: {path:?}");
                prop_assert!(is_at_rest(&path[3600..]), "{lasts:?}: {:?}", &path[3600..]);
            }
        }

        /// As many as make load count come to fewer by that, where those who keep them for
        /// long get less.
        #[test]
        fn load_that_only_just_counts_comes_to_rest(
            lasts in prop::collection::vec(1.0f64..2000.0, 2..6), average in 900.0f64..2100.0,
        ) {
            let rate = average * (lasts.len().pow(2) as f64) / lasts.iter().sum::<f64>();
            // Between the borders, all of it may be undone once before it rests.
            let seen = run(&lasts, rate, 6000);
            for index in 0..lasts.len() {
                let path: Vec<u32> = seen[5600..].iter().map(|weights| weights[index]).collect();
                prop_assert!(is_at_rest(&path), "{lasts:?}: {path:?}");
            }
        }

        #[test]
        fn what_is_asked_is_within_bounds(
            measured in prop::collection::vec(
                prop::option::of((0u32..3000, 0u32..1_000_000, prop::option::of(1.0f64..1e6))), 0..8),
        ) {
            let origins: Vec<Option<(Weight, Measured)>> = measured.iter().map(|origin| {
                origin.map(|(weight, open, stretch)| {
                    let open = f64::from(open);
                    (Weight::of_thousandths(weight), Measured { open, stretch })
                })
            }).collect();
            for policy in Policy::ALL {
                for wanted in wanted(policy, &origins) {
                    prop_assert!(wanted.load.is_none_or(|load| (LOAD.0..=LOAD.1).contains(&load)));
                    prop_assert!(wanted.latency.is_none_or(|part| (LATENCY_MIN..=1.0).contains(&part)));
                }
            }
        }
    }

    /// What is open comes nearer to where it goes without end, and may reach the border of one more
    /// move at any time, but no way back.
    fn is_at_rest(path: &[u32]) -> bool {
        let moves = path.windows(2).filter(|pair| pair[0] != pair[1]);
        turns(path) == 0 && moves.count() <= 8
    }

    /// How often a path that went one way goes the other.
    fn turns(path: &[u32]) -> usize {
        let steps = path.windows(2).map(|pair| pair[1].cmp(&pair[0]));
        let steps: Vec<_> = steps.filter(|order| order.is_ne()).collect();
        steps.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }
}
