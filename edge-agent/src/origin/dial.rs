//! Dialling an origin of a pool, and on failure the next one, before the
//! client notices more than a pause.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyport_model::outcome::Status;
use anyport_node::telemetry::TRACE_ONLY;
use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tracing::Instrument;

use super::{Candidate, Candidates, Held, transparent};
use crate::{
    stats::{OriginStats, PoolId, Stats, TransparentGuard},
    table::{Target, Unknown},
};

/// A connection that an origin is wanted for.
#[derive(Debug, Clone, Copy)]
pub struct Incoming {
    pub client: IpAddr,
    pub edge_port: u16,
    /// The client's address and port, where the origin is to see it as its
    /// peer. Only origins of its address family are tried then.
    pub shown: Option<SocketAddr>,
    /// When the app's connect timeout began to run.
    pub since: Instant,
}

/// A connection to an origin.
pub struct Dialled {
    pub stream: TcpStream,
    pub held: Held,
    /// The one that it is of.
    pub pool: PoolId,
    pub origin: Arc<str>,
    pub address: SocketAddr,
    pub seen: Seen,
}

/// What became of a connection that an origin has accepted is still to be told
/// to its counters.
pub struct Seen {
    stats: Arc<OriginStats>,
    began: Instant,
    took: Duration,
}

/// An origin accepted a connection, and nothing came of it.
#[derive(Debug)]
pub struct Unbegun {
    pub status: Status,
    pub reason: String,
    /// It says something of the origin, and not only of what the client wants.
    pub blames_origin: bool,
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

/// How much of `part` a dial is waited for where others could follow. A lost SYN
/// is sent again after 1 s, and at other whole seconds (RFC 6298; Linux after each
/// one), so that who waits on after the last of them waits for nothing.
fn worth_waiting(part: Duration) -> Duration {
    let answer = ATTEMPT_MIN - Duration::from_secs(1);
    let seconds = part.saturating_sub(answer).as_secs().max(1);
    Duration::from_secs(seconds) + answer
}

/// Of what is left, an equal part with the others that could follow.
fn part(left: Duration, others: usize) -> Duration {
    left / u32::try_from(others + 1).unwrap_or(u32::MAX)
}

/// Handshakes that are begun with origins for one client, which may have sent no
/// more than a ClientHello.
const BEGUN_MOST: u32 = 3;

/// Dials origins of a pool and of its fallbacks, one after the other, until
/// nothing is left to try or the app's connect timeout is over. Healthy ones come
/// first, by policy and weight; then, as a last resort, those that are held to be
/// down.
pub struct Dialling<'a> {
    target: Target<'a>,
    incoming: Incoming,
    stats: &'a Stats,
    candidates: Candidates<'a>,
    deadline: Instant,
    attempts: u32,
    unbegun: u32,
}

impl<'a> Dialling<'a> {
    /// # Errors
    /// Where no origin could answer the client.
    pub fn new(target: Target<'a>, incoming: Incoming, stats: &'a Stats) -> Result<Self, NoOrigin> {
        if let Some(client) = incoming.shown {
            transparent::can_be_answered(client.ip())?;
        }
        let candidates = Candidates::new(target, incoming.edge_port, incoming.client);
        Ok(Self {
            target,
            incoming,
            stats,
            candidates: candidates.showing(incoming.shown),
            deadline: incoming.since + target.app.app.timeouts.connect,
            attempts: 0,
            unbegun: 0,
        })
    }

    /// The next origin that accepts.
    ///
    /// # Errors
    /// Why there is none: the last failure, or that there was nothing to try.
    pub async fn next(&mut self) -> Result<Dialled, NoOrigin> {
        while self.unbegun < BEGUN_MOST && !self.left().is_zero() {
            if self.attempts > 0 && self.is_time_for_the_fallback() {
                self.candidates.leave_first_pool();
            }
            let Some(candidate) = self.candidates.next(self.incoming.since) else {
                break;
            };
            self.attempts += 1;
            let left = self.left();
            let patience = match self.candidates.left() {
                0 => left,
                others => worth_waiting(part(left, others)).min(left),
            };
            match self.attempt(candidate, patience).await {
                Ok(dialled) => return Ok(dialled),
                Err(error) => {
                    let address = candidate.address;
                    let reason = format!("{address}: {error}");
                    self.candidates.failed(error.status(), reason);
                    if error.is_our_own() {
                        break;
                    }
                }
            }
        }
        Err(self.candidates.why_none())
    }

    /// How long what has to be done on a connection before it is of use may
    /// take, so that another origin can be tried after it. None: there is no
    /// other.
    pub fn patience(&self) -> Option<Duration> {
        match self.candidates.left() {
            0 => None,
            _ if self.unbegun + 1 == BEGUN_MOST => None,
            others => Some(part(self.left(), others).max(ATTEMPT_MIN)),
        }
    }

    /// Nothing came of the connection that was made last.
    pub fn failed(&mut self, address: SocketAddr, seen: &Seen, why: Unbegun) {
        self.unbegun += 1;
        let outcome = match why.blames_origin {
            true => Err(&why.reason as &dyn fmt::Display),
            false => Ok(seen.took),
        };
        seen.stats.dialled_since(seen.began, outcome);
        let reason = format!("{address}: {}", why.reason);
        self.candidates.failed(why.status, reason);
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// A pool that lets dials run out of time, or of which nothing comes, may not
    /// use up what its fallback needs.
    fn is_time_for_the_fallback(&self) -> bool {
        let needs = (2 * ATTEMPT_MIN).min(self.whole() / 2);
        self.left() < needs || self.unbegun + 1 == BEGUN_MOST
    }

    /// The app's connect timeout.
    fn whole(&self) -> Duration {
        self.target.app.app.timeouts.connect
    }

    async fn attempt(
        &self,
        candidate: Candidate<'_>,
        patience: Duration,
    ) -> Result<Dialled, DialError> {
        let Candidate {
            pool,
            origin,
            address,
        } = candidate;
        let shown = self.incoming.shown;
        let span = tracing::debug_span!(
            target: TRACE_ONLY,
            "dial",
            otel.kind = "client",
            pool = pool.id.label(),
            origin = origin.label.as_ref(),
            network.peer.address = %address,
            error = tracing::field::Empty,
        );
        let open = origin.stats.hold();
        let transparent = shown.map(|_| TransparentGuard::new(self.stats));
        let start = Instant::now();
        let connected = timeout(patience, connect(address, shown))
            .instrument(span.clone())
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match connected {
            Ok(stream) => {
                let took = start.elapsed();
                let app = &self.target.app.stats;
                self.stats.connected(app, &pool.id, &origin.label, took);
                let held = match pool.is_timed {
                    true => Held::timed(open, &origin.stats, took),
                    false => Held::counted(open),
                };
                let stats = Arc::clone(&origin.stats);
                Ok(Dialled {
                    stream,
                    held: held.transparent(transparent),
                    pool: pool.id.clone(),
                    origin: Arc::clone(&origin.label),
                    address,
                    seen: Seen {
                        stats,
                        began: start,
                        took,
                    },
                })
            }
            Err(error) => {
                let error = DialError(error);
                // What says nothing of the origin is not held against it: our own
                // shortage, or a deadline that left it no time to answer. Who has
                // about all the time that the app gives has had enough.
                let enough = ATTEMPT_MIN.min(self.whole() * 3 / 4);
                let cut_short = patience < enough && error.0.kind() == io::ErrorKind::TimedOut;
                if !error.is_our_own() && !cut_short {
                    origin.stats.dialled_since(start, Err(&error));
                }
                span.record("error", tracing::field::display(&error));
                Err(error)
            }
        }
    }
}

impl Seen {
    /// The connection is of use.
    pub fn succeeded(&self) {
        self.stats.dialled(Ok(self.took));
    }
}

/// Why there is no origin, where none is tried.
pub fn nothing_to_try(target: Target<'_>) -> NoOrigin {
    match &target.pool.unknown {
        Some(Unknown::Failed(failed)) => NoOrigin {
            status: failed.status,
            reason: failed.reason.to_string(),
        },
        Some(Unknown::Pending(_)) => NoOrigin {
            status: Status::ResolveFailed,
            reason: "the origin's name is not resolved yet".to_owned(),
        },
        None => NoOrigin {
            status: Status::NoOrigin,
            reason: "no origin of the pool is enabled and has a weight".to_owned(),
        },
    }
}

async fn connect(address: SocketAddr, shown: Option<SocketAddr>) -> io::Result<TcpStream> {
    if let Some(client) = shown {
        // Boxed: other connections do not carry its memory.
        return Box::pin(transparent::connect(client, address)).await;
    }
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // What a client sends in small pieces must leave in small pieces.
    socket.set_nodelay(true)?;
    // The acknowledgement that ends the handshake waits for the client's first
    // bytes, to leave in one packet with them. Where there are none yet, the
    // relay sends it.
    SockRef::from(&socket).set_tcp_quickack(false)?;
    socket.connect(address).await
}

/// A failed dial in the words that users see.
struct DialError(io::Error);

impl DialError {
    /// This host refused, not the origin: descriptors, memory, local ports or
    /// permission are lacking, for any origin alike.
    fn is_our_own(&self) -> bool {
        matches!(
            self.0.raw_os_error(),
            Some(
                libc::EMFILE
                    | libc::ENFILE
                    | libc::ENOBUFS
                    | libc::ENOMEM
                    | libc::EADDRNOTAVAIL
                    | libc::EADDRINUSE
                    | libc::EACCES
                    | libc::EPERM
            )
        )
    }

    fn status(&self) -> Status {
        if self.is_our_own() {
            Status::ConnectSystem
        } else {
            Status::of_connect_error(self.0.kind())
        }
    }
}

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        events::segments_sent,
        origin::fake_edge::{Edge, edge, edge_of},
        protect::Guarded,
        stats::OriginCounts,
    };
    use anyport_model::resource::Policy;
    use std::net::Ipv4Addr;
    use tokio::net::TcpListener;

    /// An address where nothing listens: bound, so that nobody else gets it.
    fn closed() -> (TcpSocket, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    /// A connection that comes now.
    fn incoming() -> Incoming {
        Incoming {
            client: Ipv4Addr::LOCALHOST.into(),
            edge_port: 80,
            shown: None,
            since: Instant::now(),
        }
    }

    async fn listening(count: usize) -> (Vec<TcpListener>, Vec<SocketAddr>) {
        let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            listeners.push(listener);
        }
        (listeners, addresses)
    }

    async fn dialled(edge: &Edge) -> Result<Dialled, NoOrigin> {
        let table = edge.table();
        let target = Edge::target(&table);
        let dialled = Dialling::new(target, incoming(), &edge.stats)?
            .next()
            .await?;
        dialled.seen.succeeded();
        Ok(dialled)
    }

    #[test]
    fn a_dial_is_waited_for_as_long_as_a_syn_that_is_sent_again_could_be_answered() {
        for (part, worth) in [
            (0, 1200),
            (1200, 1200),
            (1667, 1200),
            (2199, 1200),
            (2200, 2200),
            (2500, 2200),
            (5000, 4200),
        ] {
            let part = Duration::from_millis(part);
            assert_eq!(worth_waiting(part), Duration::from_millis(worth));
        }
    }

    #[tokio::test]
    async fn a_refusal_costs_one_dial_and_not_the_connection() {
        let open = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (_held, dead) = closed();
        let edge = edge(&[dead, open.local_addr().unwrap()], Duration::from_secs(5));
        for _ in 0..20 {
            assert_eq!(dialled(&edge).await.unwrap().origin.as_ref(), "o1");
        }
        let origins = edge.stats.declared_origins();
        let dead = origins[0].stats.counts();
        // Half of 20 by turn, were it not left alone after the first, for half a second and longer.
        assert!((1..=4).contains(&dead.failures), "{dead:?}");
        assert_eq!(
            origins[0].stats.last_failure().unwrap(),
            "connect: connection refused"
        );
    }

    /// The pool that a connection was made to.
    async fn pool_dialled(edge: &Edge) -> String {
        dialled(edge).await.unwrap().pool.label().to_owned()
    }

    #[tokio::test]
    async fn after_a_rest_one_connection_tries_the_origin_and_the_others_avoid_it() {
        let open = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (_held, dead) = closed();
        let edge = edge(&[dead, open.local_addr().unwrap()], Duration::from_secs(5));
        let table = edge.table();
        let target = Edge::target(&table);
        let client = Ipv4Addr::LOCALHOST.into();
        let chosen = |now| {
            let mut candidates = Candidates::new(target, 80, client);
            candidates.next(now).unwrap().origin.label.to_string()
        };
        let to_first = |now| (0..20).filter(|_| chosen(now) == "o0").count();
        let now = Instant::now();
        assert_eq!(to_first(now), 10, "by turn");
        let first = &target.pool.origins[0].stats;
        first.dialled(Err(&"no"));
        assert_eq!(to_first(now), 0, "it rests");
        let rested = Instant::now() + Duration::from_secs(1);
        assert_eq!(to_first(rested), 1, "one tries it");
        assert_eq!(
            to_first(rested + Duration::from_secs(5)),
            0,
            "until it is told"
        );
        first.dialled(Ok(Duration::ZERO));
        assert_eq!(to_first(rested), 10);
        // Where everything is at rest, there is nothing to avoid.
        let (later, now) = (rested + Duration::from_secs(9), Instant::now());
        first.dialled_since(later, Err(&"no"));
        target.pool.origins[1].stats.dialled(Err(&"no"));
        assert_eq!(to_first(now), 10);
    }

    #[tokio::test]
    async fn where_all_of_a_pool_refuse_its_fallback_is_tried_and_then_that_ones() {
        let open = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (_a, first) = closed();
        let (_b, second) = closed();
        let (_c, third) = closed();
        let open = open.local_addr().unwrap();
        let pools: [&[SocketAddr]; 3] = [&[first, second], &[third], &[open]];
        let edge = edge_of(&pools, Policy::RoundRobin, Duration::from_secs(5));
        for _ in 0..20 {
            assert_eq!(pool_dialled(&edge).await, "pool2");
        }
        // Who refused is left alone, and does not cost each connection a dial.
        let origins = edge.stats.declared_origins();
        let dials: Vec<_> = origins.iter().map(|o| o.stats.counts().dials).collect();
        assert!(dials[..3].iter().all(|dials| *dials <= 5), "{dials:?}");
    }

    #[tokio::test]
    async fn who_is_held_to_be_down_comes_after_the_fallback() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let spare = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (_dead, dead) = closed();
        let pools: [&[SocketAddr]; 2] = [
            &[dead, held.local_addr().unwrap()],
            &[spare.local_addr().unwrap()],
        ];
        let mut edge = edge_of(&pools, Policy::RoundRobin, Duration::from_secs(5));
        edge.weigh(|at| if at == 0 { 1.0 } else { 0.0 });
        for _ in 0..5 {
            assert_eq!(pool_dialled(&edge).await, "pool1");
        }
        drop(spare);
        assert_eq!(
            pool_dialled(&edge).await,
            "pool0",
            "it answers all the same"
        );
    }

    #[tokio::test]
    async fn a_fallback_is_not_asked_while_the_pool_has_somebody() {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let spare = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (_held, dead) = closed();
        let (first, spare) = (first.local_addr().unwrap(), spare.local_addr().unwrap());
        let edge = edge_of(
            &[&[dead, first], &[spare]],
            Policy::RoundRobin,
            Duration::from_secs(5),
        );
        for _ in 0..20 {
            assert_eq!(pool_dialled(&edge).await, "pool0");
        }
    }

    #[tokio::test]
    async fn nor_where_the_connect_timeout_is_short() {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let spare = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (_held, dead) = closed();
        let (first, spare) = (first.local_addr().unwrap(), spare.local_addr().unwrap());
        let connect = Duration::from_secs(2);
        let edge = edge_of(&[&[dead, first], &[spare]], Policy::RoundRobin, connect);
        for _ in 0..2 {
            assert_eq!(pool_dialled(&edge).await, "pool0");
        }
        let origins = edge.stats.declared_origins();
        assert_eq!(origins[0].stats.counts().failures, 1, "it was tried");
    }

    #[tokio::test]
    async fn the_last_that_something_may_come_of_is_of_the_fallback() {
        let (_open, addresses) = listening(5).await;
        let (first, spare) = addresses.split_at(4);
        let edge = edge_of(&[first, spare], Policy::RoundRobin, Duration::from_secs(60));
        let table = edge.table();
        let mut dialling = Dialling::new(Edge::target(&table), incoming(), &edge.stats).unwrap();
        let mut pools = Vec::new();
        while let Ok(dialled) = dialling.next().await {
            pools.push(dialled.pool.label().to_owned());
            let why = Unbegun {
                status: Status::TlsConfiguration,
                reason: "no TLS".to_owned(),
                blames_origin: true,
            };
            dialling.failed(dialled.address, &dialled.seen, why);
        }
        assert_eq!(pools, ["pool0", "pool0", "pool1"]);
    }

    #[tokio::test]
    async fn a_dial_from_before_is_not_held_against_who_has_recovered() {
        let (_full, address) = full().await;
        let edge = edge(&[address], Duration::from_secs(1));
        let table = edge.table();
        let stats = &Edge::target(&table).pool.origins[0].stats;
        let recovers = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stats.dialled(Err(&"no"));
            stats.dialled(Ok(Duration::ZERO));
        };
        let (dialled, ()) = tokio::join!(dialled(&edge), recovers);
        assert!(dialled.is_err());
        assert_eq!(stats.counts().failures, 2);
        assert!(!stats.is_resting(Instant::now()));
    }

    #[tokio::test]
    async fn origins_that_let_a_dial_run_out_of_time_leave_some_to_the_fallback() {
        let (_full, full) = full().await;
        let spare = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let spare = spare.local_addr().unwrap();
        let edge = edge_of(
            &[&[full; 9], &[spare]],
            Policy::RoundRobin,
            Duration::from_secs(3),
        );
        // In time, else it fails.
        assert_eq!(pool_dialled(&edge).await, "pool1");
    }

    #[tokio::test]
    async fn an_origin_of_which_nothing_comes_gives_way_to_the_next_but_not_to_all() {
        let (_open, addresses) = listening(5).await;
        for blames_origin in [true, false] {
            let edge = edge(&addresses, Duration::from_secs(5));
            let table = edge.table();
            let target = Edge::target(&table);
            let mut dialling = Dialling::new(target, incoming(), &edge.stats).unwrap();
            for number in 0..BEGUN_MOST {
                let Dialled { address, seen, .. } = dialling.next().await.unwrap();
                let last = number + 1 == BEGUN_MOST;
                assert_eq!(dialling.patience().is_none(), last);
                let why = Unbegun {
                    status: Status::TlsConfiguration,
                    reason: "no TLS".to_owned(),
                    blames_origin,
                };
                dialling.failed(address, &seen, why);
            }
            let none = dialling.next().await.map(|_| ()).unwrap_err();
            assert_eq!(none.status, Status::TlsConfiguration);
            assert!(none.reason.ends_with("no TLS"), "{}", none.reason);
            let origins = edge.stats.declared_origins();
            let counts: Vec<_> = origins.iter().map(|o| o.stats.counts()).collect();
            let sum = |of: fn(&OriginCounts) -> u64| counts.iter().map(of).sum::<u64>();
            let most = u64::from(BEGUN_MOST);
            assert_eq!(sum(|counts| counts.dials), most);
            let failures = if blames_origin { most } else { 0 };
            assert_eq!(sum(|counts| counts.failures), failures);
        }
    }

    #[tokio::test]
    async fn what_must_not_be_dialled_is_passed_over_and_never_connected() {
        let open = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let own = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (own_address, metadata) = (own.local_addr().unwrap(), "169.254.169.254:80");
        let metadata = metadata.parse().unwrap();
        let origins = [own_address, metadata, open.local_addr().unwrap()];
        let guarded = Guarded {
            own: vec![own_address],
            ..Guarded::default()
        };
        let guard = |mut edge: Edge| {
            edge.writer.protect(guarded.clone());
            edge.publish();
            edge
        };
        let mixed = guard(edge(&origins, Duration::from_secs(5)));
        for _ in 0..6 {
            assert_eq!(dialled(&mixed).await.unwrap().origin.as_ref(), "o2");
        }
        let none = guard(edge(&origins[..2], Duration::from_secs(5)));
        let failed = dialled(&none).await.map(|_| ()).unwrap_err();
        assert_eq!(failed.status, Status::Blocked);
        let came = timeout(Duration::from_millis(50), own.accept()).await;
        assert!(came.is_err(), "{came:?}");
    }

    #[tokio::test]
    async fn the_end_of_the_handshake_is_left_to_the_first_bytes() {
        let open = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let edge = edge(&[open.local_addr().unwrap()], Duration::from_secs(5));
        let dialled = dialled(&edge).await.unwrap();
        assert_eq!(segments_sent(&dialled.stream), 1, "the SYN");
    }

    #[tokio::test]
    async fn when_all_refuse_the_last_reason_is_told() {
        let (_a, first) = closed();
        let (_b, second) = closed();
        let edge = edge(&[first, second], Duration::from_secs(5));
        let failed = dialled(&edge).await.map(|_| ()).unwrap_err();
        assert_eq!(failed.status, Status::ConnectRefused);
        assert!(
            failed.reason.ends_with("connect: connection refused"),
            "{}",
            failed.reason
        );
        let origins = edge.stats.declared_origins();
        assert!(
            origins
                .iter()
                .all(|origin| origin.stats.counts().dials == 1 && origin.stats.open() == 0)
        );
    }

    /// An address that answers nothing: with a full accept queue, SYNs are
    /// dropped.
    async fn full() -> ((TcpListener, Vec<TcpStream>), SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let full = socket.listen(1).unwrap();
        let address = full.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(Ok(stream)) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
        {
            held.push(stream);
        }
        ((full, held), address)
    }

    #[tokio::test]
    async fn the_connect_timeout_bounds_all_attempts_together() {
        let (_full, address) = full().await;
        let edge = edge(&[address, address], Duration::from_secs(1));
        let start = Instant::now();
        let failed = dialled(&edge).await.map(|_| ()).unwrap_err();
        assert_eq!(failed.status, Status::ConnectTimedOut);
        // The kernel would try for two minutes.
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
        let origins = edge.stats.declared_origins();
        let failures = |at: usize| origins[at].stats.counts().failures;
        assert_eq!(failures(0) + failures(1), 1, "it had all the time");
    }
}
