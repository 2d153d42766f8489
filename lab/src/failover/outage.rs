//! One of three origins dies.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::plan::Plan;
use super::stage::Stage;
use super::way::{BEFORE_OUTAGES, PORT, Way};
use super::{Spread, failed, median, times};
use crate::bench::{Error, Programs, Result};
use crate::dials::Dials;
use crate::fault::Fault;

/// Clients in a second.
const PER_SECOND: u32 = 500;
/// Which one dies.
const DEAD: usize = 1;

/// What clients saw who came when it was dead, over all rounds.
#[derive(Debug, Serialize)]
pub struct Outage {
    /// Who stood before the origins.
    pub who: &'static str,
    /// What the dead origin does.
    pub origin: &'static str,
    /// Clients that got no answer.
    pub failed: usize,
    /// What the others waited.
    pub waited: Spread,
    /// How often the dead origin was dialled, the median over the rounds.
    pub dials: f64,
    /// When it was dialled last, in seconds after its death, the median over the rounds; zero where it
    /// was not.
    pub last_dial: f64,
    /// The same, in the worst round.
    pub last_dial_at_most: f64,
    #[serde(skip)]
    turns: Vec<Turn>,
}

/// What was seen in one turn.
#[derive(Debug)]
pub(super) struct Turn {
    failed: usize,
    waited: Vec<Duration>,
    dials: Vec<Duration>,
}

pub(super) fn all() -> impl Iterator<Item = (Fault, Way)> {
    let faults = [Fault::Refuses, Fault::Silent].into_iter();
    faults.flat_map(|fault| BEFORE_OUTAGES.map(|way| (fault, way)))
}

pub(super) fn does(fault: Fault) -> &'static str {
    match fault {
        Fault::Refuses => "refuses",
        Fault::Silent => "is silent",
    }
}

pub(super) fn turn(plan: &Plan, programs: &Programs, way: Way, fault: Fault) -> Result<Turn> {
    let mut stage = Stage::set(way, programs, None)?;
    let noting = || Error::system("noting who dials the origin");
    let dials = Dials::watch(stage.host(DEAD), PORT).map_err(noting())?;
    let (visits, dead) = stage.load_while(PER_SECOND, plan.healthy + plan.dead, |stage| {
        thread::sleep(plan.healthy);
        let server = stage.take_server(DEAD);
        server.map(|server| fault.strike(stage.host(DEAD), server))
    })?;
    let since = dead.as_ref().map_or_else(Instant::now, |dead| dead.since);
    let first = visits.partition_point(|visit| visit.due < since);
    let visits = &visits[first..];
    let dials = dials.end().map_err(noting())?.into_iter();
    Ok(Turn {
        failed: failed(visits),
        waited: times(visits).collect(),
        dials: dials
            .filter_map(|dial| dial.checked_duration_since(since))
            .collect(),
    })
}

pub(super) fn add(outages: &mut Vec<Outage>, way: Way, fault: Fault, turn: Turn) {
    let (who, origin) = (way.name, does(fault));
    let known = outages
        .iter()
        .position(|outage| (outage.who, outage.origin) == (who, origin));
    let mut turns = known.map_or_else(Vec::new, |place| outages.remove(place).turns);
    turns.push(turn);
    let place = known.unwrap_or(outages.len());
    outages.insert(place, Outage::new(who, origin, turns));
}

impl Outage {
    fn new(who: &'static str, origin: &'static str, turns: Vec<Turn>) -> Self {
        let waited = turns.iter().flat_map(|turn| turn.waited.iter().copied());
        let last = |turn: &Turn| turn.dials.last().map_or(0.0, Duration::as_secs_f64);
        let lasts: Vec<_> = turns.iter().map(last).collect();
        Self {
            who,
            origin,
            failed: turns.iter().map(|turn| turn.failed).sum(),
            waited: Spread::of(waited.collect()),
            dials: median(turns.iter().map(|turn| turn.dials.len() as f64).collect()),
            last_dial_at_most: lasts.iter().copied().fold(0.0, f64::max),
            last_dial: median(lasts),
            turns,
        }
    }
}
