//! What was seen of a pool's origins.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyport_model::{
    latency::PeakEwma,
    names::{AppName, PoolName},
    pick::Load,
};

use super::lock;
use crate::origin::{Rest, Unheard};

/// The origins that an app's connections can go to: a declared pool, or the
/// app's own `origin_direct` or `origin_dns`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolId {
    Declared(PoolName),
    DirectOf(AppName),
}

impl PoolId {
    /// The `pool` label; an app's own origins are in none.
    pub fn label(&self) -> &str {
        match self {
            PoolId::Declared(name) => name.as_str(),
            PoolId::DirectOf(_) => "",
        }
    }
}

/// Counters of one pool's origins, and whose turn it is.
#[derive(Default)]
pub struct PoolStats {
    /// How many of the origins have failed and not succeeded since.
    troubled: Arc<AtomicUsize>,
    /// Goes up by one with each connection that an origin is chosen for.
    pub turn: AtomicUsize,
    origins: Mutex<BTreeMap<Arc<str>, Arc<OriginStats>>>,
}

/// What was seen of one origin, over all apps.
pub struct OriginStats {
    /// What [`Rest`] counts from.
    since: Instant,
    rest: Rest,
    /// Those of the pool that something is against.
    troubled: Arc<AtomicUsize>,
    open: AtomicU32,
    /// A [`PeakEwma`], where the pool's policy asks for it.
    answers: AtomicU64,
    dials: AtomicU64,
    failures: AtomicU64,
    connect_micros: AtomicU64,
    last_failure: Mutex<Option<String>>,
}

/// Counts of an origin that only grow, as of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OriginCounts {
    pub dials: u64,
    pub failures: u64,
    /// Of the dials that succeeded, all together.
    pub connect_time: Duration,
}

impl PoolStats {
    /// The counters of an origin, the same ones each time.
    pub fn origin(&self, label: &str) -> Arc<OriginStats> {
        let mut origins = lock(&self.origins);
        match origins.get(label) {
            Some(stats) => Arc::clone(stats),
            None => {
                let stats = Arc::new(OriginStats::new(Arc::clone(&self.troubled)));
                Arc::clone(origins.entry(label.into()).or_insert(stats))
            }
        }
    }

    /// Forgets origins that are gone, and names them.
    pub fn retain(&self, labels: &BTreeSet<&str>) -> Vec<Arc<str>> {
        let mut origins = lock(&self.origins);
        let gone = |label: &&Arc<str>| !labels.contains(label.as_ref());
        let gone: Vec<Arc<str>> = origins.keys().filter(gone).cloned().collect();
        origins.retain(|label, _| labels.contains(label.as_ref()));
        gone
    }

    /// Something is against some of the origins.
    pub fn is_troubled(&self) -> bool {
        self.troubled.load(Relaxed) > 0
    }

    pub(super) fn origins(&self) -> Vec<(Arc<str>, Arc<OriginStats>)> {
        let origins = lock(&self.origins);
        let pairs = origins
            .iter()
            .map(|(label, stats)| (Arc::clone(label), Arc::clone(stats)));
        pairs.collect()
    }
}

impl OriginStats {
    fn new(troubled: Arc<AtomicUsize>) -> Self {
        Self {
            since: Instant::now(),
            rest: Rest::default(),
            troubled,
            open: AtomicU32::new(0),
            answers: AtomicU64::new(0),
            dials: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            connect_micros: AtomicU64::new(0),
            last_failure: Mutex::default(),
        }
    }

    /// It refused lately and should not be the first choice.
    pub fn is_resting(&self, now: Instant) -> bool {
        self.rest
            .is_resting(now.saturating_duration_since(self.since))
    }

    /// Whether a connection may use it that has found it at rest no longer: see
    /// [`Rest::may_try`].
    pub fn may_try(&self, now: Instant, patience: Duration, unheard: Unheard) -> bool {
        let now = now.saturating_duration_since(self.since);
        self.rest.may_try(now, patience, unheard)
    }

    /// What a choice goes by.
    pub fn load(&self, now: Instant) -> Load {
        Load {
            open: self.open(),
            answers: PeakEwma::from_bits(self.answers.load(Relaxed)),
            now: now.saturating_duration_since(self.since),
        }
    }

    /// It took so long to connect, before any answer: better than to know
    /// nothing of it, or nothing any more.
    pub fn connected_after(&self, took: Duration) {
        let now = self.since.elapsed();
        let after = |bits| {
            let after = PeakEwma::from_bits(bits).at_least(now, took).to_bits();
            (after != bits).then_some(after)
        };
        let _ = self.answers.fetch_update(Relaxed, Relaxed, after);
    }

    /// It took so long to connect and to answer.
    pub fn answered_after(&self, took: Duration) {
        let now = self.since.elapsed();
        let after = |bits| Some(PeakEwma::from_bits(bits).observe(now, took).to_bits());
        let _ = self.answers.fetch_update(Relaxed, Relaxed, after);
    }

    /// Connections open or being opened.
    pub fn open(&self) -> u32 {
        self.open.load(Relaxed)
    }

    /// Counts a connection from before its dial until the guard is dropped:
    /// pending ones load an origin too.
    pub fn hold(self: &Arc<Self>) -> OpenGuard {
        self.open.fetch_add(1, Relaxed);
        OpenGuard(Arc::clone(self))
    }

    /// What an origin showed just now.
    pub fn dialled(&self, outcome: Result<Duration, &dyn std::fmt::Display>) {
        self.dialled_since(Instant::now(), outcome);
    }

    /// What became of a dial that `began` then.
    pub fn dialled_since(&self, began: Instant, outcome: Result<Duration, &dyn std::fmt::Display>) {
        self.dials.fetch_add(1, Relaxed);
        match outcome {
            Ok(took) => {
                if self.rest.succeeded(self.since.elapsed()) {
                    self.troubled.fetch_sub(1, Relaxed);
                }
                let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.connect_micros.fetch_add(micros, Relaxed);
            }
            Err(why) => {
                let began = began.saturating_duration_since(self.since);
                if self.rest.failed(began, self.since.elapsed()) {
                    self.troubled.fetch_add(1, Relaxed);
                }
                self.failures.fetch_add(1, Relaxed);
                *lock(&self.last_failure) = Some(why.to_string());
            }
        }
    }

    pub fn counts(&self) -> OriginCounts {
        OriginCounts {
            dials: self.dials.load(Relaxed),
            failures: self.failures.load(Relaxed),
            connect_time: Duration::from_micros(self.connect_micros.load(Relaxed)),
        }
    }

    pub fn last_failure(&self) -> Option<String> {
        lock(&self.last_failure).clone()
    }
}

impl Drop for OriginStats {
    fn drop(&mut self) {
        if self.rest.succeeded(self.since.elapsed()) {
            self.troubled.fetch_sub(1, Relaxed);
        }
    }
}

/// One open connection to an origin.
pub struct OpenGuard(Arc<OriginStats>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}
