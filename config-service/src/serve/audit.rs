//! A line in the log for each write, whatever became of it. What a certificate does
//! not allow is logged where that is found.

use anyport_node::access::AUDIT;
use tonic::{Code, Status};

use crate::{admit::Written, store::Author};

/// A write that is under way.
pub(super) struct Entry {
    method: &'static str,
    author: Author,
    message: String,
    told: bool,
}

impl Entry {
    pub(super) fn new(method: &'static str, author: Author, message: &str) -> Self {
        let message = message.to_owned();
        Self {
            method,
            author,
            message,
            told: false,
        }
    }

    /// How it ended.
    pub(super) fn log(mut self, ended: &Result<Written, Status>) {
        self.told = true;
        let Self {
            method,
            author:
                Author {
                    name,
                    roles,
                    serial,
                    peer,
                },
            message,
            ..
        } = &self;
        match ended {
            Ok(written) => {
                let outcome = written.outcome.label();
                let revision = written.revision.0;
                tracing::info!(
                    target: AUDIT,
                    method, outcome, revision, author = name, roles, serial, peer, message,
                    "write"
                );
            }
            Err(status) => {
                let (outcome, why) = (outcome(status.code()), status.message());
                tracing::warn!(
                    target: AUDIT,
                    method, outcome, why, author = name, roles, serial, peer, message,
                    "write refused"
                );
            }
        }
    }
}

impl Drop for Entry {
    /// The caller left, or its deadline passed, while the write was under way.
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let Author {
            name,
            roles,
            serial,
            peer,
        } = &self.author;
        tracing::warn!(
            target: AUDIT,
            method = self.method, outcome = "unknown", author = name, roles, serial, peer,
            message = self.message,
            "write given up by its caller; the history says whether it was done"
        );
    }
}

fn outcome(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "invalid",
        Code::Aborted => "conflict",
        Code::NotFound => "not_found",
        Code::FailedPrecondition => "refused",
        _ => "failed",
    }
}
