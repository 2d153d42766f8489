//! Worker threads: one event loop each, with listeners of its own. A
//! connection stays on the worker that accepted it.

use std::{io, pin::pin, sync::Arc, thread, time::Duration};

use anyport_node::drain::Drain;
use futures_util::future::join_all;
use tokio::{net::TcpListener, runtime, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{accept::accept, sockets::WorkerListeners, spread::Load};
use crate::{
    live::{self, Orders, Shown},
    tcp::Service,
    udp::{self, Taking},
};

/// Connections that were told to close are gone in no time.
const LAST_MOMENT: Duration = Duration::from_secs(5);

/// When workers do what.
#[derive(Debug, Clone)]
pub struct Phases {
    /// Cancelled, it lets connections be accepted.
    pub accepting: CancellationToken,
    /// Cancelled, it lets datagrams be taken that the kernel steers: once an
    /// earlier agent takes none any more, so that what a flow begins with is not
    /// shared out among two.
    pub taking: CancellationToken,
    /// When it begins, nothing new is accepted or taken any more, and what is
    /// open is closed when each app's time for it is over.
    pub drain: Drain,
    /// Begins with the drain, and is over when no worker takes a datagram.
    pub taken: Drain,
    /// How long a drain may take at most, whatever the apps say.
    pub limit: Option<Duration>,
}

impl Phases {
    /// Until `drain` begins.
    pub fn until(drain: Drain, limit: Option<Duration>) -> Self {
        Self {
            accepting: CancellationToken::new(),
            taking: CancellationToken::new(),
            taken: drain.child(),
            drain,
            limit,
        }
    }
}

/// The worker threads of an agent.
pub struct Workers {
    threads: Vec<thread::JoinHandle<()>>,
}

/// A worker could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start worker {index}: {source}")]
pub struct WorkerError {
    index: usize,
    source: io::Error,
}

impl Workers {
    /// Starts one worker per set of listeners, each with its orders and with what
    /// it says by how much it has to do. They end when the last connection has.
    pub fn start(
        listeners: Vec<WorkerListeners>,
        loads: Vec<Option<Load>>,
        orders: Vec<Orders>,
        service: &Arc<Service>,
        phases: &Phases,
    ) -> Result<Self, WorkerError> {
        let flows = service.descriptors.flows_max();
        let flows = udp::Limits::of_one(flows, listeners.len(), phases.limit);
        let mut threads = Vec::with_capacity(listeners.len());
        let workers = listeners.into_iter().zip(loads).zip(orders).enumerate();
        for (index, ((listeners, load), orders)) in workers {
            let failed = |source| WorkerError { index, source };
            let metric = service.stats.worker_connections(index);
            let shown = Shown { metric, load };
            let runtime = runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()
                .map_err(failed)?;
            let worker = Worker {
                service: Arc::clone(service),
                phases: phases.clone(),
                flows,
            };
            let body = move || {
                live::show(shown);
                runtime.block_on(async {
                    let (tell, told) = mpsc::unbounded_channel();
                    tokio::spawn(live::obey(orders, tell));
                    worker.work(listeners, told).await;
                });
            };
            let thread = thread::Builder::new().name(format!("worker-{index}"));
            threads.push(thread.spawn(body).map_err(failed)?);
        }
        Ok(Self { threads })
    }

    /// Waits until all have ended; blocks.
    pub fn join(self) {
        for thread in self.threads {
            // A worker that panicked has said so by the panic hook.
            let _ = thread.join();
        }
    }
}

struct Worker {
    service: Arc<Service>,
    phases: Phases,
    flows: udp::Limits,
}

impl Worker {
    async fn work(self, listeners: WorkerListeners, orders: Orders) {
        let Phases { drain, limit, .. } = &self.phases;
        // From now on until no more are taken.
        let taking = Taking {
            from: self.phases.taking.clone(),
            until: self.phases.taken.guard(),
        };
        tokio::select! {
            () = self.phases.accepting.cancelled() => {}
            () = drain.started() => {}
        }
        let pairs = listeners.v4.into_iter().chain(listeners.v6);
        let (tcp, udp): (Vec<_>, Vec<_>) = pairs.map(|pair| (pair.tcp, pair.udp)).unzip();
        // A task of its own: it goes on as long as there are flows.
        let service = Arc::clone(&self.service);
        let flows = udp::serve(udp, service, self.flows, orders, taking, drain.clone());
        let flows = tokio::spawn(flows);
        join_all(tcp.into_iter().map(|listener| self.accept_on(listener))).await;
        let ended = drain.finished(Duration::MAX);
        let mut ended = pin!(ended);
        let windows = self.service.drain_windows(*limit);
        tokio::select! {
            _ = &mut ended => return,
            () = async {
                live::close_over(&windows).await;
                // It closes its own in the same windows, and has said why if it
                // ended in another way.
                let _ = flows.await;
            } => {}
        }
        // The runtime ends with this future, and what is left of its
        // connections with it, which whoever began the drain reports.
        let _ = timeout(LAST_MOMENT, ended).await;
    }

    async fn accept_on(&self, listener: std::net::TcpListener) {
        match TcpListener::from_std(listener) {
            Ok(listener) => {
                accept(
                    listener,
                    Arc::clone(&self.service),
                    self.phases.drain.clone(),
                )
                .await
            }
            Err(error) => tracing::error!(%error, "a worker cannot use its listener"),
        }
    }
}
