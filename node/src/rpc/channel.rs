//! Dialling another service.

use std::{
    error::Error,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tonic::{Status, body::Body, transport};
use tower::Service;
use tracing::Instrument;

use super::{
    dial::{Dialled, Dialler, Refusal},
    span::{self, Side},
    urls::ServerUrl,
};
use crate::{access::Role, identity::Identity, telemetry};

/// When a server is taken for dead.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// That it does not answer a SYN.
    pub connect: Duration,
    /// How long silence may last before it is asked whether it is still there.
    /// Streams are quiet for hours; without the question a peer that lost its power
    /// would never be missed.
    pub keepalive_interval: Duration,
    /// How long it has for the answer.
    pub keepalive_timeout: Duration,
}

const LIMITS: Limits = Limits {
    connect: Duration::from_secs(3),
    keepalive_interval: Duration::from_secs(10),
    keepalive_timeout: Duration::from_secs(5),
};
/// Wide enough for a snapshot of thousands of resources in one round trip.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The URL and the identity do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// `https` without certificates.
    #[error("{url}: https needs --tls-cert, --tls-key and --tls-ca")]
    NoIdentity {
        /// The URL at fault.
        url: String,
    },
    /// `http` with certificates.
    #[error(
        "{url}: --tls-cert is given, so this must be https; to use clear text all the same, add --insecure"
    )]
    ClearText {
        /// The URL at fault.
        url: String,
    },
    /// The transport cannot be set up.
    #[error("{url}: cannot be dialled")]
    Transport {
        /// The URL at fault.
        url: String,
        /// What the transport said.
        source: transport::Error,
    },
}

/// How to dial one server: time limits, keepalive, TLS.
#[derive(Clone, Debug)]
pub struct Endpoint {
    url: ServerUrl,
    transport: transport::Endpoint,
    /// `None` in clear text.
    dialler: Option<Dialler>,
}

impl Endpoint {
    /// `role` is what the server has to be, by its certificate, where there is TLS:
    /// anyone of the authority could answer in its place else.
    ///
    /// No overall time limit is set, because streams have none; unary calls bring
    /// their own deadline.
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub fn new(url: &ServerUrl, identity: &Identity, role: Role) -> Result<Self, EndpointError> {
        Self::of(url, identity, Some(role), LIMITS)
    }

    /// As [`new`](Self::new), of a server that is none of ours: of its certificate
    /// nothing is asked but that it is of the authority, for that host.
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub fn foreign(
        url: &ServerUrl,
        identity: &Identity,
        limits: Limits,
    ) -> Result<Self, EndpointError> {
        Self::of(url, identity, None, limits)
    }

    fn of(
        url: &ServerUrl,
        identity: &Identity,
        role: Option<Role>,
        limits: Limits,
    ) -> Result<Self, EndpointError> {
        let failed = |source| EndpointError::Transport {
            url: url.to_string(),
            source,
        };
        match (url.is_https(), identity.is_tls()) {
            (true, false) => {
                return Err(EndpointError::NoIdentity {
                    url: url.to_string(),
                });
            }
            (false, true) if !identity.is_insecure() => {
                return Err(EndpointError::ClearText {
                    url: url.to_string(),
                });
            }
            _ => {}
        }
        let transport = transport::Endpoint::from(url.clear_uri())
            .origin(url.uri().clone())
            .user_agent(concat!("anyport/", env!("CARGO_PKG_VERSION")))
            .map_err(failed)?
            .http2_keep_alive_interval(limits.keepalive_interval)
            .keep_alive_timeout(limits.keepalive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .tcp_nodelay(true);
        let dialler = url.is_https().then(|| Dialler {
            host: url.host().to_owned(),
            port: url.port(),
            role,
            identity: identity.clone(),
            connect_timeout: limits.connect,
            refusal: Refusal::default(),
        });
        let transport = match dialler {
            // It limits the dialling itself, and the handshake apart from it.
            Some(_) => transport,
            None => transport.connect_timeout(limits.connect),
        };
        Ok(Self {
            url: url.clone(),
            transport,
            dialler,
        })
    }

    /// Dials now.
    ///
    /// # Errors
    /// UNAUTHENTICATED where one side does not accept the other's certificate,
    /// UNAVAILABLE where there is no server.
    pub async fn connect(&self) -> Result<transport::Channel, Status> {
        let connected = match &self.dialler {
            None => self.transport.connect().await,
            Some(dialler) => {
                let connector = connector(dialler.clone());
                self.transport.connect_with_connector(connector).await
            }
        };
        connected.map_err(|error| match self.refused() {
            Some(refused) => refused,
            None => Status::from_error(error.into()),
        })
    }

    /// Dials anew each time that it is called.
    pub fn into_dial(
        self,
    ) -> impl Fn() -> BoxFuture<Result<transport::Channel, Status>> + Send + Sync {
        move || {
            let endpoint = self.clone();
            Box::pin(async move { endpoint.connect().await })
        }
    }

    /// Dials with the first call, and again where the connection is lost. Must be
    /// called inside a tokio runtime.
    pub fn lazy(&self) -> transport::Channel {
        match &self.dialler {
            None => self.transport.connect_lazy(),
            Some(dialler) => {
                let connector = connector(dialler.clone());
                self.transport.connect_with_connector_lazy(connector)
            }
        }
    }

    /// Why the two sides last did not accept each other's certificates; `None` once
    /// they did. The transport keeps no more of it than that a connection failed.
    pub fn refusal(&self) -> Option<String> {
        self.dialler.as_ref()?.refusal.get()
    }

    fn refused(&self) -> Option<Status> {
        let refusal = self.refusal()?;
        Some(Status::unauthenticated(format!("{}: {refusal}", self.url)))
    }
}

fn connector(
    dialler: Dialler,
) -> impl Service<
    Uri,
    Response = TokioIo<Dialled>,
    Error = io::Error,
    Future = impl Future<Output = io::Result<TokioIo<Dialled>>> + Send,
> + Clone
+ Send
+ 'static {
    tower::service_fn(move |_: Uri| dialler.clone().dial())
}

/// What generated clients are made of: a tonic channel with a span per call, whose
/// context travels along as `traceparent`.
///
/// See [`tonic::transport::Channel`]: cheap to clone, calls are multiplexed, a lost
/// connection is dialled again by the next call. A call for which one side does not
/// accept the other's certificate is UNAUTHENTICATED.
#[derive(Clone, Debug)]
pub struct Channel {
    inner: transport::Channel,
    endpoint: Arc<Endpoint>,
}

impl Channel {
    /// Dials with the first call. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub fn lazy(url: &ServerUrl, identity: &Identity, role: Role) -> Result<Self, EndpointError> {
        let endpoint = Endpoint::new(url, identity, role)?;
        Ok(Self {
            inner: endpoint.lazy(),
            endpoint: Arc::new(endpoint),
        })
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let span = span::span(Side::Client, request.uri().path());
        telemetry::inject(&span, request.headers_mut());
        let answer = self.inner.call(request).instrument(span.clone());
        let endpoint = Arc::clone(&self.endpoint);
        Box::pin(async move {
            let answer = answer.await;
            match &answer {
                Ok(answer) => span::finish(&span, Side::Client, answer.headers()),
                Err(_) => span::broken(&span, Side::Client),
            }
            answer.map_err(|error| match endpoint.refused() {
                Some(refused) => refused.into(),
                None => error.into(),
            })
        })
    }
}
