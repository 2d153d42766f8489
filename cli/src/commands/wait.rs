//! `--wait`: until every connected edge has applied or rejected a revision.
//!
//! What counts is decided in [`Progress`], over what the config service says of
//! its edges each time one of them changed.
//!
//! An edge that was connected once is waited for to the end, wherever it is: one
//! that goes away before it applied may have crashed on the very change. Where
//! none is connected, one may be about to: a replica learns of edges on other
//! replicas a moment after they connect, and one that has just started finds
//! its edges coming back. So that is believed only after [`APPEAR`].

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyport_model::backoff::Backoff;
use anyport_proto::v1;
use tokio::time::{sleep_until, timeout_at};
use tonic::{Code, Status};

use super::{Context, changes::described};
use crate::{
    console::{Console, Mood, printable},
    failure::{Exit, Failure},
    manifest::parse_duration,
};

/// From the start of the wait, how long edges have to appear where none is
/// connected.
const APPEAR: Duration = Duration::from_secs(2);

/// `--wait[=TIME]`, to be flattened into a command's own. What is waited for is the
/// command's to say, where it is something else.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(super) struct WaitArgs {
    /// Return when every connected edge has applied or rejected the change, each
    /// named; how long to wait at most
    #[arg(
        long = "wait",
        id = "wait",
        value_name = "TIME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "30s",
        value_parser = parse_duration
    )]
    pub(super) limit: Option<Duration>,
}

/// How many edges there must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edges {
    /// As many as are connected, perhaps none.
    AnyNumber,
    /// One is about to connect.
    OneAtLeast,
}

/// Waits for at most `limit`, and tells of each edge as it is done.
pub(super) async fn until_applied(
    context: &mut Context,
    revision: u64,
    limit: Duration,
    edges: Edges,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let deadline = tokio::time::Instant::from_std(begun) + limit;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    let mut progress = Progress::new(revision, edges);
    let mut last_error: Option<Status> = None;
    let ran_out = |progress: &Progress, last_error: Option<Status>| {
        let failure = progress.ran_out(limit);
        match last_error {
            Some(status) => failure.remedy(context_failure(&status)),
            None => failure,
        }
    };
    loop {
        let watching = watch(context, &mut progress, begun, APPEAR.min(limit / 2));
        match timeout_at(deadline, watching).await {
            Ok(Ok(())) => return progress.verdict(&mut context.console),
            Ok(Err(Broken::Output(failure))) => return Err(failure),
            Ok(Err(Broken::Stream(status))) => {
                if !may_come_back(&status) {
                    return Err(context.connection.failure("wait for the edges", &status));
                }
                last_error = Some(status);
                context.connection.turn_to_next();
            }
            Err(_) => return Err(ran_out(&progress, last_error)),
        }
        let pause = backoff.pause(rand::random());
        if timeout_at(deadline, tokio::time::sleep(pause))
            .await
            .is_err()
        {
            return Err(ran_out(&progress, last_error));
        }
    }
}

fn context_failure(status: &Status) -> String {
    format!(
        "the config service broke off meanwhile: {}",
        status.message()
    )
}

pub(super) fn may_come_back(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::Aborted
    )
}

enum Broken {
    Stream(Status),
    Output(Failure),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Broken::Stream(status)
    }
}

/// Returns when all edges are done.
async fn watch(
    context: &mut Context,
    progress: &mut Progress,
    begun: Instant,
    appear: Duration,
) -> Result<(), Broken> {
    let request = v1::WatchNodesRequest {
        role: v1::NodeRole::Edge.into(),
    };
    let mut client = context.connection.client();
    let mut updates = client.watch_nodes(request).await?.into_inner();
    progress.begin_stream();
    let appear = tokio::time::Instant::from_std(begun + appear);
    loop {
        let update = tokio::select! {
            update = updates.message() => update?,
            () = sleep_until(appear), if progress.is_done() => return Ok(()),
        };
        let Some(update) = update else {
            return Err(Status::unavailable("the stream ended").into());
        };
        for told in progress.observe(&update.nodes) {
            let line = told.line(&context.console, progress.revision, begun.elapsed());
            let written = context.console.line(line);
            written.map_err(|error| Broken::Output(error.into()))?;
        }
        if progress.is_done() && progress.has_edges() {
            return Ok(());
        }
    }
}

/// How far the edges are.
struct Progress {
    revision: u64,
    /// All that were connected at some time since the wait began.
    edges: BTreeMap<String, Edge>,
    needed: Edges,
    heard: bool,
    /// The next list is the first one of its stream.
    fresh: bool,
}

#[derive(Debug)]
struct Edge {
    /// What it last said.
    state: State,
    connected: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// The revision that it has now.
    Behind(u64),
    Applied,
    /// Applied but for these.
    Rejected(Vec<v1::Rejection>),
}

impl State {
    fn is_behind(&self) -> bool {
        matches!(self, State::Behind(_))
    }
}

/// Something that the user wants to hear of.
#[derive(Debug, PartialEq)]
enum Told {
    Done(String, State),
    /// It left before it was done.
    Gone(String),
}

impl Progress {
    fn new(revision: u64, needed: Edges) -> Self {
        Self {
            revision,
            needed,
            edges: BTreeMap::new(),
            heard: false,
            fresh: true,
        }
    }

    /// What comes next is from a config service that may just have started, and
    /// that edges are yet to come back to.
    fn begin_stream(&mut self) {
        self.fresh = true;
    }

    /// Takes in which edges are connected and what is known of them; returns what
    /// is new.
    fn observe(&mut self, nodes: &[v1::NodeStatus]) -> Vec<Told> {
        let fresh = std::mem::take(&mut self.fresh);
        self.heard = true;
        let mut told = Vec::new();
        for (name, edge) in &mut self.edges {
            let connected = nodes.iter().any(|node| node.name == *name);
            // Where the list is a new stream's first, it is the config service
            // that was away, and not the edge.
            if edge.connected && !connected && edge.state.is_behind() && !fresh {
                told.push(Told::Gone(name.clone()));
            }
            edge.connected = connected;
        }
        let revision = self.revision;
        // While some try it, it is for them only.
        let meant =
            |node: &&v1::NodeStatus| node.wanted_revision == 0 || node.wanted_revision >= revision;
        for node in nodes.iter().filter(meant) {
            let state = if node.applied_revision < self.revision {
                State::Behind(node.applied_revision)
            } else if node.rejections.is_empty() {
                State::Applied
            } else {
                State::Rejected(node.rejections.clone())
            };
            let edge = Edge {
                state: state.clone(),
                connected: true,
            };
            let before = self.edges.insert(node.name.clone(), edge);
            if before.map(|edge| edge.state).as_ref() != Some(&state) && !state.is_behind() {
                told.push(Told::Done(node.name.clone(), state));
            }
        }
        told
    }

    fn is_done(&self) -> bool {
        let enough = self.needed == Edges::AnyNumber || !self.edges.is_empty();
        self.heard && enough && !self.edges.values().any(|edge| edge.state.is_behind())
    }

    fn has_edges(&self) -> bool {
        !self.edges.is_empty()
    }

    /// What the end of the wait means.
    fn verdict(&self, console: &mut Console) -> Result<(), Failure> {
        if self.edges.is_empty() {
            console.line("no edge is connected, so none has applied it yet")?;
        }
        let rejecting = |(name, edge): (&String, &Edge)| match edge.state {
            State::Rejected(_) => Some(printable(name)),
            _ => None,
        };
        let names: Vec<String> = self.edges.iter().filter_map(rejecting).collect();
        if names.is_empty() {
            return Ok(());
        }
        let (names, revision) = (names.join(", "), self.revision);
        Err(Failure::refused(format_args!(
            "revision {revision} is stored, but not all of it could be applied by {names}"
        ))
        .remedy("what was rejected keeps its last good version there; see `anyport status`"))
    }

    fn ran_out(&self, limit: Duration) -> Failure {
        let revision = self.revision;
        let pending = self.edges.iter().filter_map(|(name, edge)| {
            let State::Behind(at) = edge.state else {
                return None;
            };
            let name = printable(name);
            Some(if edge.connected {
                format!("{name} still has revision {at}")
            } else {
                format!("{name} left with revision {at} and has not come back")
            })
        });
        let none = match self.heard {
            true if self.edges.is_empty() => Some("no edge is connected".to_owned()),
            _ => None,
        };
        Failure::new(
            Exit::WaitRanOut,
            format_args!(
                "revision {revision} is stored, but not applied by every edge within {}",
                crate::manifest::write_duration(limit)
            ),
        )
        .details(pending)
        .details(none)
    }
}

impl Told {
    fn line(&self, console: &Console, revision: u64, after: Duration) -> String {
        let after = after.as_secs_f32();
        match self {
            Told::Done(edge, State::Rejected(rejections)) => {
                let word = console.paint("rejected", Mood::Bad);
                let reasons = rejections.iter().map(|rejection| {
                    let (kind, name) = described(rejection.resource.as_ref());
                    format!("{kind} {name}: {}", printable(&rejection.reason))
                });
                let reasons: Vec<String> = reasons.collect();
                format!("{}: {word} {}", printable(edge), reasons.join("; "))
            }
            Told::Done(edge, _) => {
                let word = console.paint("applied", Mood::Good);
                format!("{}: {word} {revision} after {after:.1} s", printable(edge))
            }
            Told::Gone(edge) => {
                let word = console.paint("left", Mood::Notable);
                format!(
                    "{}: {word} before it applied {revision}; waiting for its return",
                    printable(edge)
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(name: &str, applied_revision: u64, rejections: usize) -> v1::NodeStatus {
        let rejection = v1::Rejection {
            resource: None,
            reason: "no such device".to_owned(),
        };
        v1::NodeStatus {
            name: name.to_owned(),
            applied_revision,
            rejections: vec![rejection; rejections],
            ..Default::default()
        }
    }

    #[test]
    fn the_wait_ends_when_the_last_edge_is_done() {
        let mut progress = Progress::new(7, Edges::AnyNumber);
        assert!(!progress.is_done(), "nothing was heard yet");
        assert_eq!(progress.observe(&[edge("a", 6, 0), edge("b", 6, 1)]), []);
        assert!(!progress.is_done());
        let told = progress.observe(&[edge("a", 7, 0), edge("b", 6, 1)]);
        assert_eq!(told, [Told::Done("a".to_owned(), State::Applied)]);
        assert!(!progress.is_done());
        // A later revision holds this one.
        let told = progress.observe(&[edge("a", 7, 0), edge("b", 9, 0)]);
        assert_eq!(told, [Told::Done("b".to_owned(), State::Applied)]);
        assert!(progress.is_done());
    }

    #[test]
    fn where_an_edge_is_expected_none_is_not_enough() {
        let mut progress = Progress::new(7, Edges::OneAtLeast);
        progress.observe(&[]);
        assert!(!progress.is_done());
        progress.observe(&[edge("a", 7, 0)]);
        assert!(progress.is_done());
    }

    #[test]
    fn a_rejection_ends_the_wait_and_is_remembered() {
        let mut progress = Progress::new(7, Edges::AnyNumber);
        let told = progress.observe(&[edge("a", 7, 2), edge("b", 7, 0)]);
        assert_eq!(told.len(), 2);
        assert!(progress.is_done());
        let failure = progress
            .verdict(&mut Console::stdout())
            .expect_err("rejected");
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.to_string().contains("by a\n"), "{failure}");
    }

    #[test]
    fn an_edge_that_leaves_before_it_applied_is_waited_for() {
        let mut progress = Progress::new(7, Edges::AnyNumber);
        progress.observe(&[edge("a", 7, 0), edge("b", 6, 0)]);
        let told = progress.observe(&[edge("a", 7, 0)]);
        assert_eq!(told, [Told::Gone("b".to_owned())]);
        assert!(!progress.is_done());
        assert_eq!(progress.observe(&[edge("a", 7, 0)]), [], "told once");
        let failure = progress.ran_out(Duration::from_secs(30)).to_string();
        let wanted = "\n  b left with revision 6 and has not come back";
        assert!(failure.ends_with(wanted), "{failure}");
        // It comes back, and is done when it has applied, and not before.
        assert_eq!(progress.observe(&[edge("a", 7, 0), edge("b", 6, 0)]), []);
        assert!(!progress.is_done());
        let told = progress.observe(&[edge("a", 7, 0), edge("b", 7, 0)]);
        assert_eq!(told, [Told::Done("b".to_owned(), State::Applied)]);
        assert!(progress.is_done());
    }

    #[test]
    fn an_edge_that_leaves_after_it_applied_is_done() {
        let mut progress = Progress::new(7, Edges::AnyNumber);
        progress.observe(&[edge("a", 7, 0), edge("b", 6, 0)]);
        assert_eq!(progress.observe(&[edge("b", 7, 0)]).len(), 1);
        assert!(progress.is_done());
    }

    #[test]
    fn a_config_service_that_restarts_makes_no_edge_forgotten() {
        let mut progress = Progress::new(7, Edges::AnyNumber);
        progress.observe(&[edge("a", 7, 0), edge("b", 6, 0), edge("c", 6, 0)]);
        progress.begin_stream();
        assert_eq!(progress.observe(&[]), [], "none of them left");
        assert!(!progress.is_done());
        // They come back one by one.
        assert_eq!(progress.observe(&[edge("b", 7, 0)]).len(), 1);
        assert!(!progress.is_done());
        let told = progress.observe(&[edge("b", 7, 0), edge("a", 7, 0), edge("c", 7, 0)]);
        assert_eq!(told, [Told::Done("c".to_owned(), State::Applied)]);
        assert!(progress.is_done());
    }

    #[test]
    fn when_it_runs_out_whoever_is_behind_is_named() {
        let mut progress = Progress::new(7, Edges::AnyNumber);
        progress.observe(&[edge("a", 7, 0), edge("b", 5, 0)]);
        let failure = progress.ran_out(Duration::from_secs(30));
        assert_eq!(failure.exit, Exit::WaitRanOut);
        assert_eq!(
            failure.to_string(),
            "revision 7 is stored, but not applied by every edge within 30s\n  b still has revision 5"
        );
    }
}
