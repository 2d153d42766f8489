//! Choosing an origin by policy and weights.
//!
//! A [`Wheel`] is built once for a set of weights and then only read, so all
//! workers share it; what has to move (whose turn it is, random bits, open
//! connections) is handed in.

use crate::resource::{Policy, Weight};

/// Origins of a pool with their weights, ready to be chosen from. An origin is
/// named by its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wheel {
    policy: Policy,
    weights: Vec<u32>,
    /// Round robin: whose turn it is, one whole round.
    turns: Vec<u16>,
}

/// Longest round: one slot is then a tenth of a percent, which is what weights
/// resolve.
const ROUND_MAX: u64 = 1024;

impl Wheel {
    pub fn new(policy: Policy, weights: &[Weight]) -> Self {
        let weights: Vec<u32> = weights.iter().map(|weight| weight.thousandths()).collect();
        let turns = match policy {
            Policy::RoundRobin => smooth_round(&weights),
            Policy::Weighted | Policy::LeastConnections => Vec::new(),
        };
        Self {
            policy,
            weights,
            turns,
        }
    }

    /// Chooses among the origins with a weight that were not `tried` yet.
    ///
    /// `turn` goes up by one from call to call; `random` is uniform over all
    /// 64 bits; `open` counts the open connections of an origin.
    pub fn choose(
        &self,
        turn: usize,
        random: u64,
        open: impl Fn(usize) -> u32,
        tried: &[usize],
    ) -> Option<usize> {
        match self.policy {
            Policy::Weighted => self.at_random(random, tried),
            Policy::RoundRobin => self.in_turn(turn, tried),
            Policy::LeastConnections => self.least_loaded(random, open, tried),
        }
    }

    /// How many origins with a weight were not `tried` yet.
    pub fn candidates_left(&self, tried: &[usize]) -> usize {
        self.candidates(tried).count()
    }

    fn candidates(&self, tried: &[usize]) -> impl Iterator<Item = (usize, u32)> {
        let weights = self.weights.iter().copied().enumerate();
        weights.filter(move |(index, weight)| *weight > 0 && !tried.contains(index))
    }

    fn at_random(&self, random: u64, tried: &[usize]) -> Option<usize> {
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

    fn in_turn(&self, turn: usize, tried: &[usize]) -> Option<usize> {
        let start = turn.checked_rem(self.turns.len())?;
        let (after, before) = (&self.turns[start..], &self.turns[..start]);
        let mut round = after.iter().chain(before).map(|&index| usize::from(index));
        round.find(|index| !tried.contains(index))
    }

    /// The most weight per connection, this one counted in; among equals at
    /// random, so that edges that know nothing of each other do not all choose
    /// the first.
    fn least_loaded(
        &self,
        random: u64,
        open: impl Fn(usize) -> u32,
        tried: &[usize],
    ) -> Option<usize> {
        let mut best: Option<(u64, u64)> = None;
        let mut equals = Vec::new();
        for (index, weight) in self.candidates(tried) {
            let (weight, load) = (u64::from(weight), u64::from(open(index)) + 1);
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
        let weights: Vec<_> = weights.iter().map(|w| Weight::new(*w).unwrap()).collect();
        Wheel::new(policy, &weights)
    }

    const NONE_OPEN: fn(usize) -> u32 = |_| 0;

    #[test]
    fn round_robin_interleaves_by_weight() {
        let wheel = wheel(Policy::RoundRobin, &[5.0, 1.0, 1.0]);
        let round: Vec<_> = (0..7)
            .map(|t| wheel.choose(t, 0, NONE_OPEN, &[]).unwrap())
            .collect();
        assert_eq!(round, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn least_connections_counts_by_weight() {
        let wheel = wheel(Policy::LeastConnections, &[1.0, 2.0]);
        let choose = |open: [u32; 2]| wheel.choose(0, 0, |index| open[index], &[]);
        assert_eq!(choose([0, 0]), Some(1));
        assert_eq!(choose([0, 3]), Some(0));
        assert_eq!(choose([9, 0]), Some(1));
    }

    #[test]
    fn equals_are_chosen_at_random() {
        let wheel = wheel(Policy::LeastConnections, &[1.0, 1.0]);
        assert_eq!(wheel.choose(0, 0, NONE_OPEN, &[]), Some(0));
        assert_eq!(wheel.choose(0, u64::MAX, NONE_OPEN, &[]), Some(1));
    }

    #[test]
    fn random_choice_follows_the_weights_exactly_over_all_bits() {
        let wheel = wheel(Policy::Weighted, &[1.0, 0.0, 3.0]);
        let mut counts = [0; 3];
        for step in 0..4000u64 {
            let random = step * (u64::MAX / 4000) + u64::MAX / 8000;
            counts[wheel.choose(0, random, NONE_OPEN, &[]).unwrap()] += 1;
        }
        assert_eq!(counts, [1000, 0, 3000]);
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        prop::sample::select(vec![
            Policy::Weighted,
            Policy::RoundRobin,
            Policy::LeastConnections,
        ])
    }

    proptest! {
        #[test]
        fn tries_each_origin_with_a_weight_once_and_no_other(
            policy in any_policy(),
            weights in prop::collection::vec(0.0f64..1000.0, 0..12),
            turn: usize, random: u64, open: u32,
        ) {
            let weights: Vec<f64> = weights.into_iter().map(|w| if w < 300.0 { 0.0 } else { w }).collect();
            let wheel = wheel(policy, &weights);
            let mut tried = Vec::new();
            while let Some(index) = wheel.choose(turn, random, |_| open, &tried) {
                prop_assert!(weights[index] > 0.0 && !tried.contains(&index));
                tried.push(index);
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
                counts[wheel.choose(turn as usize, 0, NONE_OPEN, &[]).unwrap()] += 1;
            }
            let wanted: Vec<u32> = weights.iter().map(|w| w * 3).collect();
            prop_assert_eq!(counts, wanted);
        }
    }
}
