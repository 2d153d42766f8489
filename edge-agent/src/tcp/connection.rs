//! The life of one connection: find its app, dial an origin, relay, account.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyport_model::{
    client_hello::ClientHello,
    dns::RecordType,
    identity::{ClientIp, ProxyProtocol},
    outcome::Status,
    resource::{OriginChoice, Transport},
};
use anyport_node::{
    drain::DrainGuard,
    telemetry::{TRACE_ONLY, current_trace_id},
};
use arc_swap::ArcSwap;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tracing::{Instrument, Span, field};

use super::{
    identity::{self, Identity},
    leg::Leg,
    relay::{Ended, Moved, Observer, relay},
};
use crate::{
    events::{
        ClientTls, Connection, Connections, Details, EventKind, EventLog, Open, OriginTls, Reason,
        rtt,
    },
    live::{AppKey, Closing, Place},
    origin::{Held, Incoming, NoOrigin, dial, resolved},
    stats::{AppStats, Stats},
    table::{AppEntry, Snapshot, Target},
    tls::{self, Arrived, Termination, TlsLeg, ToOrigin, Turned},
};

/// What connections need of the agent.
pub struct Service {
    pub table: Arc<ArcSwap<Snapshot>>,
    pub stats: Arc<Stats>,
    pub connections: Arc<Connections>,
    pub events: Arc<EventLog>,
}

/// A connection that an app has taken, as it is accounted: closed once, also
/// where its task is dropped.
struct Account<'a> {
    // Before `app`, which it names.
    place: Place,
    events: &'a EventLog,
    app: Arc<AppStats>,
    open: Open<'a>,
    start: Instant,
    /// None: it is dropped before its end.
    end: Option<(EventKind, Status)>,
}

impl<'a> Account<'a> {
    fn open(
        service: &'a Service,
        app: &Arc<AppStats>,
        place: Place,
        edge: SocketAddr,
        known: Details,
    ) -> Self {
        app.opened();
        place.belongs_to(app);
        Self {
            place,
            events: &service.events,
            app: Arc::clone(app),
            open: service.connections.open(Transport::Tcp, edge, known),
            start: Instant::now(),
            end: None,
        }
    }

    /// Both legs are up.
    fn connected(&self, client: BorrowedFd<'_>, origin: BorrowedFd<'_>) {
        let rtts = self.rtts(client, origin);
        self.open.learn(|details| {
            details.connected_at = Some(SystemTime::now());
            rtts.note(details);
        });
        let connection = self.open.shared();
        self.events.record(EventKind::Connect, None, connection);
    }

    fn rtts(&self, client: BorrowedFd<'_>, origin: BorrowedFd<'_>) -> Rtts {
        if self.events.is_followed() {
            Rtts(rtt(client), rtt(origin))
        } else {
            Rtts(None, None)
        }
    }

    fn close(mut self, kind: EventKind, status: Status, reason: Reason) {
        if !reason.is_none() {
            self.open.learn(|details| details.reason = reason);
        }
        self.end = Some((kind, status));
    }
}

/// Both accounts of a connection that is relayed: its own and its origin's.
struct Relayed<'a> {
    account: Account<'a>,
    held: Held,
}

impl Observer for Relayed<'_> {
    fn stands_at(&mut self, total: Moved) {
        let open = &self.account.open;
        open.moved(total.from_client, total.from_origin);
    }

    fn moved(&mut self, moved: Moved) {
        let Moved {
            from_client,
            from_origin,
        } = moved;
        self.held.moved(from_client, from_origin);
        self.account.app.moved(from_client, from_origin);
    }

    fn ends(&mut self, client: BorrowedFd<'_>, origin: BorrowedFd<'_>) {
        let rtts = self.account.rtts(client, origin);
        self.account.open.learn(|details| rtts.note(details));
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        let (kind, status) = self.end.unwrap_or_else(|| {
            let why = self.place.closing().map_or("", Closing::as_str);
            record(Status::Closed, why);
            self.open
                .learn(|details| details.reason = Reason::Word(why));
            (EventKind::Disconnect, Status::Closed)
        });
        self.app.closed(status, self.start.elapsed());
        self.events.record(kind, Some(status), self.open.shared());
    }
}

/// Round trip times to the client and to the origin, where they were measured.
struct Rtts(Option<Duration>, Option<Duration>);

impl Rtts {
    fn note(self, details: &mut Details) {
        let Rtts(client, origin) = self;
        details.client_rtt = client.unwrap_or(details.client_rtt);
        details.origin_rtt = origin.unwrap_or(details.origin_rtt);
    }
}

/// A connection with both legs.
struct Joined {
    legs: Legs,
    held: Held,
    idle: Duration,
}

enum Legs {
    Plain(TcpStream, TcpStream),
    /// TLS ends here.
    Ended(TlsLeg, TcpStream),
    /// TLS ends here, and begins anew towards the origin.
    Renewed(TlsLeg, TlsLeg),
}

/// Why there are no two legs.
struct Refused {
    status: Status,
    reason: String,
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
        server_name = field::Empty,
        tls_version = field::Empty,
        tls_cipher = field::Empty,
        client_bytes = field::Empty,
        origin_bytes = field::Empty,
        status = field::Empty,
        reason = field::Empty,
    );
    // Boxed, so that the memory of handshakes and the dial is given back before
    // the relay, which may be idle for hours.
    let join = Box::pin(join(&service, client, peer, destination, place));
    live(&service, join).instrument(span).await;
    drop(guard);
}

/// A connection that an app has taken, with both legs or without.
type Taken<'a> = (Account<'a>, Result<Joined, Refused>);

async fn live<'a>(service: &'a Service, join: Pin<Box<impl Future<Output = Option<Taken<'a>>>>>) {
    let Some((account, joined)) = join.await else {
        service.stats.unclaimed.inc();
        return;
    };
    let Joined { legs, held, idle } = match joined {
        Ok(joined) => joined,
        Err(refused) => {
            record(refused.status, &refused.reason);
            let kind = EventKind::of_refusal(refused.status);
            return account.close(kind, refused.status, Reason::Text(refused.reason.into()));
        }
    };
    let both = Relayed { account, held };
    match legs {
        Legs::Plain(client, origin) => carry(both, client, origin, idle).await,
        Legs::Ended(client, origin) => carry(both, client, origin, idle).await,
        Legs::Renewed(client, origin) => carry(both, client, origin, idle).await,
    }
}

/// Finds the app and makes both legs; `None` if no app takes the connection. A
/// client that is turned away has been told.
async fn join(
    service: &Service,
    client: TcpStream,
    peer: SocketAddr,
    destination: SocketAddr,
    place: Place,
) -> Option<Taken<'_>> {
    let table = service.table.load_full();
    let span = Span::current();
    span.record("config_revision", table.revision.0);
    let Some((candidates, first, only)) = table.apps_at(destination) else {
        reset(&client);
        return None;
    };
    let open = |stats: &Arc<AppStats>, place| {
        let mut known = Details::new(stats.name().clone(), table.revision, peer);
        if !Span::current().is_disabled() {
            known.trace_id = current_trace_id().map(Into::into);
        }
        Account::open(service, stats, place, destination, known)
    };
    // Where the name in the ClientHello decides, the app is not known yet.
    let account = match only {
        Some(_) => Ok(open(&first.stats, place)),
        None => Err(place),
    };
    let arrived = match receive(service, first, &client, destination).await {
        Ok(identity) => tls::arrive(&table, candidates, only, first, &client)
            .await
            .map(|arrived| (arrived, identity)),
        Err(turned) => Err(turned),
    };
    let stats = match &arrived {
        Ok((arrived, _)) => &arrived.target.app.stats,
        Err(turned) => &turned.stats,
    };
    let account = account.unwrap_or_else(|place| open(stats, place));
    let (Arrived { target, hello }, identity) = match arrived {
        Ok(arrived) => arrived,
        Err(turned) => {
            if !turned.told {
                reset(&client);
            }
            let Turned { status, reason, .. } = turned;
            return Some((account, Err(Refused { status, reason })));
        }
    };
    // Before its name was known, no order to close the app's connections could
    // find this one.
    let late = only.is_none() && {
        let ordered = service.table.load();
        ordered.revision != table.revision
            && ordered.to_close().contains(&AppKey::of(&target.app.stats))
    };
    if late {
        reset(&client);
        let (status, reason) = (Status::Closed, Closing::Disabled.as_str().to_owned());
        return Some((account, Err(Refused { status, reason })));
    }
    span.record("app", target.app.app.name.as_str());
    span.record("pool", target.pool.id.label());
    account.open.learn(|details| {
        details.pool = Some(target.pool.id.clone());
        if let Some(identity) = &identity {
            details.client = identity.client();
        }
    });
    let way = Way {
        service,
        connection: &account.open,
        target,
        identity,
        destination,
    };
    let joined = match (&target.app.tls, hello) {
        // Boxed: connections without TLS do not carry its memory.
        (Some(ends), Some(hello)) => Box::pin(Terminate { way, ends, hello }.join(client)).await,
        _ => match way.reach(&client, || identity::has_sent(&client)).await {
            Ok((origin, held)) => Ok((Legs::Plain(client, origin), held)),
            Err(refused) => {
                reset(&client);
                Err(refused)
            }
        },
    };
    let joined = joined.map(|(legs, held)| Joined {
        legs,
        held,
        idle: target.app.app.timeouts.idle,
    });
    Some((account, joined))
}

/// Who the connection is from, where somebody else has to say so. Apps that
/// share a place have the same trusted senders, so `first` stands for all.
async fn receive(
    service: &Service,
    first: &AppEntry,
    client: &TcpStream,
    edge: SocketAddr,
) -> Result<Option<Identity>, Turned> {
    let Some(trusted) = &first.trusted_senders else {
        return Ok(None);
    };
    let turned = |status, reason| Turned {
        stats: Arc::clone(&first.stats),
        status,
        reason,
        told: false,
    };
    // Asked for here, so that other connections do not carry it for hours.
    let peer = client
        .peer_addr()
        .map_err(|error| turned(Status::of_client_error(error.kind()), error.to_string()))?;
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
            Err(turned(refused.status(), refused.to_string()))
        }
    }
}

/// From an app to its origin.
struct Way<'a> {
    service: &'a Service,
    connection: &'a Connection,
    target: Target<'a>,
    /// As a trusted sender said.
    identity: Option<Identity>,
    /// What the client dialled.
    destination: SocketAddr,
}

impl Way<'_> {
    /// Dials an origin and tells it who the client is, where it wants to know;
    /// `more` says whether something follows at once.
    async fn reach(
        &self,
        client: &TcpStream,
        more: impl FnOnce() -> bool,
    ) -> Result<(TcpStream, Held), Refused> {
        let Service { table, stats, .. } = self.service;
        let wanted = &self.target.app.app.identity;
        let identity = self.identity(client)?;
        let since = Instant::now();
        // A name that is not resolved yet makes a newer table when it is.
        let newer = resolved(self.target, table, since).await;
        let again = newer.as_ref().and_then(|newer| newer.again(self.target));
        let target = again.unwrap_or(self.target);
        let incoming = Incoming {
            client: self.asked_for(target, client),
            edge_port: self.destination.port(),
            shown: match wanted.client_ip {
                ClientIp::Edge => None,
                ClientIp::Transparent => identity.map(|identity| identity.client()),
            },
            since,
        };
        let dialled = match dial(target, incoming, stats).await {
            Ok(dialled) => dialled,
            Err(NoOrigin { status, reason }) => return Err(Refused { status, reason }),
        };
        Span::current().record("origin", dialled.origin.as_ref());
        let origin = Some((Arc::clone(&dialled.origin), dialled.address));
        self.connection.learn(|details| {
            details.origin = origin;
            details.proxy_protocol = wanted.proxy_protocol.as_str();
        });
        let header = identity.and_then(|identity| identity.header(wanted.proxy_protocol));
        if let Some(header) = header {
            identity::announce(&dialled.stream, &header, more()).map_err(|error| Refused {
                status: Status::of_origin_error(error.kind()),
                reason: format!("sending the PROXY header: {error}"),
            })?;
        }
        Ok((dialled.stream, dialled.held))
    }

    /// The client's address, where the choice of its origin goes by it: to
    /// others it is not worth a system call.
    fn asked_for(&self, target: Target<'_>, client: &TcpStream) -> IpAddr {
        let known = self.identity.as_ref().map(|known| known.client().ip());
        let asked = || match target.pool.is_by_client {
            // A client that is gone is like any other.
            true => client.peer_addr().ok().map(|peer| peer.ip()),
            false => None,
        };
        known.or_else(asked).unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    /// Who the client is, where the origin is to know.
    fn identity(&self, client: &TcpStream) -> Result<Option<Identity>, Refused> {
        let wanted = &self.target.app.app.identity;
        if wanted.proxy_protocol == ProxyProtocol::Off && wanted.client_ip == ClientIp::Edge {
            return Ok(None);
        }
        if self.identity.is_some() {
            return Ok(self.identity);
        }
        let peer = client.peer_addr().map_err(|error| Refused {
            status: Status::of_client_error(error.kind()),
            reason: error.to_string(),
        })?;
        Ok(Some(Identity::of(peer, self.destination)))
    }
}

/// A connection whose TLS ends here.
struct Terminate<'a> {
    way: Way<'a>,
    ends: &'a Termination,
    hello: ClientHello,
}

impl Terminate<'_> {
    async fn join(self, client: TcpStream) -> Result<(Legs, Held), Refused> {
        let span = Span::current();
        if let Some(name) = &self.hello.server_name {
            span.record("server_name", name.as_str());
        }
        let name = self.hello.server_name.as_ref();
        let tls = Box::new(ClientTls {
            server_name: name.map(|name| name.as_str().into()),
            protocol: "unknown",
            cipher: "",
            status: "HANDSHAKE_FAILED",
        });
        let to_origin = Box::new(OriginTls {
            mode: self.way.target.app.app.tls.as_str(),
            protocol: "none",
            cipher: "",
            status: "UNKNOWN",
        });
        self.learn(|details| {
            details.client_tls = Some(tls);
            details.origin_tls = Some(to_origin);
        });
        match &self.ends.origin {
            // Nothing reaches the origin before the client has shaken hands.
            ToOrigin::Clear => {
                let client = self.accept(client, None).await?;
                match self.way.reach(client.socket(), || false).await {
                    Ok((origin, held)) => Ok((Legs::Ended(client, origin), held)),
                    Err(refused) => {
                        reset(client.socket());
                        Err(refused)
                    }
                }
            }
            // The origin chooses the protocol (ALPN) that the client is told.
            ToOrigin::Tls(config) => {
                let (origin, held) = match self.secure(&client, config).await {
                    Ok(secured) => secured,
                    Err(refused) => {
                        reset(&client);
                        return Err(refused);
                    }
                };
                let client = self.accept(client, origin.protocol()).await?;
                Ok((Legs::Renewed(client, origin), held))
            }
        }
    }

    async fn secure(
        &self,
        client: &TcpStream,
        config: &Arc<ClientConfig>,
    ) -> Result<(TlsLeg, Held), Refused> {
        let (origin, held) = self.way.reach(client, || true).await?;
        let start = Instant::now();
        // The targets of SRV records have names of their own, which are not
        // those that people have certificates for.
        let found_by = match &self.way.target.app.app.origin {
            OriginChoice::Dns(dns) if dns.question().record != RecordType::Srv => {
                Some(dns.question().name.as_str())
            }
            _ => None,
        };
        let patience = self.patience();
        let origin = tls::connect(origin, config, &self.hello, found_by, patience).await;
        let origin = origin.map_err(|error| Refused {
            status: error.status(),
            reason: error.to_string(),
        })?;
        self.shaken("origin", start);
        self.learn(|details| {
            if let Some(tls) = &mut details.origin_tls {
                (tls.protocol, tls.cipher) = (origin.version(), origin.cipher());
                tls.status = "OK";
            }
        });
        Ok((origin, held))
    }

    async fn accept(&self, client: TcpStream, protocol: Option<&[u8]>) -> Result<TlsLeg, Refused> {
        let start = Instant::now();
        let config = &self.ends.shown.config;
        match tls::accept(client, config, protocol, self.patience()).await {
            Ok(leg) => {
                self.shaken("client", start);
                let span = Span::current();
                span.record("tls_version", leg.version());
                span.record("tls_cipher", leg.cipher());
                self.learn(|details| {
                    if let Some(tls) = &mut details.client_tls {
                        (tls.protocol, tls.cipher) = (leg.version(), leg.cipher());
                        tls.status = "OK";
                    }
                });
                Ok(leg)
            }
            Err(error) => Err(Refused {
                status: match error.kind() {
                    io::ErrorKind::ConnectionReset => Status::ClientReset,
                    _ => Status::TlsHandshake,
                },
                reason: format!("TLS with the client: {error}"),
            }),
        }
    }

    fn learn(&self, note: impl FnOnce(&mut Details)) {
        self.way.connection.learn(note);
    }

    fn patience(&self) -> Duration {
        self.way.target.app.app.timeouts.tls_handshake
    }

    fn shaken(&self, side: &str, start: Instant) {
        let took = start.elapsed().as_secs_f64();
        let times = &self.way.service.stats.tls_handshake;
        times.with_label_values(&[side]).observe(took);
    }
}

async fn carry<C: Leg, O: Leg>(mut both: Relayed<'_>, client: C, origin: O, idle: Duration) {
    both.account
        .connected(client.socket().as_fd(), origin.socket().as_fd());
    let ended = relay(client, origin, idle, &mut both).await;
    let Relayed { account, held } = both;
    drop(held);
    let (status, reason) = outcome(&ended);
    let span = Span::current();
    if !span.is_disabled() {
        let (from_client, from_origin) = account.open.bytes();
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
