//! Endless answers: the latest, then each later one, none queued in between.

use std::{sync::Arc, time::Duration};

use anyport_model::{diff::Diff, resource::Kind};
use anyport_node::drain::Drain;
use anyport_proto::{
    convert::{write_redacted, write_reference},
    v1,
};
use tokio::sync::mpsc;
use tonic::Status;

use super::status;
use crate::{
    nodes::{Nodes, Role},
    state::{Keeper, Snapshot},
};

/// A fleet that applies a revision speaks all at once; watchers see it in steps.
const NODES_PACE: Duration = Duration::from_millis(50);

type Answers<T> = mpsc::Sender<Result<T, Status>>;

/// Sends the state and then its changes, until the watcher is gone or the
/// drain begins. No kinds: all of them.
pub(super) async fn resources(
    keeper: Keeper,
    kinds: Vec<Kind>,
    drain: Drain,
    answers: Answers<v1::WatchResponse>,
) {
    let mut present = keeper.subscribe();
    let mut sent: Option<Arc<Snapshot>> = None;
    loop {
        let latest = present.latest();
        if let Some(latest) = latest {
            let answer = difference(sent.as_deref(), &latest, &kinds);
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
            sent = Some(latest);
        }
        tokio::select! {
            // Cannot fail: `keeper` holds the sender.
            _ = present.changed() => {}
            () = answers.closed() => return,
            () = drain.started() => return farewell(&answers).await,
        }
    }
}

fn difference(sent: Option<&Snapshot>, latest: &Snapshot, kinds: &[Kind]) -> v1::WatchResponse {
    let wanted = |kind: Kind| kinds.is_empty() || kinds.contains(&kind);
    let none = Default::default();
    let diff = Diff::between(
        sent.map_or(&none, |sent| sent.resources()),
        latest.resources(),
    );
    let upserts = diff.upserts.iter();
    let removals = diff.removals.iter();
    v1::WatchResponse {
        revision: latest.revision().0,
        full: sent.is_none(),
        upserts: upserts
            .filter(|resource| wanted(resource.kind()))
            .map(write_redacted)
            .collect(),
        removals: removals
            .filter(|reference| wanted(reference.kind()))
            .map(write_reference)
            .collect(),
    }
}

/// Sends all nodes of the role, again each time one of them or the revision
/// changed.
pub(super) async fn nodes(
    keeper: Keeper,
    nodes: Nodes,
    role: Option<Role>,
    drain: Drain,
    answers: Answers<v1::WatchNodesResponse>,
) {
    let mut present = keeper.subscribe();
    let mut changes = nodes.changes();
    loop {
        changes.borrow_and_update();
        let latest = present.latest();
        let latest = latest.as_deref();
        let answer = v1::WatchNodesResponse {
            nodes: super::nodes::list(&nodes, role, latest),
            revision: latest.map_or(0, |latest| latest.revision().0),
            rollout: latest.and_then(|latest| super::nodes::rollout(&nodes, latest)),
        };
        if answers.send(Ok(answer)).await.is_err() {
            return;
        }
        tokio::time::sleep(NODES_PACE).await;
        tokio::select! {
            // Neither can fail: both senders are held by the arguments.
            _ = present.changed() => {}
            _ = changes.changed() => {}
            () = answers.closed() => return,
            () = drain.started() => return farewell(&answers).await,
        }
    }
}

async fn farewell<T>(answers: &Answers<T>) {
    // Only a watcher that is gone does not take it.
    let _ = answers.send(Err(status::stopping())).await;
}
