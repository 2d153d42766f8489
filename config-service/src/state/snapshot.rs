//! One revision, whole, as readers see it.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use anyport_model::{names::Revision, state::Resources};

use super::layout::Layout;
use crate::store::{Head, ObjectId, Record, RequestMark};

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

/// The latest revision, with what is known about it.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) head: Head,
    pub(super) state: Arc<StateAt>,
    pub(super) recent: Recent,
}

impl Snapshot {
    pub fn revision(&self) -> Revision {
        self.state.revision
    }

    /// Where the store's head stood.
    pub fn head(&self) -> &Head {
        &self.head
    }

    pub fn state(&self) -> &Arc<StateAt> {
        &self.state
    }

    pub fn resources(&self) -> &Resources {
        &self.state.resources
    }

    pub fn hash(&self) -> ObjectId {
        self.state.hash()
    }

    /// `None` before the first revision.
    pub fn committed_at(&self) -> Option<SystemTime> {
        self.head.record.as_ref().map(|record| record.committed_at)
    }

    /// W3C trace context of the write; empty: not traced.
    pub fn traceparent(&self) -> &str {
        let record = self.head.record.as_ref();
        record.map_or("", |record| &record.traceparent)
    }

    /// The write that had this request id, if it is not long ago.
    pub fn written_by(&self, request_id: &str) -> Option<&Remembered> {
        let mut recent = self.recent.0.iter().rev();
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

/// The last writes that had one, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Recent(VecDeque<Remembered>);

impl Recent {
    /// Of records in the order of the history, newest first.
    pub(super) fn of(records: &[Record]) -> Self {
        let mut recent = Self::default();
        records.iter().rev().for_each(|record| recent.add(record));
        recent
    }

    pub(super) fn add(&mut self, record: &Record) {
        if let Some(request) = &record.request {
            self.0.push_back(Remembered {
                revision: record.revision,
                request: request.clone(),
                state_hash: record.state_hash,
            });
        }
        let newest_forgotten = record.revision.0.saturating_sub(REMEMBERED as u64);
        while self
            .0
            .front()
            .is_some_and(|first| first.revision.0 <= newest_forgotten)
        {
            self.0.pop_front();
        }
    }
}
