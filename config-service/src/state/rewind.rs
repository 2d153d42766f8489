//! A store that went back: it was restored from an older copy.
//!
//! What it holds now counts, however old, since there is nothing else to lead on
//! from. But it is never taken in silence: the writes since that copy are lost,
//! and somebody was told that they are stored.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use anyport_model::names::Revision;
use tokio::sync::watch;

use crate::store::ObjectId;

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

/// Revisions that are remembered as told of.
const TOLD: usize = 1_024;

/// Takes down what is noticed.
#[derive(Debug, Default)]
pub(super) struct Book {
    rewinds: watch::Sender<Rewinds>,
    /// Number of those that this replica found itself.
    own: watch::Sender<u64>,
    /// Each with the hash of its state, since a number comes a second time.
    told: Mutex<VecDeque<(Revision, ObjectId)>>,
}

impl Book {
    pub(super) fn subscribe(&self) -> watch::Receiver<Rewinds> {
        self.rewinds.subscribe()
    }

    pub(super) fn own(&self) -> watch::Receiver<u64> {
        self.own.subscribe()
    }

    /// `hash` is that of the lost state; `node` is who held it, if not this replica.
    /// Many nodes hold the same revision, and of each it is told once.
    pub(super) fn note(&self, rewind: Rewind, hash: ObjectId, node: Option<&str>) {
        let Rewind { lost, latest, .. } = rewind;
        if !self.is_news((lost, hash)) && node.is_some() {
            return;
        }
        self.rewinds.send_modify(|rewinds| {
            rewinds.count += 1;
            rewinds.last = Some(rewind);
        });
        if node.is_none() {
            self.own.send_modify(|count| *count += 1);
        }
        tracing::error!(
            lost = lost.0,
            latest = latest.0,
            held_by = node.unwrap_or("this replica"),
            "the store went back, as if restored from an older copy: a revision that it held \
             is not in it any more, so writes are lost; what it holds now counts"
        );
    }

    fn is_news(&self, lost: (Revision, ObjectId)) -> bool {
        // Every change to it is a single step, so a panic leaves it sound.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.contains(&lost) {
            return false;
        }
        if told.len() == TOLD {
            told.pop_front();
        }
        told.push_back(lost);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewind(lost: u64) -> Rewind {
        Rewind {
            lost: Revision(lost),
            latest: Revision(5),
            noticed_at: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn each_lost_revision_is_told_once_and_none_hides_another() {
        let book = Book::default();
        let [one, other] = [b"one", b"two"].map(|state| ObjectId::of(state));
        let counts = |lost, hash, node| {
            book.note(rewind(lost), hash, node);
            book.subscribe().borrow().count
        };
        assert_eq!(counts(900, one, Some("edge/a")), 1);
        assert_eq!(counts(900, one, Some("edge/b")), 1, "the same one");
        assert_eq!(counts(7, one, Some("edge/b")), 2, "an earlier one");
        assert_eq!(counts(7, other, Some("edge/c")), 3, "the number again");
        // What this replica held itself is lost each time that it is.
        assert_eq!(counts(7, other, None), 4);
        assert_eq!(counts(8, one, None), 5);
        assert_eq!(counts(8, one, Some("edge/a")), 5);
        assert_eq!(*book.own().borrow(), 2);
        assert_eq!(book.subscribe().borrow().last, Some(rewind(8)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let book = Book::default();
        for lost in 0..3 * TOLD as u64 {
            book.note(rewind(lost), ObjectId::of(b"state"), Some("edge/a"));
        }
        let told = book.told.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(told.len(), TOLD);
    }
}
