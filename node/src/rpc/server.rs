//! Serving gRPC.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    server::NamedService,
    service::{Routes, RoutesBuilder},
    transport,
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::Service;

use super::{connection::Connection, deadline::Deadline, span::Spanned, stream::ServerStream};
use crate::{
    access::Access,
    drain::Drain,
    identity::Identity,
    layer::AroundLayer,
    listen::{self, ListenError, Protection},
    ready::Readiness,
};

/// Open connections at once; more wait in the listen queue. A fleet of a thousand
/// edges needs a thousand.
const MAX_CONNECTIONS: usize = 16_384;
/// Calls at once on one connection; more wait at the client.
const MAX_STREAMS: u32 = 256;
/// All headers of one call together, in bytes.
const MAX_HEADERS: u32 = 16 << 10;
/// A connection on which nothing is said for this long after it was opened is closed.
const FIRST_WORDS_TIMEOUT: Duration = Duration::from_secs(10);
/// As for the client: streams are quiet for hours, and a peer that lost its power
/// would otherwise hold its place for good.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Calls get this long to end after the drain has begun, where the service says
/// nothing else.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Out of file descriptors: trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound gRPC listener with the services it will offer.
#[must_use = "nothing is served before `serve`"]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    identity: Identity,
    routes: RoutesBuilder,
    names: Vec<&'static str>,
    descriptors: Vec<&'static [u8]>,
    drain_limit: Duration,
}

/// Serving could not begin, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors given for reflection are none.
    #[error("server reflection: the file descriptors are malformed")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("gRPC server")]
    Transport(#[from] transport::Error),
}

impl Server {
    /// Listens on the address given by `flag` (`--listen`), with TLS where the
    /// identity has it. Call it inside a tokio runtime.
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
        let protection = Protection::WhenConfigured;
        let bound = listen::bind(flag, address, identity, protection, inherited)?;
        let failed = |source| ListenError::Bind {
            flag,
            address,
            source,
        };
        let listener = TcpListener::from_std(bound).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            identity: identity.clone(),
            routes: Routes::builder(),
            names: Vec::new(),
            descriptors: Vec::new(),
            drain_limit: DRAIN_LIMIT,
        })
    }

    /// Where it listens; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The listener, to hand it over to another process.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Offers a generated service. Its health follows readiness under its own name.
    pub fn service<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.routes.add_service(service);
        self.names.push(S::NAME);
        self
    }

    /// Lets server reflection tell of these: an encoded `FileDescriptorSet`.
    pub fn descriptors(mut self, encoded: &'static [u8]) -> Self {
        self.descriptors.push(encoded);
        self
    }

    /// How long calls get to end after the drain has begun; 10 s where not set.
    /// Then every connection is cut. Handlers of endless streams should watch the
    /// drain themselves and end them well.
    pub fn drain_limit(mut self, limit: Duration) -> Self {
        self.drain_limit = limit;
        self
    }

    /// Serves until the drain has begun and every connection has ended. `drain`
    /// beginning closes the listener at once.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn serve(self, readiness: &Readiness, drain: &Drain) -> Result<(), ServeError> {
        let health = HealthReporter::new();
        // tonic starts it out as serving, and the first call may come before the
        // first look at readiness.
        let names: Vec<&str> = [""].into_iter().chain(self.names).collect();
        set_health(&health, &names, ServingStatus::NotServing).await;

        let mut routes = self.routes;
        routes.add_service(health_service(health.clone()));
        add_reflection(&mut routes, &self.descriptors)?;

        let builder = transport::Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);

        let cut = CancellationToken::new();
        let (accepted, incoming) = mpsc::channel(1);
        let accept = accept(self.listener, self.identity, accepted, cut.clone(), drain);
        let serve = builder
            .layer(AroundLayer(Spanned))
            .layer(AroundLayer(Deadline))
            .layer(AroundLayer(Access))
            .add_routes(routes.routes().prepare())
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), drain.started());
        let limit = async {
            drain.started().await;
            tokio::time::sleep(self.drain_limit).await;
            cut.cancel();
            std::future::pending::<Infallible>().await
        };
        let served = async { tokio::join!(accept, serve).1 };
        tokio::select! {
            outcome = served => Ok(outcome?),
            never = limit => match never {},
            never = follow(readiness, drain, &health, &names) => match never {},
        }
    }
}

fn health_service(
    reporter: HealthReporter,
) -> tonic_health::pb::health_server::HealthServer<tonic_health::server::HealthService> {
    tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(reporter),
    )
}

/// Both versions: tools that are a few years old speak only `v1alpha`.
fn add_reflection(
    routes: &mut RoutesBuilder,
    descriptors: &[&'static [u8]],
) -> Result<(), ServeError> {
    let configured = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // The details of errors, so that who knows only reflection can read them.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET);
        descriptors.iter().fold(builder, |builder, encoded| {
            builder.register_encoded_file_descriptor_set(encoded)
        })
    };
    routes.add_service(configured().build_v1()?);
    routes.add_service(configured().build_v1alpha()?);
    Ok(())
}

async fn accept(
    listener: TcpListener,
    identity: Identity,
    accepted: mpsc::Sender<io::Result<ServerStream>>,
    cut: CancellationToken,
    drain: &Drain,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Aborted with the set; each of them holds a place.
    let mut handshakes = JoinSet::new();
    let accept_all = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            while handshakes.try_join_next().is_some() {}
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Only a socket that is already dead refuses this; reading will tell.
            let _ = stream.set_nodelay(true);
            let connection = Connection::new(stream, cut.clone(), FIRST_WORDS_TIMEOUT, place);
            let accepted = accepted.clone();
            let Some(tls) = identity.server() else {
                if accepted
                    .send(Ok(ServerStream::clear(connection)))
                    .await
                    .is_err()
                {
                    return;
                }
                continue;
            };
            handshakes.spawn(async move {
                if let Some(stream) = ServerStream::tls(connection, tls).await {
                    // Only a server that has ended does not take it.
                    let _ = accepted.send(Ok(stream)).await;
                }
            });
        }
    };
    tokio::select! {
        () = accept_all => {}
        () = drain.started() => {}
    }
}

/// Keeps `grpc.health.v1` in step with readiness.
async fn follow(
    readiness: &Readiness,
    drain: &Drain,
    health: &HealthReporter,
    names: &[&str],
) -> Infallible {
    let mut changes = readiness.changes();
    let mut told = ServingStatus::NotServing;
    loop {
        let draining = drain.is_started();
        let status = if changes.report().is_ready() && !draining {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        if status != told {
            set_health(health, names, status).await;
            told = status;
        }
        tokio::select! {
            () = changes.next() => {}
            () = drain.started(), if !draining => {}
        }
    }
}

async fn set_health(health: &HealthReporter, names: &[&str], status: ServingStatus) {
    for name in names {
        health.set_service_status(name, status).await;
    }
}
