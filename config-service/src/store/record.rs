//! What is kept of each revision beside its state: who, when, why.

use std::time::SystemTime;

use anyport_model::{fault::Fault, names::Revision, rollout::Rollout};
use anyport_proto::{
    convert::{read_rollout, write_rollout},
    v1,
};
use prost::Message;

use super::object::ObjectId;

/// One revision. Small: its state is a tree of objects below `state_hash`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub revision: Revision,
    pub committed_at: SystemTime,
    pub author: Author,
    /// Why, as the author said.
    pub message: String,
    pub created: u32,
    pub updated: u32,
    pub deleted: u32,
    /// The revision whose state this one brought back.
    pub rollback_of: Option<Revision>,
    /// Set where only some nodes are to have it.
    pub rollout: Option<Rollout>,
    /// The revision of the same state that only some had.
    pub promotion_of: Option<Revision>,
    /// Name of the state's layout object, and what subscribers report back.
    pub state_hash: ObjectId,
    /// What asked for it, where it said so.
    pub request: Option<RequestMark>,
    /// W3C trace context of the write; empty: not traced.
    pub traceparent: String,
    /// The store that it was written to; `None` before stores had names.
    pub store: Option<StoreName>,
}

/// Tells a store from all others, but not from copies of it. By chance, with its first
/// revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreName([u8; 16]);

impl StoreName {
    /// From numbers uniform over all 64 bits.
    pub fn new(random: [u64; 2]) -> Self {
        let [high, low] = random.map(u64::to_be_bytes);
        let mut name = [0; 16];
        name[..8].copy_from_slice(&high);
        name[8..].copy_from_slice(&low);
        Self(name)
    }

    /// `None` where `bytes` are not 16 in number.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

/// Who wrote, as far as known; what is not is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Author {
    /// By the certificate; without one, as the client said.
    pub name: String,
    /// Of the certificate.
    pub roles: String,
    /// Of the certificate.
    pub serial: String,
    /// Address and port.
    pub peer: String,
}

/// Tells a repeated write from a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestMark {
    /// As the client chose it; not empty.
    pub id: String,
    /// Hash of the whole request: the same id with another content is a fault.
    pub digest: ObjectId,
}

/// Bytes that are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("is no record: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("is a record without {0}")]
    Missing(&'static str),
    #[error("is a record whose rollout.{0}")]
    Rollout(Fault),
    #[error("is a record whose {field} has {len} bytes; a hash has 32")]
    HashLength { field: &'static str, len: usize },
}

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(message, optional, tag = "1")]
    record: Option<v1::RevisionRecord>,
    #[prost(string, tag = "2")]
    request_id: String,
    #[prost(bytes = "vec", tag = "3")]
    request_digest: Vec<u8>,
    #[prost(string, tag = "4")]
    traceparent: String,
    #[prost(bytes = "vec", tag = "5")]
    store: Vec<u8>,
}

impl Record {
    /// As the history shows it.
    pub fn to_wire(&self) -> v1::RevisionRecord {
        v1::RevisionRecord {
            revision: self.revision.0,
            committed_at: Some(self.committed_at.into()),
            author: self.author.name.clone(),
            roles: self.author.roles.clone(),
            serial: self.author.serial.clone(),
            peer: self.author.peer.clone(),
            message: self.message.clone(),
            created: self.created,
            updated: self.updated,
            deleted: self.deleted,
            rollback_of: self.rollback_of.map_or(0, |revision| revision.0),
            state_hash: self.state_hash.to_vec(),
            rollout: self.rollout.as_ref().map(write_rollout),
            promotion_of: self.promotion_of.map_or(0, |revision| revision.0),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let (request_id, request_digest) = match &self.request {
            Some(mark) => (mark.id.clone(), mark.digest.to_vec()),
            None => Default::default(),
        };
        let stored = Stored {
            record: Some(self.to_wire()),
            request_id,
            request_digest,
            traceparent: self.traceparent.clone(),
            store: self.store.map_or_else(Vec::new, StoreName::to_vec),
        };
        stored.encode_to_vec()
    }

    /// # Errors
    /// [`RecordError`], which says what is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let stored = Stored::decode(bytes)?;
        let record = stored.record.ok_or(RecordError::Missing("a revision"))?;
        let committed_at = record
            .committed_at
            .and_then(|at| SystemTime::try_from(at).ok())
            .ok_or(RecordError::Missing("a time of commit"))?;
        let request = if stored.request_id.is_empty() {
            None
        } else {
            Some(RequestMark {
                id: stored.request_id,
                digest: hash("request_digest", &stored.request_digest)?,
            })
        };
        let rollout = record.rollout.as_ref().map(read_rollout).transpose();
        let rollout = rollout.map_err(|faults| {
            let first = faults.into_iter().next();
            RecordError::Rollout(first.unwrap_or_else(|| Fault::new("", "is unreadable")))
        })?;
        Ok(Self {
            revision: Revision(record.revision),
            committed_at,
            author: Author {
                name: record.author,
                roles: record.roles,
                serial: record.serial,
                peer: record.peer,
            },
            message: record.message,
            created: record.created,
            updated: record.updated,
            deleted: record.deleted,
            rollback_of: set(record.rollback_of),
            rollout,
            promotion_of: set(record.promotion_of),
            state_hash: hash("state_hash", &record.state_hash)?,
            request,
            traceparent: stored.traceparent,
            store: StoreName::from_slice(&stored.store),
        })
    }
}

/// 0 stands for none.
fn set(revision: u64) -> Option<Revision> {
    (revision != 0).then_some(Revision(revision))
}

fn hash(field: &'static str, bytes: &[u8]) -> Result<ObjectId, RecordError> {
    let len = bytes.len();
    ObjectId::from_slice(bytes).ok_or(RecordError::HashLength { field, len })
}

#[cfg(test)]
mod tests {
    use anyport_model::rollout::Canary;

    use super::*;

    fn record() -> Record {
        Record {
            revision: Revision(7),
            committed_at: SystemTime::now(),
            author: Author {
                name: "ana".to_owned(),
                roles: "operator".to_owned(),
                serial: "0a:1b".to_owned(),
                peer: "10.0.0.7:49152".to_owned(),
            },
            message: "more origins".to_owned(),
            created: 1,
            updated: 2,
            deleted: 3,
            rollback_of: Some(Revision(5)),
            rollout: Some(Rollout {
                canary: Canary {
                    edges: ["edge1".parse().expect("a name")].into(),
                    promote_after: None,
                },
                stable: Revision(6),
            }),
            promotion_of: Some(Revision(4)),
            state_hash: ObjectId::of(b"layout"),
            request: Some(RequestMark {
                id: "r-1".to_owned(),
                digest: ObjectId::of(b"request"),
            }),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            store: Some(StoreName::new([1, 2])),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let full = record();
        let bare = Record {
            rollback_of: None,
            rollout: None,
            promotion_of: None,
            request: None,
            store: None,
            ..record()
        };
        for record in [full, bare] {
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn bytes_that_are_no_record_are_refused_with_what_is_missing() {
        for (bytes, problem) in [
            (&b""[..], "is a record without a revision"),
            (&b"\x0a\x00"[..], "is a record without a time of commit"),
            (&b"\xff"[..], "is no record: "),
        ] {
            let error = Record::decode(bytes).expect_err("no record").to_string();
            assert!(error.starts_with(problem), "{error}");
        }
    }
}
