//! The admin HTTP server: `/metrics`, `/healthz`, `/readyz`.
//!
//! It is kept apart from gRPC so that a scraper or an orchestrator needs no client
//! certificate, and it keeps answering while the service drains: that is when
//! someone wants to look.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, task::AbortHandle};

use crate::{
    drain::Drain,
    identity::Identity,
    listen::{self, ListenError, Protection},
    metrics::{self, Registry},
    ready::Readiness,
};

/// A bound admin listener that does not answer yet.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
    address: SocketAddr,
}

/// A running admin server; dropping it stops it.
#[derive(Debug)]
#[must_use = "dropping the handle stops the admin server"]
pub struct AdminHandle {
    address: SocketAddr,
    task: AbortHandle,
}

struct Sources {
    registry: Registry,
    readiness: Readiness,
    drain: Drain,
}

impl AdminServer {
    /// Listens on the address given by `flag` (`--admin`). Call it inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`ListenError`], naming the flag and the address.
    pub fn bind(
        flag: &'static str,
        address: SocketAddr,
        identity: &Identity,
    ) -> Result<Self, ListenError> {
        Self::bind_or_inherit(flag, address, identity, None)
    }

    /// As [`bind`](Self::bind), on a listener that another process handed over
    /// where it listens at that address.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_or_inherit(
        flag: &'static str,
        address: SocketAddr,
        identity: &Identity,
        inherited: Option<std::net::TcpListener>,
    ) -> Result<Self, ListenError> {
        let bound = listen::bind(flag, address, identity, Protection::None, inherited)?;
        let failed = |source| ListenError::Bind {
            flag,
            address,
            source,
        };
        let listener = TcpListener::from_std(bound).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The listener, to hand it over to another process.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Answers until the handle is dropped.
    pub fn spawn(self, registry: Registry, readiness: Readiness, drain: Drain) -> AdminHandle {
        let sources = Arc::new(Sources {
            registry,
            readiness,
            drain,
        });
        let router = Router::new()
            .route("/metrics", get(metrics_page))
            .route("/healthz", get(async || "alive\n"))
            .route("/readyz", get(ready_page))
            .with_state(sources);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(self.listener, router).await {
                tracing::error!(%error, "the admin server ended");
            }
        });
        AdminHandle {
            address: self.address,
            task: task.abort_handle(),
        }
    }
}

impl AdminHandle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for AdminHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn metrics_page(State(sources): State<Arc<Sources>>) -> Response {
    match metrics::encode(&sources.registry) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            let text = format!("metrics cannot be encoded: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

async fn ready_page(State(sources): State<Arc<Sources>>) -> Response {
    let report = sources.readiness.report_unless_draining(&sources.drain);
    let status = if report.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, format!("{report}\n")).into_response()
}
