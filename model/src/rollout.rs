//! A revision that a few edges try before all others get it: whether it goes well.

use std::{collections::BTreeSet, fmt, time::Duration};

use crate::names::{AppName, NodeName, Revision};

/// Who tries a revision, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// At least one.
    pub edges: BTreeSet<NodeName>,
    /// How long it must go well until all others get it; `None`: until somebody
    /// says so.
    pub promote_after: Option<Duration>,
}

/// A revision on trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    pub canary: Canary,
    /// The revision that all others have.
    pub stable: Revision,
}

/// How connections ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcomes {
    pub ended: u64,
    /// Because of their origins, or of what the edge was to do with them.
    pub failed: u64,
}

/// How the connections of one app fare at one edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppTrial {
    pub app: AppName,
    /// Since the edge has the revision.
    pub since: Outcomes,
    /// Until then.
    pub before: Outcomes,
    /// The status code that most of the failures have.
    pub status: u32,
}

/// What is known of an edge that tries a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trying {
    pub edge: NodeName,
    /// For how long it is not connected.
    pub gone: Option<Duration>,
    /// For how long it is connected and has not said that it has the revision.
    pub unapplied: Option<Duration>,
    /// What it rejected of that which changed, in words.
    pub rejected: Option<String>,
    /// Of all apps, since it has the revision.
    pub since: Outcomes,
    /// Those whose connections failed since.
    pub apps: Vec<AppTrial>,
}

/// What is to become of a revision on trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Wait,
    /// All others get it; why, in words.
    Promote(String),
    /// The revision before comes back; why, in words.
    Stop(String),
}

/// An edge that is away for longer did not just come back from a replica of the
/// config service to another one.
pub const GONE: Duration = Duration::from_secs(10);
/// An edge that has not applied it by then is not going to.
pub const APPLY: Duration = Duration::from_secs(30);
/// Fewer failures are chance.
const FAILURES: u64 = 3;
/// Failures may double and be this much more, as a part of one.
const MARGIN: f64 = 0.05;

impl Outcomes {
    /// Part of those that ended, 0 to 1.
    fn failing(self) -> f64 {
        if self.ended == 0 {
            return 0.0;
        }
        self.failed as f64 / self.ended as f64
    }

    fn add(&mut self, other: Outcomes) {
        self.ended = self.ended.saturating_add(other.ended);
        self.failed = self.failed.saturating_add(other.failed);
    }
}

impl AppTrial {
    /// Do its connections fail clearly more often than before?
    fn has_jumped(&self) -> bool {
        self.since.failed >= FAILURES && self.since.failing() > 2.0 * self.before.failing() + MARGIN
    }
}

/// "12 of 40 connections failed".
impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcomes { ended, failed } = self;
        let noun = if *ended == 1 {
            "connection"
        } else {
            "connections"
        };
        write!(f, "{failed} of {ended} {noun} failed")
    }
}

/// All that the edges saw.
pub fn total(edges: &[Trying]) -> Outcomes {
    let mut total = Outcomes::default();
    edges.iter().for_each(|edge| total.add(edge.since));
    total
}

/// Judges a revision by what is known of each of the edges that try it, all of which
/// have had it for `well`; `None`: some have not.
pub fn judge(canary: &Canary, well: Option<Duration>, edges: &[Trying]) -> Verdict {
    if let Some(trouble) = edges.iter().find_map(trouble) {
        return Verdict::Stop(trouble);
    }
    match (canary.promote_after, well) {
        (Some(hold), Some(well)) if well >= hold => {
            let names: Vec<&str> = edges.iter().map(|edge| edge.edge.as_str()).collect();
            let (names, seconds) = (names.join(", "), well.as_secs());
            Verdict::Promote(format!(
                "went well on {names} for {seconds} s: {}",
                total(edges)
            ))
        }
        _ => Verdict::Wait,
    }
}

fn trouble(trying: &Trying) -> Option<String> {
    let Trying { edge, .. } = trying;
    if let Some(rejected) = &trying.rejected {
        return Some(format!("edge {edge} rejects it: {rejected}"));
    }
    if let Some(jumped) = trying.apps.iter().find(|app| app.has_jumped()) {
        let AppTrial {
            app,
            since,
            before,
            status,
        } = jumped;
        return Some(format!(
            "edge {edge}, app {app}: {since}, most with status {status}; before, {before}"
        ));
    }
    if let Some(gone) = trying.gone.filter(|gone| *gone >= GONE) {
        return Some(format!("edge {edge} is gone for {} s", gone.as_secs()));
    }
    let unapplied = trying.unapplied.filter(|unapplied| *unapplied >= APPLY);
    unapplied.map(|_| {
        format!(
            "edge {edge} has not applied it within {} s",
            APPLY.as_secs()
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn canary(promote_after: Option<u64>) -> Canary {
        Canary {
            edges: ["a", "b"].map(|name| name.parse().unwrap()).into(),
            promote_after: promote_after.map(Duration::from_secs),
        }
    }

    fn trying(edge: &str) -> Trying {
        Trying {
            edge: edge.parse().unwrap(),
            gone: None,
            unapplied: None,
            rejected: None,
            since: Outcomes::default(),
            apps: Vec::new(),
        }
    }

    fn outcomes(ended: u64, failed: u64) -> Outcomes {
        Outcomes { ended, failed }
    }

    fn app(since: Outcomes, before: Outcomes) -> AppTrial {
        AppTrial {
            app: "web".parse().unwrap(),
            since,
            before,
            status: 521,
        }
    }

    fn judged(well: u64, edges: &[Trying]) -> Verdict {
        judge(&canary(Some(60)), Some(Duration::from_secs(well)), edges)
    }

    #[test]
    fn what_goes_well_for_long_enough_is_promoted() {
        let edges = [
            Trying {
                since: outcomes(40, 1),
                ..trying("a")
            },
            trying("b"),
        ];
        assert_eq!(judged(59, &edges), Verdict::Wait);
        let why = "went well on a, b for 60 s: 1 of 40 connections failed";
        assert_eq!(judged(60, &edges), Verdict::Promote(why.to_owned()));
        let never = judge(&canary(None), Some(Duration::from_secs(86_400)), &edges);
        assert_eq!(never, Verdict::Wait);
    }

    #[test]
    fn nothing_is_promoted_that_an_edge_does_not_have() {
        let after = |seconds| {
            let edges = [
                trying("a"),
                Trying {
                    unapplied: Some(Duration::from_secs(seconds)),
                    ..trying("b")
                },
            ];
            judge(&canary(Some(0)), None, &edges)
        };
        assert_eq!(after(29), Verdict::Wait);
        let why = "edge b has not applied it within 30 s";
        assert_eq!(after(30), Verdict::Stop(why.to_owned()));
    }

    #[test]
    fn a_rejection_stops_it() {
        let edges = [Trying {
            rejected: Some("app web: no such device".to_owned()),
            ..trying("a")
        }];
        let why = "edge a rejects it: app web: no such device";
        assert_eq!(judged(0, &edges), Verdict::Stop(why.to_owned()));
    }

    #[test]
    fn an_edge_that_is_gone_for_long_stops_it() {
        let gone = |seconds| {
            [Trying {
                gone: Some(Duration::from_secs(seconds)),
                ..trying("a")
            }]
        };
        assert_eq!(judged(20, &gone(9)), Verdict::Wait);
        let why = "edge a is gone for 10 s";
        assert_eq!(judged(20, &gone(10)), Verdict::Stop(why.to_owned()));
    }

    #[test]
    fn connections_that_fail_more_than_before_stop_it() {
        let with = |since, before| {
            let edges = [Trying {
                apps: vec![app(since, before)],
                ..trying("a")
            }];
            judged(5, &edges)
        };
        let why = "edge a, app web: 3 of 3 connections failed, most with status 521; \
                   before, 0 of 1000 connections failed";
        let stopped = with(outcomes(3, 3), outcomes(1000, 0));
        assert_eq!(stopped, Verdict::Stop(why.to_owned()));
        // Too few, not more than before, hardly more.
        for (since, before) in [
            (outcomes(2, 2), outcomes(1000, 0)),
            (outcomes(100, 60), outcomes(1000, 600)),
            (outcomes(100, 5), outcomes(1000, 0)),
            (outcomes(10, 10), outcomes(10, 10)),
        ] {
            assert_eq!(with(since, before), Verdict::Wait, "{since:?} {before:?}");
        }
        // An app that is new has no before.
        assert!(matches!(
            with(outcomes(4, 4), outcomes(0, 0)),
            Verdict::Stop(_)
        ));
    }

    proptest! {
        /// The same rate as before never stops it, however high and however much of it there is.
        #[test]
        fn what_is_as_it_was_never_stops(
            ended in 1u64..10_000,
            part in 0.0f64..=1.0,
            times in 1u64..100,
        ) {
            let failed = (ended as f64 * part) as u64;
            let before = outcomes(ended, failed);
            let since = outcomes(ended * times, failed * times);
            prop_assert!(!app(since, before).has_jumped());
        }
    }
}
