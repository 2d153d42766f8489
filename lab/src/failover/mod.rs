//! Anyport beside HAProxy where origins fail, as clients see it: one that refuses, one that is silent,
//! and one that becomes slow.
//!
//! Clients come by the clock ([`paced`](crate::load::paced)), so that whoever waits delays nobody. A
//! contender's network and processes are made for its turn, so that what one learnt of an origin no
//! other one profits from; a round is one turn of each. HAProxy checks as Anyport probes, every second
//! and twice before an origin is down, and has as long for a connection in all.
//!
//! HAProxy is there twice where origins die: with `option redispatch`, and eager, where a client's error
//! alone takes a server down.

mod distance;
mod outage;
mod plan;
mod stage;
mod table;
mod way;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

pub use distance::{Distance, Phase};
pub use outage::Outage;
pub use plan::Plan;
pub use table::{distances, outages};
pub use way::Way;

use crate::bench::{Error, Programs, Result};
use crate::load::paced::Visit;

/// Everything that was found.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    /// Of origins that die, by who stood before them.
    pub outages: Vec<Outage>,
    /// Of origins at different distances.
    pub distances: Vec<Distance>,
}

impl Results {
    /// Clients of Anyport that got no answer.
    pub fn failed_with_anyport(&self) -> usize {
        let outages = self.outages.iter().map(|found| (found.who, found.failed));
        let distances = self.distances.iter().map(|found| (found.who, found.failed));
        let failed = outages.chain(distances);
        failed
            .filter(|(who, _)| who.starts_with("Anyport"))
            .map(|(_, failed)| failed)
            .sum()
    }
}

/// Runs the comparison, and tells `watch` of every turn before it begins. Ends early, after the turn
/// under way, when `stop` is set.
///
/// Start it on a thread that lives to its end, as [`bench::run`](crate::bench::run).
///
/// # Errors
///
/// Where a contender cannot be started.
pub fn run(
    plan: &Plan,
    programs: &Programs,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(String),
) -> Result<Results> {
    let mut results = Results::default();
    let mut next = |what: String| {
        watch(what);
        match stop.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    };
    for round in 1..=plan.outage_rounds {
        for (fault, way) in outage::all() {
            next(format!(
                "round {round}, {}: an origin that {}",
                way.name,
                outage::does(fault)
            ))?;
            let turn = outage::turn(plan, programs, way, fault)?;
            outage::add(&mut results.outages, way, fault, turn);
        }
    }
    for round in 1..=plan.distance_rounds {
        for way in way::BY_DISTANCE {
            next(format!("round {round}, {}: origins at distances", way.name))?;
            let turn = distance::turn(plan, programs, way)?;
            distance::add(&mut results.distances, way, turn);
        }
    }
    Ok(results)
}

/// Of some connections, in milliseconds from the moment that each was to be begun.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// How many were answered.
    pub count: usize,
    /// Half took as long at most.
    pub p50: f64,
    /// Of a hundred, 99.
    pub p99: f64,
    /// The average.
    pub mean: f64,
    /// The longest.
    pub slowest: f64,
}

impl Spread {
    /// Of these times, in any order. All of it is zero where there is none.
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let millis = |time: &Duration| time.as_secs_f64() * 1e3;
        let at = |part: f64| {
            let place = (times.len() as f64 * part).ceil() as usize;
            times.get(place.saturating_sub(1)).map_or(0.0, millis)
        };
        let sum: f64 = times.iter().map(millis).sum();
        Self {
            count: times.len(),
            p50: at(0.50),
            p99: at(0.99),
            mean: sum / (times.len().max(1) as f64),
            slowest: at(1.0),
        }
    }
}

/// How long those took that were answered.
fn times(visits: &[Visit]) -> impl Iterator<Item = Duration> {
    let answered = visits.iter().filter(|visit| visit.outcome.is_ok());
    answered.map(|visit| visit.took)
}

fn failed(visits: &[Visit]) -> usize {
    visits.iter().filter(|visit| visit.outcome.is_err()).count()
}

/// The one in the middle; of an even number, the upper one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_that_of_the_times_in_any_order() {
        let times = (1..=200).rev().map(Duration::from_millis).collect();
        let spread = Spread::of(times);
        assert_eq!((spread.count, spread.p50, spread.p99), (200, 100.0, 198.0));
        assert_eq!((spread.mean, spread.slowest), (100.5, 200.0));
        let none = Spread::of(Vec::new());
        assert_eq!((none.count, none.p99, none.mean), (0, 0.0, 0.0));
    }
}
