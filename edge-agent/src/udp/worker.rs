//! Moving the datagrams of one worker's flows.
//!
//! One task waits for all sockets of the worker at once and goes round: first
//! what was steered here, since that came before the flow had a socket of its
//! own and is to stay in order; then each flow that has something.

use std::{
    collections::HashSet,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyport_model::outcome::Status;
use anyport_node::drain::{Drain, DrainGuard};
use tokio_util::sync::CancellationToken;

use super::{
    batch::{BATCH, Batch, Sent, Shape},
    flow::{Flow, NO_SOCKET, NoFlow, Opened},
    poll::{Events, Left, Poll},
    sessions::{Caps, Id, Key, Sessions, Shed},
    sockets,
};
use crate::{
    descriptors::Pair,
    events::{Reason, Told},
    live::{AppKey, Closing, Order, Orders, Windows},
    stats::DropReason,
    tcp::Service,
};

/// Batches that are taken from one socket before others have their turn.
const STEERED_BATCHES: usize = 8;
const FLOW_BATCHES: usize = 4;

/// As many are taken at the most when it is for the last time.
const LAST_BATCHES: usize = 256;

/// Datagrams of flows that are moved before the worker's connections have their
/// turn.
const TURN: usize = 1024;

/// How often it is said at most that flows cannot be opened.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// How many flows there may be at one address and port of the edge.
///
/// Their sockets are bound to the same place, and whatever looks for a free one,
/// or for the socket of a client that has none, walks them all. On Linux 6.18, in
/// microseconds (`what_flows_at_one_place_cost`):
///
/// | flows | bind and connect one more | a datagram of an unknown client | of a known one |
/// | ---: | ---: | ---: | ---: |
/// | 1,000 | 28 | 7 | 3 |
/// | 4,000 | 24 | 20 | 3 |
/// | 8,000 | 38 | 50 | 3 |
/// | 12,000 | 95 | 130 | 3 |
/// | 16,000 | 180 | 210 | 3 |
///
/// Past this number the sockets no longer fit the processor's cache, and whoever
/// forges sources could have a processor with 5,000 datagrams a second. Kernels
/// before 6.13 walk them for known clients too.
const FLOWS_PER_PLACE: usize = 8192;

/// What bounds a worker's flows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    caps: Caps,
    /// How long a drain may take, whatever the apps say.
    drain: Option<Duration>,
}

impl Limits {
    /// Of one of so many workers, which share `flows`.
    pub fn of_one(flows: usize, workers: usize, drain: Option<Duration>) -> Self {
        let share = |of: usize| of / workers.max(1);
        Self {
            caps: Caps::of(share(flows), share(FLOWS_PER_PLACE)),
            drain,
        }
    }
}

/// When datagrams are taken that the kernel steers.
pub struct Taking {
    /// Cancelled, it lets them be.
    pub from: CancellationToken,
    /// Held as long as they may be.
    pub until: DrainGuard,
}

/// Serves the flows that begin on `steered`, the sockets that the kernel steers
/// to. When the drain begins it takes no new ones, and the known ones go on
/// until they are idle or the app's time for a drain is over.
pub async fn serve(
    steered: Vec<UdpSocket>,
    service: Arc<Service>,
    limits: Limits,
    mut orders: Orders,
    taking: Taking,
    drain: Drain,
) {
    let _guard = drain.guard();
    tokio::select! {
        () = taking.from.cancelled() => {}
        () = drain.started() => return,
    }
    let mut until = Some(taking.until);
    let mut worker = match Worker::new(steered, service, limits.caps) {
        Ok(worker) => worker,
        Err(error) => {
            tracing::error!(%error, "a worker cannot serve UDP");
            return;
        }
    };
    let poll = Arc::clone(&worker.poll);
    let mut draining = false;
    let mut begun = pin!(drain.started());
    let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
    let mut due = None;
    while !(draining && worker.sessions.len() == 0) {
        let next = worker.next_deadline();
        if let Some(next) = next
            && due != Some(next)
        {
            timer.as_mut().reset(next.into());
            due = Some(next);
        }
        let turn = poll.ready(|| worker.turn());
        tokio::select! {
            biased;
            () = &mut begun, if !draining => {
                draining = true;
                worker.stop_taking(limits.drain);
                drop(until.take());
            }
            () = &mut timer, if next.is_some() => due = None,
            Some(order) = orders.recv() => match order {
                Order::Close(apps) => worker.close_apps(&apps),
                Order::Drain(windows) => worker.ordered = worker.closings_in(&windows),
                Order::Undrain => worker.ordered.clear(),
            },
            left = turn => match left {
                Ok(Left::Nothing) => {}
                Ok(Left::Something) => tokio::task::yield_now().await,
                Err(error) => {
                    tracing::error!(%error, "a worker can no longer wait for datagrams");
                    return;
                }
            },
        }
        worker.expire();
    }
}

struct Worker {
    service: Arc<Service>,
    sessions: Sessions<Flow>,
    poll: Arc<Poll>,
    events: Events,
    batch: Batch,
    steered: Vec<UdpSocket>,
    /// While draining: which are to be closed when, the last first.
    closings: Vec<(Instant, Id)>,
    /// The same, where the edge was ordered to drain.
    ordered: Vec<(Instant, Id)>,
    /// Sockets that had more than their turn took.
    unfinished: Vec<Token>,
    /// Datagrams of flows in this turn.
    moved: usize,
    complained: Option<Instant>,
    /// Refusals that were told of.
    told: Told<Key>,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Token {
    /// By its place in `Worker::steered`.
    Steered(usize),
    Client(Id),
    Origin(Id),
}

/// Why a flow ended that was silent.
const MADE_ROOM: &str = "made room for a new flow";

/// The side of a flow, where an [`Id`] has no bit.
const ORIGIN: u64 = 1 << 31;

impl Token {
    fn to_bits(self) -> u64 {
        match self {
            // No slot has this number.
            Token::Steered(index) => u64::from(u32::MAX) << 32 | index as u64,
            Token::Client(id) => id.to_bits(),
            Token::Origin(id) => id.to_bits() | ORIGIN,
        }
    }

    fn from_bits(bits: u64) -> Self {
        if bits >> 32 == u64::from(u32::MAX) {
            return Token::Steered((bits & u64::from(u32::MAX)) as usize);
        }
        let id = Id::from_bits(bits & !ORIGIN);
        if bits & ORIGIN == 0 {
            Token::Client(id)
        } else {
            Token::Origin(id)
        }
    }
}

impl Worker {
    fn new(steered: Vec<UdpSocket>, service: Arc<Service>, caps: Caps) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (index, socket) in steered.iter().enumerate() {
            poll.add(socket.as_fd(), Token::Steered(index).to_bits())?;
        }
        Ok(Self {
            service,
            sessions: Sessions::new(caps),
            poll: Arc::new(poll),
            events: Events::new(),
            batch: Batch::new(),
            steered,
            closings: Vec::new(),
            ordered: Vec::new(),
            unfinished: Vec::new(),
            moved: 0,
            complained: None,
            told: Told::default(),
        })
    }

    /// Closes the sockets that datagrams are steered to: what another process
    /// holds of them goes on there. What has come by now may belong to flows that
    /// are known, and is taken.
    fn stop_taking(&mut self, limit: Option<Duration>) {
        let now = Instant::now();
        for index in 0..self.steered.len() {
            let batches = 0..LAST_BATCHES;
            // Until nothing is there: what came while flows were opened too.
            batches
                .take_while(|_| self.take_batch(index, now) > 0)
                .count();
        }
        for socket in &self.steered {
            // What the other process holds would wake this one for ever.
            self.poll.remove(socket.as_fd());
        }
        self.steered.clear();
        self.closings = self.closings_in(&self.service.drain_windows(limit));
    }

    /// When what is open is to be closed, as its windows end.
    fn closings_in(&self, windows: &Windows) -> Vec<(Instant, Id)> {
        let open = self
            .sessions
            .iter()
            .map(|(id, flow)| (id, Some(flow.app())));
        let now = Instant::now();
        let closings = windows.closings(open).into_iter().rev();
        closings.map(|(after, id)| (now + after, id)).collect()
    }

    fn close_apps(&mut self, apps: &HashSet<AppKey>) {
        let flows = self.sessions.iter();
        let of_apps = flows.filter(|(_, flow)| apps.contains(&flow.app()));
        let ids: Vec<Id> = of_apps.map(|(id, _)| id).collect();
        for id in ids {
            self.end(id, Closing::Disabled.as_str());
        }
    }

    /// Nothing is to be closed before this.
    fn next_deadline(&self) -> Option<Instant> {
        let closings = [&self.closings, &self.ordered];
        let closing = closings.iter().filter_map(|closings| closings.last());
        let closing = closing.map(|(at, _)| *at);
        closing.chain(self.sessions.next_deadline()).min()
    }

    fn expire(&mut self) {
        if self.next_deadline().is_none() {
            return;
        }
        let now = Instant::now();
        while let Some(id) = self.sessions.expired(now) {
            self.end(id, "idle");
        }
        let is_due = |(at, _): &mut (Instant, Id)| *at <= now;
        while let Some((_, id)) =
            (self.closings.pop_if(is_due)).or_else(|| self.ordered.pop_if(is_due))
        {
            self.end(id, Closing::Drained.as_str());
        }
    }

    fn close(&mut self, id: Id, status: Status, reason: Reason) {
        if let Some(flow) = self.sessions.close(id) {
            flow.account.close(status, reason);
        }
    }

    /// Neither side has done anything amiss.
    fn end(&mut self, id: Id, why: &'static str) {
        self.close(id, Status::Closed, Reason::Word(why));
    }

    fn client_refused(&mut self, id: Id) {
        self.close(id, Status::ClientRefused, Reason::Word(NO_SOCKET));
    }

    /// Goes round once.
    fn turn(&mut self) -> Left {
        let now = Instant::now();
        self.poll.look(&mut self.events);
        self.moved = 0;
        let mut ready = std::mem::take(&mut self.unfinished);
        let found = self.events.tokens().map(Token::from_bits);
        if ready.is_empty() {
            ready.extend(found);
        } else {
            // What is unfinished is found anew when more arrives, and has one
            // share all the same.
            let mut queued: HashSet<Token> = ready.iter().copied().collect();
            ready.extend(found.filter(|token| queued.insert(*token)));
        }
        for token in &ready {
            if let Token::Steered(index) = *token {
                self.take_steered(index, now);
            }
        }
        for (nth, token) in ready.iter().enumerate() {
            if self.moved >= TURN {
                // Whose turn did not come is first in the next one.
                let rest = ready.iter().skip(nth);
                let rest = rest.filter(|token| !matches!(token, Token::Steered(_)));
                self.unfinished.splice(0..0, rest.copied());
                break;
            }
            match *token {
                Token::Steered(_) => {}
                Token::Client(id) => self.client_sent(id, now),
                Token::Origin(id) => self.origin_sent(id, now),
            }
        }
        let left = !self.unfinished.is_empty() || self.events.is_full();
        if self.unfinished.is_empty() {
            // Keeps its memory.
            ready.clear();
            self.unfinished = ready;
        }
        if left { Left::Something } else { Left::Nothing }
    }

    /// Datagrams that have no socket of their own, or had none yet.
    fn take_steered(&mut self, index: usize, now: Instant) {
        for _ in 0..STEERED_BATCHES {
            if self.take_batch(index, now) < BATCH {
                return;
            }
        }
        self.unfinished.push(Token::Steered(index));
    }

    /// How many datagrams there were, as many as fit or less.
    fn take_batch(&mut self, index: usize, now: Instant) -> usize {
        let Some(socket) = self.steered.get(index) else {
            return 0;
        };
        match self.batch.receive_steered(socket) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return 0,
            // Errors of datagrams, not of the socket; the next one may do.
            Err(_) => return BATCH,
        }
        let count = self.batch.len();
        for at in 0..count {
            self.take_one(at, self.batch.to(at), now);
        }
        count
    }

    /// The datagram at `at` of the batch, which was sent to `edge`.
    fn take_one(&mut self, at: usize, edge: Option<SocketAddr>, now: Instant) {
        let (Some(client), Some(edge)) = (self.batch.from(at), edge) else {
            return self.dropped(DropReason::Unclaimed, 1);
        };
        // A socket that is connected to port 0 would be given what comes from
        // every other port of that client as well.
        if client.port() == 0 || client.ip().is_unspecified() {
            return self.dropped(DropReason::Unanswerable, 1);
        }
        let key = Key { client, edge };
        let known = self.sessions.find(&key);
        let id = match known.map_or_else(|| self.admit(key, at, now), Ok) {
            Ok(id) => id,
            Err(reason) => return self.dropped(reason, 1),
        };
        let bytes = self.batch.payload(at).len();
        self.sessions.client_sent(id, bytes, now);
        let Some(flow) = self.sessions.get_mut(id) else {
            return;
        };
        flow.account.moved(bytes as u64, 0);
        if !flow.may_send(bytes, now) {
            return self.dropped(DropReason::LimitBytesPerSecond, 1);
        }
        let sent = flow.send(&self.batch, &[at]);
        self.sent_to_origin(id, &sent);
    }

    /// Opens the flow of the datagram at `at` of the batch.
    fn admit(&mut self, key: Key, at: usize, now: Instant) -> Result<Id, DropReason> {
        if self.service.is_drained() {
            return Err(DropReason::Drained);
        }
        let mut instead = self.sessions.room(&key, now).map_err(|shed| match shed {
            Shed::Full => DropReason::SessionsFull,
            Shed::PlaceFull => DropReason::PlaceSessionsFull,
            Shed::SourceFull => DropReason::SourceSessionsFull,
        })?;
        let descriptors = Pair::take(&self.service).or_else(|| {
            let silent = instead.pop()?;
            self.end(silent, MADE_ROOM);
            Pair::take(&self.service)
        });
        let descriptors = descriptors.ok_or(DropReason::Descriptors)?;
        let table = self.service.table.load();
        let first = self.batch.payload(at);
        let told = (&mut self.told, now);
        let Opened { flow, idle } =
            Flow::open(&table, &key, first, descriptors, told).map_err(|failed| match failed {
                NoFlow::Unclaimed => {
                    self.service.stats.unclaimed.inc();
                    DropReason::Unclaimed
                }
                NoFlow::Unanswerable => DropReason::Unanswerable,
                NoFlow::Refused(refusal) => refusal.into(),
                NoFlow::NoOrigin(_) => DropReason::NoOrigin,
                NoFlow::System(error) => {
                    complain(&mut self.complained, now, &key, &error);
                    DropReason::System
                }
            })?;
        drop(table);
        for silent in instead {
            self.end(silent, MADE_ROOM);
        }
        let id = self.sessions.open(key, idle, now, flow);
        match self.watch(id) {
            Ok(()) => Ok(id),
            Err(error) => {
                complain(&mut self.complained, now, &key, &error);
                self.close(id, Status::ConnectSystem, Reason::of_error(&error));
                Err(DropReason::System)
            }
        }
    }

    fn watch(&self, id: Id) -> io::Result<()> {
        let Some(flow) = self.sessions.get(id) else {
            return Ok(());
        };
        let poll = &self.poll;
        poll.add(flow.client.as_fd(), Token::Client(id).to_bits())?;
        poll.add(flow.leg.socket.as_fd(), Token::Origin(id).to_bits())
    }

    /// What arrived at the socket of a flow, and what others sent there between the
    /// socket's bind and its connect: see
    /// [`towards_client`](super::sockets::towards_client).
    fn client_sent(&mut self, id: Id, now: Instant) {
        for _ in 0..FLOW_BATCHES {
            let Some(key) = self.sessions.key(id) else {
                return;
            };
            let Some(flow) = self.sessions.get_mut(id) else {
                return;
            };
            match self.batch.receive(&flow.client) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return self.client_refused(id);
                }
                // Too large for the path, say: told of the past, and no end.
                Err(_) => continue,
            }
            let (mut own, mut others) = ([0; BATCH], [0; BATCH]);
            let (mut owned, mut strayed, mut too_fast, mut bytes) = (0, 0, 0, 0);
            for at in 0..self.batch.len() {
                if self.batch.from(at) != Some(key.client) {
                    others[strayed] = at;
                    strayed += 1;
                    continue;
                }
                let size = self.batch.payload(at).len();
                bytes += size;
                if flow.may_send(size, now) {
                    own[owned] = at;
                    owned += 1;
                } else {
                    too_fast += 1;
                }
            }
            self.moved += self.batch.len();
            let full = self.batch.is_full();
            if owned + too_fast > 0 {
                flow.account.moved(bytes as u64, 0);
                let sent = flow.send(&self.batch, &own[..owned]);
                self.sessions.client_sent(id, bytes, now);
                self.sent_to_origin(id, &sent);
                self.dropped(DropReason::LimitBytesPerSecond, too_fast as u64);
            }
            for &at in &others[..strayed] {
                self.take_stray(at, key.edge, now);
            }
            if !full {
                return;
            }
        }
        self.unfinished.push(Token::Client(id));
    }

    /// The datagram at `at` of the batch, which was sent to `edge` and not steered.
    fn take_stray(&mut self, at: usize, edge: SocketAddr, now: Instant) {
        let client = self.batch.from(at).filter(|client| client.port() != 0);
        let key = client.map(|client| Key { client, edge });
        let elsewhere = key.filter(|key| self.sessions.find(key).is_none());
        // It may be of a flow of another worker, which the steering alone can tell.
        // Where that is not to be had, it begins one here.
        let sent = elsewhere.map(|key| sockets::steer_again(&key, self.batch.payload(at)));
        if !matches!(sent, Some(Ok(()))) {
            self.take_one(at, Some(edge), now);
        }
    }

    fn sent_to_origin(&mut self, id: Id, sent: &Sent) {
        self.count_unsent(sent);
        if sent.refused_there {
            self.origin_refused(id);
        }
    }

    fn origin_sent(&mut self, id: Id, now: Instant) {
        for _ in 0..FLOW_BATCHES {
            let Some(flow) = self.sessions.get_mut(id) else {
                return;
            };
            match self.batch.receive(&flow.leg.socket) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return self.origin_refused(id);
                }
                Err(_) => continue,
            }
            let origin = flow.leg.origin;
            self.moved += self.batch.len();
            let mut allowed = [0; BATCH];
            let (mut count, mut bytes, mut skip) = (0, 0, 0);
            let (mut strayed, mut headless, mut held_back, mut too_fast) = (0, 0, 0, 0);
            for at in 0..self.batch.len() {
                if self.batch.from(at) != Some(origin) {
                    strayed += 1;
                    continue;
                }
                let answer = self.batch.payload(at);
                bytes += answer.len() as u64;
                let Some(flow) = self.sessions.get_mut(id) else {
                    return;
                };
                flow.heard(now);
                let Some(header) = flow.header.of_answer(answer) else {
                    headless += 1;
                    continue;
                };
                skip = header;
                let size = answer.len() - header;
                // What is held back uses up nothing of the pace.
                if !self.sessions.may_return(id, size, now) {
                    held_back += 1;
                } else if !self
                    .sessions
                    .get_mut(id)
                    .is_some_and(|flow| flow.may_answer(size, now))
                {
                    too_fast += 1;
                } else {
                    allowed[count] = at;
                    count += 1;
                }
            }
            self.dropped(DropReason::Stray, strayed);
            self.dropped(DropReason::SimpleHeader, headless);
            self.dropped(DropReason::Amplification, held_back);
            self.dropped(DropReason::LimitBytesPerSecond, too_fast);
            let Some(flow) = self.sessions.get_mut(id) else {
                return;
            };
            flow.account.moved(0, bytes);
            let shape = Shape { header: &[], skip };
            let sent = self.batch.send(&flow.client, &allowed[..count], &shape);
            self.count_unsent(&sent);
            if sent.refused_there {
                return self.client_refused(id);
            }
            if !self.batch.is_full() {
                return;
            }
        }
        self.unfinished.push(Token::Origin(id));
    }

    /// The origin of a flow has no socket there.
    fn origin_refused(&mut self, id: Id) {
        let (Some(key), Some(flow)) = (self.sessions.key(id), self.sessions.get_mut(id)) else {
            return;
        };
        let table = self.service.table.load();
        if let Err((status, reason)) = flow.refused(&table, &key) {
            drop(table);
            return self.close(id, status, reason);
        }
        let watched = self
            .poll
            .add(flow.leg.socket.as_fd(), Token::Origin(id).to_bits());
        if let Err(error) = watched {
            drop(table);
            return self.close(id, Status::ConnectSystem, Reason::of_error(&error));
        }
        flow.send_first_again();
    }

    fn count_unsent(&self, sent: &Sent) {
        self.dropped(DropReason::TooLarge, sent.too_large);
        self.dropped(DropReason::NotSent, sent.refused_here);
    }

    fn dropped(&self, reason: DropReason, count: u64) {
        if count > 0 {
            self.service.stats.dropped(reason, count);
        }
    }
}

/// Says that a flow could not be opened, where that was not said lately.
fn complain(said: &mut Option<Instant>, now: Instant, key: &Key, error: &io::Error) {
    if said.is_none_or(|said| now.saturating_duration_since(said) >= COMPLAIN_EVERY) {
        *said = Some(now);
        let hint = match error.raw_os_error() {
            Some(libc::EADDRINUSE) => " (another program on this host has the port for itself)",
            Some(libc::EMFILE | libc::ENFILE) => " (out of file descriptors)",
            _ => "",
        };
        tracing::error!(%error, edge = %key.edge, "new flows of UDP are dropped{hint}");
    }
}

#[cfg(test)]
mod tests;
