//! Worker threads: one event loop each, with listeners of its own. A
//! connection stays on the worker that accepted it.

use std::{io, sync::Arc, thread, time::Duration};

use anyport_node::drain::Drain;
use tokio::{net::TcpListener, runtime};

use super::{accept::accept, sockets::WorkerListeners};
use crate::tcp::Service;

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
    /// Starts one worker per set of listeners. They accept until the drain
    /// begins and end when the last connection has, or `limit` after.
    pub fn start(
        listeners: Vec<WorkerListeners>,
        service: &Arc<Service>,
        drain: &Drain,
        limit: Duration,
    ) -> Result<Self, WorkerError> {
        let mut threads = Vec::with_capacity(listeners.len());
        for (index, listeners) in listeners.into_iter().enumerate() {
            let failed = |source| WorkerError { index, source };
            let runtime = runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()
                .map_err(failed)?;
            let (service, drain) = (Arc::clone(service), drain.clone());
            let body = move || runtime.block_on(work(listeners, service, drain, limit));
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

async fn work(listeners: WorkerListeners, service: Arc<Service>, drain: Drain, limit: Duration) {
    let accept_on = |listener: std::net::TcpListener| {
        let (service, drain) = (Arc::clone(&service), drain.clone());
        async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => accept(listener, service, drain).await,
                Err(error) => tracing::error!(%error, "a worker cannot use its listener"),
            }
        }
    };
    let v6 = async {
        if let Some(listeners) = listeners.v6 {
            accept_on(listeners.tcp).await;
            drop(listeners.udp);
        }
    };
    tokio::join!(accept_on(listeners.v4.tcp), v6);
    drop(listeners.v4.udp);
    // The runtime ends with this future, and what is left of its connections
    // with it, which whoever began the drain reports.
    let _ = drain.finished(limit).await;
}
