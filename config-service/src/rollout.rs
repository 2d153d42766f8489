//! Carries a revision that some edges try to its end: to all others, or back.
//!
//! Every replica looks on and decides by the same rules over what all replicas
//! tell each other of their nodes, so it does not matter which of them dies. The
//! decision is a write like any other, for the revision that was looked at, so
//! one of two that decide at once is the first, and the other changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    time::{Duration, SystemTime},
};

use anyport_model::{
    diff::Diff,
    names::{NodeName, Revision},
    resource::ResourceRef,
    rollout::{Outcomes, Rollout, Trying, Verdict, judge},
};
use anyport_proto::{
    convert::{read_app_trial, read_outcomes, read_reference},
    v1,
};
use tokio::time::Instant;

use crate::{
    admit::{Conditions, Intent, WriteError, Writer},
    nodes::{NodeKey, Nodes, Role},
    state::{Keeper, Snapshot},
    store::Author,
};

/// Time passes although nobody says anything.
const LOOK: Duration = Duration::from_millis(500);

/// Who decides, in the history.
const AUTHOR: &str = "config-service";

/// Follows revisions that are tried, without end.
pub async fn conduct(keeper: &Keeper, nodes: &Nodes, writer: &Writer) -> Infallible {
    let mut present = keeper.subscribe();
    let mut changes = nodes.changes();
    let mut absences = Absences::default();
    loop {
        changes.borrow_and_update();
        let latest = present.latest();
        let latest = latest.filter(|latest| latest.rollout().is_some());
        let Some(latest) = latest else {
            absences = Absences::default();
            // Cannot fail: `keeper` holds the sender.
            present.changed().await;
            continue;
        };
        if let Some(rollout) = latest.rollout() {
            let listed = nodes.list(Some(Role::Edge));
            absences.look(rollout, &listed, Instant::now());
            let edges = trying(&latest, rollout, &listed, |edge| absences.of(edge));
            let verdict = judge(&rollout.canary, age(&latest), &edges);
            decide(writer, keeper, &latest, rollout, verdict).await;
        }
        tokio::select! {
            // Neither can fail: both senders are held by the arguments.
            _ = present.changed() => {}
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Since its commit; nothing where the clock was put back since.
fn age(latest: &Snapshot) -> Duration {
    let committed = latest.committed_at();
    let age = committed.and_then(|at| SystemTime::now().duration_since(at).ok());
    age.unwrap_or_default()
}

async fn decide(
    writer: &Writer,
    keeper: &Keeper,
    latest: &Snapshot,
    rollout: &Rollout,
    verdict: Verdict,
) {
    let revision = latest.revision();
    let (intent, message) = match verdict {
        Verdict::Wait => return,
        Verdict::Promote(why) => (Intent::Promote(Some(revision)), why),
        Verdict::Stop(why) => {
            let stable = latest.stable();
            let intent = Intent::Rollback {
                revision: rollout.stable,
                resources: stable.state.resources.clone(),
            };
            (intent, format!("revision {revision} is taken back: {why}"))
        }
    };
    let conditions = Conditions {
        expected: Some(revision),
        author: Author {
            name: AUTHOR.to_owned(),
            ..Author::default()
        },
        message: message.clone(),
        // What is deleted now was created by what is taken back.
        allow_mass_deletion: true,
        ..Conditions::default()
    };
    match writer.write(intent, conditions, SystemTime::now).await {
        Ok(written) => {
            tracing::warn!(
                revision = written.revision.0,
                tried = revision.0,
                why = message,
                "a trial is over"
            );
        }
        // Another replica, or an operator, was first.
        Err(WriteError::Outdated { .. }) => {}
        Err(error) => {
            tracing::error!(tried = revision.0, why = message, %error, "a trial is over, and the store does not take it");
            let _ = tokio::time::timeout(LOOK, keeper.subscribe().changed()).await;
        }
    }
}

/// Since when edges that try a revision are not connected.
#[derive(Debug, Default)]
struct Absences {
    since: BTreeMap<NodeName, Instant>,
    now: Option<Instant>,
}

impl Absences {
    fn look(&mut self, rollout: &Rollout, listed: &[v1::NodeStatus], now: Instant) {
        let there: BTreeSet<&str> = listed.iter().map(|node| node.name.as_str()).collect();
        for edge in &rollout.canary.edges {
            if there.contains(edge.as_str()) {
                self.since.remove(edge);
            } else {
                self.since.entry(edge.clone()).or_insert(now);
            }
        }
        self.now = Some(now);
    }

    fn of(&self, edge: &NodeName) -> Option<Duration> {
        let (now, since) = (self.now?, self.since.get(edge)?);
        Some(now.saturating_duration_since(*since))
    }
}

/// What is known of each edge that tries the latest revision. `absent`: for how
/// long it is not connected.
pub(crate) fn trying(
    latest: &Snapshot,
    rollout: &Rollout,
    listed: &[v1::NodeStatus],
    absent: impl Fn(&NodeName) -> Option<Duration>,
) -> Vec<Trying> {
    let diff = Diff::between(&latest.stable().state.resources, latest.resources());
    let upserts = diff.upserts.iter().map(|resource| resource.reference());
    let changed: BTreeSet<ResourceRef> = upserts.chain(diff.removals.iter().cloned()).collect();
    let edges = rollout.canary.edges.iter();
    edges
        .map(|edge| {
            let key = NodeKey {
                role: Role::Edge,
                name: edge.clone(),
            };
            let status = listed
                .iter()
                .find(|node| NodeKey::of(node).as_ref() == Some(&key));
            of_edge(
                edge.clone(),
                status,
                latest.revision(),
                &changed,
                absent(edge),
            )
        })
        .collect()
}

fn of_edge(
    edge: NodeName,
    status: Option<&v1::NodeStatus>,
    tried: Revision,
    changed: &BTreeSet<ResourceRef>,
    gone: Option<Duration>,
) -> Trying {
    let status = status.filter(|status| status.applied_revision == tried.0);
    let rejections = status.map_or(&[][..], |status| &status.rejections);
    let rejected = rejections
        .iter()
        .find_map(|rejection| in_words(rejection, changed));
    let trial = status.and_then(|status| status.trial.as_ref());
    let trial = trial.filter(|trial| trial.revision == tried.0);
    Trying {
        edge,
        gone,
        applied: status.is_some(),
        rejected,
        since: trial.map_or(Outcomes::default(), |trial| read_outcomes(trial.since)),
        // An app whose name is none is no app of ours.
        apps: trial.map_or(Vec::new(), |trial| {
            let apps = trial.apps.iter().map(read_app_trial);
            apps.filter_map(Result::ok).collect()
        }),
    }
}

/// A rejection of something that changed, or of nothing that has a name, as of
/// what the kernel refuses.
fn in_words(rejection: &v1::Rejection, changed: &BTreeSet<ResourceRef>) -> Option<String> {
    let reason = &rejection.reason;
    let Some(resource) = &rejection.resource else {
        return Some(reason.clone());
    };
    let reference = read_reference(resource).ok()?;
    changed
        .contains(&reference)
        .then(|| format!("{reference}: {reason}"))
}
