//! Where revisions live.
//!
//! A state is a tree of immutable objects, each named by the hash of its bytes:
//! chunks of resources, and one layout that lists them. A revision is a small
//! record that names a layout. The *head* is the record of the latest revision,
//! and the only thing that is ever replaced. From that follow, together and for
//! every back end: a write is atomic however large it is, because readers see
//! nothing of it before the head moves; a change stores only the chunks that it
//! touches; every revision kept can be read and brought back; and the state's
//! hash, which edges report back, is the layout's name.
//!
//! What a back end must do is [`Store`]; one suite of tests holds both to it.

pub mod balancers;
pub mod embedded;
pub mod etcd;
mod object;
mod record;
mod url;

use std::{error::Error, fmt};

use anyport_model::names::Revision;
use prost::bytes::Bytes;

pub use object::{Object, ObjectId, ObjectIdError};
pub use record::{Author, Record, RecordError, RequestMark, StoreName};
pub use url::{EtcdUrl, StoreUrl, StoreUrlError};

/// Largest object, in bytes: well under the 1.5 MiB that etcd takes at once.
pub const OBJECT_MAX: usize = 1 << 20;

/// The latest record, and where it stands in the store's own history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `None` before the first revision.
    pub record: Option<Record>,
    pub version: Version,
}

/// The back end's own counter; means nothing outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Changes with every write of the head, and with nothing else.
    pub written: u64,
    /// When the head was read, in the same counting; not before `written`.
    pub read: u64,
}

impl Head {
    pub fn revision(&self) -> Revision {
        let record = self.record.as_ref();
        record.map_or(Revision::EMPTY, |record| record.revision)
    }

    /// Is it the same write of the head, whenever read?
    pub fn is_same_write(&self, other: &Head) -> bool {
        self.version.written == other.version.written && self.record == other.record
    }
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// The head is now the given record, at this version.
    Done(Version),
    /// The head was no longer the one seen; nothing happened.
    Conflict,
}

/// Keeps records and objects, and says when the head moved.
///
/// Every method may be dropped half-way; what it was to write is then written
/// whole or not at all.
#[tonic::async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The latest record.
    async fn head(&self) -> Result<Head, StoreError>;

    /// Returns when the head may have moved since `seen`. May return early and
    /// more than once for one move: the caller reads the head.
    async fn moved(&self, seen: &Head) -> Result<(), StoreError>;

    /// The bytes of these objects, in their order; each one is what its name
    /// says. A missing one is [`StoreError::Corrupt`].
    async fn objects(&self, ids: &[ObjectId]) -> Result<Vec<Bytes>, StoreError>;

    /// Stores the objects and makes `record` the head, if the head is still
    /// `seen`. All or nothing to every reader.
    async fn commit(
        &self,
        seen: &Head,
        record: &Record,
        objects: &[Object],
    ) -> Result<Committed, StoreError>;

    /// The record of one revision, if it is kept.
    async fn record(&self, revision: Revision) -> Result<Option<Record>, StoreError>;

    /// Up to `limit` records below a revision, newest first.
    async fn records_below(&self, below: Revision, limit: usize)
    -> Result<Vec<Record>, StoreError>;

    /// The oldest record that is kept.
    async fn oldest(&self) -> Result<Option<Record>, StoreError>;

    /// Names of all objects, also of those that no record leads to.
    async fn stored(&self) -> Result<Vec<ObjectId>, StoreError>;

    /// Forgets every record below `oldest_kept` and these objects, while the head
    /// is `seen`. False: it was not, or not to the end, and some may be gone.
    ///
    /// A commit that wrote objects before and moves the head after some were
    /// forgotten is a [`Committed::Conflict`]: its own may be among them.
    async fn forget(
        &self,
        seen: &Head,
        oldest_kept: Revision,
        unused: &[ObjectId],
    ) -> Result<bool, StoreError>;

    /// Fails where it would take no commit at present, as far as that can be told
    /// without one.
    async fn takes_writes(&self) -> Result<(), StoreError>;
}

/// A store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be asked, or refuses for now; nothing is known of a write that
    /// was under way.
    #[error("the store is out of reach: {action}: {source}")]
    Unavailable {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
    /// It holds something that cannot be, or that this version cannot read.
    #[error("the store is damaged: {what} {problem}")]
    Corrupt {
        /// Which part of it.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It holds what this process was not given the key for, in words.
    #[error("the store cannot be read: {0}")]
    Sealed(String),
}

impl StoreError {
    pub(crate) fn unavailable(
        action: &'static str,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        Self::Unavailable { action, source }
    }

    pub(crate) fn corrupt(what: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self::Corrupt {
            what: what.to_string(),
            problem: problem.to_string(),
        }
    }
}

/// Reads a record that is kept under `what`.
fn decode_record(what: impl fmt::Display, bytes: &[u8]) -> Result<Record, StoreError> {
    Record::decode(bytes).map_err(|error| StoreError::corrupt(what, error))
}

/// Takes the bytes that a back end has for `id`, if they are what `id` says.
fn verified(id: ObjectId, bytes: Option<Bytes>) -> Result<Bytes, StoreError> {
    let what = || format!("object {id}");
    let bytes = bytes.ok_or_else(|| StoreError::corrupt(what(), "is missing"))?;
    if ObjectId::of(&bytes) != id {
        return Err(StoreError::corrupt(
            what(),
            "holds other bytes than its name says",
        ));
    }
    Ok(bytes)
}
