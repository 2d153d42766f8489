//! What the edges of a fleet have come to.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyport_model::replica::{Scope, Update};

/// Where one edge stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Is there a stream to a replica?
    pub connected: bool,
    /// The revision that it holds.
    pub revision: u64,
    /// Updates that it has taken since it last connected.
    pub updates: u64,
    /// Whole states that it has ever taken.
    pub whole: u64,
}

/// What edges write down as they take updates.
#[derive(Debug)]
pub struct Book {
    pages: Mutex<Pages>,
}

#[derive(Debug)]
struct Pages {
    standings: Vec<Standing>,
    took: Vec<Duration>,
    /// The hash that came with a revision.
    known: BTreeMap<u64, Vec<u8>>,
    contradictions: Vec<String>,
}

impl Book {
    /// For so many edges.
    pub fn new(edges: usize) -> Self {
        Self {
            pages: Mutex::new(Pages {
                standings: vec![Standing::default(); edges],
                took: Vec::new(),
                known: BTreeMap::new(),
                contradictions: Vec::new(),
            }),
        }
    }

    /// Where each edge stands.
    pub fn standings(&self) -> Vec<Standing> {
        self.pages().standings.clone()
    }

    /// Edges of which this holds.
    pub fn count(&self, holds: impl Fn(&Standing) -> bool) -> usize {
        let pages = self.pages();
        pages.standings.iter().filter(|edge| holds(edge)).count()
    }

    /// From commit to applied, of every edge and every update that was a change, since this was last
    /// asked for.
    pub fn take_times(&self) -> Vec<Duration> {
        std::mem::take(&mut self.pages().took)
    }

    /// What edges were told that cannot all be true: two hashes for one revision, a revision that
    /// went back.
    pub fn contradictions(&self) -> Vec<String> {
        self.pages().contradictions.clone()
    }

    pub(super) fn connected(&self, index: usize, connected: bool) {
        let mut pages = self.pages();
        let standing = &mut pages.standings[index];
        standing.connected = connected;
        if connected {
            standing.updates = 0;
        }
    }

    /// An edge has taken `update`, which was committed then.
    pub(super) fn took(&self, index: usize, update: &Update, committed: Option<SystemTime>) {
        let took = committed.and_then(|committed| committed.elapsed().ok());
        let mut pages = self.pages();
        let revision = update.revision.0;
        let standing = &mut pages.standings[index];
        let before = std::mem::replace(&mut standing.revision, revision);
        standing.updates += 1;
        let whole = matches!(update.scope, Scope::Full);
        standing.whole += u64::from(whole);
        if revision < before {
            let what = format!("edge {index} was led from {before} back to {revision}");
            pages.contradictions.push(what);
        }
        let hash = &update.state_hash;
        let first = pages.known.entry(revision).or_insert_with(|| hash.clone());
        if first != hash {
            let what = format!("edge {index} was told of another revision {revision} than others");
            pages.contradictions.push(what);
        }
        // What it was behind when it came says nothing of how long a change takes.
        if let (Some(took), false) = (took, whole || before == revision || before == 0) {
            pages.took.push(took);
        }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // Every change to it is a single step, so a panic leaves it sound.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
