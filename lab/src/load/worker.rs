//! Runs a plan: threads, each with a runtime of its own, and on each its share of the connections.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::failure::Failure;
use super::plan::{Load, PlanError};
use super::report::{Report, Tally};
use super::who::Who;

/// How many connections a thread opens at once where many are opened to be kept. More would overrun
/// the listen queue of an ordinary server (4096, shared by all threads) and measure retransmissions.
const OPENING_AT_ONCE: usize = 256;

/// After a connection that was to be kept has failed, how long to wait before the next attempt, so
/// that a server that is away is not asked a million times.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The plan is refused.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A thread could not be started.
    #[error("starting a load thread")]
    Thread(#[source] io::Error),
    /// A thread's runtime could not be built.
    #[error("building the runtime of a load thread")]
    Runtime(#[source] io::Error),
    /// A histogram could not be made.
    #[error("making a latency histogram")]
    Histogram(#[from] hdrhistogram::CreationError),
}

/// Why an operation ended without being done.
#[derive(Debug)]
pub(super) enum Stop {
    /// It failed.
    Failed(Failure),
    /// The run is over. What was under way is neither done nor failed.
    RunOver,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// One connection's worth of work. Clones share everything.
#[derive(Clone)]
pub(super) struct Worker {
    thread: Rc<Thread>,
    rng: Rc<RefCell<SmallRng>>,
}

struct Thread {
    load: Load,
    deadline: Instant,
    numbers: Arc<Numbers>,
    opening: Semaphore,
    tally: RefCell<Tally>,
}

/// What all threads of a run number together.
#[derive(Default)]
struct Numbers {
    /// The next operation.
    operation: AtomicU64,
    /// The next connection attempt.
    attempt: AtomicUsize,
}

/// Runs `work` once for each connection of `load`, and adds up what they tell.
///
/// `work` returns when [`Worker::begin`] says so, or at a [`Stop::RunOver`].
pub(super) fn drive<W, F>(mode: &'static str, load: &Load, work: W) -> Result<Report, RunError>
where
    W: Fn(Worker) -> F + Sync,
    F: Future<Output = ()> + 'static,
{
    load.check()?;
    let connections = load.connections.get();
    let threads = load.threads.get().min(connections);
    let numbers = Arc::<Numbers>::default();
    let start = Instant::now();
    // Checked above to be at most a day away.
    let deadline = start + load.duration;
    let share = |thread: usize| (thread..connections).step_by(threads);
    let run_thread = |thread: usize| -> Result<Tally, RunError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(RunError::Runtime)?;
        let thread_state = Rc::new(Thread {
            load: load.clone(),
            deadline,
            numbers: numbers.clone(),
            opening: Semaphore::new(OPENING_AT_ONCE),
            tally: RefCell::new(Tally::new()?),
        });
        LocalSet::new().block_on(&runtime, async {
            let mut tasks = JoinSet::new();
            for index in share(thread) {
                // Far apart, so that neighbours draw nothing in common.
                let seed = load
                    .seed
                    .wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                tasks.spawn_local(work(Worker {
                    thread: thread_state.clone(),
                    rng: Rc::new(RefCell::new(SmallRng::seed_from_u64(seed))),
                }));
            }
            while let Some(ended) = tasks.join_next().await {
                if let Err(error) = ended
                    && let Ok(panic) = error.try_into_panic()
                {
                    resume_unwind(panic);
                }
            }
        });
        Ok(thread_state.tally.replace(Tally::new()?))
    };
    let tallies = std::thread::scope(|scope| {
        let run_thread = &run_thread;
        let started: Vec<_> = (0..threads)
            .map(|thread| {
                std::thread::Builder::new()
                    .name(format!("load {mode}"))
                    .spawn_scoped(scope, move || run_thread(thread))
                    .inspect_err(|_| load.control.stop())
                    .map_err(RunError::Thread)
            })
            .collect();
        let joined = started.into_iter().map(|thread| {
            thread.and_then(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        joined.collect::<Result<Vec<_>, _>>()
    })?;
    let elapsed = start.elapsed();
    let mut total = Tally::new()?;
    for tally in tallies {
        total.add(tally);
    }
    Ok(Report::new(mode, elapsed, total))
}

impl Worker {
    /// Whether to do another operation. One that is begun ends in [`done`](Self::done),
    /// [`failed`](Self::failed) or is cut off by the end of the run.
    pub(super) fn begin(&self) -> bool {
        if self.is_over() {
            return false;
        }
        if let Some(count) = self.thread.load.count
            && self
                .thread
                .numbers
                .operation
                .fetch_add(1, Ordering::Relaxed)
                >= count.get()
        {
            return false;
        }
        self.thread.tally.borrow_mut().begun += 1;
        true
    }

    fn is_over(&self) -> bool {
        self.thread.load.control.stopped().is_cancelled() || Instant::now() >= self.thread.deadline
    }

    /// Awaits one step of an operation: a failure after the plan's timeout, cut off by the end of
    /// the run.
    pub(super) async fn step<T>(
        &self,
        step: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Stop> {
        if self.is_over() {
            return Err(Stop::RunOver);
        }
        let limit = Instant::now() + self.thread.load.timeout;
        let deadline = self.thread.deadline;
        match timeout_at(limit.min(deadline), step).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(error.into()),
            Err(_) if limit < deadline => Err(Stop::Failed(Failure::Timeout)),
            Err(_) => Err(Stop::RunOver),
        }
    }

    /// Connects to a target drawn at random.
    pub(super) async fn connect(&self) -> Result<TcpStream, Stop> {
        let load = &self.thread.load;
        let target = load.targets.draw(&mut *self.rng.borrow_mut());
        let socket = match target {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        let attempt = self.thread.numbers.attempt.fetch_add(1, Ordering::Relaxed);
        if let Some(source) = load.source(attempt, target.is_ipv6()) {
            // The port is then chosen by the whole four-tuple at connect, not by the address alone,
            // so that one source has 28,000 ports towards each target and not towards all.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).map_err(io::Error::from)?;
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let started = Instant::now();
        let stream = self.step(socket.connect(target)).await?;
        stream.set_nodelay(true)?;
        let mut tally = self.thread.tally.borrow_mut();
        tally.opened(started.elapsed());
        load.control.count_opened();
        Ok(stream)
    }

    /// A socket for datagrams, connected to a target drawn at random.
    pub(super) fn datagrams(&self) -> Result<UdpSocket, Stop> {
        let load = &self.thread.load;
        let target = load.targets.draw(&mut *self.rng.borrow_mut());
        let any = match target {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let attempt = self.thread.numbers.attempt.fetch_add(1, Ordering::Relaxed);
        let source = load.source(attempt, target.is_ipv6()).unwrap_or(any);
        let started = Instant::now();
        let socket = std::net::UdpSocket::bind((source, 0))?;
        socket.connect(target)?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        self.thread.tally.borrow_mut().opened(started.elapsed());
        load.control.count_opened();
        Ok(socket)
    }

    /// [`connect`](Self::connect), without more than a few at once on this thread.
    pub(super) async fn connect_in_turn(&self) -> Result<TcpStream, Stop> {
        let turn = async {
            let turn = self.thread.opening.acquire().await;
            turn.map_err(io::Error::other)
        };
        // Waiting for the turn is not the server's time: only the end of the run limits it.
        let turn = match timeout_at(self.thread.deadline, turn).await {
            Ok(turn) => turn?,
            Err(_) => return Err(Stop::RunOver),
        };
        let stream = self.connect().await;
        drop(turn);
        stream
    }

    /// An operation is done.
    pub(super) fn done(&self, latency: Duration) {
        self.thread.tally.borrow_mut().done(latency);
        self.thread.load.control.count_operation();
    }

    /// An operation failed.
    pub(super) fn failed(&self, failure: Failure) {
        self.thread.tally.borrow_mut().failed(failure);
        self.thread.load.control.count_failure();
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.thread.tally.borrow_mut().bytes_sent += bytes as u64;
    }

    pub(super) fn received(&self, bytes: usize) {
        self.thread.tally.borrow_mut().bytes_received += bytes as u64;
    }

    pub(super) fn answered(&self, who: Who) {
        self.thread.tally.borrow_mut().answered(who);
    }

    /// A number that tells the operations of this run apart.
    pub(super) fn random(&self) -> u64 {
        rand::Rng::random(&mut *self.rng.borrow_mut())
    }

    /// Waits after a failure before the next attempt.
    pub(super) async fn pause_after_failure(&self) {
        self.pause(PAUSE_AFTER_FAILURE).await;
    }

    /// Waits for `time`, or to the end of the run.
    pub(super) async fn pause(&self, time: Duration) {
        if !time.is_zero() {
            // A pause that ends after all time ends with the run.
            let until = Instant::now().checked_add(time);
            let until = until.map_or(self.thread.deadline, |until| {
                until.min(self.thread.deadline)
            });
            tokio::select! {
                () = sleep_until(until) => {}
                () = self.thread.load.control.stopped().cancelled() => {}
            }
        }
    }

    /// Waits for `end` for as long as the run lasts, with no other limit.
    pub(super) async fn hold<T>(&self, end: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            value = end => Some(value),
            () = self.pause(Duration::MAX) => None,
        }
    }
}
