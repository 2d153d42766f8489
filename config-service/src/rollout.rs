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
/// Between two looks at what many have said.
const PACE: Duration = Duration::from_millis(50);

/// Who decides, in the history.
const AUTHOR: &str = "config-service";

/// Follows revisions that are tried, without end.
pub async fn conduct(keeper: &Keeper, nodes: &Nodes, writer: &Writer) -> Infallible {
    let mut present = keeper.subscribe();
    let mut changes = nodes.changes();
    let mut sightings = Sightings::default();
    loop {
        changes.borrow_and_update();
        let latest = present.latest().filter(|latest| latest.rollout().is_some());
        let Some(latest) = latest else {
            sightings = Sightings::default();
            present.changed().await;
            continue;
        };
        if !nodes.elsewhere_is_known() {
            // Whom this replica does not see now may be well elsewhere.
            sightings = Sightings::default();
        } else if let (Some(rollout), None) = (latest.rollout(), latest.stuck()) {
            let listed = nodes.list(Some(Role::Edge));
            sightings.look(latest.revision(), rollout, &listed, Instant::now());
            let edges = trying(&latest, rollout, &listed, &sightings);
            let verdict = judge(&rollout.canary, sightings.well(), &edges);
            decide(writer, keeper, &latest, rollout, verdict).await;
        }
        tokio::select! {
            () = present.changed() => {}
            // Cannot fail: the sender is held by the argument.
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        // A fleet speaks all at once.
        tokio::time::sleep(PACE).await;
    }
}

async fn decide(
    writer: &Writer,
    keeper: &Keeper,
    latest: &Snapshot,
    rollout: &Rollout,
    verdict: Verdict,
) {
    let revision = latest.revision();
    let (intent, message, end) = match verdict {
        Verdict::Wait => return,
        Verdict::Promote(why) => {
            let end = format!("it {why}; to give it to all");
            (Intent::Promote(Some(revision)), why, end)
        }
        Verdict::Stop(why) => {
            let stable = latest.stable();
            let intent = Intent::Rollback {
                revision: rollout.stable,
                resources: stable.state.resources.clone(),
            };
            let end = format!("{why}; to go back to {}", rollout.stable);
            (
                intent,
                format!("revision {revision} is taken back: {why}"),
                end,
            )
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
        // As it would be each time: what is stored may be what this version does not
        // take any more.
        Err(WriteError::Refused(refusal)) => {
            let why = format!("{end} is refused: {refusal}");
            tracing::error!(
                tried = revision.0,
                why,
                "a trial is over and cannot be ended; promote it, or roll back to a revision \
                 that is taken"
            );
            latest.set_stuck(why);
        }
        Err(error) => {
            tracing::error!(tried = revision.0, why = message, %error, "a trial is over, and the store does not take it");
            let _ = tokio::time::timeout(LOOK, keeper.subscribe().changed()).await;
        }
    }
}

/// Since when edges that try a revision are as they are, by the clock of this
/// process: another replica's may be wrong, and what was before this one started was
/// not seen.
#[derive(Debug, Default)]
pub(crate) struct Sightings {
    revision: Revision,
    gone: BTreeMap<NodeName, Instant>,
    unapplied: BTreeMap<NodeName, Instant>,
    /// Since when all of them have it.
    well: Option<Instant>,
    now: Option<Instant>,
}

impl Sightings {
    fn look(
        &mut self,
        tried: Revision,
        rollout: &Rollout,
        listed: &[v1::NodeStatus],
        now: Instant,
    ) {
        if self.revision != tried {
            *self = Self {
                revision: tried,
                ..Self::default()
            };
        }
        for edge in &rollout.canary.edges {
            let status = listed.iter().find(|node| node.name == edge.as_str());
            let applied = status.map(|status| status.applied_revision == tried.0);
            if applied.is_none() {
                self.gone.entry(edge.clone()).or_insert(now);
            } else {
                self.gone.remove(edge);
            }
            if applied == Some(false) {
                self.unapplied.entry(edge.clone()).or_insert(now);
            } else {
                self.unapplied.remove(edge);
            }
        }
        self.well = match self.gone.is_empty() && self.unapplied.is_empty() {
            true => self.well.or(Some(now)),
            false => None,
        };
        self.now = Some(now);
    }

    fn well(&self) -> Option<Duration> {
        Some(self.now?.saturating_duration_since(self.well?))
    }

    fn since(&self, when: &BTreeMap<NodeName, Instant>, edge: &NodeName) -> Option<Duration> {
        Some(self.now?.saturating_duration_since(*when.get(edge)?))
    }
}

/// What is known of each edge that tries the latest revision.
pub(crate) fn trying(
    latest: &Snapshot,
    rollout: &Rollout,
    listed: &[v1::NodeStatus],
    sightings: &Sightings,
) -> Vec<Trying> {
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
            Trying {
                gone: sightings.since(&sightings.gone, edge),
                unapplied: sightings.since(&sightings.unapplied, edge),
                ..of_edge(edge.clone(), status, latest.revision(), latest.changed())
            }
        })
        .collect()
}

fn of_edge(
    edge: NodeName,
    status: Option<&v1::NodeStatus>,
    tried: Revision,
    changed: &BTreeSet<ResourceRef>,
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
        gone: None,
        unapplied: None,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{slice, sync::Arc};

    use anyport_model::{
        rollout::{APPLY, Canary, GONE},
        state::Resources,
    };
    use anyport_node::{drain::Drain, metrics::Registry};
    use anyport_proto::v1::config_service_server::ConfigService;
    use tonic::Request;

    use super::*;
    use crate::{
        admit::read_apply,
        metrics::Metrics,
        serve::ConfigApi,
        store::{Record, embedded::Embedded},
    };

    const TRIED: Revision = Revision(7);

    fn edge() -> NodeName {
        "a".parse().unwrap()
    }

    fn rollout() -> Rollout {
        Rollout {
            canary: Canary {
                edges: ["a", "b"].map(|name| name.parse().unwrap()).into(),
                promote_after: None,
            },
            stable: Revision(6),
        }
    }

    fn node(name: &str, applied: u64) -> v1::NodeStatus {
        v1::NodeStatus {
            name: name.to_owned(),
            applied_revision: applied,
            ..Default::default()
        }
    }

    /// How long `a` is gone, has not applied it, and both have had it, in seconds.
    fn seen(sightings: &Sightings) -> [Option<u64>; 3] {
        let a = "a".parse().unwrap();
        let gone = sightings.since(&sightings.gone, &a);
        let unapplied = sightings.since(&sightings.unapplied, &a);
        [gone, unapplied, sightings.well()].map(|since| Some(since?.as_secs()))
    }

    /// It is counted from when it is seen, and anew after each return: an edge that
    /// comes back late in a trial has as long as at its start.
    #[test]
    fn who_comes_back_has_its_time() {
        let start = Instant::now();
        let mut sightings = Sightings::default();
        let mut at = |seconds: u64, listed: &[v1::NodeStatus]| {
            let now = start + Duration::from_secs(seconds);
            sightings.look(TRIED, &rollout(), listed, now);
            seen(&sightings)
        };
        let (a, b) = (node("a", 7), node("b", 7));
        assert_eq!(at(0, &[node("a", 6), b.clone()]), [None, Some(0), None]);
        assert_eq!(at(3, &[a.clone(), b.clone()]), [None, None, Some(0)]);
        assert_eq!(at(63, &[a.clone(), b.clone()]), [None, None, Some(60)]);
        // Its replica restarts.
        assert_eq!(at(64, slice::from_ref(&b)), [Some(0), None, None]);
        assert_eq!(at(72, slice::from_ref(&b)), [Some(8), None, None]);
        assert_eq!(at(73, &[node("a", 0), b.clone()]), [None, Some(0), None]);
        assert_eq!(at(74, &[a.clone(), b.clone()]), [None, None, Some(0)]);
        assert_eq!(at(80, slice::from_ref(&a)), [None, None, None]);
        assert!(Duration::from_secs(8) < GONE && Duration::from_secs(1) < APPLY);
        // Of another revision, nothing was seen yet.
        let now = start + Duration::from_secs(90);
        sightings.look(Revision(9), &rollout(), &[a, b], now);
        assert_eq!(seen(&sightings), [None, Some(0), None]);
    }

    /// A state that was taken once and is not any more, as after an upgrade: an app that
    /// is in no prefix.
    async fn commit_what_is_not_taken(keeper: &Keeper) {
        let read = read_apply(vec![app()]).resources;
        let resources: Resources = read
            .into_iter()
            .map(|(reference, (_, resource))| (reference, resource))
            .collect();
        let changed: Vec<_> = resources.keys().cloned().collect();
        let turn = keeper.turn().await.unwrap();
        let present = turn.refresh().await.unwrap();
        let draft = keeper.draft(present.state(), resources, &changed);
        let record = Record {
            revision: draft.state().revision,
            committed_at: SystemTime::now(),
            author: Author::default(),
            message: String::new(),
            created: 1,
            updated: 0,
            deleted: 0,
            rollback_of: None,
            rollout: None,
            promotion_of: None,
            state_hash: draft.state().hash(),
            request: None,
            traceparent: String::new(),
            store: None,
        };
        let committed = turn.commit(&present, draft, record).await.unwrap();
        committed.expect("no other write");
    }

    fn app() -> v1::Resource {
        let kind = v1::resource::Kind::App(v1::App {
            name: "web".to_owned(),
            protocol: "tcp/80".to_owned(),
            edge_ips: vec!["198.51.100.0/24".to_owned()],
            origin_direct: vec!["tcp://10.0.2.2:80".to_owned()],
            ..Default::default()
        });
        v1::Resource { kind: Some(kind) }
    }

    fn prefix() -> Intent {
        let kind = v1::resource::Kind::Prefix(v1::Prefix {
            cidr: "198.51.100.0/24".to_owned(),
        });
        Intent::Apply {
            request: read_apply(vec![v1::Resource { kind: Some(kind) }]),
            prune: false,
        }
    }

    /// A replica that has just started, or was cut off, sees nobody of those who are
    /// connected elsewhere.
    #[tokio::test(start_paused = true)]
    async fn who_does_not_know_of_nodes_elsewhere_holds_none_for_gone() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(Arc::new(Embedded::open(directory.path()).unwrap()));
        let (writer, nodes) = (Writer::new(keeper.clone()), Nodes::default());
        nodes.set_elsewhere_known(false);
        let conditions = Conditions {
            canary: Some(Canary {
                edges: [edge()].into(),
                promote_after: None,
            }),
            ..Conditions::default()
        };
        let tried = writer.write(prefix(), conditions, SystemTime::now).await;
        let tried = tried.unwrap().revision;
        let latest = || keeper.present().unwrap().revision();
        let story = async {
            for _ in 0..2 {
                tokio::time::sleep(2 * GONE).await;
                assert_eq!(latest(), tried, "nothing is known of the edge");
                nodes.set_elsewhere_known(true);
                tokio::time::sleep(GONE / 2).await;
                assert_eq!(latest(), tried, "it is counted from when it could be seen");
                nodes.set_elsewhere_known(false);
                // Longer than it takes to notice.
                tokio::time::sleep(2 * (LOOK + PACE)).await;
            }
            nodes.set_elsewhere_known(true);
            let known = Instant::now();
            while latest() == tried {
                tokio::time::sleep(LOOK).await;
            }
            assert!(known.elapsed() >= GONE, "{:?}", known.elapsed());
        };
        tokio::select! {
            () = story => {}
            never = conduct(&keeper, &nodes, &writer) => match never {},
        }
    }

    /// It is told, nothing is decided by itself from then on, and somebody may.
    #[tokio::test(start_paused = true)]
    async fn an_end_that_is_refused_is_told_and_not_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(Arc::new(Embedded::open(directory.path()).unwrap()));
        commit_what_is_not_taken(&keeper).await;
        let (writer, nodes) = (Writer::new(keeper.clone()), Nodes::default());
        let conditions = Conditions {
            canary: Some(Canary {
                edges: [edge()].into(),
                promote_after: Some(Duration::ZERO),
            }),
            ..Conditions::default()
        };
        let written = writer.write(prefix(), conditions, SystemTime::now).await;
        assert_eq!(written.unwrap().revision, Revision(2));
        let rejection = v1::Rejection {
            resource: None,
            reason: "no room".to_owned(),
        };
        let key = NodeKey {
            role: Role::Edge,
            name: edge(),
        };
        let session = nodes.connect(
            key,
            v1::NodeStatus {
                role: v1::NodeRole::Edge.into(),
                rejections: vec![rejection],
                ..node("a", 2)
            },
        );
        let api = ConfigApi {
            writer: writer.clone(),
            keeper: keeper.clone(),
            nodes: nodes.clone(),
            metrics: Metrics::new(&Registry::new()).unwrap(),
            drain: Drain::new(),
        };
        let story = async {
            while keeper.present().unwrap().stuck().is_none() {
                tokio::time::sleep(LOOK).await;
            }
            // Now it would go well.
            session.update(|status| status.rejections.clear());
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(keeper.present().unwrap().revision(), Revision(2));
            let why = "edge a rejects it: no room; to go back to 1 is refused: app[\"web\"]";
            let history = api.history(Request::new(v1::HistoryRequest::default()));
            let revisions = history.await.unwrap().into_inner().revisions;
            let nodes = api.list_nodes(Request::new(v1::ListNodesRequest::default()));
            let status = nodes.await.unwrap().into_inner().rollout;
            for rollout in [revisions[0].rollout.clone(), status.unwrap().rollout] {
                let stuck = rollout.unwrap().stuck;
                assert!(stuck.starts_with(why), "{stuck}");
            }
            let promote = Intent::Promote(None);
            let promoted = writer.write(promote, Conditions::default(), SystemTime::now);
            assert_eq!(promoted.await.unwrap().revision, Revision(3));
            let history = api.history(Request::new(v1::HistoryRequest::default()));
            let revisions = history.await.unwrap().into_inner().revisions;
            assert_eq!(revisions[1].rollout.clone().unwrap().stuck, "");
        };
        tokio::select! {
            () = story => {}
            never = conduct(&keeper, &nodes, &writer) => match never {},
        }
    }

    /// What a report costs does not grow with the number of resources.
    #[tokio::test]
    async fn what_changed_is_found_out_once() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(Arc::new(Embedded::open(directory.path()).unwrap()));
        commit_what_is_not_taken(&keeper).await;
        let present = keeper.present().unwrap();
        assert!(std::ptr::eq(present.changed(), present.changed()));
    }
}
