//! Names of our keys.
//!
//! ```text
//! PREFIX/head                      the latest record
//! PREFIX/records/00…042            every record, for the history
//! PREFIX/objects/HASH              chunks and layouts
//! PREFIX/forgotten                 rewritten whenever objects are deleted
//! PREFIX/balancers                 which of them take part
//! PREFIX/nodes/REPLICA/ROLE/NAME   what connected nodes last said
//! PREFIX/replicas/REPLICA          rewritten whenever a replica tells of its nodes
//! ```

use anyport_model::names::Revision;

use crate::store::ObjectId;

/// Makes keys below one prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    pub(super) fn head(&self) -> String {
        format!("{}/head", self.prefix)
    }

    /// Orders as the revisions do.
    pub(super) fn record(&self, revision: Revision) -> String {
        format!("{}/records/{:020}", self.prefix, revision.0)
    }

    pub(super) fn object(&self, id: ObjectId) -> String {
        format!("{}/objects/{id}", self.prefix)
    }

    pub(super) fn objects(&self) -> String {
        format!("{}/objects/", self.prefix)
    }

    pub(super) fn forgotten(&self) -> String {
        format!("{}/forgotten", self.prefix)
    }

    pub(super) fn balancers(&self) -> String {
        format!("{}/balancers", self.prefix)
    }

    pub(super) fn nodes(&self) -> String {
        format!("{}/nodes/", self.prefix)
    }

    pub(super) fn replica(&self, replica: u64) -> String {
        format!("{}/replicas/{replica:016x}", self.prefix)
    }
}
