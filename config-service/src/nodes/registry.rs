//! Who is connected.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use anyport_model::names::NodeName;
use anyport_proto::v1;
use tokio::sync::watch;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Edge,
    Balancer,
}

/// Which node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey {
    pub role: Role,
    pub name: NodeName,
}

impl Role {
    pub const ALL: [Role; 2] = [Role::Edge, Role::Balancer];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Edge => "edge",
            Role::Balancer => "balancer",
        }
    }

    /// `None` for unspecified and for what this version does not know.
    pub fn read(wire: i32) -> Option<Self> {
        match v1::NodeRole::try_from(wire) {
            Ok(v1::NodeRole::Edge) => Some(Role::Edge),
            Ok(v1::NodeRole::Balancer) => Some(Role::Balancer),
            Ok(v1::NodeRole::Unspecified) | Err(_) => None,
        }
    }
}

impl From<Role> for v1::NodeRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Edge => v1::NodeRole::Edge,
            Role::Balancer => v1::NodeRole::Balancer,
        }
    }
}

impl NodeKey {
    pub fn of(status: &v1::NodeStatus) -> Option<Self> {
        Some(Self {
            role: Role::read(status.role)?,
            name: status.name.parse().ok()?,
        })
    }
}

/// `edge/fra1`.
impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role.as_str(), self.name)
    }
}

/// All nodes that are connected to any replica. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Nodes {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    book: Mutex<Book>,
    /// Counts changes, for those who wait for one.
    changes: watch::Sender<u64>,
    /// Nothing is known of nodes elsewhere, where there is an elsewhere.
    elsewhere_unknown: AtomicBool,
    /// To other replicas, the nodes that are connected here are gone.
    cut_off: watch::Sender<bool>,
    /// As `changes`, of the nodes that are connected here only.
    changes_here: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Book {
    next_session: u64,
    here: BTreeMap<NodeKey, Here>,
    elsewhere: BTreeMap<NodeKey, Arc<v1::NodeStatus>>,
    gone: BTreeMap<NodeKey, Gone>,
}

/// A node that is not connected any more.
#[derive(Debug, Clone)]
pub struct Gone {
    pub last: Arc<v1::NodeStatus>,
    pub since: SystemTime,
}

/// For who asks what is missing; a node that is away for longer was given up.
const GONE_FOR: Duration = Duration::from_hours(24);
/// Of them, those that are gone for longest are forgotten first.
const GONE_MAX: usize = 1000;

impl Book {
    fn is_connected(&self, key: &NodeKey) -> bool {
        self.here.contains_key(key) || self.elsewhere.contains_key(key)
    }

    /// What nodes of a role, or of both, last said; of a node that is connected twice,
    /// what the later connection says.
    fn latest(&self, role: Option<Role>) -> BTreeMap<&NodeKey, &v1::NodeStatus> {
        let mut latest: BTreeMap<&NodeKey, &v1::NodeStatus> = BTreeMap::new();
        let elsewhere = self.elsewhere.iter().map(|(key, status)| (key, &**status));
        let here = self.here.iter().map(|(key, here)| (key, &*here.status));
        for (key, status) in elsewhere.chain(here) {
            if role.is_some_and(|role| key.role != role) {
                continue;
            }
            let later = |other: &&v1::NodeStatus| connected_at(other) > connected_at(status);
            if !latest.get(key).is_some_and(later) {
                latest.insert(key, status);
            }
        }
        latest
    }

    /// After a node has left, from here or from elsewhere. Of what it last said, its
    /// reports are dropped: they are long, and not true any more.
    fn left(&mut self, key: NodeKey, last: Arc<v1::NodeStatus>) {
        if self.is_connected(&key) {
            return;
        }
        let last = Arc::new(v1::NodeStatus {
            pools: Vec::new(),
            rejections: Vec::new(),
            trial: None,
            ..Arc::unwrap_or_clone(last)
        });
        let since = SystemTime::now();
        self.gone.insert(key, Gone { last, since });
        if self.gone.len() > GONE_MAX {
            let longest = self.gone.iter().min_by_key(|(_, gone)| gone.since);
            if let Some(key) = longest.map(|(key, _)| key.clone()) {
                self.gone.remove(&key);
            }
        }
    }
}

#[derive(Debug)]
struct Here {
    session: u64,
    status: Arc<v1::NodeStatus>,
}

/// A node's connection; the node vanishes when it is dropped.
#[derive(Debug)]
pub struct Session {
    nodes: Nodes,
    key: NodeKey,
    id: u64,
}

impl Nodes {
    /// A node has connected here. It replaces an older connection of the same
    /// node, which may not have noticed its end yet.
    pub fn connect(&self, key: NodeKey, status: v1::NodeStatus) -> Session {
        let mut book = self.book();
        let id = book.next_session;
        book.next_session += 1;
        let here = Here {
            session: id,
            status: Arc::new(status),
        };
        book.gone.remove(&key);
        if book.here.insert(key.clone(), here).is_some() {
            tracing::warn!(
                node = %key,
                "a second connection under this name; is the name given to two nodes?"
            );
        }
        drop(book);
        self.changed_here();
        Session {
            nodes: self.clone(),
            key,
            id,
        }
    }

    /// What nodes last said, by role and name; of a node that is connected
    /// twice, what the later connection says.
    pub fn list(&self, role: Option<Role>) -> Vec<v1::NodeStatus> {
        let book = self.book();
        let latest = book.latest(role).into_values();
        latest.map(v1::NodeStatus::clone).collect()
    }

    /// The balancers that are connected to any replica, each with the URL of its gRPC
    /// service; `None`: it is not known who is connected elsewhere.
    pub fn balancers(&self) -> Option<BTreeMap<NodeName, String>> {
        if !self.elsewhere_is_known() {
            return None;
        }
        let book = self.book();
        let latest = book.latest(Some(Role::Balancer)).into_iter();
        Some(
            latest
                .map(|(key, status)| (key.name.clone(), status.address.clone()))
                .collect(),
        )
    }

    /// Nodes that were connected within the last day and are not any more, by role
    /// and name.
    pub fn gone(&self, role: Option<Role>) -> Vec<Gone> {
        let mut book = self.book();
        let now = SystemTime::now();
        book.gone.retain(|_, gone| {
            let gone_for = now.duration_since(gone.since);
            gone_for.is_ok_and(|gone_for| gone_for < GONE_FOR)
        });
        let of_role = book
            .gone
            .iter()
            .filter(|(key, _)| role.is_none_or(|role| key.role == role));
        of_role.map(|(_, gone)| gone.clone()).collect()
    }

    /// Is it known which nodes are connected elsewhere? Always, where there is no
    /// elsewhere.
    pub fn elsewhere_is_known(&self) -> bool {
        !self.shared.elsewhere_unknown.load(Relaxed)
    }

    pub fn set_elsewhere_known(&self, known: bool) {
        self.shared.elsewhere_unknown.store(!known, Relaxed);
    }

    /// Names of the nodes of a role.
    pub fn names(&self, role: Role) -> Vec<String> {
        let nodes = self.list(Some(role)).into_iter();
        nodes.map(|node| node.name).collect()
    }

    /// Number of nodes of a role that are connected here.
    pub fn count_here(&self, role: Role) -> usize {
        let book = self.book();
        book.here.keys().filter(|key| key.role == role).count()
    }

    /// What the nodes that are connected here last said.
    pub fn here(&self) -> BTreeMap<NodeKey, Arc<v1::NodeStatus>> {
        let book = self.book();
        let here = book.here.iter();
        here.map(|(key, here)| (key.clone(), Arc::clone(&here.status)))
            .collect()
    }

    /// Takes what other replicas say of theirs, in place of what they said
    /// before.
    pub fn set_elsewhere(&self, statuses: Vec<v1::NodeStatus>) {
        let mut elsewhere: BTreeMap<NodeKey, Arc<v1::NodeStatus>> = BTreeMap::new();
        for status in statuses {
            let Some(key) = NodeKey::of(&status) else {
                tracing::warn!(
                    name = status.name,
                    "another replica told of a node without role or name"
                );
                continue;
            };
            let later = elsewhere
                .get(&key)
                .is_some_and(|other| connected_at(other) > connected_at(&status));
            if !later {
                elsewhere.insert(key, Arc::new(status));
            }
        }
        self.shared.cut_off.send_if_modified(std::mem::take);
        let mut book = self.book();
        if book.elsewhere == elsewhere {
            return;
        }
        book.gone.retain(|key, _| !elsewhere.contains_key(key));
        let before = std::mem::replace(&mut book.elsewhere, elsewhere);
        for (key, last) in before {
            book.left(key, last);
        }
        drop(book);
        self.shared.changes.send_modify(|count| *count += 1);
    }

    /// Nothing is known of nodes elsewhere any more: to others, ours are gone.
    pub fn lose_elsewhere(&self) {
        let lost = std::mem::take(&mut self.book().elsewhere);
        if !lost.is_empty() {
            self.shared.changes.send_modify(|count| *count += 1);
        }
        self.shared
            .cut_off
            .send_if_modified(|cut_off| !std::mem::replace(cut_off, true));
    }

    /// Whether to other replicas the nodes that are connected here are gone.
    pub fn cut_off(&self) -> watch::Receiver<bool> {
        self.shared.cut_off.subscribe()
    }

    /// Notices every change of [`list`](Self::list).
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Notices every change of [`here`](Self::here).
    pub fn changes_here(&self) -> watch::Receiver<u64> {
        self.shared.changes_here.subscribe()
    }

    fn changed_here(&self) {
        self.shared.changes_here.send_modify(|count| *count += 1);
        self.shared.changes.send_modify(|count| *count += 1);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change to it is a single step, so a panic leaves it sound.
        self.shared
            .book
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// The node said something new. Nothing happens if a newer connection
    /// speaks for it.
    pub fn update(&self, change: impl FnOnce(&mut v1::NodeStatus)) {
        let mut book = self.nodes.book();
        let Some(here) = book.here.get_mut(&self.key) else {
            return;
        };
        if here.session != self.id {
            return;
        }
        change(Arc::make_mut(&mut here.status));
        drop(book);
        self.nodes.changed_here();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut book = self.nodes.book();
        let mine = |here: &Here| here.session == self.id;
        if !book.here.get(&self.key).is_some_and(mine) {
            return;
        }
        if let Some(here) = book.here.remove(&self.key) {
            book.left(self.key.clone(), here.status);
        }
        drop(book);
        self.nodes.changed_here();
    }
}

fn connected_at(status: &v1::NodeStatus) -> Option<(i64, i32)> {
    status.connected_at.map(|at| (at.seconds, at.nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> NodeKey {
        NodeKey {
            role: Role::Edge,
            name: name.parse().expect("a name"),
        }
    }

    fn status(name: &str, connected: i64, revision: u64) -> v1::NodeStatus {
        v1::NodeStatus {
            role: v1::NodeRole::Edge.into(),
            name: name.to_owned(),
            applied_revision: revision,
            connected_at: Some(prost_types::Timestamp {
                seconds: connected,
                nanos: 0,
            }),
            ..Default::default()
        }
    }

    fn applied(nodes: &Nodes) -> Vec<(String, u64)> {
        let list = nodes.list(None).into_iter();
        list.map(|node| (node.name, node.applied_revision))
            .collect()
    }

    #[test]
    fn a_node_vanishes_with_its_connection() {
        let nodes = Nodes::default();
        let session = nodes.connect(key("a"), status("a", 1, 0));
        session.update(|status| status.applied_revision = 4);
        assert_eq!(applied(&nodes), [("a".to_owned(), 4)]);
        drop(session);
        assert_eq!(applied(&nodes), []);
    }

    fn gone(nodes: &Nodes) -> Vec<(String, u64)> {
        let gone = nodes.gone(None).into_iter();
        gone.map(|gone| (gone.last.name.clone(), gone.last.applied_revision))
            .collect()
    }

    #[test]
    fn who_is_gone_is_known_until_it_comes_back_here_or_elsewhere() {
        let nodes = Nodes::default();
        let a = nodes.connect(key("a"), status("a", 1, 4));
        let b = nodes.connect(key("b"), status("b", 1, 5));
        nodes.set_elsewhere(vec![status("b", 2, 6), status("c", 2, 7)]);
        drop((a, b));
        // One of them has only moved.
        assert_eq!(gone(&nodes), [("a".to_owned(), 4)]);
        nodes.set_elsewhere(vec![status("c", 2, 7)]);
        assert_eq!(gone(&nodes), [("a".to_owned(), 4), ("b".to_owned(), 6)]);
        nodes.set_elsewhere(vec![status("b", 3, 6), status("c", 2, 7)]);
        let _back = nodes.connect(key("a"), status("a", 4, 4));
        assert_eq!(gone(&nodes), []);
        // That nobody is heard of does not mean that they are gone.
        nodes.lose_elsewhere();
        assert_eq!((gone(&nodes), nodes.list(None).len()), (vec![], 1));
    }

    #[test]
    fn of_who_is_gone_no_reports_are_kept() {
        let nodes = Nodes::default();
        let reports = |name| v1::NodeStatus {
            pools: vec![v1::PoolHealth::default()],
            rejections: vec![v1::Rejection::default()],
            trial: Some(v1::TrialReport::default()),
            ..status(name, 1, 4)
        };
        nodes.set_elsewhere(vec![reports("b")]);
        drop(nodes.connect(key("a"), reports("a")));
        nodes.set_elsewhere(vec![]);
        let last: Vec<_> = nodes.gone(None).into_iter().map(|gone| gone.last).collect();
        assert_eq!(last, [status("a", 1, 4), status("b", 1, 4)].map(Arc::new));
    }

    #[test]
    fn so_many_are_remembered() {
        let nodes = Nodes::default();
        for number in 0..GONE_MAX + 3 {
            let name = format!("n{number}");
            drop(nodes.connect(key(&name), status(&name, 1, 0)));
        }
        assert_eq!(nodes.gone(None).len(), GONE_MAX);
        assert_eq!(nodes.gone(Some(Role::Balancer)).len(), 0);
    }

    #[test]
    fn the_newer_connection_speaks_for_a_node_and_the_older_ones_end_is_no_end() {
        let nodes = Nodes::default();
        let older = nodes.connect(key("a"), status("a", 1, 1));
        let newer = nodes.connect(key("a"), status("a", 2, 2));
        older.update(|status| status.applied_revision = 9);
        drop(older);
        assert_eq!(applied(&nodes), [("a".to_owned(), 2)]);
        drop(newer);
        assert_eq!(applied(&nodes), []);
    }

    #[test]
    fn of_a_node_at_two_replicas_the_later_connection_counts() {
        let nodes = Nodes::default();
        let _moved_here = nodes.connect(key("a"), status("a", 5, 1));
        let _moved_away = nodes.connect(key("b"), status("b", 5, 1));
        nodes.set_elsewhere(vec![
            status("a", 4, 2),
            status("b", 6, 2),
            status("c", 1, 2),
        ]);
        let expected = [("a", 1), ("b", 2), ("c", 2)];
        assert_eq!(
            applied(&nodes),
            expected.map(|(name, r)| (name.to_owned(), r))
        );
    }

    #[tokio::test]
    async fn only_what_changes_the_list_wakes_those_who_wait() {
        let nodes = Nodes::default();
        let mut changes = nodes.changes();
        nodes.set_elsewhere(vec![status("a", 1, 1)]);
        assert!(changes.has_changed().expect("open"));
        changes.borrow_and_update();
        nodes.set_elsewhere(vec![status("a", 1, 1)]);
        assert!(!changes.has_changed().expect("open"));
    }
}
