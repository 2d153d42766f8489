//! The form for programs. Units are beside the figures.

use std::collections::BTreeMap;

use serde::Serialize;

use super::contender::Contender;
use super::measure::{Better, Measure};
use super::results::{Factor, Results};
use super::setting::Setting;

/// Everything that was found, and what it comes to.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    setting: &'a Setting,
    rounds: usize,
    failures: Vec<String>,
    measures: BTreeMap<&'static str, Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    unit: &'static str,
    better: &'static str,
    better_peer: Option<String>,
    contenders: BTreeMap<String, Figures>,
}

#[derive(Debug, Serialize)]
struct Figures {
    /// Round by round.
    values: Vec<Option<f64>>,
    median: Option<f64>,
    /// Above 1 is better than HAProxy, whatever is measured.
    to_haproxy: Option<Factor>,
    /// The same, to the better of HAProxy and nginx.
    to_better_peer: Option<Factor>,
}

impl<'a> Document<'a> {
    /// Of these results.
    pub fn new(results: &Results, setting: &'a Setting) -> Self {
        Self {
            setting,
            rounds: results.rounds(),
            failures: results.failures(),
            measures: Measure::ALL
                .map(|measure| (measure.key(), Entry::new(results, measure)))
                .into(),
        }
    }
}

impl Entry {
    fn new(results: &Results, measure: Measure) -> Self {
        let better_peer = results.better_peer(measure);
        let figures = |contender| Figures {
            values: results.values(contender, measure),
            median: results.median(contender, measure),
            to_haproxy: results.factor(contender, Contender::Haproxy, measure),
            to_better_peer: better_peer.and_then(|peer| results.factor(contender, peer, measure)),
        };
        Self {
            unit: measure.unit(),
            better: match measure.better() {
                Better::More => "more",
                Better::Less => "less",
            },
            better_peer: better_peer.map(|peer| peer.to_string()),
            contenders: Contender::ALL
                .map(|contender| (contender.to_string(), figures(contender)))
                .into(),
        }
    }
}
