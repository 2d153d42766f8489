//! Three origins at different distances, of which the nearest becomes slow and recovers.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::plan::Plan;
use super::stage::Stage;
use super::way::{NAMES, Way};
use super::{Spread, failed, median, times};
use crate::bench::{Programs, Result};
use crate::load::paced::Visit;

/// There and back.
const DISTANCES: [Duration; 3] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(20),
];
/// Of the nearest, where it is slow.
const SLOW: Duration = Duration::from_millis(50);
const NEAR: usize = 0;

/// Clients in a second.
const PER_SECOND: u32 = 200;
/// Until everybody knows all origins.
const LEARNT: Duration = Duration::from_secs(1);
/// Who comes later than so long before something changes may meet the change.
const UNDER_WAY: Duration = Duration::from_millis(200);
/// In how long the nearest has to have [`BACK`] of all clients to be back, which is less than its share
/// with those who know nothing of distances.
const WINDOW: Duration = Duration::from_secs(1);
const BACK: f64 = 0.3;

/// What clients saw, over all rounds.
#[derive(Debug, Serialize)]
pub struct Distance {
    /// Who stood before the origins.
    pub who: &'static str,
    /// Clients that got no answer.
    pub failed: usize,
    /// While nothing changes.
    pub even: Phase,
    /// While the nearest is slow.
    pub slow: Phase,
    /// When the nearest had three tenths of the clients of a second again, in seconds after it had
    /// recovered; the median over the rounds, and as long as was looked where it had not.
    pub back: f64,
    #[serde(skip)]
    turns: Vec<Turn>,
}

/// A part of the story.
#[derive(Debug, Serialize)]
pub struct Phase {
    /// What clients waited.
    pub waited: Spread,
    /// The share of each origin, by distance.
    pub shares: [f64; 3],
}

/// What was seen in one turn.
#[derive(Debug)]
pub(super) struct Turn {
    even: Vec<Visit>,
    slow: Vec<Visit>,
    failed: usize,
    back: Duration,
}

pub(super) fn turn(plan: &Plan, programs: &Programs, way: Way) -> Result<Turn> {
    let mut stage = Stage::set(way, programs, Some(DISTANCES))?;
    let whole = plan.even + plan.slow + plan.recovered;
    let (visits, [slowed, recovered]) = stage.load_while(PER_SECOND, whole, |stage| {
        let after = |time, distance| {
            thread::sleep(time);
            stage.cable(NEAR).set_round_trip(distance);
            Instant::now()
        };
        [after(plan.even, SLOW), after(plan.slow, DISTANCES[NEAR])]
    })?;
    let at = |moment| visits.partition_point(|visit: &Visit| visit.due < moment);
    let begun = visits.first().map_or(slowed, |visit| visit.due);
    let (learnt, even) = (at(begun + LEARNT), at(slowed - UNDER_WAY));
    let (slowed, healed) = (at(slowed), at(recovered));
    Ok(Turn {
        even: visits[learnt.min(even)..even].to_vec(),
        slow: visits[slowed..healed].to_vec(),
        failed: failed(&visits),
        back: back(&visits[healed..], recovered, plan.recovered),
    })
}

/// When the nearest has its share again.
fn back(visits: &[Visit], recovered: Instant, looked: Duration) -> Duration {
    let steps = (1..).map(|step| WINDOW * step);
    let mut steps = steps.take_while(|end| *end <= looked);
    let has_share = |end: &Duration| {
        let from = visits.partition_point(|visit| visit.due < recovered + *end - WINDOW);
        let to = visits.partition_point(|visit| visit.due < recovered + *end);
        shares(&visits[from..to])[NEAR] >= BACK
    };
    steps.find(has_share).unwrap_or(looked)
}

fn shares(visits: &[Visit]) -> [f64; 3] {
    NAMES.map(|name| {
        let its = visits.iter().filter(|visit| match &visit.outcome {
            Ok(Some(tag)) => tag.as_str() == name,
            _ => false,
        });
        its.count() as f64 / visits.len().max(1) as f64
    })
}

pub(super) fn add(distances: &mut Vec<Distance>, way: Way, turn: Turn) {
    let known = distances.iter().position(|known| known.who == way.name);
    let mut turns = known.map_or_else(Vec::new, |place| distances.remove(place).turns);
    turns.push(turn);
    let place = known.unwrap_or(distances.len());
    distances.insert(place, Distance::new(way.name, turns));
}

impl Distance {
    fn new(who: &'static str, turns: Vec<Turn>) -> Self {
        Self {
            who,
            failed: turns.iter().map(|turn| turn.failed).sum(),
            even: Phase::of(turns.iter().flat_map(|turn| turn.even.clone()).collect()),
            slow: Phase::of(turns.iter().flat_map(|turn| turn.slow.clone()).collect()),
            back: median(turns.iter().map(|turn| turn.back.as_secs_f64()).collect()),
            turns,
        }
    }
}

impl Phase {
    fn of(visits: Vec<Visit>) -> Self {
        Self {
            waited: Spread::of(times(&visits).collect()),
            shares: shares(&visits),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_nearest_is_back_with_three_tenths_of_a_second() {
        let recovered = Instant::now();
        let visit = |number: u32| Visit {
            due: recovered + Duration::from_millis(100) * number,
            took: Duration::ZERO,
            outcome: Ok(Some(
                // Two of ten, then three.
                match (number % 10 < 2, number % 10 < 3, number < 20) {
                    (true, _, _) | (false, true, false) => "a",
                    _ => "b",
                }
                .parse()
                .unwrap(),
            )),
        };
        let visits: Vec<_> = (0..40).map(visit).collect();
        let looked = Duration::from_secs(4);
        assert_eq!(back(&visits, recovered, looked), Duration::from_secs(3));
        assert_eq!(back(&visits[..20], recovered, looked), looked);
    }
}
