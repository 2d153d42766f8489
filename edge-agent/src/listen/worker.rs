//! Worker threads: one event loop each, with listeners of its own. A
//! connection stays on the worker that accepted it.

use std::{io, pin::pin, sync::Arc, thread, time::Duration};

use anyport_node::drain::Drain;
use futures_util::future::join_all;
use tokio::{net::TcpListener, runtime, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{accept::accept, sockets::WorkerListeners};
use crate::{
    live::{self, Orders},
    tcp::Service,
    udp,
};

/// Connections that were told to close are gone in no time.
const LAST_MOMENT: Duration = Duration::from_secs(5);

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
    /// Starts one worker per set of listeners, each with its orders. They accept
    /// from when `accepting` is cancelled until the drain begins, close what is
    /// left when each app's time for it is over, at most `limit` where there is
    /// one, and end when the last connection has.
    pub fn start(
        listeners: Vec<WorkerListeners>,
        orders: Vec<Orders>,
        service: &Arc<Service>,
        accepting: &CancellationToken,
        drain: &Drain,
        limit: Option<Duration>,
    ) -> Result<Self, WorkerError> {
        let flows = service.descriptors.flows_max();
        let flows = udp::Limits::of_one(flows, listeners.len(), limit);
        let mut threads = Vec::with_capacity(listeners.len());
        let workers = listeners.into_iter().zip(orders).enumerate();
        for (index, (listeners, orders)) in workers {
            let failed = |source| WorkerError { index, source };
            let runtime = runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()
                .map_err(failed)?;
            let worker = Worker {
                service: Arc::clone(service),
                accepting: accepting.clone(),
                drain: drain.clone(),
                limit,
                flows,
            };
            let body = move || {
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
    accepting: CancellationToken,
    drain: Drain,
    limit: Option<Duration>,
    flows: udp::Limits,
}

impl Worker {
    async fn work(self, listeners: WorkerListeners, orders: Orders) {
        tokio::select! {
            () = self.accepting.cancelled() => {}
            () = self.drain.started() => {}
        }
        let pairs = listeners.v4.into_iter().chain(listeners.v6);
        let (tcp, udp): (Vec<_>, Vec<_>) = pairs.map(|pair| (pair.tcp, pair.udp)).unzip();
        // A task of its own: it goes on as long as there are flows.
        let (service, drain) = (Arc::clone(&self.service), self.drain.clone());
        let flows = tokio::spawn(udp::serve(udp, service, self.flows, orders, drain));
        join_all(tcp.into_iter().map(|listener| self.accept_on(listener))).await;
        let ended = self.drain.finished(Duration::MAX);
        let mut ended = pin!(ended);
        let windows = self.service.drain_windows(self.limit);
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
            Ok(listener) => accept(listener, Arc::clone(&self.service), self.drain.clone()).await,
            Err(error) => tracing::error!(%error, "a worker cannot use its listener"),
        }
    }
}
