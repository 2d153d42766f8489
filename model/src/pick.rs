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
    sip::{Sip, mix},
};

/// Origins of a pool with their weights, ready to be chosen from. An origin is
/// named by its position.
#[derive(Debug, Clone)]
pub struct Wheel {
    weights: Vec<u32>,
    /// Those with a weight.
    usable: Positions,
    how: How,
}

#[derive(Debug, Clone)]
enum How {
    AtRandom(Shares),
    InTurn {
        shares: Shares,
        /// See [`step`].
        step: u64,
    },
    LeastLoaded,
    Fastest(Shares),
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

/// The same on every edge, so that a client that comes by another one finds
/// its origin.
const CLIENT: Sip = Sip::new(0x616e_7970_6f72_7420, 0x636c_6965_6e74_2031);

impl Wheel {
    pub fn new(policy: Policy, candidates: &[Candidate<'_>]) -> Self {
        let weights: Vec<u32> = candidates.iter().map(|c| c.weight.thousandths()).collect();
        let how = match policy {
            Policy::Weighted => How::AtRandom(Shares::new(&weights)),
            Policy::RoundRobin => {
                let shares = Shares::new(&weights);
                let step = step(shares.total());
                How::InTurn { shares, step }
            }
            Policy::LeastConnections => How::LeastLoaded,
            Policy::Latency => How::Fastest(Shares::new(&weights)),
            Policy::Hash => How::ByClient(Arc::new(Clients::new(candidates))),
        };
        let usable = (0..weights.len()).filter(|index| weights[*index] > 0);
        Self {
            usable: usable.collect(),
            weights,
            how,
        }
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
            How::AtRandom(shares) if tried.is_empty() => {
                shares.holder(scale(draw.random, shares.total()))
            }
            How::AtRandom(_) => self.at_random(draw.random, tried),
            How::InTurn { shares, step } if tried.is_empty() => {
                shares.holder(spread(draw.turn, shares.total(), *step))
            }
            How::InTurn { shares, .. } => self.in_turn(shares.unit, draw.turn, tried),
            How::LeastLoaded => self.least_loaded(draw.random, load, tried),
            How::Fastest(shares) => self.fastest(shares, draw.random, load, tried),
            How::ByClient(clients) => self.of_client(clients, client_hash(draw.client), tried),
        }
    }

    /// An origin that has less than its declared weight takes that part of its
    /// clients, always the same, and leaves the others where they go without it.
    fn of_client(&self, clients: &Clients, client: u64, tried: &Positions) -> Option<usize> {
        let free = |index: &usize| self.weights[*index] > 0 && !tried.contains(*index);
        let left = self.candidates_left(tried);
        if left == 0 {
            return None;
        }
        let (mut first, mut refused) = (None, Positions::default());
        for index in clients.table().preferred(client).filter(free) {
            if clients.take(index, self.weights[index], client) {
                return Some(index);
            }
            first.get_or_insert(index);
            refused.insert(index);
            // The other slots are of the same few.
            if refused.len() == left {
                break;
            }
        }
        first
    }

    /// How many origins with a weight were not `tried` yet.
    pub fn candidates_left(&self, tried: &Positions) -> usize {
        self.usable.count_without(tried)
    }

    fn candidates(&self, tried: &Positions) -> impl Iterator<Item = (usize, u32)> {
        let weights = self.weights.iter().copied().enumerate();
        weights.filter(move |(index, weight)| *weight > 0 && !tried.contains(*index))
    }

    fn at_random(&self, random: u64, tried: &Positions) -> Option<usize> {
        self.among(tried, 1, |total| scale(random, total))
    }

    /// Those that were not tried have turns by themselves, so that nobody has
    /// those of a neighbour that is passed over.
    fn in_turn(&self, unit: u32, turn: usize, tried: &Positions) -> Option<usize> {
        self.among(tried, unit, |total| spread(turn, total, step(total)))
    }

    /// Who holds the slot that `slot` chooses of as many as there are, of those
    /// that were not tried, with a slot for each `unit` of weight.
    fn among(&self, tried: &Positions, unit: u32, slot: impl FnOnce(u64) -> u64) -> Option<usize> {
        let slots = || {
            let candidates = self.candidates(tried);
            candidates.map(|(index, weight)| (index, u64::from(weight / unit.max(1))))
        };
        let mut left = slot(slots().map(|(_, slots)| slots).sum());
        let holder = slots().find(|(_, slots)| match left.checked_sub(*slots) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        });
        holder.map(|(index, _)| index)
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

    /// The best of a few that are drawn by their weights. The first is given up
    /// only for one that is clearly better: where all are alike, the shares are
    /// those of the weights, and noise moves nothing.
    fn fastest(
        &self,
        shares: &Shares,
        random: u64,
        load: impl Fn(usize) -> Load,
        tried: &Positions,
    ) -> Option<usize> {
        let drawn = self.drawn(shares, random, tried);
        let weight = |index: usize| f64::from(self.weights[index]);
        let mean = drawn.iter().map(|index| weight(*index)).sum::<f64>() / drawn.len() as f64;
        let cost = |index: usize| cost(load(index), weight(index) / mean);
        let costs: Vec<f64> = drawn.iter().map(|index| cost(*index)).collect();
        let best = costs.iter().copied().reduce(f64::min)?;
        let good = costs.iter().position(|cost| best * CLEARLY >= *cost)?;
        Some(drawn[good])
    }

    /// Up to [`DRAWN`] that were not tried, each once, in the order of their draw.
    fn drawn(&self, shares: &Shares, mut random: u64, tried: &Positions) -> Vec<usize> {
        let mut drawn = Vec::with_capacity(DRAWN);
        let mut passed = (!tried.is_empty()).then(|| tried.clone());
        while drawn.len() < DRAWN {
            let next = match &passed {
                Some(passed) => self.at_random(random, passed),
                None => shares.another(&drawn, random),
            };
            let Some(index) = next else { break };
            drawn.push(index);
            if let Some(passed) = &mut passed {
                passed.insert(index);
            }
            // Each draw needs bits that those before it have not used up.
            random = mix(random);
        }
        drawn
    }
}

/// How many origins `latency` compares. With two of three, a third of all
/// connections would not see the best; with all of many, edges that know as much
/// would all choose the same.
const DRAWN: usize = 3;

/// How many times the cost of the best makes an origin clearly worse.
const CLEARLY: f64 = 1.25;

/// What one more connection to an origin is thought to cost: its latency, times
/// the connections open there as its `part` of an average weight bears them, and
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

/// `random` of 64 bits to a number below `below` (0 for 0).
fn scale(random: u64, below: u64) -> u64 {
    ((u128::from(random) * u128::from(below)) >> 64) as u64
}

/// Slots in a row, as many for each origin as its weight says.
#[derive(Debug, Clone)]
struct Shares {
    /// Weight that is worth one slot: as much as all weights are whole in.
    unit: u32,
    /// For each origin, the first slot after its own.
    ends: Vec<u64>,
}

impl Shares {
    fn new(weights: &[u32]) -> Self {
        let unit = weights.iter().fold(0, |unit, weight| gcd(unit, *weight));
        let unit = unit.max(1);
        let ends = weights.iter().scan(0, |end, weight| {
            *end += u64::from(weight / unit);
            Some(*end)
        });
        let ends = ends.collect();
        Self { unit, ends }
    }

    fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn holder(&self, slot: u64) -> Option<usize> {
        let index = self.ends.partition_point(|end| *end <= slot);
        (index < self.ends.len()).then_some(index)
    }

    /// The first slot of an origin, and the first after its own.
    fn slots(&self, index: usize) -> (u64, u64) {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        (start, self.ends[index])
    }

    /// At random, of all but these.
    fn another(&self, others: &[usize], random: u64) -> Option<usize> {
        let mut passed: Vec<_> = others.iter().map(|index| self.slots(*index)).collect();
        passed.sort_unstable();
        let taken: u64 = passed.iter().map(|(start, end)| end - start).sum();
        let mut slot = scale(random, self.total() - taken);
        for (start, end) in passed {
            if slot >= start {
                slot += end - start;
            }
        }
        self.holder(slot)
    }
}

/// Which of `total` slots has its turn: in a round of as many turns each has
/// one, and those that follow each other are far apart, so that at any time
/// everybody has had about its part.
fn spread(turn: usize, total: u64, step: u64) -> u64 {
    let turn = (turn as u64).checked_rem(total).unwrap_or(0);
    let slot = u128::from(turn) * u128::from(step);
    slot.checked_rem(total.into()).unwrap_or(0) as u64
}

/// From slot to slot. Steps that have no divisor in common with the total come
/// by every slot; steps of about the golden ratio of it leave no large gaps on
/// the way (three-distance theorem), where no term of their continued fraction
/// is large. So it is the best of those close by.
fn step(total: u64) -> u64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    const CLOSE: u64 = 16;
    let near = (total as f64 * GOLDEN) as u64;
    let (mut best, mut least) = (1, u64::MAX);
    for distance in 0..CLOSE {
        for step in [near.saturating_sub(distance), near + distance] {
            if let Some(largest) = largest_term(total, step, least) {
                (best, least) = (step, largest);
            }
        }
    }
    best
}

/// The largest term of the continued fraction of `a / b`, if it is below
/// `limit`; `None` too where the two have a divisor in common.
fn largest_term(mut a: u64, mut b: u64, limit: u64) -> Option<u64> {
    let mut largest = 0;
    while b != 0 {
        largest = largest.max(a / b);
        if largest >= limit {
            return None;
        }
        (a, b) = (b, a % b);
    }
    (a == 1).then_some(largest)
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
        assert_eq!(round, [0, 1, 0, 0, 2, 0, 0]);
    }

    /// A thousand origins and weights of a thousandth: the round is too long to
    /// be gone through, and any part of it gives each about its own.
    #[test]
    fn turns_of_a_long_round_are_those_of_the_weights() {
        let weights: Vec<f64> = (0..1000).map(|at| 1.0 + f64::from(at) / 1000.0).collect();
        let wheel = wheel(Policy::RoundRobin, &weights);
        let mut counts = vec![0u32; 1000];
        for turn in 0..150_000 {
            counts[wheel.choose(draw(turn, 0), IDLE, &NONE).unwrap()] += 1;
        }
        for (count, weight) in counts.iter().zip(&weights) {
            let due = weight * 150_000.0 / weights.iter().sum::<f64>();
            assert!((f64::from(*count) - due).abs() < 3.0, "{count} for {due}");
        }
    }

    #[test]
    fn who_is_passed_over_leaves_its_turns_to_all() {
        let wheel = wheel(Policy::RoundRobin, &[1.0; 4]);
        let mut counts = [0; 4];
        for turn in 0..30 {
            let second = [1].into_iter().collect();
            counts[wheel.choose(draw(turn, 0), IDLE, &second).unwrap()] += 1;
        }
        assert_eq!(counts, [10, 0, 10, 10]);
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

    fn ms(millis: u64) -> Option<Duration> {
        Some(Duration::from_millis(millis))
    }

    /// How many of 3,000 each gets while nothing changes.
    fn of_3000(wheel: &Wheel, load: [Load; 3]) -> [u32; 3] {
        let mut counts = [0; 3];
        for step in 0..3000u64 {
            let random = mix(step);
            counts[wheel.choose(draw(0, random), |at| load[at], &NONE).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn the_slow_and_the_loaded_are_left_for_the_better() {
        let wheel = wheel(Policy::Latency, &[1.0, 1.0, 1.0]);
        let chosen = |load| of_3000(&wheel, load);
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

    #[test]
    fn of_those_not_heard_of_for_long_none_is_given_all() {
        let wheel = wheel(Policy::Latency, &[1.0, 1.0, 1.0]);
        let old = |open| Load {
            now: Duration::from_secs(3600),
            ..load(open, Some(Duration::from_millis(2)))
        };
        let loads = [old(90), old(0), old(0)];
        for step in 0..1000u64 {
            let draw = draw(0, mix(step));
            assert_ne!(wheel.choose(draw, |at| loads[at], &NONE), Some(0));
        }
    }

    /// With two of three drawn it would be two thirds.
    #[test]
    fn the_best_of_three_gets_all_that_it_bears() {
        let wheel = wheel(Policy::Latency, &[1.0, 2.0, 1.0]);
        let chosen = |load| of_3000(&wheel, load);
        let idle = [load(0, ms(2)), load(0, ms(10)), load(0, ms(40))];
        assert_eq!(chosen(idle), [3000, 0, 0]);
        // As dear as the next one: whichever of the two is drawn first.
        let busy = [load(3, ms(2)), load(0, ms(10)), load(0, ms(40))];
        let [first, _, third] = chosen(busy);
        assert!(
            (900..1100).contains(&first) && third == 0,
            "{first}, {third}"
        );
        let full = [load(9, ms(2)), load(0, ms(10)), load(0, ms(40))];
        assert_eq!(chosen(full), [0, 3000, 0]);
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
    fn the_clients_of_one_that_is_down_are_spread_over_the_others_by_weight() {
        let declared = [1.0, 2.0, 3.0, 2.0];
        let whole = wheel(Policy::Hash, &declared);
        for down in 0..4 {
            let mut now = declared;
            now[down] = 0.0;
            let without = moved(Policy::Hash, &now, &declared);
            let mut took_over = [0; 4];
            for client in 0..40_000 {
                if whole.choose(from_client(client), IDLE, &NONE) == Some(down) {
                    took_over[without.choose(from_client(client), IDLE, &NONE).unwrap()] += 1;
                }
            }
            let chi_square = chi_square(&took_over, &now);
            assert!(chi_square < CHI_SQUARE_3, "{took_over:?}: {chi_square}");
        }
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
            let with_a_weight = weights.iter().filter(|w| **w > 0.0).count();
            while let Some(index) = wheel.choose(draw(turn, random), load, &tried) {
                prop_assert_eq!(wheel.candidates_left(&tried), with_a_weight - tried.len());
                prop_assert!(weights[index] > 0.0 && !tried.contains(index));
                tried.insert(index);
            }
            prop_assert_eq!(tried.len(), with_a_weight);
        }

        #[test]
        fn what_is_drawn_is_drawn_by_the_weights_of_the_others(
            weights in prop::collection::vec(0u32..9, 1..12),
            drawn in prop::collection::btree_set(0usize..12, 0..3),
        ) {
            let shares = Shares::new(&weights);
            let drawn: Vec<usize> = drawn.into_iter().filter(|at| *at < weights.len()).rev().collect();
            let left = |at: usize| if drawn.contains(&at) { 0 } else { weights[at] };
            let due: Vec<u64> = (0..weights.len()).map(|at| left(at).into()).collect();
            let all: u64 = due.iter().sum();
            let mut counts = vec![0; weights.len()];
            // The middle of each of as many equal parts of all bits.
            for part in 0..all {
                let random = ((u128::from(part) * 2 + 1) << 63) / u128::from(all);
                counts[shares.another(&drawn, random as u64).unwrap()] += 1u64;
            }
            prop_assert_eq!(counts, due);
            if all == 0 {
                prop_assert_eq!(shares.another(&drawn, u64::MAX), None);
            }
        }

        /// Over one round of as many turns as there is weight, and at any time on
        /// the way within a few.
        #[test]
        fn turns_are_exact_for_any_number_of_origins(
            weights in prop::collection::vec(prop_oneof![Just(0u32), 1u32..9, 1u32..40], 1..400),
            passed in prop::collection::btree_set(0usize..400, 0..3),
            start: u32,
        ) {
            let as_f64: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
            let wheel = wheel(Policy::RoundRobin, &as_f64);
            let passed: Positions = passed.into_iter().collect();
            let due: Vec<u32> = weights.iter().enumerate()
                .map(|(at, weight)| if passed.contains(at) { 0 } else { *weight })
                .collect();
            let total: u32 = due.iter().sum();
            let mut counts = vec![0u32; weights.len()];
            for turn in 0..total {
                let at = wheel.choose(draw((start + turn) as usize, 0), IDLE, &passed);
                counts[at.unwrap()] += 1;
                if turn % 64 == 0 {
                    let part = f64::from(turn + 1) / f64::from(total);
                    for (count, due) in counts.iter().zip(&due) {
                        let due = f64::from(*due) * part;
                        prop_assert!((f64::from(*count) - due).abs() < 4.0, "{count} for {due}");
                    }
                }
            }
            prop_assert_eq!(counts, due);
        }
    }
}
