//! A store that went back: it was restored from an older copy.
//!
//! What it holds now counts, however old, since there is nothing else to lead on
//! from. But it is never taken in silence: the writes since that copy are lost,
//! and somebody was told that they are stored.

use std::time::SystemTime;

use anyport_model::names::Revision;
use tokio::sync::watch;

/// The store was found not to hold a revision that it once held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewind {
    /// The revision; others beside it may be lost too.
    pub lost: Revision,
    /// The latest one, when that was found.
    pub latest: Revision,
    pub noticed_at: SystemTime,
}

/// All that were noticed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rewinds {
    pub count: u64,
    pub last: Option<Rewind>,
}

/// Takes down what is noticed.
#[derive(Debug, Default)]
pub(super) struct Book(watch::Sender<Rewinds>);

impl Book {
    pub(super) fn subscribe(&self) -> watch::Receiver<Rewinds> {
        self.0.subscribe()
    }

    /// `node` is who held the revision, if not this replica: many nodes held it,
    /// and it is told once.
    pub(super) fn note(&self, rewind: Rewind, node: Option<&str>) {
        let is_new = self.0.send_if_modified(|rewinds| {
            let known = node.is_some() && rewinds.last.is_some_and(|last| rewind.lost <= last.lost);
            if !known {
                rewinds.count += 1;
                rewinds.last = Some(rewind);
            }
            !known
        });
        if is_new {
            let Rewind { lost, latest, .. } = rewind;
            tracing::error!(
                lost = lost.0,
                latest = latest.0,
                held_by = node.unwrap_or("this replica"),
                "the store went back, as if restored from an older copy: a revision that it held \
                 is not in it any more, so writes are lost; what it holds now counts"
            );
        }
    }
}
