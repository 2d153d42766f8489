//! What was found, and what it comes to.

use std::collections::BTreeMap;

use super::contender::Contender;
use super::measure::{Better, Measure};
use crate::load::Report;

/// One turn of each contender.
pub(super) type Round = BTreeMap<Contender, Sample>;

/// What one turn found. A figure that could not be had is not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    values: BTreeMap<Measure, f64>,
    failures: Vec<String>,
}

impl Sample {
    pub(super) fn put(&mut self, measure: Measure, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into() {
            self.values.insert(measure, value);
        }
    }

    /// Notes what failed in a load.
    pub(super) fn failed(&mut self, load: &str, report: &Report) {
        for (failure, count) in report.failures() {
            self.failures.push(format!("{load}: {count} × {failure}"));
        }
    }
}

/// All rounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    rounds: Vec<Round>,
}

/// How much better one contender is than another, whatever is measured: above 1 is better, 2 is
/// twice the rate or half the time.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Factor {
    /// Over the rounds.
    pub median: f64,
    /// The worst round.
    pub low: f64,
    /// The best round.
    pub high: f64,
}

impl Results {
    /// Of rounds as they were measured.
    pub(super) fn new(mut rounds: Vec<Round>) -> Self {
        for round in &mut rounds {
            leave_out_both_ends(round);
        }
        Self { rounds }
    }

    /// How many rounds there were.
    pub fn rounds(&self) -> usize {
        self.rounds.len()
    }

    /// A figure, round by round. `None` where it could not be had.
    pub fn values(&self, contender: Contender, measure: Measure) -> Vec<Option<f64>> {
        let value = |round: &Round| round.get(&contender)?.values.get(&measure).copied();
        self.rounds.iter().map(value).collect()
    }

    /// A figure, the median over the rounds that have it.
    pub fn median(&self, contender: Contender, measure: Measure) -> Option<f64> {
        median(
            self.values(contender, measure)
                .into_iter()
                .flatten()
                .collect(),
        )
    }

    /// How much better `one` is than `other`, from the rounds that have a figure of both.
    pub fn factor(&self, one: Contender, other: Contender, measure: Measure) -> Option<Factor> {
        let (one, other) = (self.values(one, measure), self.values(other, measure));
        let pairs = one.into_iter().zip(other);
        let factors: Vec<_> = pairs
            .filter_map(|(one, other)| factor(one?, other?, measure.better()))
            .collect();
        Some(Factor {
            low: factors.iter().copied().reduce(f64::min)?,
            high: factors.iter().copied().reduce(f64::max)?,
            median: median(factors)?,
        })
    }

    /// The better of [`Contender::PEERS`], by their medians.
    pub fn better_peer(&self, measure: Measure) -> Option<Contender> {
        let with_value = |peer| Some((peer, self.median(peer, measure)?));
        let mut peers = Contender::PEERS.into_iter().filter_map(with_value);
        let first = peers.next()?;
        let better = peers.fold(first, |best, peer| {
            match factor(peer.1, best.1, measure.better()) {
                Some(factor) if factor > 1.0 => peer,
                _ => best,
            }
        });
        Some(better.0)
    }

    /// Every kind of operation that failed: in which round, whose, and how often.
    pub fn failures(&self) -> Vec<String> {
        let rounds = (1..).zip(&self.rounds);
        let of_round = |(round, samples): (usize, &Round)| {
            let of_sample = |(contender, sample): (&Contender, &Sample)| {
                let said = |failure| format!("round {round}, {contender}, {failure}");
                sample.failures.iter().map(said).collect::<Vec<_>>()
            };
            samples.iter().flat_map(of_sample).collect::<Vec<_>>()
        };
        rounds.flat_map(of_round).collect()
    }
}

/// The kernel's memory is that of the whole machine, with the sockets of client and origin. Those are
/// what plain routing has, and nothing else.
fn leave_out_both_ends(round: &mut Round) {
    const MEASURE: Measure = Measure::IdleKernelMemory;
    let plain = round.get_mut(&Contender::Plain);
    let both_ends = plain.and_then(|sample| sample.values.remove(&MEASURE));
    for sample in round.values_mut() {
        let whole = sample.values.remove(&MEASURE);
        let difference = whole.zip(both_ends).map(|(whole, ends)| whole - ends);
        sample.put(MEASURE, difference);
    }
}

/// How much better `one` is. `None` where there is nothing to compare: a figure of zero or below is
/// no more than the noise of a difference.
fn factor(one: f64, other: f64, better: Better) -> Option<f64> {
    if one <= 0.0 || other <= 0.0 {
        return None;
    }
    Some(match better {
        Better::More => one / other,
        Better::Less => other / one,
    })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get((values.len() - 1) / 2)?;
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    pub(in crate::bench) fn results(measure: Measure, rounds: &[&[(Contender, f64)]]) -> Results {
        let sample = |value| {
            let mut sample = Sample::default();
            sample.put(measure, value);
            sample
        };
        let round = |values: &&[(Contender, f64)]| {
            let samples = values
                .iter()
                .map(|(contender, value)| (*contender, sample(*value)));
            samples.collect()
        };
        Results::new(rounds.iter().map(round).collect())
    }

    use Contender::{Anyport, Haproxy, Nginx, Plain};

    #[test]
    fn factors_are_taken_within_a_round_so_that_a_slow_round_does_not_count() {
        let results = results(
            Measure::ConnectRate,
            &[
                &[(Haproxy, 100.0), (Anyport, 110.0)],
                &[(Haproxy, 10.0), (Anyport, 12.0)],
                &[(Haproxy, 100.0), (Anyport, 90.0)],
            ],
        );
        let factor = results
            .factor(Anyport, Haproxy, Measure::ConnectRate)
            .unwrap();
        assert_eq!((factor.median, factor.low, factor.high), (1.1, 0.9, 1.2));
        assert_eq!(results.median(Anyport, Measure::ConnectRate), Some(90.0));
    }

    #[test]
    fn above_one_is_better_whichever_way_is_better() {
        let measure = Measure::ConnectTail;
        let results = results(
            measure,
            &[&[(Haproxy, 200.0), (Nginx, 50.0), (Anyport, 100.0)]],
        );
        let factor = |other| results.factor(Anyport, other, measure).unwrap().median;
        assert_eq!((factor(Haproxy), factor(Nginx)), (2.0, 0.5));
        assert_eq!(results.better_peer(measure), Some(Nginx));
    }

    #[test]
    fn the_better_peer_is_found_in_either_place() {
        for (first, second, better) in [(1.0, 2.0, Nginx), (2.0, 1.0, Haproxy), (1.0, 1.0, Haproxy)]
        {
            let results = results(Measure::BulkRate, &[&[(Haproxy, first), (Nginx, second)]]);
            assert_eq!(results.better_peer(Measure::BulkRate), Some(better));
        }
    }

    #[test]
    fn the_sockets_of_client_and_origin_are_not_the_proxys() {
        let measure = Measure::IdleKernelMemory;
        let results = results(measure, &[&[(Plain, 7000.0), (Haproxy, 15_000.0)]]);
        assert_eq!(results.median(Haproxy, measure), Some(8000.0));
        assert_eq!(results.median(Plain, measure), None);
    }

    #[test]
    fn without_a_figure_there_is_no_factor() {
        let measure = Measure::IdleMemory;
        let results = results(
            measure,
            &[&[(Haproxy, 0.0), (Anyport, 100.0)], &[(Anyport, 100.0)]],
        );
        assert_eq!(results.factor(Anyport, Haproxy, measure), None);
        assert_eq!(results.factor(Anyport, Nginx, measure), None);
        assert_eq!(results.better_peer(Measure::BulkRate), None);
    }
}
