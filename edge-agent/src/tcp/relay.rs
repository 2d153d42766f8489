//! Moves bytes both ways between two sides until both are done.
//!
//! End of stream, reset and back-pressure are carried over as they came: a
//! half-close becomes a half-close, a reset becomes a reset, and a side that
//! does not read stops the other one from being read. In TLS the end of a
//! stream is a message (close_notify), and a stream that ends without it was
//! cut short, by whom nobody knows: a side in TLS gets all that came and no
//! close_notify either, and a plain one, which could not tell, a reset.
//!
//! What a side had sent before it failed is carried on first, at the pace of
//! its direction, until the other side's kernel has all of it or has taken
//! nothing for two minutes.

use std::{
    future::poll_fn,
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::ReadBuf,
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::{
    buffers::{Pending, SCRATCH, with_scratch},
    leg::Leg,
};
use crate::{
    events::undelivered,
    shield::{StreamPace, StreamPaces},
};

/// A peer whose host is gone is noticed within three minutes.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(90))
    .with_interval(Duration::from_secs(15))
    .with_retries(5);

/// What one direction may move before the worker's other connections get
/// their turn.
const TURN: usize = 4 * SCRATCH;

/// After a side has failed, the other one may take nothing of what it had said
/// for this long, or for the idle timeout where that is less: about as long as
/// Linux goes on asking a closed window of a socket that its program has closed
/// (`tcp_orphan_retries` of tcp(7)).
const LAST_WORDS: Duration = Duration::from_secs(120);

/// How a relay ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Both sides sent their end of stream.
    Done,
    Client(io::Error),
    Origin(io::Error),
    /// Not a byte in either direction for the idle timeout.
    Idle,
}

/// Bytes read from each side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) from_client: u64,
    pub(super) from_origin: u64,
}

/// Who accounts for a relay.
pub(super) trait Observer {
    /// All that was moved so far; told after each turn, so it must cost little.
    fn stands_at(&mut self, total: Moved);
    /// What was moved since the last call; told of the first of each side at
    /// once, then every now and then, and at the end.
    fn moved(&mut self, moved: Moved);
    /// Both sides are about to be closed.
    fn ends(&mut self, client: BorrowedFd<'_>, origin: BorrowedFd<'_>);
}

/// An observer is told of what moved at the latest when it is this much.
const TELL: u64 = 64 << 10;

/// Relays until both sides are done, and gives the observer back. Where the
/// relay is dropped before its end, both sides are reset.
pub(super) fn relay<C: Leg, O: Leg, B: Observer>(
    client: C,
    origin: O,
    idle: Duration,
    paces: Option<Box<StreamPaces>>,
    mut observer: B,
) -> impl Future<Output = (Ended, B)> {
    // Not in the future, which would keep room for the arguments as well.
    let mut legs = Legs::new(client, origin, paces);
    let mut silence = Silence::new(idle);
    async move {
        let mut timer = pin!(sleep(silence.step));
        let ended = poll_fn(|cx| {
            let pumped = legs.pump(cx);
            legs.acknowledge();
            observer.stands_at(legs.total());
            if let Poll::Ready(ended) = pumped {
                return Poll::Ready(ended);
            }
            if legs.untold() >= TELL || legs.has_begun() {
                observer.moved(legs.tell());
            }
            silence.look_often(timer.as_mut(), legs.are_blind());
            while timer.as_mut().poll(cx).is_ready() {
                observer.moved(legs.tell());
                if let Some(ended) = legs.look(&mut silence) {
                    return Poll::Ready(ended);
                }
                silence.next_step(timer.as_mut());
            }
            Poll::Pending
        })
        .await;
        observer.moved(legs.tell());
        let ended = match legs.last_words(ended, silence.limit) {
            Ok(ended) => ended,
            Err(delivered) => delivered.await,
        };
        let (client, origin) = (legs.client.socket(), legs.origin.socket());
        observer.ends(client.as_fd(), origin.as_fd());
        legs.close(&ended);
        drop(legs);
        (ended, observer)
    }
}

/// Waits until the receiver's kernel has all that it was sent, or has taken
/// nothing for as long as `patience`.
async fn delivered(receiver: &TcpStream, patience: Duration) {
    let (mut left, mut step) = (undelivered(receiver.as_fd()), Duration::from_millis(10));
    let mut stuck = Duration::ZERO;
    while left > 0 && stuck < patience {
        sleep(step).await;
        let now = undelivered(receiver.as_fd());
        stuck = if now == left {
            stuck + step
        } else {
            Duration::ZERO
        };
        left = now;
        step = (step * 2).min(Silence::OFTEN);
    }
}

/// Both sides, and what is on its way between them.
struct Legs<C: Leg, O: Leg> {
    client: C,
    origin: O,
    /// Client to origin.
    up: Half,
    /// Origin to client.
    down: Half,
    /// Of both directions, where there is a limit.
    paces: Option<Box<StreamPaces>>,
    closed: bool,
    kept_alive: bool,
    /// The origin's handshake is over for the origin too.
    acknowledged: bool,
}

impl<C: Leg, O: Leg> Legs<C, O> {
    fn new(client: C, origin: O, paces: Option<Box<StreamPaces>>) -> Self {
        if let Some(paces) = &paces {
            paces.stop_early(client.socket());
            paces.stop_early(origin.socket());
        }
        Self {
            client,
            origin,
            up: Half::default(),
            down: Half::default(),
            paces,
            closed: false,
            kept_alive: false,
            acknowledged: false,
        }
    }

    fn pump(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let (up, down) = match self.paces.as_deref_mut() {
            Some(StreamPaces { up, down }) => (Some(up), Some(down)),
            None => (None, None),
        };
        let (client, origin) = (&mut self.client, &mut self.origin);
        let last = self.down.state == State::Ended;
        let sent = match self.up.pump(cx, client, origin, last, up) {
            Poll::Ready(Err(Fault::Reading(error))) => return Poll::Ready(Ended::Client(error)),
            Poll::Ready(Err(Fault::Writing(error))) => {
                self.up.lose(&mut self.down, error);
                true
            }
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        let last = self.up.state == State::Ended;
        let received = match self.down.pump(cx, origin, client, last, down) {
            Poll::Ready(Err(Fault::Reading(error))) => return Poll::Ready(Ended::Origin(error)),
            Poll::Ready(Err(Fault::Writing(error))) => {
                self.down.lose(&mut self.up, error);
                // It may have had its turn.
                cx.waker().wake_by_ref();
                true
            }
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        if !(sent && received) {
            return Poll::Pending;
        }
        if let Some(error) = self.up.fault.take() {
            return Poll::Ready(Ended::Client(error));
        }
        if let Some(error) = self.down.fault.take() {
            return Poll::Ready(Ended::Origin(error));
        }
        // A client that has its answer often says no more, and is not blamed.
        Poll::Ready(if self.up.cut && !self.up.cut_last {
            Ended::Client(io::ErrorKind::UnexpectedEof.into())
        } else if self.down.cut {
            Ended::Origin(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ended::Done
        })
    }

    /// The dial left the last acknowledgement of the origin's handshake to the
    /// first bytes. Without any, it is due now: the origin may be the one to
    /// speak first.
    fn acknowledge(&mut self) {
        if !std::mem::replace(&mut self.acknowledged, true) && self.up.written == 0 {
            let origin = SockRef::from(self.origin.socket());
            // Else the kernel sends it, a fifth of a second later.
            let _ = origin.set_tcp_quickack(true);
        }
    }

    fn are_blind(&self) -> bool {
        self.up.is_blind(&self.origin) || self.down.is_blind(&self.client)
    }

    /// What shows only when it is looked for.
    fn look(&mut self, silence: &mut Silence) -> Option<Ended> {
        let moved = self.up.moved_since_look() + self.down.moved_since_look();
        let failed = self.up.notice_fault(&self.client, &self.origin)
            | self.down.notice_fault(&self.origin, &self.client);
        // Short connections, which end before the first look, are spared the
        // system calls and the kernel's timers.
        if !std::mem::replace(&mut self.kept_alive, true) {
            for socket in [self.client.socket(), self.origin.socket()] {
                if let Err(error) = SockRef::from(socket).set_tcp_keepalive(&KEEPALIVE) {
                    tracing::debug!(%error, "a connection goes without keepalive");
                }
            }
        }
        silence.step_is_over(moved == 0 && !failed);
        let is_stuck = silence.is_over(LAST_WORDS);
        if let Some(error) = self.up.fault_to_tell(is_stuck) {
            return Some(Ended::Client(error));
        }
        if let Some(error) = self.down.fault_to_tell(is_stuck) {
            return Some(Ended::Origin(error));
        }
        silence.is_over(Duration::MAX).then_some(Ended::Idle)
    }

    fn total(&self) -> Moved {
        Moved {
            from_client: self.up.bytes,
            from_origin: self.down.bytes,
        }
    }

    fn untold(&self) -> u64 {
        self.up.untold() + self.down.untold()
    }

    /// A side has spoken for the first time, and it was not told yet.
    fn has_begun(&self) -> bool {
        [&self.up, &self.down]
            .iter()
            .any(|half| half.told == 0 && half.bytes > 0)
    }

    fn tell(&mut self) -> Moved {
        Moved {
            from_client: self.up.tell(),
            from_origin: self.down.tell(),
        }
    }

    /// Waits for what a side had said before it failed to be delivered, if it is
    /// not yet: a reset would have the kernel drop what it still has to send.
    /// Boxed, since that is seldom so.
    fn last_words(
        &self,
        ended: Ended,
        idle: Duration,
    ) -> Result<Ended, Pin<Box<impl Future<Output = Ended>>>> {
        let (half, receiver, holds) = match ended {
            Ended::Client(_) => (&self.up, self.origin.socket(), self.origin.holds()),
            Ended::Origin(_) => (&self.down, self.client.socket(), self.client.holds()),
            Ended::Done | Ended::Idle => return Ok(ended),
        };
        // It was waited for long enough.
        let is_stuck = holds || !half.pending.is_empty();
        // An ordinary close leaves the rest to the kernel.
        let is_told = half.state == State::Ended || undelivered(receiver.as_fd()) == 0;
        if is_stuck || is_told {
            return Ok(ended);
        }
        Err(Box::pin(async move {
            delivered(receiver, idle.min(LAST_WORDS)).await;
            ended
        }))
    }

    /// A side whose stream the other side did not end gets a reset, so that it
    /// cannot take what it has for all there is. Where the stream had ended
    /// before, all of it was delivered, and an ordinary close keeps it so.
    fn close(&mut self, ended: &Ended) {
        self.closed = true;
        let (client_cut, origin_cut) = match ended {
            Ended::Done => (false, false),
            Ended::Client(_) => (false, true),
            Ended::Origin(_) => (true, false),
            Ended::Idle => (true, true),
        };
        self.reset(client_cut, origin_cut);
    }

    fn reset(&self, client: bool, origin: bool) {
        // The sockets are being dropped: there is nobody left to tell of an
        // error.
        if client && self.down.state != State::Ended {
            let _ = self.client.socket().set_zero_linger();
        }
        if origin && self.up.state != State::Ended {
            let _ = self.origin.socket().set_zero_linger();
        }
    }
}

impl<C: Leg, O: Leg> Drop for Legs<C, O> {
    fn drop(&mut self) {
        if !self.closed {
            self.reset(true, true);
        }
    }
}

/// Which side of a direction failed.
enum Fault {
    Reading(io::Error),
    Writing(io::Error),
}

/// One direction.
#[derive(Default)]
struct Half {
    state: State,
    /// The sender's stream was cut short, and the receiver is told so.
    cut: bool,
    /// And this direction was the last.
    cut_last: bool,
    /// It has moved as much as it may for now. Nothing is pending then.
    waits: bool,
    /// The sender has failed, and what it had sent before is being carried on.
    fault: Option<io::Error>,
    pending: Pending,
    /// Read from the sender.
    bytes: u64,
    told: u64,
    /// Written to the receiver.
    written: u64,
    looked_at: u64,
    /// How much is read at once.
    chunk: Chunk,
}

/// A flow earns larger reads: what a receiver leaves has to be kept, and a
/// client that asks for much and reads nothing should not cost much.
#[derive(Clone, Copy)]
struct Chunk(u32);

impl Default for Chunk {
    fn default() -> Self {
        Self(SCRATCH as u32 / 16)
    }
}

impl Chunk {
    fn len(self) -> usize {
        self.0 as usize
    }

    fn next(self, read: usize, written: usize) -> Self {
        if written < read {
            Self::default()
        } else if read >= self.len() - self.len() / 8 {
            // All of it, but for what a record in TLS is longer than its content.
            Self((self.0 * 2).min(SCRATCH as u32))
        } else {
            self
        }
    }
}

#[derive(Default, Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The sender is done; what is pending has still to be written.
    SenderDone,
    /// The receiver was told the end of stream.
    Ended,
    /// The receiver has failed: nothing moves any more.
    Lost,
}

impl Half {
    /// Moves what can be moved. Ready when the receiver was told the end, or
    /// will be by the close that follows, this being the `last` direction.
    fn pump<F: Leg, T: Leg>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        last: bool,
        mut pace: Option<&mut StreamPace>,
    ) -> Poll<Result<(), Fault>> {
        if self.state == State::Lost {
            return Poll::Ready(Ok(()));
        }
        let mut moved = 0;
        loop {
            ready!(self.write_pending(cx, to)).map_err(Fault::Writing)?;
            if to.holds() {
                ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Fault::Writing)?;
            }
            match self.state {
                State::Ended | State::Lost => return Poll::Ready(Ok(())),
                State::SenderDone if last && T::CLOSE_ENDS => self.state = State::Ended,
                State::SenderDone => {
                    let ended = if self.cut {
                        to.poll_cut(cx)
                    } else {
                        Pin::new(&mut *to).poll_shutdown(cx)
                    };
                    ready!(ended)
                        .or_else(not_connected)
                        .map_err(Fault::Writing)?;
                    self.state = State::Ended;
                }
                State::Open if moved >= TURN => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                State::Open => {
                    let mut most = usize::MAX;
                    if let Some(pace) = &mut pace {
                        let allowed = pace.poll_allowed(cx);
                        self.waits = allowed.is_pending();
                        most = ready!(allowed);
                    }
                    let read = ready!(self.read_and_write(cx, from, to, last, most))?;
                    if let Some(pace) = &mut pace {
                        pace.read(read);
                    }
                    moved += read;
                }
            }
        }
    }

    fn write_pending<T: Leg>(&mut self, cx: &mut Context<'_>, to: &mut T) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut *to).poll_write(cx, self.pending.unwritten()))?;
            self.pending.wrote(written);
            self.written += written as u64;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, at most `most` bytes, writes at once, and keeps what the
    /// receiver did not take.
    fn read_and_write<F: Leg, T: Leg>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        last: bool,
        most: usize,
    ) -> Poll<Result<usize, Fault>> {
        with_scratch(|scratch| {
            let chunk = scratch.get_mut(..self.chunk.len().min(most));
            let chunk = chunk.unwrap_or_default();
            let mut buffer = ReadBuf::new(chunk);
            match ready!(Pin::new(from).poll_read(cx, &mut buffer)) {
                Ok(()) => {}
                Err(error) => return Poll::Ready(self.cut_short::<T>(error, last)),
            }
            let bytes = buffer.filled();
            if bytes.is_empty() {
                // The end of what there was before the fault, which a socket
                // tells of once.
                if let Some(fault) = self.fault.take() {
                    return Poll::Ready(Err(Fault::Reading(fault)));
                }
                self.state = State::SenderDone;
                return Poll::Ready(Ok(0));
            }
            self.bytes += bytes.len() as u64;
            let written = match Pin::new(to).poll_write(cx, bytes) {
                Poll::Ready(written) => written.map_err(Fault::Writing)?,
                Poll::Pending => 0,
            };
            self.written += written as u64;
            self.chunk = self.chunk.next(bytes.len(), written);
            if let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
                self.pending.keep(rest);
            }
            Poll::Ready(Ok(bytes.len()))
        })
    }

    /// A sender in TLS ended its stream without saying so. A receiver that can
    /// tell is told in any case: nobody vouches for an answer that may not be
    /// whole.
    fn cut_short<T: Leg>(&mut self, error: io::Error, last: bool) -> Result<usize, Fault> {
        if let Some(fault) = self.fault.take() {
            return Err(Fault::Reading(fault));
        }
        if error.kind() != io::ErrorKind::UnexpectedEof || !(last || T::CAN_BE_CUT) {
            return Err(Fault::Reading(error));
        }
        self.state = State::SenderDone;
        self.cut = T::CAN_BE_CUT || !last;
        self.cut_last = last;
        Ok(0)
    }

    /// The sender is not being read: the receiver does not take what there
    /// is, it was too fast, or it is done. Its reset is not seen by itself then.
    fn is_blind<T: Leg>(&self, to: &T) -> bool {
        let unread = self.waits || !self.pending.is_empty() || to.holds();
        unread || self.state != State::Open || self.fault.is_some()
    }

    /// Whether the sender has failed since the last look, where it is not read.
    fn notice_fault<F: Leg, T: Leg>(&mut self, from: &F, to: &T) -> bool {
        if self.fault.is_some() || !self.is_blind(to) {
            return false;
        }
        self.fault = from.socket().take_error().ok().flatten();
        self.fault.is_some()
    }

    /// The sender's fault, where there is nothing to carry on any more, or the
    /// receiver `is_stuck`.
    fn fault_to_tell(&mut self, is_stuck: bool) -> Option<io::Error> {
        let is_due = is_stuck || self.state == State::Ended;
        self.fault.take_if(|_| is_due)
    }

    /// The receiver has failed: what there is of `back`, the direction that it
    /// is the sender of, is all that is carried on.
    fn lose(&mut self, back: &mut Half, error: io::Error) {
        self.state = State::Lost;
        self.waits = false;
        self.pending = Pending::default();
        back.fault.get_or_insert(error);
    }

    fn untold(&self) -> u64 {
        self.bytes - self.told
    }

    fn tell(&mut self) -> u64 {
        let untold = self.untold();
        self.told = self.bytes;
        untold
    }

    /// Bytes read and written: a slow receiver is not silent.
    fn moved_since_look(&mut self) -> u64 {
        let now = self.bytes + self.written;
        let moved = now - self.looked_at;
        self.looked_at = now;
        moved
    }
}

/// A receiver that is gone already needs no end of stream; what ended it shows
/// when it is read from.
fn not_connected(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotConnected {
        Ok(())
    } else {
        Err(error)
    }
}

/// Counts silence in steps, so that a byte moved costs no clock and no timer.
struct Silence {
    /// How long without a byte is too long.
    limit: Duration,
    so_far: Duration,
    /// What the timer is set to.
    step: Duration,
    often: bool,
}

impl Silence {
    const STEPS: u32 = 8;
    /// While a sender is not being read, its faults are looked for this often.
    const OFTEN: Duration = Duration::from_secs(1);
    /// The first look is no later than this.
    const FIRST: Duration = Duration::from_secs(5);

    fn new(limit: Duration) -> Self {
        Self {
            limit,
            so_far: Duration::ZERO,
            step: (limit / Self::STEPS).min(Self::FIRST),
            often: false,
        }
    }

    fn look_often(&mut self, timer: Pin<&mut Sleep>, often: bool) {
        self.often = often;
        if often && self.step > Self::OFTEN {
            self.next_step(timer);
        }
    }

    fn next_step(&mut self, timer: Pin<&mut Sleep>) {
        let step = self.limit / Self::STEPS;
        self.step = if self.often {
            step.min(Self::OFTEN)
        } else {
            step
        };
        timer.reset(Instant::now() + self.step);
    }

    /// Takes in that a step is over.
    fn step_is_over(&mut self, silent: bool) {
        self.so_far = if silent {
            self.so_far + self.step
        } else {
            Duration::ZERO
        };
    }

    /// It has lasted as long as it may, which is `most` at most.
    fn is_over(&self, most: Duration) -> bool {
        self.so_far >= self.limit.min(most)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::events::segments_sent;
    use proptest::prelude::*;
    use std::{future::Future, net::Ipv4Addr, num::NonZeroU32};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::timeout,
    };

    const HOUR: Duration = Duration::from_secs(3600);
    /// Far more than any of this takes; a test that needs it has failed.
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    struct Lines {
        client: TcpStream,
        origin: TcpStream,
        ended: tokio::task::JoinHandle<(Ended, Moved)>,
    }

    /// Adds up what it is told.
    #[derive(Default)]
    struct Sum {
        moved: Moved,
        total: Moved,
    }

    impl Observer for Sum {
        fn stands_at(&mut self, total: Moved) {
            self.total = total;
        }

        fn moved(&mut self, moved: Moved) {
            self.moved.from_client += moved.from_client;
            self.moved.from_origin += moved.from_origin;
        }

        fn ends(&mut self, _client: BorrowedFd<'_>, _origin: BorrowedFd<'_>) {
            assert_eq!(self.moved, self.total);
        }
    }

    /// A relay between two sockets of which the test holds the far ends.
    async fn relayed(idle: Duration) -> Lines {
        paced(idle, None).await
    }

    async fn paced(idle: Duration, rate: Option<u32>) -> Lines {
        let paces = rate.and_then(NonZeroU32::new);
        let paces = paces.map(|rate| Box::new(StreamPaces::new(rate)));
        let (client, near_client) = pair().await;
        let (near_origin, origin) = pair().await;
        let ended = tokio::spawn(async move {
            let sum = Sum::default();
            let (ended, sum) = relay(near_client, near_origin, idle, paces, sum).await;
            (ended, sum.moved)
        });
        Lines {
            client,
            origin,
            ended,
        }
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        timeout(PATIENCE, future).await.expect("in time")
    }

    async fn is_reset(stream: &mut TcpStream) -> bool {
        let mut rest = Vec::new();
        let error = within(stream.read_to_end(&mut rest)).await.unwrap_err();
        error.kind() == io::ErrorKind::ConnectionReset
    }

    #[tokio::test]
    async fn a_half_close_leaves_the_other_direction_open() {
        let Lines {
            mut client,
            mut origin,
            ended,
        } = relayed(HOUR).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        within(origin.read_to_string(&mut question)).await.unwrap();
        origin.write_all(b"answer").await.unwrap();
        origin.shutdown().await.unwrap();
        let mut answer = String::new();
        within(client.read_to_string(&mut answer)).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
        let (ended, moved) = within(ended).await.unwrap();
        assert!(matches!(ended, Ended::Done), "{ended:?}");
        assert_eq!(
            moved,
            Moved {
                from_client: 8,
                from_origin: 6
            }
        );
    }

    #[tokio::test]
    async fn a_server_that_speaks_and_closes_first_is_heard() {
        let Lines {
            mut client,
            mut origin,
            ended,
        } = relayed(HOUR).await;
        origin.write_all(b"banner").await.unwrap();
        drop(origin);
        let mut banner = String::new();
        within(client.read_to_string(&mut banner)).await.unwrap();
        assert_eq!(banner, "banner");
        drop(client);
        assert!(matches!(within(ended).await.unwrap().0, Ended::Done));
    }

    #[tokio::test]
    async fn a_reset_by_the_client_resets_the_origin() {
        let Lines {
            client,
            mut origin,
            ended,
        } = relayed(HOUR).await;
        client.set_zero_linger().unwrap();
        drop(client);
        assert!(is_reset(&mut origin).await);
        assert!(matches!(within(ended).await.unwrap().0, Ended::Client(_)));
    }

    #[tokio::test]
    async fn a_reset_by_the_origin_resets_the_client() {
        let Lines {
            mut client,
            origin,
            ended,
        } = relayed(HOUR).await;
        origin.set_zero_linger().unwrap();
        drop(origin);
        assert!(is_reset(&mut client).await);
        assert!(matches!(within(ended).await.unwrap().0, Ended::Origin(_)));
    }

    #[tokio::test]
    async fn a_reset_after_a_half_close_is_carried_over_too() {
        let Lines {
            mut client,
            mut origin,
            ended,
        } = relayed(HOUR).await;
        client.shutdown().await.unwrap();
        let mut nothing = Vec::new();
        within(origin.read_to_end(&mut nothing)).await.unwrap();
        client.set_zero_linger().unwrap();
        drop(client);
        let (ended, _) = within(ended).await.unwrap();
        assert!(matches!(ended, Ended::Client(_)), "{ended:?}");
        // Its stream had ended well, so the origin's end is an ordinary one.
        within(origin.read_to_end(&mut nothing)).await.unwrap();
    }

    /// Sends until no more is taken, since nobody reads.
    async fn flood(sender: &mut TcpStream) {
        let (flood, mut sent) = (vec![3; 1 << 20], 0);
        let stuck = Duration::from_millis(300);
        while let Ok(written) = timeout(stuck, sender.write(&flood)).await {
            sent += written.unwrap();
            assert!(sent < 64 << 20, "nothing stops the sender");
        }
    }

    #[tokio::test]
    async fn a_receiver_that_does_not_read_is_waited_for_and_the_sender_is_blamed() {
        let idle = Duration::from_secs(4);
        let mut lines = relayed(idle).await;
        flood(&mut lines.client).await;
        // Silence from before the failure does not count.
        tokio::time::sleep(idle / 2).await;
        lines.client.set_zero_linger().unwrap();
        drop(lines.client);
        let start = std::time::Instant::now();
        let (ended, _) = within(lines.ended).await.unwrap();
        assert!(matches!(ended, Ended::Client(_)), "{ended:?}");
        let took = start.elapsed();
        assert!(took > idle * 3 / 4 && took < idle * 2, "{took:?}");
        drop(lines.origin);
    }

    #[tokio::test]
    async fn a_receiver_that_pauses_after_the_sender_failed_gets_all_that_had_come() {
        // What waits in the relay too, and what the kernel takes at once.
        for (by_client, much) in [(true, true), (false, true), (true, false), (false, false)] {
            let lines = relayed(HOUR).await;
            let (mut sender, mut receiver) = match by_client {
                true => (lines.client, lines.origin),
                false => (lines.origin, lines.client),
            };
            if much {
                flood(&mut sender).await;
            } else {
                let receives = SockRef::from(&receiver);
                receives.set_recv_buffer_size(64 << 10).unwrap();
                sender.write_all(&[3; 256 << 10]).await.unwrap();
                // Its reset has its own kernel drop what is still to be sent.
                while undelivered(sender.as_fd()) > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            sender.set_zero_linger().unwrap();
            drop(sender);
            tokio::time::sleep(Duration::from_secs(3)).await;
            let got = before_reset(&mut receiver).await.len() as u64;
            let (ended, moved) = within(lines.ended).await.unwrap();
            let read = match by_client {
                true => moved.from_client,
                false => moved.from_origin,
            };
            assert_eq!(got, read, "{ended:?}");
            assert!(read >= 256 << 10, "{read}");
        }
    }

    #[tokio::test]
    async fn a_receiver_that_does_not_read_stops_the_sender() {
        let Lines {
            mut client,
            mut origin,
            ended,
        } = relayed(HOUR).await;
        let flood = vec![3; 1 << 20];
        let mut sent = 0;
        while let Ok(written) = timeout(Duration::from_millis(300), client.write(&flood)).await {
            sent += written.unwrap();
            assert!(sent < 64 << 20, "nothing stops the sender");
        }
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        within(origin.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got.len(), sent);
        drop((client, origin));
        let (_, moved) = within(ended).await.unwrap();
        assert_eq!(moved.from_client, sent as u64);
    }

    #[tokio::test]
    async fn silence_ends_it_and_a_byte_does_not() {
        let idle = Duration::from_millis(400);
        let Lines {
            mut client,
            mut origin,
            ended,
        } = relayed(idle).await;
        let start = std::time::Instant::now();
        for _ in 0..8 {
            tokio::time::sleep(idle / 4).await;
            client.write_all(b"x").await.unwrap();
            within(origin.read_exact(&mut [0])).await.unwrap();
        }
        let (ended, _) = within(ended).await.unwrap();
        assert!(matches!(ended, Ended::Idle));
        assert!(start.elapsed() >= idle * 3, "{:?}", start.elapsed());
        // Neither side ended its stream, so neither is told of an end.
        assert!(is_reset(&mut client).await && is_reset(&mut origin).await);
    }

    #[tokio::test]
    async fn each_direction_keeps_its_own_pace_and_its_order() {
        const RATE: usize = 400_000;
        let Lines {
            client,
            origin,
            ended,
        } = paced(HOUR, Some(RATE as u32)).await;
        let start = std::time::Instant::now();
        // Two and a half seconds' worth one way, of which the first is free; one the other way.
        let client = play(client, vec![Act::Send(RATE * 5 / 2)], 5000);
        let origin = async {
            let played = play(origin, vec![Act::Send(RATE)], 5000).await;
            (played, start.elapsed())
        };
        let (client, (origin, took)) = within(async { tokio::join!(client, origin) }).await;
        assert_eq!((origin.1, origin.2), (client.0, true));
        assert_eq!((client.1, client.2), (origin.0, true));
        assert!(took >= Duration::from_millis(1400), "{took:?}");
        assert!(took < Duration::from_millis(2500), "{took:?}");
        assert!(matches!(within(ended).await.unwrap().0, Ended::Done));
    }

    /// Reads up to a reset.
    async fn before_reset(stream: &mut TcpStream) -> Vec<u8> {
        let mut rest = Vec::new();
        let error = within(stream.read_to_end(&mut rest)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        rest
    }

    #[tokio::test]
    async fn what_came_before_a_reset_is_carried_on_at_its_pace_whoever_resets() {
        let sent: Vec<u8> = (0..3000u32).map(|n| (n % 251) as u8).collect();
        for by_client in [true, false] {
            let lines = paced(HOUR, Some(1000)).await;
            let (mut sender, mut receiver) = match by_client {
                true => (lines.client, lines.origin),
                false => (lines.origin, lines.client),
            };
            let start = std::time::Instant::now();
            sender.write_all(&sent).await.unwrap();
            sender.set_zero_linger().unwrap();
            drop(sender);
            assert_eq!(before_reset(&mut receiver).await, sent);
            // The first second's worth is free.
            let took = start.elapsed();
            assert!(took >= Duration::from_millis(1900), "{took:?}");
            let (ended, _) = within(lines.ended).await.unwrap();
            match by_client {
                true => assert!(matches!(ended, Ended::Client(_)), "{ended:?}"),
                false => assert!(matches!(ended, Ended::Origin(_)), "{ended:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_a_side_said_before_it_failed_is_heard_though_more_is_sent_to_it() {
        for (rate, by_client) in [None, Some(1000)]
            .into_iter()
            .flat_map(|rate| [(rate, true), (rate, false)])
        {
            let lines = paced(HOUR, rate).await;
            let (mut fails, mut talks) = match by_client {
                true => (lines.client, lines.origin),
                false => (lines.origin, lines.client),
            };
            let mut told = [0];
            talks.write_all(b"x").await.unwrap();
            within(fails.read_exact(&mut told)).await.unwrap();
            // All of it is there before the relay has a turn.
            let answer = [7; 1500];
            fails.write_all(&answer).await.unwrap();
            fails.set_zero_linger().unwrap();
            drop(fails);
            talks.write_all(b"more").await.unwrap();
            assert_eq!(before_reset(&mut talks).await, answer);
            let (ended, _) = within(lines.ended).await.unwrap();
            match by_client {
                true => assert!(matches!(ended, Ended::Client(_)), "{ended:?}"),
                false => assert!(matches!(ended, Ended::Origin(_)), "{ended:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_relay_that_is_dropped_resets_both_sides() {
        let Lines {
            mut client,
            mut origin,
            ended,
        } = relayed(HOUR).await;
        client.write_all(b"x").await.unwrap();
        within(origin.read_exact(&mut [0])).await.unwrap();
        ended.abort();
        assert!(is_reset(&mut client).await && is_reset(&mut origin).await);
    }

    /// A connection to an origin as the dial leaves it, and the origin.
    async fn dialled() -> (TcpStream, TcpListener) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        SockRef::from(&socket).set_tcp_quickack(false).unwrap();
        let near = socket.connect(listener.local_addr().unwrap());
        (within(near).await.unwrap(), listener)
    }

    #[tokio::test]
    async fn the_handshake_and_the_first_bytes_are_one_packet() {
        let (mut client, near_client) = pair().await;
        let (near_origin, listener) = dialled().await;
        let origin = near_origin.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(segments_sent(&origin), 1, "the SYN");
        client.write_all(b"question").await.unwrap();
        within(near_client.readable()).await.unwrap();
        let relay = relay(near_client, near_origin, HOUR, None, Sum::default());
        let question = async {
            let (mut far, _) = listener.accept().await.unwrap();
            let mut question = [0; 8];
            far.read_exact(&mut question).await.unwrap();
            question
        };
        tokio::select! {
            (ended, _) = relay => panic!("{ended:?}"),
            question = within(question) => assert_eq!(&question, b"question"),
        }
        assert_eq!(segments_sent(&origin), 2);
    }

    #[tokio::test]
    async fn an_origin_that_speaks_first_is_not_kept_waiting() {
        let (_client, near_client) = pair().await;
        let (near_origin, listener) = dialled().await;
        let origin = near_origin.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(segments_sent(&origin), 1, "the SYN");
        let sum = Sum::default();
        let mut relay = pin!(relay(near_client, near_origin, HOUR, None, sum));
        let polled = poll_fn(|cx| Poll::Ready(relay.as_mut().poll(cx).is_pending())).await;
        assert_eq!((polled, segments_sent(&origin)), (true, 2));
        within(listener.accept()).await.unwrap();
    }

    #[tokio::test]
    async fn both_sides_are_kept_alive_from_the_first_look_on() {
        let (_client, near_client) = pair().await;
        let (near_origin, _origin) = pair().await;
        let sides = [&near_client, &near_origin].map(|side| {
            let side = side.as_fd().try_clone_to_owned().unwrap();
            socket2::Socket::from(side)
        });
        let looked = async {
            while !sides.iter().all(|side| side.keepalive().unwrap()) {
                tokio::task::yield_now().await;
            }
        };
        let (sum, idle) = (Sum::default(), Duration::from_secs(4));
        tokio::select! {
            (ended, _) = relay(near_client, near_origin, idle, None, sum) => panic!("{ended:?}"),
            () = within(looked) => {}
        }
    }

    /// Whatever is added here, every idle connection pays for.
    #[tokio::test]
    async fn a_relay_fits_its_memory_budget() {
        let ((_client, client), (origin, _origin)) = tokio::join!(pair(), pair());
        let relay = relay(client, origin, HOUR, None, Sum::default());
        let size = size_of_val(&relay) - size_of::<Sum>();
        assert!(size <= 424, "{size} bytes");
    }

    #[test]
    fn a_flow_earns_large_reads_and_loses_them_with_a_slow_receiver() {
        let mut chunk = Chunk::default();
        let first = chunk.len();
        for _ in 0..10 {
            chunk = chunk.next(chunk.len(), chunk.len());
        }
        assert_eq!(chunk.len(), SCRATCH);
        assert_eq!(chunk.next(100, 100).len(), SCRATCH);
        assert_eq!(chunk.next(SCRATCH, SCRATCH - 1).len(), first);
    }

    /// What one side does.
    #[derive(Debug, Clone)]
    enum Act {
        Send(usize),
        Rest,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            3 => (1usize..3).prop_map(Act::Send),
            3 => (1usize..200_000).prop_map(Act::Send),
            1 => (200_000usize..2_000_000).prop_map(Act::Send),
            1 => Just(Act::Rest),
        ];
        prop::collection::vec(act, 0..6)
    }

    /// Sends what the acts say, numbered, and ends; reads all at its own pace.
    async fn play(stream: TcpStream, acts: Vec<Act>, reads: usize) -> (u64, u64, bool) {
        let (mut reader, mut writer) = stream.into_split();
        let write = async {
            let mut sent = 0u64;
            for act in acts {
                match act {
                    Act::Send(count) => {
                        let bytes: Vec<u8> = (0..count as u64)
                            .map(|i| ((sent + i) % 251) as u8)
                            .collect();
                        writer.write_all(&bytes).await.unwrap();
                        sent += count as u64;
                    }
                    Act::Rest => tokio::task::yield_now().await,
                }
            }
            writer.shutdown().await.unwrap();
            sent
        };
        let read = async {
            let (mut got, mut in_order) = (0u64, true);
            let mut buffer = vec![0; reads];
            loop {
                let count = reader.read(&mut buffer).await.unwrap();
                for byte in &buffer[..count] {
                    in_order &= u64::from(*byte) == got % 251;
                    got += 1;
                }
                if count == 0 {
                    return (got, in_order);
                }
            }
        };
        let (sent, (got, in_order)) = tokio::join!(write, read);
        (sent, got, in_order)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_byte_arrives_once_and_in_order(
            up in acts(), down in acts(), slow in 1usize..5000, fast in 1000usize..300_000
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (client, origin, moved) = runtime.block_on(async {
                let lines = relayed(HOUR).await;
                let client = play(lines.client, up, slow);
                let origin = play(lines.origin, down, fast);
                let (client, origin) = within(async { tokio::join!(client, origin) }).await;
                (client, origin, within(lines.ended).await.unwrap().1)
            });
            prop_assert_eq!((origin.1, origin.2), (client.0, true));
            prop_assert_eq!((client.1, client.2), (origin.0, true));
            prop_assert_eq!(moved, Moved { from_client: client.0, from_origin: origin.0 });
        }
    }
}
