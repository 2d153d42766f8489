//! Descriptors: how many connections and flows may hold, and what becomes of
//! those for which there are none.
//!
//! The limit is the process's (RLIMIT_NOFILE). What it had open before it
//! accepted anything stays open, and [`RESERVE`] more are left to everything
//! that is not a connection or a flow. The rest is handed out in pairs, a socket
//! to the client and one to the origin, to connections and flows alike; whoever
//! gets none is turned away at once. Nothing that is open is closed to make room:
//! at this layer an idle connection that somebody needs looks like one that
//! nobody does.

use std::{
    fs::{self, File},
    ops::Deref,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyport_node::{metrics::registered, ready::Remark};
use nix::sys::resource::{Resource, getrlimit};
use prometheus::{PullingGauge, Registry};
use tokio::{sync::Notify, time::Instant};

use crate::stats::{DropReason, Shed, Stats};

/// Left to what keeps the agent in hand: 128 for names that are looked up (64 at
/// a time, for addresses of either family), 128 for the two sides of gRPC, the
/// admin pages, netlink and BPF, files of the state directory, the event log,
/// hand-overs, and connections on their way to being turned away.
const RESERVE: usize = 256;

/// What a worker opens: its event loop, its epoll for flows, a spare for each of
/// its listeners.
const OF_A_WORKER: usize = 8;

/// Descriptors of a connection or a flow.
const PAIR: usize = 2;

/// Where descriptors are without limit, memory and local ports are not: an
/// origin can be spoken to from 28,000 ports of an address.
const FLOWS_MAX: usize = 250_000;

/// Nobody was turned away for this long: there is enough again.
const QUIET: Duration = Duration::from_secs(5);

/// What connections and flows of all workers share.
#[derive(Debug)]
pub struct Budget {
    /// Pairs that there are.
    pairs: usize,
    taken: AtomicUsize,
    short: AtomicBool,
    shortage: Notify,
}

/// The descriptors of one connection or flow, with what is shared by all who
/// have some: a pointer is all that it costs. They are given back when it is
/// dropped, so it is to be dropped after them.
pub struct Pair<T: AsRef<Budget>>(Arc<T>);

impl Budget {
    /// Of a process that may open `limit` and has `open`. Where the reserve
    /// would take more than half of the rest, it is half.
    fn new(limit: usize, open: usize) -> Self {
        let left = limit.saturating_sub(open);
        Self {
            pairs: (left - RESERVE.min(left / 2)) / PAIR,
            taken: AtomicUsize::new(0),
            short: AtomicBool::new(false),
            shortage: Notify::new(),
        }
    }

    /// Of this process, which has its listeners open and is about to start so
    /// many workers.
    pub fn of_process(workers: usize) -> Self {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let open = fs::read_dir("/proc/self/fd").map_or(RESERVE, Iterator::count);
        let open = open.saturating_add(workers.saturating_mul(OF_A_WORKER));
        let budget = Self::new(limit, open);
        let room = budget.pairs;
        tracing::info!(
            limit,
            open,
            room,
            "connections and flows that descriptors last for"
        );
        budget
    }

    /// Somebody is turned away.
    pub fn ran_short(&self) {
        if !self.short.swap(true, Relaxed) {
            self.shortage.notify_one();
        }
    }

    /// Flows of UDP that there may be: half of what there is, since nobody need
    /// show who they are to begin one.
    pub fn flows_max(&self) -> usize {
        (self.pairs / 2).min(FLOWS_MAX)
    }

    fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }

    /// `anyport_descriptors_used` and `anyport_descriptors_limit`.
    pub fn register(self: &Arc<Self>, registry: &Registry) -> prometheus::Result<()> {
        let gauge = |name: &str, help: &str, pairs: fn(&Self) -> usize| {
            let budget = Arc::clone(self);
            let count = move || (pairs(&budget) * PAIR) as f64;
            registered(registry, PullingGauge::new(name, help, Box::new(count)))
        };
        gauge(
            "anyport_descriptors_used",
            "Descriptors that connections and flows hold.",
            Self::taken,
        )?;
        gauge(
            "anyport_descriptors_limit",
            "Descriptors that connections and flows may hold.",
            |budget| budget.pairs,
        )?;
        Ok(())
    }
}

impl<T: AsRef<Budget>> Pair<T> {
    /// None where all are taken.
    pub fn take(of: &Arc<T>) -> Option<Self> {
        let budget = of.as_ref().as_ref();
        // Not more than there are, not even for a moment: others would be
        // turned away for nothing.
        let more = |taken| (taken < budget.pairs).then_some(taken + 1);
        match budget.taken.fetch_update(Relaxed, Relaxed, more) {
            Ok(_) => Some(Self(Arc::clone(of))),
            Err(_) => {
                budget.ran_short();
                None
            }
        }
    }
}

impl<T: AsRef<Budget>> Deref for Pair<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: AsRef<Budget>> Drop for Pair<T> {
    fn drop(&mut self) {
        self.as_ref().taken.fetch_sub(1, Relaxed);
    }
}

/// Says once when a shortage begins, and once when it is over: to the log, and
/// to whoever asks for readiness. The agent stays ready: who is connected is
/// served, and an edge that was taken out of service would lose them all.
pub async fn tell_shortages(budget: Arc<Budget>, stats: Arc<Stats>, remark: Remark) {
    tell(budget, stats, remark, QUIET).await;
}

async fn tell(budget: Arc<Budget>, stats: Arc<Stats>, remark: Remark, quiet: Duration) {
    let turned_away = || {
        let connections = stats.shed_of(Shed::Descriptors) + stats.shed_of(Shed::System);
        (connections, stats.dropped_of(DropReason::Descriptors))
    };
    let mut before = turned_away();
    loop {
        budget.shortage.notified().await;
        let (begun, limit) = (Instant::now(), budget.pairs * PAIR);
        tracing::warn!(
            limit,
            used = budget.taken() * PAIR,
            "out of descriptors: new connections are reset and new flows dropped; what is open goes on"
        );
        remark.say(format!(
            "new connections are reset: out of descriptors, of which those that are open may have \
             {limit}; raise the limit of open files (LimitNOFILE), or lower timeouts.idle"
        ));
        let mut last = turned_away();
        loop {
            tokio::time::sleep(quiet).await;
            let now = turned_away();
            if now == last && budget.taken() < budget.pairs {
                break;
            }
            last = now;
        }
        budget.short.store(false, Relaxed);
        remark.withdraw();
        tracing::info!(
            connections = last.0 - before.0,
            datagrams = last.1 - before.1,
            seconds = begun.elapsed().as_secs(),
            "descriptors are free: new connections are taken again"
        );
        before = last;
    }
}

/// A descriptor that is kept to be given up where there is no other, so that who
/// waits in a listener's queue can be told.
#[derive(Debug, Default)]
pub struct Spare(Option<OwnedFd>);

impl Spare {
    pub fn new() -> Self {
        Self(File::open("/dev/null").ok().map(Into::into))
    }

    /// Does `with` while the descriptor is free; not at all where there is none
    /// to give up. What `with` opens has to be closed by its end.
    pub fn lend<T>(&mut self, with: impl FnOnce() -> T) -> Option<T> {
        let spare = self.0.take();
        let done = spare.is_some().then(|| {
            drop(spare);
            with()
        });
        *self = Self::new();
        done
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use anyport_node::ready::Readiness;
    use std::thread;

    impl AsRef<Budget> for Budget {
        fn as_ref(&self) -> &Budget {
            self
        }
    }

    #[test]
    fn the_reserve_is_left_alone_and_small_limits_are_shared() {
        let pairs = |limit, open| Budget::new(limit, open).pairs;
        assert_eq!(pairs(20_000, 60), (20_000 - 60 - 256) / 2);
        assert_eq!(pairs(256, 56), 50);
        assert_eq!(pairs(50, 60), 0);
        assert_eq!(Budget::new(usize::MAX, 60).flows_max(), FLOWS_MAX);
        assert_eq!(Budget::new(20_000, 60).flows_max(), 4921);
    }

    #[test]
    fn whatever_threads_do_there_are_never_more_than_there_are() {
        const PAIRS: usize = 100;
        let budget = Arc::new(Budget::new(PAIRS * 4, 0));
        let most = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..20_000 {
                        let held: Vec<_> =
                            (0..round % 60).map_while(|_| Pair::take(&budget)).collect();
                        most.fetch_max(budget.taken(), Relaxed);
                        drop(held);
                    }
                });
            }
        });
        assert!(most.into_inner() <= PAIRS);
        assert_eq!(budget.taken(), 0);
        let all: Vec<_> = std::iter::from_fn(|| Pair::take(&budget)).collect();
        assert_eq!(all.len(), PAIRS, "nobody is turned away before");
    }

    #[tokio::test]
    async fn a_shortage_is_told_as_long_as_it_lasts_and_takes_nothing_from_readiness() {
        let budget = Arc::new(Budget::new(4, 0));
        let stats = Arc::new(Stats::new(&Registry::new()).unwrap());
        let readiness = Readiness::new();
        let remark = readiness.remark("descriptors");
        let quiet = Duration::from_millis(20);
        tokio::spawn(tell(Arc::clone(&budget), stats, remark, quiet));
        let said = async |wanted: &str| {
            while !readiness.report().to_string().starts_with(wanted) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        const SHORT: &str = "ready\ndescriptors: new connections are reset";
        for _ in 0..2 {
            let held = Pair::take(&budget).unwrap();
            assert!(Pair::take(&budget).is_none());
            said(SHORT).await;
            tokio::time::sleep(quiet * 5).await;
            let report = readiness.report().to_string();
            assert!(report.starts_with(SHORT), "there is no room: {report}");
            drop(held);
            while readiness.report().to_string() != "ready" {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    #[test]
    fn the_spare_is_free_while_it_is_lent_and_then_no_more() {
        let mut spare = Spare::new();
        assert_eq!(spare.lend(|| 1), Some(1));
        assert_eq!(spare.lend(|| 2), Some(2));
        assert_eq!(Spare::default().lend(|| 3), None);
    }
}
