//! What edges saw of an origin when they dialled it for clients.
//!
//! An edge that cannot reach an origin avoids it at once, by itself, and nobody
//! else has to. Only when most of the edges that dial it fail to, and it is not
//! one edge against others that have nothing to say, is the origin at fault: then
//! it is taken from all of them, whatever probes say.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// An edge that has not dialled an origin for so long has nothing to say of it.
/// Longer than there ever is between two failures of one that it has clients for:
/// it leaves the origin alone for 15 s, dials it for as long as the app's connect
/// timeout (5 s, unless it is declared), and reports a second later.
const FRESH: Duration = Duration::from_secs(30);

/// An edge that saw fewer failures, since a report of which not more than half
/// were failures, says nothing against an origin.
const FAILURES_MIN: u64 = 3;

/// Dials of one origin, by the edges that made them.
#[derive(Debug)]
pub struct Dials<E> {
    edges: BTreeMap<E, Account>,
}

#[derive(Debug, Clone, Copy)]
struct Account {
    last: Instant,
    /// Failures since most of what it reported were none.
    failures: u64,
}

/// Edges agree that an origin cannot be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accusation {
    /// Edges that fail.
    pub accusers: usize,
    /// All that dialled it lately.
    pub edges: usize,
    /// Of the accusers, since most of what they reported were none.
    pub failures: u64,
}

impl<E> Default for Dials<E> {
    fn default() -> Self {
        Self {
            edges: BTreeMap::new(),
        }
    }
}

impl<E: Ord + Clone> Dials<E> {
    /// What an edge did since it said so last. Others are looked at only when it is
    /// new, as each of many edges says something every second.
    pub fn saw(&mut self, now: Instant, edge: &E, dials: u64, failures: u64) {
        // Each edge counts for itself, so the two may not fit.
        if dials.max(failures) == 0 {
            return;
        }
        let before = self.edges.get(edge).copied();
        if before.is_none() {
            self.edges.retain(|_, account| account.is_fresh(now));
        }
        let before = before.filter(|account| account.is_fresh(now));
        let before = before.map_or(0, |account| account.failures);
        let account = Account {
            last: now,
            failures: match failures > dials / 2 {
                true => before.saturating_add(failures),
                false => 0,
            },
        };
        self.edges.insert(edge.clone(), account);
    }

    /// Whether the origin is to be taken from all edges, where at least so many
    /// have to say so: two, where there are two.
    pub fn accuse(&self, now: Instant, least: usize) -> Option<Accusation> {
        let dialled = || self.edges.values().filter(|account| account.is_fresh(now));
        let accusers = || dialled().filter(|account| account.failures >= FAILURES_MIN);
        let accusation = Accusation {
            accusers: accusers().count(),
            edges: dialled().count(),
            failures: accusers().fold(0, |sum, account| sum.saturating_add(account.failures)),
        };
        let Accusation {
            accusers, edges, ..
        } = accusation;
        (accusers * 2 > edges && accusers >= least.max(1)).then_some(accusation)
    }

    /// What was seen says nothing of what is now.
    pub fn forget(&mut self) {
        self.edges.clear();
    }
}

impl Account {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < FRESH
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn accused(least: usize, seen: &[(&str, u64, u64)]) -> bool {
        let (now, mut dials) = (Instant::now(), Dials::default());
        for (edge, made, failed) in seen {
            dials.saw(now, edge, *made, *failed);
        }
        dials.accuse(now, least).is_some()
    }

    #[test]
    fn one_of_several_edges_takes_it_from_nobody() {
        assert!(!accused(2, &[("a", 9, 9), ("b", 9, 0)]), "b reaches it");
        assert!(!accused(2, &[("a", 9, 9)]), "b has nothing to say");
        assert!(!accused(
            2,
            &[("a", 9, 9), ("b", 9, 9), ("c", 9, 0), ("d", 1, 0)]
        ));
    }

    #[test]
    fn most_of_those_who_dial_it_take_it_from_all() {
        assert!(accused(2, &[("a", 9, 9), ("b", 5, 3)]));
        assert!(accused(2, &[("a", 9, 9), ("b", 9, 9), ("c", 9, 0)]));
        assert!(accused(1, &[("a", 3, 3)]), "a fleet of one edge");
    }

    #[test]
    fn few_failures_or_a_small_part_are_nothing() {
        assert!(!accused(1, &[("a", 2, 2)]));
        assert!(!accused(1, &[("a", 100, 50)]));
        assert!(!accused(1, &[]));
    }

    #[test]
    fn failures_in_a_row_add_up_however_seldom_it_is_dialled() {
        let (start, mut dials) = (Instant::now(), Dials::default());
        for (second, accused) in [(0, false), (21, false), (42, true), (63, true)] {
            let now = start + second * SECOND;
            dials.saw(now, &"a", 1, 1);
            dials.saw(now + SECOND, &"a", 0, 0);
            assert_eq!(dials.accuse(now, 1).is_some(), accused, "{second}");
        }
        dials.saw(start + 65 * SECOND, &"a", 5, 2);
        assert!(dials.accuse(start + 65 * SECOND, 1).is_none());
    }

    #[test]
    fn evidence_gets_old() {
        let (start, mut dials) = (Instant::now(), Dials::default());
        dials.saw(start, &"a", 3, 3);
        assert!(dials.accuse(start + 29 * SECOND, 1).is_some());
        assert!(dials.accuse(start + FRESH, 1).is_none());
        dials.saw(start + FRESH, &"a", 2, 2);
        assert!(dials.accuse(start + FRESH, 1).is_none());
        dials.saw(start + FRESH + SECOND, &"a", 1, 1);
        assert!(dials.accuse(start + FRESH + SECOND, 1).is_some());
        dials.forget();
        assert!(dials.accuse(start + FRESH + SECOND, 1).is_none());
    }

    #[test]
    fn edges_that_say_nothing_more_are_forgotten() {
        let (start, mut dials) = (Instant::now(), Dials::default());
        for edge in 0..1000 {
            dials.saw(start + edge * SECOND, &edge, 1, 1);
        }
        assert!(dials.edges.len() <= 30, "{}", dials.edges.len());
    }

    #[test]
    fn what_an_edge_says_again_has_nobody_look_at_the_others() {
        let (start, mut dials) = (Instant::now(), Dials::default());
        dials.saw(start, &"a", 1, 1);
        dials.saw(start, &"b", 1, 1);
        dials.saw(start + FRESH, &"a", 1, 1);
        assert!(dials.edges.contains_key("b"));
        dials.saw(start + FRESH, &"c", 1, 1);
        assert!(!dials.edges.contains_key("b"), "until one is new");
    }

    proptest! {
        #[test]
        fn no_accusation_without_a_majority_of_those_who_dial_it(
            said in prop::collection::vec((0u8..6, 0u64..9, 0u64..9, 0u64..4000), 0..60),
        ) {
            let (mut now, mut dials) = (Instant::now(), Dials::default());
            for (edge, made, failed, pause) in said {
                now += Duration::from_millis(pause);
                dials.saw(now, &edge, made, failed);
                if let Some(accusation) = dials.accuse(now, 2) {
                    let Accusation { accusers, edges, failures } = accusation;
                    prop_assert!(accusers >= 2 && accusers * 2 > edges && edges <= 6);
                    prop_assert!(failures >= FAILURES_MIN * accusers as u64);
                }
            }
        }
    }
}
