//! One flow: its sockets, its origin, its account.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyport_model::{identity::ClientIp, outcome::Status, resource::Transport};
use anyport_node::telemetry::TRACE_ONLY;
use socket2::Socket;
use tracing::{Span, field};

use super::{
    batch::{Batch, Sent, Shape, send_alone},
    header::Header,
    sessions::Key,
    sockets,
};
use crate::{
    descriptors::Pair,
    live::AppKey,
    origin::{Candidate, Candidates, NoOrigin, transparent},
    shield::{self, DatagramPaces, Inside, Refusal},
    stats::{AppStats, OpenGuard, OriginStats, Stats, TransparentGuard},
    table::{Snapshot, Target},
    tcp::Service,
};

/// What a first datagram of this size and less is kept for, until an origin
/// has answered: to give it to the next one, where the first has no socket
/// there. As much as a packet carries on most paths.
const KEPT_MAX: usize = 1500;

pub(super) struct Flow {
    pub(super) client: Socket,
    pub(super) leg: Leg,
    pub(super) answered: bool,
    /// Held until the origin has answered.
    pub(super) first: Option<Box<[u8]>>,
    pub(super) header: Header,
    /// Boxed, so that flows without a limit carry nothing of it.
    paces: Option<Box<DatagramPaces>>,
    /// Origins that have refused.
    refused: Vec<Arc<str>>,
    pub(super) account: Account,
    /// After the sockets, which they are.
    descriptors: Pair<Service>,
}

/// The way to an origin.
pub(super) struct Leg {
    pub(super) socket: Socket,
    /// Who is heard on it.
    pub(super) origin: SocketAddr,
    label: Arc<str>,
    stats: Arc<OriginStats>,
    since: Instant,
    _open: OpenGuard,
    _transparent: Option<TransparentGuard>,
}

/// A flow as it is accounted: closed once, however it ends.
pub(super) struct Account {
    app: Arc<AppStats>,
    since: Instant,
    status: Status,
    from_client: u64,
    from_origin: u64,
    span: Span,
    _inside: Inside,
}

/// There is no origin for a flow.
#[derive(Debug)]
pub(super) enum NoFlow {
    /// No app takes it.
    Unclaimed,
    /// Its app's access rules or limits are against it.
    Refused(Refusal),
    /// The app has no origin that could be tried, or all of them refused.
    NoOrigin(NoOrigin),
    /// This host is out of descriptors, ports or memory.
    System(io::Error),
}

impl Flow {
    /// Makes the sockets of a new flow, whose first datagram is `first`.
    pub(super) fn open(
        table: &Snapshot,
        key: &Key,
        first: &[u8],
        descriptors: Pair<Service>,
    ) -> Result<Opened, NoFlow> {
        let target = table
            .target(Transport::Udp, key.edge)
            .ok_or(NoFlow::Unclaimed)?;
        let (app, client_ip) = (&target.app.app, key.client.ip());
        let (verdict, limits) = (app.access.decide(client_ip), &app.limits);
        let inside = shield::admit(verdict, limits, &target.app.stats, client_ip);
        let inside = inside.map_err(NoFlow::Refused)?;
        let client = sockets::towards_client(key).map_err(NoFlow::System)?;
        let mut account = Account::open(Arc::clone(&target.app.stats), inside, key);
        account.span.record("app", target.app.app.name.as_str());
        account.span.record("pool", target.pool.id.label());
        account.span.record("config_revision", table.revision.0);
        let leg = dial(target, &descriptors.stats, key, &[]).inspect_err(|failed| {
            account.status = failed.status();
        })?;
        account.span.record("origin", leg.label.as_ref());
        Ok(Opened {
            idle: target.app.app.timeouts.udp_idle,
            flow: Self {
                client,
                leg,
                answered: false,
                first: (first.len() <= KEPT_MAX).then(|| first.into()),
                header: Header::new(target.app.app.identity.proxy_protocol, key),
                paces: limits
                    .bytes_per_second_per_connection
                    .map(|rate| Box::new(DatagramPaces::new(rate, Instant::now()))),
                refused: Vec::new(),
                account,
                descriptors,
            },
        })
    }

    pub(super) fn app(&self) -> AppKey {
        AppKey::of(&self.account.app)
    }

    /// Whether a datagram of `bytes` may go to the origin; counted if so.
    pub(super) fn may_send(&mut self, bytes: usize, now: Instant) -> bool {
        let paces = self.paces.as_deref_mut();
        paces.is_none_or(|paces| paces.up.passes(bytes, now))
    }

    /// Whether one may go to the client.
    pub(super) fn may_answer(&mut self, bytes: usize, now: Instant) -> bool {
        let paces = self.paces.as_deref_mut();
        paces.is_none_or(|paces| paces.down.passes(bytes, now))
    }

    /// Sends datagrams of the client's to the origin.
    pub(super) fn send(&mut self, batch: &Batch, which: &[usize]) -> Sent {
        let mut sent = Sent::default();
        let mut rest = which;
        if let Some(header) = self.header.of_first()
            && let Some((first, others)) = which.split_at_checked(1)
        {
            sent = batch.send(&self.leg.socket, first, &Shape { header, skip: 0 });
            self.header.first_is_sent();
            rest = others;
        }
        if !rest.is_empty() {
            let header = self.header.of_each();
            sent += batch.send(&self.leg.socket, rest, &Shape { header, skip: 0 });
        }
        sent
    }

    /// Sends the first datagram again, to an origin that has not got it.
    pub(super) fn send_first_again(&mut self) {
        if let Some(first) = &self.first {
            let header = self.header.of_first().unwrap_or(self.header.of_each());
            // Should it be refused at once, that is found by its event.
            send_alone(&self.leg.socket, &[header, first].concat());
            self.header.first_is_sent();
        }
    }

    /// The origin said something.
    pub(super) fn heard(&mut self, now: Instant) {
        if !self.answered {
            self.answered = true;
            self.first = None;
            let took = now.saturating_duration_since(self.leg.since);
            self.leg.stats.dialled(Ok(took));
        }
    }

    /// The origin has no socket there. Goes on with another, where none has
    /// answered yet; else the status to end with.
    pub(super) fn refused(&mut self, table: &Snapshot, key: &Key) -> Result<(), Status> {
        self.leg
            .stats
            .dialled(Err(&"no socket there (ICMP port unreachable)"));
        if self.answered {
            return Err(Status::OriginRefusedRead);
        }
        self.refused.push(Arc::clone(&self.leg.label));
        let target = table.target(Transport::Udp, key.edge);
        let target = target.ok_or(Status::ConnectRefused)?;
        match dial(target, &self.descriptors.stats, key, &self.refused) {
            Ok(leg) => {
                self.leg = leg;
                self.header.begin_again();
                let label = self.leg.label.as_ref();
                self.account.span.record("origin", label);
                Ok(())
            }
            Err(NoFlow::NoOrigin(none)) if none.status == Status::NoOrigin => {
                Err(Status::ConnectRefused)
            }
            Err(failed) => Err(failed.status()),
        }
    }
}

/// A new flow, and how long it lives in silence.
pub(super) struct Opened {
    pub(super) flow: Flow,
    pub(super) idle: Duration,
}

/// A socket to an origin that is in none of `refused`.
fn dial(target: Target<'_>, stats: &Stats, key: &Key, refused: &[Arc<str>]) -> Result<Leg, NoFlow> {
    let now = Instant::now();
    let shown = match target.app.app.identity.client_ip {
        ClientIp::Edge => None,
        ClientIp::Transparent => Some(key.client),
    };
    if let Some(client) = shown {
        transparent::can_be_answered(client.ip()).map_err(NoFlow::NoOrigin)?;
    }
    let origins = &target.pool.origins;
    let refused = (0..origins.len()).filter(|&index| refused.contains(&origins[index].label));
    let candidates = Candidates::new(target, key.edge.port(), key.client.ip());
    let mut candidates = candidates.showing(shown).without(refused);
    while let Some(Candidate { index, address }) = candidates.next(now) {
        let Some(origin) = origins.get(index) else {
            break;
        };
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        match sockets::towards_origin(address, shown) {
            Ok(socket) => {
                return Ok(Leg {
                    socket,
                    origin: address,
                    label: Arc::clone(&origin.label),
                    _open: origin.stats.hold(),
                    _transparent: shown.map(|_| TransparentGuard::new(stats)),
                    stats: Arc::clone(&origin.stats),
                    since: now,
                });
            }
            // There is no way to it: that says something of the origin.
            Err(error) if is_no_route(&error) => {
                origin.stats.dialled(Err(&error));
                candidates.failed(Status::ConnectUnreachable, format!("{address}: {error}"));
            }
            Err(error) => return Err(NoFlow::System(error)),
        }
    }
    Err(NoFlow::NoOrigin(candidates.why_none()))
}

fn is_no_route(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable
    )
}

impl NoFlow {
    fn status(&self) -> Status {
        match self {
            NoFlow::Unclaimed => Status::Internal,
            NoFlow::Refused(_) => Status::Denied,
            NoFlow::NoOrigin(none) => none.status,
            NoFlow::System(_) => Status::ConnectSystem,
        }
    }
}

impl Account {
    fn open(app: Arc<AppStats>, inside: Inside, key: &Key) -> Self {
        app.opened();
        app.session_opened();
        Self {
            app,
            since: Instant::now(),
            // The drain ran out of time.
            status: Status::Closed,
            from_client: 0,
            from_origin: 0,
            span: tracing::debug_span!(
                target: TRACE_ONLY,
                "flow",
                otel.kind = "server",
                network.transport = "udp",
                app = field::Empty,
                pool = field::Empty,
                origin = field::Empty,
                client.address = %key.client.ip(),
                client.port = key.client.port(),
                server.address = %key.edge.ip(),
                server.port = key.edge.port(),
                config_revision = field::Empty,
                client_bytes = field::Empty,
                origin_bytes = field::Empty,
                status = field::Empty,
            ),
            _inside: inside,
        }
    }

    pub(super) fn moved(&mut self, from_client: u64, from_origin: u64) {
        self.from_client += from_client;
        self.from_origin += from_origin;
        self.app.moved(from_client, from_origin);
    }

    pub(super) fn close(mut self, status: Status) {
        self.status = status;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.span.record("client_bytes", self.from_client);
        self.span.record("origin_bytes", self.from_origin);
        self.span.record("status", self.status.code());
        self.app.session_closed();
        self.app.closed(self.status, self.since.elapsed());
    }
}
