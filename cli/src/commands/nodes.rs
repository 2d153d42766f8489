//! Edges and balancers as users see them.

use std::time::SystemTime;

use anyport_proto::v1;
use serde::Serialize;

use super::changes::described;
use crate::{
    ages::age,
    console::{Cell, Mood, printable},
};

/// An edge or a balancer, as JSON and YAML have it.
#[derive(Debug, Serialize)]
pub(super) struct Node {
    pub(super) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    region: String,
    version: String,
    /// How an edge's kernel hands connections over.
    #[serde(skip_serializing_if = "String::is_empty")]
    steering: String,
    /// URL of its own gRPC service.
    #[serde(skip_serializing_if = "String::is_empty")]
    address: String,
    /// Whether an edge was asked to be out of service: `serving`, `draining` or
    /// `drained`.
    #[serde(skip_serializing_if = "Option::is_none")]
    drain: Option<&'static str>,
    applied_revision: u64,
    /// Of the state that it has, in hexadecimal digits; empty where it could not
    /// apply all of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    applied_hash: String,
    /// How many revisions it lacks of those that it is to have.
    behind: u64,
    /// RFC 3339, as all times.
    applied_at: Option<String>,
    connected_at: Option<String>,
    /// The config service replica that it is connected to.
    replica: String,
    /// What it could not apply.
    pub(super) rejections: Vec<Rejection>,
    #[serde(skip)]
    connected: Option<prost_types::Timestamp>,
}

#[derive(Debug, Serialize)]
pub(super) struct Rejection {
    kind: &'static str,
    name: String,
    reason: String,
}

impl Node {
    /// `latest`: the latest revision.
    pub(super) fn new(status: &v1::NodeStatus, latest: u64) -> Self {
        let rejection = |rejection: &v1::Rejection| {
            let (kind, name) = described(rejection.resource.as_ref());
            Rejection {
                kind,
                name,
                reason: rejection.reason.clone(),
            }
        };
        Self {
            name: status.name.clone(),
            region: status.region.clone(),
            version: status.version.clone(),
            steering: status.steering.clone(),
            address: status.address.clone(),
            drain: (status.role() == v1::NodeRole::Edge).then(|| match status.drain() {
                v1::DrainState::Unspecified | v1::DrainState::Serving => "serving",
                v1::DrainState::Draining => "draining",
                v1::DrainState::Drained => "drained",
            }),
            applied_revision: status.applied_revision,
            applied_hash: hex(&status.applied_hash),
            behind: match status.wanted_revision {
                0 => latest,
                wanted => wanted,
            }
            .saturating_sub(status.applied_revision),
            applied_at: status.applied_at.map(|time| time.to_string()),
            connected_at: status.connected_at.map(|time| time.to_string()),
            replica: status.replica.clone(),
            rejections: status.rejections.iter().map(rejection).collect(),
            connected: status.connected_at,
        }
    }

    /// Those of one role, by name.
    pub(super) fn of_role(listed: &v1::ListNodesResponse, role: v1::NodeRole) -> Vec<Self> {
        let of_role = listed.nodes.iter().filter(|node| node.role() == role);
        let mut nodes: Vec<Self> = of_role
            .map(|node| Self::new(node, listed.revision))
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    /// What [`HEADER`] heads.
    pub(super) fn row(&self, now: SystemTime) -> Vec<Cell> {
        let (applied, mood) = match (self.behind, self.rejections.len()) {
            (0, 0) => ("up to date".to_owned(), Mood::Good),
            (0, count) => (format!("rejected {count}"), Mood::Bad),
            (behind, 0) => (format!("{behind} behind"), Mood::Notable),
            (behind, count) => (format!("{behind} behind, rejected {count}"), Mood::Bad),
        };
        let (state, mood) = match self.drain {
            Some(drain @ ("draining" | "drained")) if mood == Mood::Good => {
                (drain.to_owned(), Mood::Notable)
            }
            Some(drain @ ("draining" | "drained")) => (format!("{drain}, {applied}"), mood),
            _ => (applied, mood),
        };
        vec![
            Cell::from(&self.name),
            Cell::from(&self.region),
            Cell::from(self.applied_revision),
            Cell::from(short_hash(&self.applied_hash)),
            Cell::new(state, mood),
            Cell::from(age(now, self.connected)),
            match &*self.steering {
                "" => Cell::from(&self.version),
                steering => Cell::from(format!("{}, {steering}", self.version)),
            },
        ]
    }
}

/// A node that is not connected any more, as JSON and YAML have it.
#[derive(Debug, Serialize)]
pub(super) struct Gone {
    pub(super) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    region: String,
    /// What it last had.
    applied_revision: u64,
    /// RFC 3339.
    since: Option<String>,
    #[serde(skip)]
    left: Option<prost_types::Timestamp>,
    #[serde(skip)]
    last: Node,
}

impl Gone {
    /// Those of one role, by name.
    pub(super) fn of_role(listed: &v1::ListNodesResponse, role: v1::NodeRole) -> Vec<Self> {
        let gone = listed.gone.iter().filter_map(|gone| {
            let last = gone.last.as_ref().filter(|last| last.role() == role)?;
            let node = Node::new(last, listed.revision);
            Some(Self {
                name: node.name.clone(),
                region: node.region.clone(),
                applied_revision: node.applied_revision,
                since: gone.since.map(|time| time.to_string()),
                left: gone.since,
                last: node,
            })
        });
        let mut gone: Vec<Self> = gone.collect();
        gone.sort_by(|a, b| a.name.cmp(&b.name));
        gone
    }

    /// What [`HEADER`] heads.
    pub(super) fn row(&self, now: SystemTime) -> Vec<Cell> {
        let mut row = self.last.row(now);
        let gone = format!("gone for {}", age(now, self.left));
        for (cell, what) in [
            (STATE, Cell::new(gone, Mood::Bad)),
            (CONNECTED, Cell::from("-")),
        ] {
            if let Some(place) = row.get_mut(cell) {
                *place = what;
            }
        }
        row
    }
}

/// `3fa91c02`, as `git` shortens names; enough to see that two differ.
pub(super) fn short_hash(hash: &str) -> &str {
    match hash {
        "" => "-",
        hash => hash.get(..8).unwrap_or(hash),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const STATE: usize = 4;
const CONNECTED: usize = 5;

pub(super) const HEADER: [&str; 7] = [
    "NAME",
    "REGION",
    "REVISION",
    "HASH",
    "STATE",
    "CONNECTED",
    "VERSION",
];

impl Rejection {
    /// `app minecraft: edge_ips[0]: …`.
    pub(super) fn line(&self) -> String {
        let Self { kind, name, reason } = self;
        format!("{kind} {name}: {}", printable(reason))
    }
}
