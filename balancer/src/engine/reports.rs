//! What edges saw of real connections: it brings probes forward, and where most
//! edges agree that connections fail, it decides.

use std::time::{Duration, Instant};

use anyport_model::{
    evidence::Accusation,
    health::{Now, Verdict},
    load,
    names::NodeName,
};

use super::Engine;
use crate::health::{DialReport, Turn};

/// An edge that has not reported for so long is gone: it does so every second.
const EDGE_FRESH: Duration = Duration::from_secs(10);

/// Of the last failure, what an edge says is shown up to so many characters.
const FAILURE_SHOWN: usize = 200;

/// The one edge that reports, and since when there is no other.
#[derive(Debug)]
pub(super) struct OnlyEdge {
    name: NodeName,
    since: Instant,
}

impl Engine {
    /// Takes in what an edge saw of real dials. Probes that are called for are
    /// brought forward, and where most edges agree that connections fail, that
    /// decides; returns the verdicts that it turned.
    pub(crate) fn reported(
        &mut self,
        now: Now,
        edge: &NodeName,
        reports: &[DialReport],
    ) -> Vec<Turn> {
        self.reports(now.instant, edge);
        let mut turns = Vec::new();
        for report in reports {
            let Some(watched) = self.origins.get_mut(&report.key) else {
                continue;
            };
            watched.saw(now.instant, edge, report);
            if !self.measures.contains(&report.key.pool) {
                let at = now.instant + load::STEP;
                self.measures.put(report.key.pool.clone(), at);
            }
            self.look_closer(now, report);
            turns.extend(self.accused(now, report));
        }
        turns
    }

    /// Keeps which edges there are, and since when one is the only one.
    fn reports(&mut self, now: Instant, edge: &NodeName) {
        let fresh = |last: &Instant| now.saturating_duration_since(*last) < EDGE_FRESH;
        self.edges.retain(|_, last| fresh(last));
        let went_on = self.edges.insert(edge.clone(), now).is_some();
        let since = match self.only_edge.take() {
            Some(only) if went_on && only.name == *edge => only.since,
            _ => now,
        };
        let only_edge = OnlyEdge {
            name: edge.clone(),
            since,
        };
        self.only_edge = (self.edges.len() == 1).then_some(only_edge);
    }

    fn look_closer(&mut self, now: Now, report: &DialReport) {
        let Some(watched) = self.origins.get(&report.key) else {
            return;
        };
        if report.is_alarming() && watched.health.verdict() != Verdict::Down {
            self.probe_soon(now, &report.key);
        }
    }

    /// One edge may take an origin away where it is the only one, which takes some
    /// time to be known.
    fn accusers_least(&self, now: Now) -> usize {
        let known =
            |only: &OnlyEdge| now.instant.saturating_duration_since(only.since) >= EDGE_FRESH;
        match self.only_edge.as_ref().is_some_and(known) {
            true => 1,
            false => 2,
        }
    }

    /// A balancer that cannot look for itself holds what it knows.
    fn accused(&mut self, now: Now, report: &DialReport) -> Option<Turn> {
        if report.failures == 0 || self.isolated().is_some() {
            return None;
        }
        let watched = self.origins.get(&report.key)?;
        let accusation = watched.accuse(now.instant, self.accusers_least(now))?;
        let why = accused_of(accusation, &report.last_failure);
        if self.origins.eject(now, &report.key, &why) {
            self.verdicts_version += 1;
            self.fade_later(now, &report.key);
        }
        self.judge(now, &report.key)
    }
}

fn accused_of(accusation: Accusation, last_failure: &str) -> String {
    let Accusation {
        accusers,
        edges,
        failures,
    } = accusation;
    let last: String = last_failure.chars().take(FAILURE_SHOWN).collect();
    format!("{failures} connections failed at {accusers} of {edges} edges ({last})")
}
