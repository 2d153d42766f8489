//! What is told of nodes, and of a revision that some of them try.

use anyport_model::rollout::total;
use anyport_proto::{convert::write_rollout, v1};

use crate::{
    nodes::{NodeKey, Nodes, Role},
    rollout::{Sightings, trying},
    state::Snapshot,
};

/// Nodes of a role, or of both, each with what it is to have.
pub(super) fn list(
    nodes: &Nodes,
    role: Option<Role>,
    present: Option<&Snapshot>,
) -> Vec<v1::NodeStatus> {
    let mut statuses = nodes.list(role);
    for status in &mut statuses {
        let key = NodeKey::of(status);
        let target = present
            .zip(key)
            .map(|(present, key)| present.target(&key).clone());
        status.wanted_revision = target.map_or(0, |target| target.state.revision.0);
    }
    statuses
}

/// Nodes that are not connected any more.
pub(super) fn gone(nodes: &Nodes, role: Option<Role>) -> Vec<v1::GoneNode> {
    let gone = nodes.gone(role).into_iter();
    gone.map(|gone| v1::GoneNode {
        last: Some(v1::NodeStatus::clone(&gone.last)),
        since: Some(gone.since.into()),
    })
    .collect()
}

/// How a revision fares that is being tried.
pub(super) fn rollout(nodes: &Nodes, present: &Snapshot) -> Option<v1::RolloutStatus> {
    let rollout = present.rollout()?;
    let edges = trying(
        present,
        rollout,
        &nodes.list(Some(Role::Edge)),
        &Sightings::default(),
    );
    let total = total(&edges);
    Some(v1::RolloutStatus {
        rollout: Some(v1::Rollout {
            stuck: present.stuck().unwrap_or_default().to_owned(),
            ..write_rollout(rollout)
        }),
        committed_at: present.committed_at().map(Into::into),
        ended: total.ended,
        failed: total.failed,
    })
}
