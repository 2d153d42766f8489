//! Dialling another service.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tonic::{
    body::Body,
    transport::{self, Endpoint},
};
use tower::Service;
use tracing::Instrument;

use super::{
    span::{self, Side},
    urls::ServerUrl,
};
use crate::{identity::Identity, telemetry};

/// A server that does not answer a SYN within this is taken for dead.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long silence may last before the peer is asked whether it is still there,
/// and how long it has for the answer. Streams are quiet for hours; without the
/// question a peer that lost its power would never be missed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Wide enough for a snapshot of thousands of resources in one round trip.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

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

/// How to dial `url`: time limits, keepalive, TLS.
///
/// No overall time limit is set, because streams have none; unary calls bring their
/// own deadline.
///
/// # Errors
/// See [`EndpointError`].
pub fn endpoint(url: &ServerUrl, identity: &Identity) -> Result<Endpoint, EndpointError> {
    let failed = |source| EndpointError::Transport {
        url: url.to_string(),
        source,
    };
    let endpoint = Endpoint::from(url.uri().clone())
        .user_agent(concat!("anyport/", env!("CARGO_PKG_VERSION")))
        .map_err(failed)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .tcp_nodelay(true);
    match (url.is_https(), identity.client_tls()) {
        (true, Some(tls)) => endpoint.tls_config(tls).map_err(failed),
        (true, None) => Err(EndpointError::NoIdentity {
            url: url.to_string(),
        }),
        (false, Some(_)) if !identity.is_insecure() => Err(EndpointError::ClearText {
            url: url.to_string(),
        }),
        (false, _) => Ok(endpoint),
    }
}

/// What generated clients are made of: a tonic channel with a span per call, whose
/// context travels along as `traceparent`.
///
/// See [`tonic::transport::Channel`]: cheap to clone, calls are multiplexed, a lost
/// connection is dialled again by the next call.
#[derive(Clone, Debug)]
pub struct Channel {
    inner: transport::Channel,
}

impl Channel {
    /// Dials with the first call. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub fn lazy(url: &ServerUrl, identity: &Identity) -> Result<Self, EndpointError> {
        Ok(endpoint(url, identity)?.connect_lazy().into())
    }

    /// Dials now.
    ///
    /// # Errors
    /// See [`EndpointError`]; a server that is not there is [`EndpointError::Transport`].
    pub async fn connect(url: &ServerUrl, identity: &Identity) -> Result<Self, EndpointError> {
        let connected = endpoint(url, identity)?.connect().await;
        let inner = connected.map_err(|source| EndpointError::Transport {
            url: url.to_string(),
            source,
        })?;
        Ok(inner.into())
    }
}

impl From<transport::Channel> for Channel {
    fn from(inner: transport::Channel) -> Self {
        Self { inner }
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let span = span::span(Side::Client, request.uri().path());
        telemetry::inject(&span, request.headers_mut());
        let answer = self.inner.call(request).instrument(span.clone());
        Box::pin(async move {
            let answer = answer.await;
            match &answer {
                Ok(answer) => span::finish(&span, Side::Client, answer.headers()),
                Err(_) => span::broken(&span, Side::Client),
            }
            answer
        })
    }
}
