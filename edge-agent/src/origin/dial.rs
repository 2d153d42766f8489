//! Dialling an origin of a pool, and on failure the next one, before the
//! client notices more than a pause.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyport_model::outcome::Status;
use anyport_node::telemetry::TRACE_ONLY;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tracing::Instrument;

use crate::{
    stats::{OpenGuard, Stats},
    table::Target,
};

/// A connection to an origin.
pub struct Dialled {
    pub stream: TcpStream,
    /// Counts the connection at its origin until it is dropped.
    pub open: OpenGuard,
    pub origin: Arc<str>,
}

/// No origin could be connected to.
#[derive(Debug)]
pub struct NoOrigin {
    pub status: Status,
    /// The last failure, or that there was nothing to try.
    pub reason: String,
}

/// Of the time that is left for connecting, an attempt gets an equal part with
/// those that could follow it, but never less than this: below it a lost SYN
/// (sent again after 1 s, RFC 6298) would cost a healthy origin the connection.
const ATTEMPT_MIN: Duration = Duration::from_millis(1200);

/// Dials origins of `target`'s pool until one accepts or the app's connect
/// timeout is over. Healthy ones come first, by policy and weight; then, as a
/// last resort, those that are held to be down.
pub async fn dial(target: Target<'_>, edge_port: u16, stats: &Stats) -> Result<Dialled, NoOrigin> {
    let deadline = Instant::now() + target.app.app.timeouts.connect;
    let mut failed = NoOrigin {
        status: Status::NoOrigin,
        reason: "no origin of the pool is enabled and has a weight".to_owned(),
    };
    let mut tried = Vec::new();
    while let Some(index) = choose(target, &tried) {
        let Some(address) = target.address(index, edge_port) else {
            break;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let others = target.pool.origins.len().saturating_sub(tried.len() + 1);
        tried.push(index);
        let part = left / u32::try_from(others + 1).unwrap_or(u32::MAX);
        let patience = part.max(ATTEMPT_MIN).min(left);
        match attempt(target, index, address, patience, stats).await {
            Ok(dialled) => return Ok(dialled),
            Err(error) => {
                failed.status = Status::of_connect_error(error.0.kind());
                failed.reason = format!("{address}: {error}");
            }
        }
    }
    Err(failed)
}

fn choose(target: Target<'_>, tried: &[usize]) -> Option<usize> {
    let pool = target.pool;
    let turn = pool.stats.turn.fetch_add(1, Relaxed);
    let random = rand::random();
    let open = |index: usize| pool.origins.get(index).map_or(0, |o| o.stats.open());
    let healthy = pool.wheel.choose(turn, random, open, tried);
    healthy.or_else(|| pool.last_resort.choose(turn, random, open, tried))
}

async fn attempt(
    target: Target<'_>,
    index: usize,
    address: SocketAddr,
    patience: Duration,
    stats: &Stats,
) -> Result<Dialled, DialError> {
    let origin = target
        .pool
        .origins
        .get(index)
        .ok_or(DialError(io::ErrorKind::NotFound.into()))?;
    let span = tracing::debug_span!(
        target: TRACE_ONLY,
        "dial",
        otel.kind = "client",
        pool = target.pool.id.label(),
        origin = origin.label.as_ref(),
        network.peer.address = %address,
        error = tracing::field::Empty,
    );
    let open = origin.stats.hold();
    let start = Instant::now();
    let connected = timeout(patience, connect(address))
        .instrument(span.clone())
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match connected {
        Ok(stream) => {
            let took = start.elapsed();
            origin.stats.dialled(Ok(took));
            stats.connected(&target.app.stats, &target.pool.id, &origin.label, took);
            Ok(Dialled {
                stream,
                open,
                origin: Arc::clone(&origin.label),
            })
        }
        Err(error) => {
            let error = DialError(error);
            origin.stats.dialled(Err(&error));
            span.record("error", tracing::field::display(&error));
            Err(error)
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // What a client sends in small pieces must leave in small pieces.
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

/// A failed dial in the words that users see.
struct DialError(io::Error);

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            io::ErrorKind::ConnectionRefused => f.write_str("connect: connection refused"),
            io::ErrorKind::TimedOut => f.write_str("connect: timed out"),
            io::ErrorKind::HostUnreachable => f.write_str("connect: no route to host"),
            io::ErrorKind::NetworkUnreachable => f.write_str("connect: network is unreachable"),
            _ => write!(f, "connect: {}", self.0),
        }
    }
}
