//! One flow: its sockets, its origin, its account.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyport_model::{identity::ClientIp, outcome::Status, resource::Transport};
use socket2::Socket;

use super::{
    account::Account,
    batch::{Batch, Sent, Shape, send_alone},
    header::Header,
    sessions::Key,
    sockets,
};
use crate::{
    descriptors::Pair,
    events::{Reason, Told},
    live::AppKey,
    origin::{Candidate, Candidates, NoOrigin, transparent},
    shield::{self, DatagramPaces, Refusal},
    stats::{OpenGuard, OriginStats, PoolId, Stats, TransparentGuard},
    table::{Snapshot, Target},
    tcp::Service,
};

/// What a first datagram of this size and less is kept for, until an origin
/// has answered: to give it to the next one, where the first has no socket
/// there. As much as a packet carries on most paths.
const KEPT_MAX: usize = 1500;

/// What an ICMP message said of the other end.
pub(super) const NO_SOCKET: &str = "no socket there (ICMP port unreachable)";

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
    refused: Vec<Arc<OriginStats>>,
    /// After the sockets, whose descriptors it has.
    pub(super) account: Account,
}

/// The way to an origin.
pub(super) struct Leg {
    pub(super) socket: Socket,
    /// Who is heard on it.
    pub(super) origin: SocketAddr,
    pool: PoolId,
    label: Arc<str>,
    stats: Arc<OriginStats>,
    since: Instant,
    _open: OpenGuard,
    _transparent: Option<TransparentGuard>,
}

/// There is no origin for a flow.
#[derive(Debug)]
pub(super) enum NoFlow {
    /// No app takes it.
    Unclaimed,
    /// The client's address and port are an app's of this edge.
    Unanswerable,
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
        service: Pair<Service>,
        (told, now): (&mut Told<Key>, Instant),
    ) -> Result<Opened, NoFlow> {
        let target = table
            .target(Transport::Udp, key.edge)
            .ok_or(NoFlow::Unclaimed)?;
        // What goes to such a client comes back as if it were a client's.
        if table.target(Transport::Udp, key.client).is_some() {
            return Err(NoFlow::Unanswerable);
        }
        let (app, client_ip) = (&target.app.app, key.client.ip());
        let (verdict, limits) = (app.access.decide(client_ip), &app.limits);
        let stats = Arc::clone(&service.stats);
        let account =
            |inside| Account::open(target, table.revision, key, (verdict, inside), service);
        let inside = match shield::admit(verdict, limits, &target.app.stats, client_ip) {
            Ok(inside) => inside,
            Err(refusal) => {
                let refused = NoFlow::Refused(refusal);
                if told.is_news(key, now) {
                    let (status, reason) = refused.outcome();
                    account(None).refuse(status, reason);
                }
                return Err(refused);
            }
        };
        let sockets = dial(target, &stats, key, &[]).and_then(|leg| {
            let client = sockets::towards_client(key).map_err(NoFlow::System)?;
            Ok((client, leg))
        });
        let (client, leg) = match sockets {
            Ok(sockets) => sockets,
            Err(failed) => {
                if told.is_news(key, now) {
                    let (status, reason) = failed.outcome();
                    account(Some(inside)).refuse(status, reason);
                }
                return Err(failed);
            }
        };
        let account = account(Some(inside));
        account.has_origin(&leg.pool, &leg.label, leg.origin);
        let form = target.app.app.identity.proxy_protocol;
        account.connected(form.as_str());
        Ok(Opened {
            idle: target.app.app.timeouts.udp_idle,
            flow: Self {
                client,
                leg,
                answered: false,
                first: (first.len() <= KEPT_MAX).then(|| first.into()),
                header: Header::new(form, key),
                paces: limits
                    .bytes_per_second_per_connection
                    .map(|rate| Box::new(DatagramPaces::new(rate, now))),
                refused: Vec::new(),
                account,
            },
        })
    }

    pub(super) fn app(&self) -> AppKey {
        self.account.app()
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
        // Until one has left with the header, none leaves without: the origin
        // would take what the client wrote for the header.
        while let Some(header) = self.header.of_first()
            && let Some((first, others)) = rest.split_at_checked(1)
        {
            let shape = Shape { header, skip: 0 };
            let first = batch.send(&self.leg.socket, first, &shape);
            if first.datagrams > 0 {
                self.header.first_is_sent();
            }
            sent += first;
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
            let sent = send_alone(&self.leg.socket, &[header, first].concat());
            if sent.datagrams > 0 {
                self.header.first_is_sent();
            }
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
    /// answered yet; else how the flow ends.
    pub(super) fn refused(&mut self, table: &Snapshot, key: &Key) -> Result<(), (Status, Reason)> {
        self.leg.stats.dialled(Err(&NO_SOCKET));
        let refused = |status| (status, Reason::Word(NO_SOCKET));
        if self.answered {
            return Err(refused(Status::OriginRefusedRead));
        }
        self.refused.push(Arc::clone(&self.leg.stats));
        let target = table.target(Transport::Udp, key.edge);
        let target = target.ok_or(refused(Status::ConnectRefused))?;
        match dial(target, self.account.stats(), key, &self.refused) {
            Ok(leg) => {
                self.leg = leg;
                self.header.begin_again();
                let Leg {
                    pool,
                    label,
                    origin,
                    ..
                } = &self.leg;
                self.account.has_origin(pool, label, *origin);
                Ok(())
            }
            Err(NoFlow::NoOrigin(none)) if none.status == Status::NoOrigin => {
                Err(refused(Status::ConnectRefused))
            }
            Err(failed) => {
                let (status, reason) = failed.outcome();
                Err((status, Reason::Text(reason.into())))
            }
        }
    }
}

/// A new flow, and how long it lives in silence.
pub(super) struct Opened {
    pub(super) flow: Flow,
    pub(super) idle: Duration,
}

/// A socket to an origin that is in none of `refused`.
fn dial(
    target: Target<'_>,
    stats: &Stats,
    key: &Key,
    refused: &[Arc<OriginStats>],
) -> Result<Leg, NoFlow> {
    let now = Instant::now();
    let shown = match target.app.app.identity.client_ip {
        ClientIp::Edge => None,
        ClientIp::Transparent => Some(key.client),
    };
    if let Some(client) = shown {
        transparent::can_be_answered(client.ip()).map_err(NoFlow::NoOrigin)?;
    }
    let candidates = Candidates::new(target, key.edge.port(), key.client.ip());
    let mut candidates = candidates.showing(shown);
    if !refused.is_empty() {
        candidates =
            candidates.without(|origin| refused.iter().any(|r| std::ptr::eq(&**r, origin)));
    }
    while let Some(candidate) = candidates.next(now) {
        let Candidate {
            pool,
            origin,
            address,
        } = candidate;
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        match sockets::towards_origin(address, shown) {
            Ok(socket) => {
                return Ok(Leg {
                    socket,
                    origin: address,
                    pool: pool.id.clone(),
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
    /// How a flow ends for it, and why.
    fn outcome(&self) -> (Status, String) {
        match self {
            NoFlow::Unclaimed | NoFlow::Unanswerable => (Status::Internal, String::new()),
            NoFlow::Refused(refusal) => (Status::Denied, refusal.to_string()),
            NoFlow::NoOrigin(none) => (none.status, none.reason.clone()),
            NoFlow::System(error) => (Status::ConnectSystem, error.to_string()),
        }
    }
}
