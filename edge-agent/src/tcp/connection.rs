//! The life of one connection: find its app, dial an origin, relay, account.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyport_model::outcome::Status;
use anyport_node::{drain::DrainGuard, telemetry::TRACE_ONLY};
use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tracing::{Instrument, Span, field};

use super::{
    identity::{self, Identity},
    relay::{Ended, relay},
};
use crate::{
    live::{Closing, Place},
    origin::{Dialled, NoOrigin, dial},
    stats::{AppStats, Stats},
    table::{Snapshot, Target},
};

/// What connections need of the agent.
pub struct Service {
    pub table: Arc<ArcSwap<Snapshot>>,
    pub stats: Arc<Stats>,
}

/// A connection that an app has taken, as it is accounted: closed once, also
/// where its task is dropped.
struct Account {
    // Before `app`, which it names.
    place: Place,
    app: Arc<AppStats>,
    start: Instant,
    status: Option<Status>,
}

impl Account {
    fn open(app: Arc<AppStats>, place: Place) -> Self {
        app.opened();
        place.belongs_to(&app);
        Self {
            place,
            app,
            start: Instant::now(),
            status: None,
        }
    }

    fn close(mut self, status: Status) {
        self.status = Some(status);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let status = self.status.unwrap_or_else(|| {
            let why = self.place.closing().map_or("", Closing::as_str);
            record(Status::Closed, why);
            Status::Closed
        });
        self.app.closed(status, self.start.elapsed());
    }
}

/// A connection with both legs.
struct Joined {
    dialled: Dialled,
    idle: Duration,
}

/// Serves an accepted connection to its end. `place` and `guard` are held as
/// long.
pub async fn serve(
    service: Arc<Service>,
    client: TcpStream,
    peer: SocketAddr,
    place: Place,
    guard: DrainGuard,
) {
    // The kernel steered the connection here without rewriting it, so the
    // local address is the one that the client dialled.
    let Ok(destination) = client.local_addr() else {
        return;
    };
    let span = tracing::debug_span!(
        target: TRACE_ONLY,
        "connection",
        otel.kind = "server",
        app = field::Empty,
        pool = field::Empty,
        origin = field::Empty,
        client.address = %peer.ip(),
        client.port = peer.port(),
        server.address = %destination.ip(),
        server.port = destination.port(),
        config_revision = field::Empty,
        claimed_client = field::Empty,
        client_bytes = field::Empty,
        origin_bytes = field::Empty,
        status = field::Empty,
        reason = field::Empty,
    );
    live(&service, client, destination, place)
        .instrument(span)
        .await;
    drop(guard);
}

async fn live(service: &Service, client: TcpStream, destination: SocketAddr, place: Place) {
    // Boxed, so that the memory of the dial is given back before the relay,
    // which may be idle for hours.
    let Some((account, joined)) = Box::pin(join(service, &client, destination, place)).await else {
        service.stats.unclaimed.inc();
        reset(&client);
        return;
    };
    match joined {
        Ok(joined) => carry(account, client, joined).await,
        Err(refused) => {
            record(refused.status, &refused.reason);
            reset(&client);
            account.close(refused.status);
        }
    }
}

/// Finds the app, learns who the client is and dials an origin; `None` if no
/// app takes the connection.
async fn join(
    service: &Service,
    client: &TcpStream,
    destination: SocketAddr,
    place: Place,
) -> Option<(Account, Result<Joined, NoOrigin>)> {
    let table = service.table.load_full();
    let target = table.target(destination)?;
    let account = Account::open(Arc::clone(&target.app.stats), place);
    let span = Span::current();
    span.record("app", target.app.app.name.as_str());
    span.record("pool", target.pool.id.label());
    span.record("config_revision", table.revision.0);
    let identity = match identify(service, target, client, destination).await {
        Ok(identity) => identity,
        Err(refused) => return Some((account, Err(refused))),
    };
    let dialled = match dial(target, destination.port(), &service.stats).await {
        Ok(dialled) => dialled,
        Err(refused) => return Some((account, Err(refused))),
    };
    span.record("origin", dialled.origin.as_ref());
    let form = target.app.app.identity.proxy_protocol;
    if let Some(header) = identity.and_then(|identity| identity.header(form)) {
        let more = identity::has_sent(client);
        if let Err(error) = identity::announce(&dialled.stream, &header, more) {
            let status = Status::of_origin_error(error.kind());
            let reason = format!("sending the PROXY header: {error}");
            return Some((account, Err(NoOrigin { status, reason })));
        }
    }
    let joined = Joined {
        dialled,
        idle: target.app.app.timeouts.idle,
    };
    Some((account, Ok(joined)))
}

/// Who the connection is from, where that matters to its app.
async fn identify(
    service: &Service,
    target: Target<'_>,
    client: &TcpStream,
    edge: SocketAddr,
) -> Result<Option<Identity>, NoOrigin> {
    let wanted = &target.app.app.identity;
    if *wanted == anyport_model::identity::Identity::default() {
        return Ok(None);
    }
    // Asked for here, so that other connections do not carry it for hours.
    let peer = client.peer_addr().map_err(|error| NoOrigin {
        status: Status::of_client_error(error.kind()),
        reason: error.to_string(),
    })?;
    let Some(trusted) = &target.app.trusted_senders else {
        return Ok(Some(Identity::of(peer, edge)));
    };
    // Boxed: apps of other kinds do not carry its memory.
    let received = Box::pin(identity::receive(client, peer, edge, trusted)).await;
    match received {
        Ok(identity) => {
            let claimed = field::display(identity.client());
            Span::current().record("claimed_client", claimed);
            Ok(Some(identity))
        }
        Err(refused) => {
            let count = &service.stats.headers_refused;
            count.with_label_values(&[refused.label()]).inc();
            Err(NoOrigin {
                status: refused.status(),
                reason: refused.to_string(),
            })
        }
    }
}

async fn carry(account: Account, client: TcpStream, joined: Joined) {
    let Joined { dialled, idle } = joined;
    let app = Arc::clone(&account.app);
    let (mut from_client, mut from_origin) = (0, 0);
    let ended = relay(client, dialled.stream, idle, |moved| {
        from_client += moved.from_client;
        from_origin += moved.from_origin;
        app.moved(moved.from_client, moved.from_origin);
    })
    .await;
    drop(dialled.open);
    let (status, reason) = outcome(&ended);
    let span = Span::current();
    span.record("client_bytes", from_client);
    span.record("origin_bytes", from_origin);
    record(status, &reason);
    account.close(status);
}

fn outcome(ended: &Ended) -> (Status, String) {
    match ended {
        Ended::Done => (Status::Closed, String::new()),
        Ended::Idle => (Status::ClientTimedOut, "idle".to_owned()),
        Ended::Client(error) => (Status::of_client_error(error.kind()), said(error)),
        Ended::Origin(error) => (Status::of_origin_error(error.kind()), said(error)),
    }
}

/// Formatted only where a span wants it.
fn said(error: &io::Error) -> String {
    if Span::current().is_disabled() {
        String::new()
    } else {
        error.to_string()
    }
}

fn record(status: Status, reason: &str) {
    let span = Span::current();
    span.record("status", status.code());
    if !reason.is_empty() {
        span.record("reason", reason);
    }
}

/// Closes with a reset when dropped: a client that is turned away should learn
/// it at once and not take it for an empty answer.
fn reset(client: &TcpStream) {
    // The socket is being dropped: there is nobody left to tell.
    let _ = client.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_result<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    /// User memory of an idle connection is this, and what tokio keeps of its
    /// two sockets.
    #[test]
    fn a_connection_fits_its_memory_budget() {
        let size = size_of_result(serve);
        assert!(size <= 1408, "{size} bytes");
    }
}
