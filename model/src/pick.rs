//! Choosing an origin by policy and weights.
//!
//! A [`Wheel`] is built once for a set of weights and then only read, so all
//! workers share it; what has to move (whose turn it is, random bits, load of
//! the origins) is handed in.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{
    latency::PeakEwma,
    maglev::Maglev,
    positions::Positions,
    resource::{Policy, Weight},
    sip::Sip,
};

/// Origins of a pool with their weights, ready to be chosen from. An origin is
/// named by its position.
#[derive(Debug, Clone)]
pub struct Wheel {
    weights: Vec<u32>,
    how: How,
}

#[derive(Debug, Clone)]
enum How {
    AtRandom,
    /// Whose turn it is, one whole round.
    InTurn(Vec<u16>),
    LeastLoaded,
    Fastest,
    ByClient(Arc<Clients>),
}

/// The table that clients find their origins by. Made when the first client
/// asks, and shared by all wheels that have the same one.
#[derive(Debug)]
struct Clients {
    /// Name and declared weight of each origin.
    origins: Vec<(Box<str>, u32)>,
    table: OnceLock<Maglev>,
}

/// An origin to choose from.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// What `hash` knows it by, on every edge.
    pub name: &'a str,
    /// Of now; 0: not to be chosen.
    pub weight: Weight,
    /// As declared. `hash` keeps the place of an origin whose weight of now is
    /// less, so that no client of another origin is moved.
    pub declared: Weight,
}

/// What one choice is made by.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// Goes up by one from choice to choice.
    pub turn: usize,
    /// Uniform over all 64 bits.
    pub random: u64,
    pub client: IpAddr,
}

/// What is known of an origin at this edge.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    /// Connections open or being opened.
    pub open: u32,
    /// How long answers took, and what time it is now.
    pub answers: PeakEwma,
    pub now: Duration,
}

/// Longest round: one slot is then a tenth of a percent, which is what weights
/// resolve.
const ROUND_MAX: u64 = 1024;

/// The same on every edge, so that a client that comes by another one finds
/// its origin.
const CLIENT: Sip = Sip::new(0x616e_7970_6f72_7420, 0x636c_6965_6e74_2031);

impl Wheel {
    pub fn new(policy: Policy, candidates: &[Candidate<'_>]) -> Self {
        let weights: Vec<u32> = candidates.iter().map(|c| c.weight.thousandths()).collect();
        let how = match policy {
            Policy::Weighted => How::AtRandom,
            Policy::RoundRobin => How::InTurn(smooth_round(&weights)),
            Policy::LeastConnections => How::LeastLoaded,
            Policy::Latency => How::Fastest,
            Policy::Hash => How::ByClient(Arc::new(Clients::new(candidates))),
        };
        Self { weights, how }
    }

    /// Takes over the client table of `other` where it is the same, so that it
    /// is not made again.
    #[must_use]
    pub fn sharing(mut self, other: &Wheel) -> Self {
        if let (How::ByClient(mine), How::ByClient(theirs)) = (&mut self.how, &other.how)
            && mine.origins == theirs.origins
        {
            *mine = Arc::clone(theirs);
        }
        self
    }

    /// Chooses among the origins with a weight that were not `tried` yet.
    pub fn choose(
        &self,
        draw: Draw,
        load: impl Fn(usize) -> Load,
        tried: &Positions,
    ) -> Option<usize> {
        match &self.how {
            How::AtRandom => self.at_random(draw.random, tried),
            How::InTurn(turns) => in_turn(turns, draw.turn, tried),
            How::LeastLoaded => self.least_loaded(draw.random, load, tried),
            How::Fastest => self.fastest(draw.random, load, tried),
            How::ByClient(clients) => self.of_client(clients, client_hash(draw.client), tried),
        }
    }

    /// An origin that has less than its declared weight takes that part of its
    /// clients, always the same, and leaves the others where they go without it.
    fn of_client(&self, clients: &Clients, client: u64, tried: &Positions) -> Option<usize> {
        let free = |index: &usize| self.weights[*index] > 0 && !tried.contains(*index);
        let preferred = || clients.table().preferred(client).filter(free);
        let takes = |index: &usize| clients.take(*index, self.weights[*index], client);
        preferred().find(takes).or_else(|| preferred().next())
    }

    /// How many origins with a weight were not `tried` yet.
    pub fn candidates_left(&self, tried: &Positions) -> usize {
        self.candidates(tried).count()
    }

    fn candidates(&self, tried: &Positions) -> impl Iterator<Item = (usize, u32)> {
        let weights = self.weights.iter().copied().enumerate();
        weights.filter(move |(index, weight)| *weight > 0 && !tried.contains(*index))
    }

    fn at_random(&self, random: u64, tried: &Positions) -> Option<usize> {
        let total: u64 = self.candidates(tried).map(|(_, w)| u64::from(w)).sum();
        let mut left = scale(random, total);
        self.candidates(tried)
            .find(|(_, weight)| match left.checked_sub(u64::from(*weight)) {
                Some(rest) => {
                    left = rest;
                    false
                }
                None => true,
            })
            .map(|(index, _)| index)
    }

    /// The most weight per connection, this one counted in; among equals at
    /// random, so that edges that know nothing of each other do not all choose
    /// the first.
    fn least_loaded(
        &self,
        random: u64,
        load: impl Fn(usize) -> Load,
        tried: &Positions,
    ) -> Option<usize> {
        let mut best: Option<(u64, u64)> = None;
        let mut equals = Vec::new();
        for (index, weight) in self.candidates(tried) {
            let (weight, load) = (u64::from(weight), u64::from(load(index).open) + 1);
            // weight / load against best weight / best load, without rounding.
            let order = best.map(|(w, l)| (weight * l).cmp(&(w * load)));
            match order {
                None | Some(std::cmp::Ordering::Greater) => {
                    best = Some((weight, load));
                    equals.clear();
                    equals.push(index);
                }
                Some(std::cmp::Ordering::Equal) => equals.push(index),
                Some(std::cmp::Ordering::Less) => {}
            }
        }
        let nth = scale(random, equals.len() as u64);
        equals.get(usize::try_from(nth).ok()?).copied()
    }

    /// The better of two that are drawn by their weights. The first is given up
    /// only for one that is clearly better: where all are alike, the shares are
    /// those of the weights, and noise moves nothing.
    fn fastest(
        &self,
        random: u64,
        load: impl Fn(usize) -> Load,
        tried: &Positions,
    ) -> Option<usize> {
        let first = self.at_random(random, tried)?;
        let mut others = tried.clone();
        others.insert(first);
        // The second draw needs bits that the first has not used up.
        let Some(second) = self.at_random(mix(random), &others) else {
            return Some(first);
        };
        let pair = f64::from(self.weights[first]) + f64::from(self.weights[second]);
        let cost = |index: usize| {
            let part = f64::from(self.weights[index]) * 2.0 / pair;
            cost(load(index), part)
        };
        Some(if cost(second) * CLEARLY < cost(first) {
            second
        } else {
            first
        })
    }
}

/// How many times the cost of the other makes an origin clearly worse.
const CLEARLY: f64 = 1.25;

/// What one more connection to an origin is thought to cost: its latency, times
/// the connections open there as its weight's `part` of a pair bears them, and
/// this one. One that was never asked is worth a try, but only one at a time.
fn cost(load: Load, part: f64) -> f64 {
    let latency = match (load.answers.value(load.now), load.open) {
        (Some(latency), _) => latency.as_secs_f64(),
        (None, 0) => 0.0,
        (None, _) => return f64::INFINITY,
    };
    latency * (f64::from(load.open) / part + 1.0)
}

impl Clients {
    fn new(candidates: &[Candidate<'_>]) -> Self {
        let origins = candidates
            .iter()
            .map(|c| (c.name.into(), c.declared.thousandths()));
        Self {
            origins: origins.collect(),
            table: OnceLock::new(),
        }
    }

    /// Whether a client is in the part that an origin of `weight` takes of its
    /// own.
    fn take(&self, index: usize, weight: u32, client: u64) -> bool {
        let Some((name, declared)) = self.origins.get(index) else {
            return false;
        };
        weight >= *declared || {
            let place = mix(client ^ CLIENT.hash(name.as_bytes()));
            scale(place, u64::from(*declared)) < u64::from(weight)
        }
    }

    fn table(&self) -> &Maglev {
        self.table.get_or_init(|| {
            let origins = self.origins.iter();
            Maglev::new(origins.map(|(name, weight)| (name.as_ref(), *weight)))
        })
    }
}

/// All spellings of an address are one client.
fn client_hash(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(ip) => CLIENT.hash(&ip.octets()),
        IpAddr::V6(ip) => CLIENT.hash(&ip.octets()),
    }
}

fn in_turn(turns: &[u16], turn: usize, tried: &Positions) -> Option<usize> {
    let start = turn.checked_rem(turns.len())?;
    let (after, before) = (&turns[start..], &turns[..start]);
    let mut round = after.iter().chain(before).map(|&index| usize::from(index));
    round.find(|&index| !tried.contains(index))
}

/// Other bits, one for one: the finalizer of SplitMix64.
fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// `random` of 64 bits to a number below `below` (0 for 0).
fn scale(random: u64, below: u64) -> u64 {
    ((u128::from(random) * u128::from(below)) >> 64) as u64
}

/// One round in which each origin has as many turns as its weight says, spread
/// as evenly as can be: smooth weighted round robin, as in nginx.
fn smooth_round(weights: &[u32]) -> Vec<u16> {
    let divisor = weights.iter().fold(0, |a, &b| gcd(a, b)).max(1);
    let mut turns: Vec<u64> = weights.iter().map(|w| u64::from(w / divisor)).collect();
    let total: u64 = turns.iter().sum();
    if total > ROUND_MAX {
        for turn in turns.iter_mut().filter(|turn| **turn > 0) {
            *turn = (*turn * ROUND_MAX / total).max(1);
        }
    }
    let total: i64 = turns.iter().map(|&turn| turn as i64).sum();
    let mut current = vec![0i64; turns.len()];
    let mut round = Vec::new();
    for _ in 0..total {
        for (value, &turn) in current.iter_mut().zip(&turns) {
            *value += turn as i64;
        }
        let next = (0..current.len())
            .filter(|&index| turns[index] > 0)
            .max_by_key(|&index| (current[index], std::cmp::Reverse(index)));
        if let Some((index, name)) = next.and_then(|i| Some((i, u16::try_from(i).ok()?))) {
            current[index] -= total;
            round.push(name);
        }
    }
    round
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn wheel(policy: Policy, weights: &[f64]) -> Wheel {
        moved(policy, weights, weights)
    }

    fn moved(policy: Policy, now: &[f64], declared: &[f64]) -> Wheel {
        let names: Vec<String> = (0..now.len()).map(|index| format!("o{index}")).collect();
        let candidates: Vec<Candidate<'_>> = (0..now.len())
            .map(|index| Candidate {
                name: &names[index],
                weight: Weight::new(now[index]).unwrap(),
                declared: Weight::new(declared[index]).unwrap(),
            })
            .collect();
        Wheel::new(policy, &candidates)
    }

    fn draw(turn: usize, random: u64) -> Draw {
        let client = IpAddr::from([203, 0, 113, 7]);
        Draw {
            turn,
            random,
            client,
        }
    }

    fn from_client(number: u32) -> Draw {
        let client = IpAddr::from(number.to_be_bytes());
        Draw {
            client,
            ..draw(0, 0)
        }
    }

    const NONE: Positions = Positions::NONE;
    const IDLE: fn(usize) -> Load = |_| load(0, None);

    fn load(open: u32, latency: Option<Duration>) -> Load {
        let now = Duration::ZERO;
        let answers = latency.map(|took| PeakEwma::default().observe(now, took));
        let answers = answers.unwrap_or_default();
        Load { open, answers, now }
    }

    #[test]
    fn round_robin_interleaves_by_weight() {
        let wheel = wheel(Policy::RoundRobin, &[5.0, 1.0, 1.0]);
        let round: Vec<_> = (0..7)
            .map(|t| wheel.choose(draw(t, 0), IDLE, &NONE).unwrap())
            .collect();
        assert_eq!(round, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn least_connections_counts_by_weight() {
        let wheel = wheel(Policy::LeastConnections, &[1.0, 2.0]);
        let choose = |open: [u32; 2]| {
            let load = |index: usize| Load {
                open: open[index],
                ..Load::default()
            };
            wheel.choose(draw(0, 0), load, &NONE)
        };
        assert_eq!(choose([0, 0]), Some(1));
        assert_eq!(choose([0, 3]), Some(0));
        assert_eq!(choose([9, 0]), Some(1));
    }

    #[test]
    fn equals_are_chosen_at_random() {
        let wheel = wheel(Policy::LeastConnections, &[1.0, 1.0]);
        assert_eq!(wheel.choose(draw(0, 0), IDLE, &NONE), Some(0));
        assert_eq!(wheel.choose(draw(0, u64::MAX), IDLE, &NONE), Some(1));
    }

    #[test]
    fn random_choice_follows_the_weights_exactly_over_all_bits() {
        let wheel = wheel(Policy::Weighted, &[1.0, 0.0, 3.0]);
        let mut counts = [0; 3];
        for step in 0..4000u64 {
            let random = step * (u64::MAX / 4000) + u64::MAX / 8000;
            counts[wheel.choose(draw(0, random), IDLE, &NONE).unwrap()] += 1;
        }
        assert_eq!(counts, [1000, 0, 3000]);
    }

    /// Pearson's statistic of counts against the shares that the weights give.
    fn chi_square(counts: &[u64], weights: &[f64]) -> f64 {
        let (count, total) = (
            counts.iter().sum::<u64>() as f64,
            weights.iter().sum::<f64>(),
        );
        let terms = counts
            .iter()
            .zip(weights)
            .filter(|(_, weight)| **weight > 0.0);
        terms
            .map(|(got, weight)| {
                let expected = count * weight / total;
                (*got as f64 - expected).powi(2) / expected
            })
            .sum()
    }

    /// For 3 degrees of freedom; exceeded by chance once in 10,000.
    const CHI_SQUARE_3: f64 = 21.1;

    const WEIGHTS: [f64; 4] = [1.0, 2.0, 3.0, 0.5];

    #[test]
    fn clients_are_spread_as_the_weights_say() {
        let wheel = wheel(Policy::Hash, &WEIGHTS);
        let mut counts = [0; 4];
        for client in 0..40_000 {
            counts[wheel.choose(from_client(client), IDLE, &NONE).unwrap()] += 1;
        }
        // The slots themselves are right to a few parts in a thousand only.
        let bound = CHI_SQUARE_3 * 2.0;
        assert!(chi_square(&counts, &WEIGHTS) < bound, "{counts:?}");
    }

    #[test]
    fn where_all_are_as_fast_connections_are_spread_as_the_weights_say() {
        let wheel = wheel(Policy::Latency, &WEIGHTS);
        for open in [0, 40] {
            // As many as the weight's share of them.
            let open = |index: usize| (f64::from(open) * WEIGHTS[index]) as u32;
            let load = |index: usize| load(open(index), Some(Duration::from_millis(3)));
            let mut counts = [0; 4];
            let mut random = 1;
            for _ in 0..40_000 {
                random = mix(random) ^ 0x9e37_79b9_7f4a_7c15;
                counts[wheel.choose(draw(0, random), load, &NONE).unwrap()] += 1;
            }
            assert!(chi_square(&counts, &WEIGHTS) < CHI_SQUARE_3, "{counts:?}");
        }
    }

    #[test]
    fn the_slow_and_the_loaded_are_left_for_the_better() {
        let wheel = wheel(Policy::Latency, &[1.0, 1.0, 1.0]);
        let ms = |millis| Some(Duration::from_millis(millis));
        let chosen = |load: [Load; 3]| {
            let mut counts = [0; 3];
            for step in 0..3000u64 {
                let random = mix(step);
                counts[wheel.choose(draw(0, random), |at| load[at], &NONE).unwrap()] += 1;
            }
            counts
        };
        let [slow, ..] = chosen([load(0, ms(50)), load(0, ms(2)), load(0, ms(2))]);
        assert_eq!(slow, 0, "there is always a better one beside it");
        let [busy, ..] = chosen([load(30, ms(2)), load(0, ms(2)), load(0, ms(2))]);
        assert_eq!(busy, 0);
        let [new, ..] = chosen([load(0, None), load(0, ms(2)), load(0, ms(2))]);
        assert!(new > 1800, "{new}: one that was never asked is asked");
        let [asked, ..] = chosen([load(1, None), load(0, ms(2)), load(0, ms(2))]);
        assert_eq!(asked, 0, "and until it has answered, no more");
        let counts = chosen([load(0, ms(10)), load(0, ms(11)), load(0, ms(12))]);
        assert!(
            counts.iter().all(|count| *count > 800),
            "noise moves nothing: {counts:?}"
        );
    }

    /// A run of connections against servers that take as long as they take.
    #[test]
    fn in_a_run_the_slow_origin_gets_markedly_less_and_recovers() {
        let wheel = wheel(Policy::Latency, &[1.0, 1.0]);
        let mut ewma = [PeakEwma::default(); 2];
        let mut share = |from: u64, took: [u64; 2]| {
            let mut slow = 0;
            for step in 0..2000 {
                let now = Duration::from_millis(from + step * 10);
                let load = |at: usize| Load {
                    open: 0,
                    answers: ewma[at],
                    now,
                };
                let at = wheel
                    .choose(draw(0, mix(from + step)), load, &NONE)
                    .unwrap();
                slow += u32::from(at == 1);
                ewma[at] = ewma[at].observe(now, Duration::from_millis(took[at]));
            }
            slow
        };
        let alike = share(0, [5, 5]);
        assert!((800..1200).contains(&alike), "{alike}");
        let slow = share(20_000, [5, 100]);
        assert!(slow < 40, "{slow} of 2000 to the slow one");
        share(40_000, [5, 5]);
        let recovered = share(60_000, [5, 5]);
        assert!(recovered > 600, "{recovered}");
    }

    #[test]
    fn a_client_has_one_origin_however_its_address_is_written() {
        let wheel = wheel(Policy::Hash, &[1.0; 7]);
        for number in 0..200u32 {
            let IpAddr::V4(v4) = from_client(number << 9).client else {
                panic!("made from four bytes");
            };
            let mapped = Draw {
                client: v4.to_ipv6_mapped().into(),
                ..draw(3, 99)
            };
            let one = wheel.choose(from_client(number << 9), IDLE, &NONE);
            assert_eq!(wheel.choose(mapped, IDLE, &NONE), one);
        }
    }

    #[test]
    fn an_origin_that_is_down_moves_its_own_clients_and_no_other() {
        let declared = [1.0, 1.0, 2.0, 1.0];
        let whole = wheel(Policy::Hash, &declared);
        let without = moved(Policy::Hash, &[1.0, 0.0, 2.0, 1.0], &declared);
        let mut took_over = [0; 4];
        for client in 0..4000 {
            let before = whole.choose(from_client(client), IDLE, &NONE).unwrap();
            let after = without.choose(from_client(client), IDLE, &NONE).unwrap();
            if before == 1 {
                took_over[after] += 1;
                // Whoever has found out by itself that it is down agrees.
                let tried = whole
                    .choose(from_client(client), IDLE, &[1].into_iter().collect())
                    .unwrap();
                assert_eq!(after, tried);
            } else {
                assert_eq!(before, after);
            }
        }
        assert_eq!(took_over[1], 0);
        assert!(
            [0, 2, 3].iter().all(|&at| took_over[at] > 100),
            "{took_over:?}"
        );
    }

    #[test]
    fn an_origin_with_a_part_of_its_weight_has_a_part_of_its_clients() {
        let declared = [1.0, 1.0, 2.0, 1.0];
        let whole = wheel(Policy::Hash, &declared);
        let without = moved(Policy::Hash, &[1.0, 0.0, 2.0, 1.0], &declared);
        let mut held = std::collections::BTreeSet::new();
        for part in [0.1, 0.3, 0.7, 1.0] {
            let eased = moved(Policy::Hash, &[1.0, part, 2.0, 1.0], &declared);
            let (mut own, mut has) = (0, std::collections::BTreeSet::new());
            for client in 0..4000 {
                let of = |wheel: &Wheel| wheel.choose(from_client(client), IDLE, &NONE).unwrap();
                own += usize::from(of(&whole) == 1);
                match of(&eased) {
                    1 => _ = has.insert(client),
                    other => assert_eq!(other, of(&without), "it goes where it went without"),
                }
            }
            let share = has.len() as f64 / own as f64;
            assert!((share - part).abs() < 0.07, "{share} of its own for {part}");
            assert!(has.is_superset(&held), "who has come stays");
            held = has;
        }
    }

    #[test]
    fn a_table_is_made_once_for_all_that_have_the_same() {
        let declared = [1.0, 1.0];
        let old = wheel(Policy::Hash, &declared);
        old.choose(from_client(1), IDLE, &NONE);
        let made = |wheel: &Wheel| match &wheel.how {
            How::ByClient(clients) => clients.table.get().is_some(),
            _ => false,
        };
        assert!(made(
            &moved(Policy::Hash, &[0.0, 1.0], &declared).sharing(&old)
        ));
        assert!(!made(
            &moved(Policy::Hash, &[1.0, 1.0], &[2.0, 1.0]).sharing(&old)
        ));
        assert!(
            !made(&wheel(Policy::Hash, &declared)),
            "not before it is asked"
        );
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        prop::sample::select(Policy::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn tries_each_origin_with_a_weight_once_and_no_other(
            policy in any_policy(),
            weights in prop::collection::vec(0.0f64..1000.0, 0..12),
            turn: usize, random: u64, open: u32, micros: Option<u32>,
        ) {
            let weights: Vec<f64> = weights.into_iter().map(|w| if w < 300.0 { 0.0 } else { w }).collect();
            let wheel = wheel(policy, &weights);
            let latency = micros.map(|micros| Duration::from_micros(micros.into()));
            let load = |_| load(open, latency);
            let mut tried = Positions::default();
            while let Some(index) = wheel.choose(draw(turn, random), load, &tried) {
                prop_assert!(weights[index] > 0.0 && !tried.contains(index));
                tried.insert(index);
            }
            prop_assert_eq!(tried.len(), weights.iter().filter(|w| **w > 0.0).count());
        }

        #[test]
        fn a_round_gives_each_its_part(weights in prop::collection::vec(0u32..20, 1..8)) {
            let as_f64: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
            let wheel = wheel(Policy::RoundRobin, &as_f64);
            let total: u32 = weights.iter().sum();
            let mut counts = vec![0; weights.len()];
            for turn in 0..total * 3 {
                counts[wheel.choose(draw(turn as usize, 0), IDLE, &NONE).unwrap()] += 1;
            }
            let wanted: Vec<u32> = weights.iter().map(|w| w * 3).collect();
            prop_assert_eq!(counts, wanted);
        }
    }
}
