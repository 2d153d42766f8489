//! One revision, whole, as readers see it.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use anyport_model::{
    diff::Diff, names::Revision, resource::ResourceRef, rollout::Rollout, state::Resources,
};

use super::layout::Layout;
use crate::{
    nodes::{NodeKey, Role},
    store::{Head, ObjectId, Record, RequestMark, StoreName},
};

/// Revisions of which the request ids are remembered. A client that repeats a
/// write does so within seconds.
pub(super) const REMEMBERED: usize = 256;

/// All resources of one revision, present or past.
#[derive(Debug)]
pub struct StateAt {
    pub revision: Revision,
    pub layout: Layout,
    pub resources: Resources,
}

impl StateAt {
    /// Before anything was declared.
    pub fn empty() -> Self {
        Self {
            revision: Revision::EMPTY,
            layout: Layout::empty(),
            resources: Resources::new(),
        }
    }

    /// Hash of the state, as subscribers report it back.
    pub fn hash(&self) -> ObjectId {
        self.layout.id()
    }
}

/// A revision that nodes are to have.
#[derive(Debug)]
pub struct Target {
    pub state: Arc<StateAt>,
    /// `None` before the first revision.
    pub committed_at: Option<SystemTime>,
    /// W3C trace context of the write; empty: not traced.
    pub traceparent: String,
    /// Of two writes that made the same revision (one of them lost to a restore
    /// from a backup), even with the same state.
    pub written: u64,
    /// Only some are to have it yet.
    pub trial: bool,
    /// The store that it is in.
    pub store: Option<StoreName>,
}

impl Target {
    /// As `record` says, which is none before the first revision; `written` is
    /// when the head was.
    pub(super) fn of(
        record: Option<&Record>,
        state: Arc<StateAt>,
        written: u64,
        store: Option<StoreName>,
    ) -> Arc<Self> {
        Arc::new(Self {
            state,
            committed_at: record.map(|record| record.committed_at),
            traceparent: record.map_or_else(String::new, |record| record.traceparent.clone()),
            written,
            trial: record.is_some_and(|record| record.rollout.is_some()),
            store,
        })
    }
}

/// The latest revision, with what is known about it.
#[derive(Debug)]
pub struct Snapshot {
    head: Head,
    latest: Arc<Target>,
    /// What nodes have that do not try the latest; `None`: all have that.
    stable: Option<Arc<Target>>,
    recent: Recent,
    /// Compared once: it takes as long as there are resources.
    changed: OnceLock<BTreeSet<ResourceRef>>,
    stuck: OnceLock<String>,
}

impl Snapshot {
    pub(super) fn new(
        head: Head,
        state: Arc<StateAt>,
        stable: Option<Arc<Target>>,
        recent: Recent,
    ) -> Self {
        Self {
            latest: Target::of(
                head.record.as_ref(),
                state,
                head.version.written,
                recent.store,
            ),
            head,
            stable,
            recent,
            changed: OnceLock::new(),
            stuck: OnceLock::new(),
        }
    }

    pub(super) fn latest(&self) -> &Arc<Target> {
        &self.latest
    }

    pub(super) fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Who tries the latest revision, where not all have it yet.
    pub fn rollout(&self) -> Option<&Rollout> {
        self.head.record.as_ref()?.rollout.as_ref()
    }

    /// What nodes have that do not try the latest revision.
    pub fn stable(&self) -> &Arc<Target> {
        self.stable.as_ref().unwrap_or(&self.latest)
    }

    /// What a node is to have. Balancers try nothing: what they say of pools is
    /// for all.
    pub fn target(&self, node: &NodeKey) -> &Arc<Target> {
        let tries = |rollout: &Rollout| {
            node.role == Role::Edge && rollout.canary.edges.contains(&node.name)
        };
        match self.rollout() {
            Some(rollout) if !tries(rollout) => self.stable(),
            _ => &self.latest,
        }
    }

    /// What those who try the latest revision have otherwise than all others.
    pub fn changed(&self) -> &BTreeSet<ResourceRef> {
        self.changed.get_or_init(|| {
            let diff = Diff::between(&self.stable().state.resources, self.resources());
            let upserts = diff.upserts.iter().map(|resource| resource.reference());
            upserts.chain(diff.removals.iter().cloned()).collect()
        })
    }

    /// Why the end of its trial, which was decided, is not taken: as long as this is
    /// the latest revision, that stays so.
    pub fn stuck(&self) -> Option<&str> {
        self.stuck.get().map(String::as_str)
    }

    /// See [`stuck`](Self::stuck). The first reason stays.
    pub fn set_stuck(&self, why: String) {
        let _ = self.stuck.set(why);
    }

    /// The store that it was read from; `None`: it has no name yet.
    pub fn store(&self) -> Option<StoreName> {
        self.recent.store
    }

    pub fn revision(&self) -> Revision {
        self.latest.state.revision
    }

    /// Where the store's head stood.
    pub fn head(&self) -> &Head {
        &self.head
    }

    pub fn state(&self) -> &Arc<StateAt> {
        &self.latest.state
    }

    pub fn resources(&self) -> &Resources {
        &self.latest.state.resources
    }

    pub fn hash(&self) -> ObjectId {
        self.latest.state.hash()
    }

    /// `None` before the first revision.
    pub fn committed_at(&self) -> Option<SystemTime> {
        self.latest.committed_at
    }

    /// The write that had this request id, if it is not long ago.
    pub fn written_by(&self, request_id: &str) -> Option<&Remembered> {
        let mut recent = self.recent.requests.iter().rev();
        recent.find(|remembered| remembered.request.id == request_id)
    }
}

/// A write that had a request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    pub revision: Revision,
    pub request: RequestMark,
    pub state_hash: ObjectId,
}

/// What the last records say.
#[derive(Debug, Clone, Default)]
pub(super) struct Recent {
    /// The writes that had one, oldest first.
    requests: VecDeque<Remembered>,
    /// As the newest of them says that names it: a replica of a version that knows no
    /// names writes without.
    store: Option<StoreName>,
}

impl Recent {
    /// Of records in the order of the history, newest first.
    pub(super) fn of(records: &[Record]) -> Self {
        let mut recent = Self::default();
        records.iter().rev().for_each(|record| recent.add(record));
        recent
    }

    pub(super) fn store(&self) -> Option<StoreName> {
        self.store
    }

    pub(super) fn add(&mut self, record: &Record) {
        self.store = record.store.or(self.store);
        if let Some(request) = &record.request {
            self.requests.push_back(Remembered {
                revision: record.revision,
                request: request.clone(),
                state_hash: record.state_hash,
            });
        }
        let newest_forgotten = record.revision.0.saturating_sub(REMEMBERED as u64);
        while self
            .requests
            .front()
            .is_some_and(|first| first.revision.0 <= newest_forgotten)
        {
            self.requests.pop_front();
        }
    }
}
