//! The life of one connection: find its app, have it joined to an origin,
//! relay.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyport_model::outcome::Status;
use anyport_node::{drain::DrainGuard, telemetry::TRACE_ONLY};
use arc_swap::ArcSwap;
use futures_util::future::Either;
use tokio::net::TcpStream;
use tracing::{Instrument, Span, field};

use super::{
    account::{Account, Relayed, record},
    enter::Arriving,
    identity,
    leg::Leg,
    relay::{Ended, relay},
    terminate::Terminate,
    unanswered::Unanswered,
    way::{AtOnce, Refused, Way},
};
use crate::{
    descriptors::{Budget, Pair},
    events::{Connections, EventKind, EventLog, Reason},
    live::{Place, Windows},
    origin::Held,
    shield::StreamPaces,
    stats::Stats,
    table::Snapshot,
    tls::{Arrived, ClientLeg, OriginLeg, Turned},
};

/// What connections need of the agent.
pub struct Service {
    pub table: Arc<ArcSwap<Snapshot>>,
    pub stats: Arc<Stats>,
    pub connections: Arc<Connections>,
    pub events: Arc<EventLog>,
    pub descriptors: Arc<Budget>,
    /// The edge is out of service: nothing new is taken, whatever the kernel
    /// still hands over.
    pub drained: AtomicBool,
}

impl Service {
    pub fn is_drained(&self) -> bool {
        self.drained.load(Relaxed)
    }

    /// How long what is open may go on in a drain that begins now, at most
    /// `limit`.
    pub fn drain_windows(&self, limit: Option<Duration>) -> Windows {
        Windows {
            of_apps: self.table.load().drain_windows(),
            limit,
        }
    }
}

impl AsRef<Budget> for Service {
    fn as_ref(&self) -> &Budget {
        &self.descriptors
    }
}
/// A connection with both legs.
struct Joined {
    legs: Legs,
    held: Held,
    idle: Duration,
    /// Boxed, so that connections without a limit carry nothing of it.
    paces: Option<Box<StreamPaces>>,
}

/// Both sides of a connection.
pub(super) enum Legs {
    Plain(TcpStream, TcpStream),
    /// TLS ends here.
    Ended(ClientLeg, TcpStream),
    /// TLS ends here, and begins anew towards the origin.
    Renewed(ClientLeg, OriginLeg),
}

/// Serves an accepted connection to its end. `place` and `guard` are held as
/// long, and the two descriptors that `service` comes with.
pub fn serve(
    service: Pair<Service>,
    client: Unanswered,
    peer: SocketAddr,
    place: Place,
    guard: DrainGuard,
) -> impl Future<Output = ()> + Send {
    // Whatever an async function is given, and what is borrowed once in its
    // body, it keeps room for to its end, also after it was moved on. So what
    // the relay does not need is boxed until then, or is in functions that are
    // not async.
    let accepted = Box::new(Accepted {
        client,
        peer,
        place,
    });
    async move {
        if let Some((span, join)) = begin(&service, accepted) {
            live(&service, join).instrument(span).await;
        }
        drop(guard);
    }
}

struct Accepted {
    client: Unanswered,
    peer: SocketAddr,
    place: Place,
}

type Joining<F> = Pin<Box<F>>;

/// The connection's span, and what joins it to an origin; `None` where it is
/// gone.
#[expect(
    clippy::boxed_local,
    reason = "unboxed, it is part of the caller's future"
)]
fn begin<'a>(
    service: &'a Service,
    accepted: Box<Accepted>,
) -> Option<(
    Span,
    Joining<impl Future<Output = Option<Taken<'a>>> + Send>,
)> {
    let Accepted {
        client,
        peer,
        place,
    } = *accepted;
    // The kernel steered the connection here without rewriting it, so the
    // local address is the one that the client dialled.
    let destination = client.local_addr().ok()?;
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
        server_name = field::Empty,
        tls_version = field::Empty,
        tls_cipher = field::Empty,
        client_bytes = field::Empty,
        origin_bytes = field::Empty,
        status = field::Empty,
        reason = field::Empty,
    );
    let join = Box::pin(join(service, client, peer, destination, place));
    Some((span, join))
}

/// A connection that an app has taken, with both legs or without.
type Taken<'a> = (Account<'a>, Result<Joined, Refused>);

async fn live<'a>(service: &'a Service, join: Joining<impl Future<Output = Option<Taken<'a>>>>) {
    let Some(taken) = join.await else {
        service.stats.unclaimed.inc();
        return;
    };
    let Some(relay) = carry(taken) else {
        return;
    };
    let (ended, both) = relay.await;
    conclude(both, &ended);
}

/// Finds the app and makes both legs; `None` if no app takes the connection.
async fn join(
    service: &Service,
    client: Unanswered,
    peer: SocketAddr,
    destination: SocketAddr,
    place: Place,
) -> Option<Taken<'_>> {
    let table = service.table.load_full();
    let arriving = Arriving {
        service,
        table: &table,
        peer,
        destination,
    };
    let (account, inside) = arriving.enter(&client, place).await?;
    let (Arrived { target, hello }, identity) = match inside {
        Ok(inside) => inside,
        Err(turned) => {
            if turned.told {
                drop(client.release());
            }
            let Turned { status, reason, .. } = turned;
            return Some((account, Err(Refused { status, reason })));
        }
    };
    let span = Span::current();
    span.record("app", target.app.app.name.as_str());
    span.record("pool", target.pool.id.label());
    let pool = target.pool.id.clone();
    account
        .connection()
        .learn(|details| details.pool = Some(pool));
    let way = Way {
        service,
        connection: account.connection(),
        target,
        identity,
        destination,
    };
    let joined = match (&target.app.tls, hello) {
        // Boxed: connections without TLS do not carry its memory.
        (Some(ends), Some(hello)) => Box::pin(Terminate { way, ends, hello }.join(client)).await,
        _ => {
            let reached = way
                .reach(&client, || identity::has_sent(&*client), AtOnce)
                .await;
            reached.map(|(origin, held)| (Legs::Plain(client.release(), origin), held))
        }
    };
    let limits = &target.app.app.limits;
    let joined = joined.map(|(legs, held)| Joined {
        legs,
        held,
        idle: target.app.app.timeouts.idle,
        paces: limits
            .bytes_per_second_per_connection
            .map(|rate| Box::new(StreamPaces::new(rate))),
    });
    Some((account, joined))
}

/// Relays between both legs, if there are both.
fn carry((account, joined): Taken<'_>) -> Option<impl Future<Output = (Ended, Relayed<'_>)>> {
    let Joined {
        legs,
        held,
        idle,
        paces,
    } = match joined {
        Ok(joined) => joined,
        Err(refused) => {
            record(refused.status, &refused.reason);
            let kind = EventKind::of_refusal(refused.status);
            account.close(kind, refused.status, Reason::Text(refused.reason.into()));
            return None;
        }
    };
    let both = Relayed { account, held };
    let begins = |client: &TcpStream, origin: &TcpStream| {
        both.account.connected(client.as_fd(), origin.as_fd());
    };
    Some(match legs {
        Legs::Plain(client, origin) => {
            begins(&client, &origin);
            Either::Left(relay(client, origin, idle, paces, both))
        }
        Legs::Ended(client, origin) => {
            begins(client.socket(), &origin);
            Either::Right(Either::Left(relay(client, origin, idle, paces, both)))
        }
        Legs::Renewed(client, origin) => {
            begins(client.socket(), origin.socket());
            Either::Right(Either::Right(relay(client, origin, idle, paces, both)))
        }
    })
}

fn conclude(Relayed { account, held }: Relayed<'_>, ended: &Ended) {
    drop(held);
    let (status, reason) = outcome(ended);
    let span = Span::current();
    if !span.is_disabled() {
        let (from_client, from_origin) = account.connection().bytes();
        span.record("client_bytes", from_client);
        span.record("origin_bytes", from_origin);
        record(status, &reason.to_string());
    }
    account.close(EventKind::Disconnect, status, reason);
}

fn outcome(ended: &Ended) -> (Status, Reason) {
    let of = |error: &io::Error| Reason::of_error(error);
    match ended {
        Ended::Done => (Status::Closed, Reason::None),
        Ended::Idle => (Status::ClientTimedOut, Reason::Word("idle")),
        Ended::Client(error) => (Status::of_client_error(error.kind()), of(error)),
        Ended::Origin(error) => (Status::of_origin_error(error.kind()), of(error)),
    }
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
        assert!(size <= 672, "{size} bytes");
    }
}
