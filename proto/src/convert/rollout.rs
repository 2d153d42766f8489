//! Revisions that some edges try first.

use std::{collections::BTreeSet, time::Duration};

use anyport_model::{
    fault::Fault,
    names::{NodeName, Revision},
    rollout::{AppTrial, Canary, Outcomes, Rollout},
};

use super::{fields::Faults, time::write_duration};
use crate::v1;

const PROMOTE_AFTER: Duration = Duration::from_secs(60);
/// Longer would be a fleet of two configurations.
const LONGEST: Duration = Duration::from_secs(86_400);
/// Edges that try a revision are few, or it is no trial.
const EDGES_MAX: usize = 100;

/// # Errors
/// Every fault, by field path in `canary`.
pub fn read_canary(wire: &v1::Canary) -> Result<Canary, Vec<Fault>> {
    let mut faults = Faults::default();
    let mut edges: BTreeSet<NodeName> = BTreeSet::new();
    if wire.edges.is_empty() || wire.edges.len() > EDGES_MAX {
        let count = wire.edges.len();
        faults.add(
            "edges",
            format_args!("are {count}; right is 1 to {EDGES_MAX}"),
        );
    }
    for (index, name) in wire.edges.iter().enumerate().take(EDGES_MAX) {
        let field = format!("edges[{index}]");
        if let Some(name) = faults.parse::<NodeName>(&*field, name)
            && !edges.insert(name.clone())
        {
            faults.add(field, format_args!("{name} is named twice"));
        }
    }
    if wire.manual && wire.promote_after.is_some() {
        faults.add("promote_after", "is set, and manual says never");
    }
    let after = faults.duration(
        "promote_after",
        wire.promote_after,
        PROMOTE_AFTER,
        Duration::ZERO..=LONGEST,
    );
    let canary = after.map(|after| Canary {
        edges,
        promote_after: (!wire.manual).then_some(after),
    });
    let read = faults.finish(None, canary);
    read.map_err(|unreadable| unreadable.faults)
}

/// # Errors
/// Every fault, by field path.
pub fn read_rollout(wire: &v1::Rollout) -> Result<Rollout, Vec<Fault>> {
    let canary = wire.canary.as_ref();
    let canary = canary.ok_or_else(|| vec![Fault::new("canary", "is not set")])?;
    Ok(Rollout {
        canary: read_canary(canary)?,
        stable: Revision(wire.stable_revision),
    })
}

pub fn write_rollout(rollout: &Rollout) -> v1::Rollout {
    let Rollout { canary, stable } = rollout;
    v1::Rollout {
        canary: Some(v1::Canary {
            edges: canary.edges.iter().map(ToString::to_string).collect(),
            promote_after: canary.promote_after.map(write_duration),
            manual: canary.promote_after.is_none(),
        }),
        stable_revision: stable.0,
        stuck: String::new(),
    }
}

pub fn read_outcomes(wire: Option<v1::Outcomes>) -> Outcomes {
    let v1::Outcomes { ended, failed } = wire.unwrap_or_default();
    Outcomes { ended, failed }
}

pub fn write_outcomes(outcomes: Outcomes) -> v1::Outcomes {
    let Outcomes { ended, failed } = outcomes;
    v1::Outcomes { ended, failed }
}

/// # Errors
/// Where the app's name is none.
pub fn read_app_trial(wire: &v1::AppTrial) -> Result<AppTrial, Fault> {
    Ok(AppTrial {
        app: wire.app.parse().map_err(|e| Fault::new("app", e))?,
        since: read_outcomes(wire.since),
        before: read_outcomes(wire.before),
        status: wire.status,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn wire(edges: &[&str]) -> v1::Canary {
        v1::Canary {
            edges: edges.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_rollout_is_the_same_after_the_way_over_the_wire() {
        for promote_after in [None, Some(Duration::ZERO), Some(Duration::from_secs(90))] {
            let rollout = Rollout {
                canary: Canary {
                    edges: ["a", "b"].map(|name| name.parse().unwrap()).into(),
                    promote_after,
                },
                stable: Revision(7),
            };
            assert_eq!(read_rollout(&write_rollout(&rollout)), Ok(rollout));
        }
    }

    #[test]
    fn faults_name_the_field_and_what_would_be_right() {
        let said = |wire: &v1::Canary| {
            let faults = read_canary(wire).unwrap_err();
            faults.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(said(&wire(&[])), ["edges: are 0; right is 1 to 100"]);
        assert_eq!(said(&wire(&["a", "a"])), ["edges[1]: a is named twice"]);
        assert!(said(&wire(&["a b"]))[0].starts_with("edges[0]: "));
        let both = v1::Canary {
            promote_after: Some(write_duration(Duration::from_secs(90_000))),
            manual: true,
            ..wire(&["a"])
        };
        assert_eq!(
            said(&both),
            [
                "promote_after: is set, and manual says never",
                "promote_after: 90000s is out of bounds; right is 0ns to 86400s",
            ]
        );
    }
}
