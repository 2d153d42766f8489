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
//! nothing for two minutes. Meanwhile the other side is read, for nobody: it
//! may not listen before it has spoken.

mod silence;

use std::{
    future::poll_fn,
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{io::ReadBuf, time::sleep};

use self::silence::Silence;
use super::{
    buffers::{Pending, SCRATCH, with_scratch},
    leg::Leg,
};
use crate::{
    events::{has_failed, undelivered},
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
            Err(last_words) => last_words.await,
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
async fn delivered<T: Leg>(
    receiver: &mut T,
    mut pace: Option<&mut StreamPace>,
    patience: Duration,
) {
    let mut left = undelivered(receiver.socket().as_fd());
    let (mut stuck, mut step) = (Duration::ZERO, Duration::from_millis(10));
    while left > 0 && stuck < patience {
        let mut over = pin!(sleep(step));
        poll_fn(|cx| {
            discard(cx, receiver, pace.as_deref_mut());
            over.as_mut().poll(cx)
        })
        .await;
        let now = undelivered(receiver.socket().as_fd());
        stuck = if now == left {
            stuck + step
        } else {
            Duration::ZERO
        };
        left = now;
        step = (step * 2).min(Silence::OFTEN);
    }
}

/// Reads what there is, for nobody, as fast as it may come: the other side has
/// failed. Input that is
/// not read when a socket is closed would have the kernel drop what it still
/// has to send, too (RFC 2525, 2.17).
fn discard<F: Leg>(cx: &mut Context<'_>, from: &mut F, mut pace: Option<&mut StreamPace>) {
    let mut discarded = 0;
    while discarded < TURN {
        let most = match pace.as_mut().map(|pace| pace.poll_allowed(cx)) {
            Some(Poll::Pending) => return,
            Some(Poll::Ready(most)) => most,
            None => usize::MAX,
        };
        let read = with_scratch(|scratch| {
            let most = most.min(scratch.len());
            let mut buffer = ReadBuf::new(scratch.get_mut(..most).unwrap_or_default());
            let read = Pin::new(&mut *from).poll_read(cx, &mut buffer);
            read.map_ok(|()| buffer.filled().len())
        });
        match read {
            Poll::Ready(Ok(read)) if read > 0 => {
                discarded += read;
                if let Some(pace) = &mut pace {
                    pace.read(read);
                }
            }
            // Whether it has failed, too, shows where it is written to.
            Poll::Ready(_) | Poll::Pending => return,
        }
    }
    cx.waker().wake_by_ref();
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
    /// A side had failed at the last look.
    failing: bool,
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
            failing: false,
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
            Poll::Ready(Err(Fault::Reading(error))) => {
                let first = self.down.fault_of(origin);
                return Poll::Ready(first.map_or(Ended::Client(error), Ended::Origin));
            }
            Poll::Ready(Err(Fault::Writing(error))) => {
                self.up.lose(&mut self.down, error);
                // From now on the client is read for nobody.
                cx.waker().wake_by_ref();
                true
            }
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        let last = self.up.state == State::Ended;
        let received = match self.down.pump(cx, origin, client, last, down) {
            Poll::Ready(Err(Fault::Reading(error))) => {
                let first = self.up.fault_of(client);
                return Poll::Ready(first.map_or(Ended::Origin(error), Ended::Client));
            }
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
        if let Some(error) = self.up.fault_of(client) {
            return Poll::Ready(Ended::Client(error));
        }
        if let Some(error) = self.down.fault_of(origin) {
            return Poll::Ready(Ended::Origin(error));
        }
        // A client that has its answer often says no more, and is not blamed.
        Poll::Ready(if self.up.cut == Cut::Yes {
            Ended::Client(io::ErrorKind::UnexpectedEof.into())
        } else if self.down.cut != Cut::No {
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
        let moved = self.up.has_moved(&self.origin) | self.down.has_moved(&self.client);
        self.up.notice_fault(&self.client, &self.origin);
        self.down.notice_fault(&self.origin, &self.client);
        let failing = self.up.has_fault() || self.down.has_fault();
        let failed = failing && !std::mem::replace(&mut self.failing, failing);
        // Short connections, which end before the first look, are spared the
        // system calls and the kernel's timers.
        if !std::mem::replace(&mut self.kept_alive, true) {
            for socket in [self.client.socket(), self.origin.socket()] {
                if let Err(error) = SockRef::from(socket).set_tcp_keepalive(&KEEPALIVE) {
                    tracing::debug!(%error, "a connection goes without keepalive");
                }
            }
        }
        silence.step_is_over(!moved && !failed);
        let is_stuck = silence.is_over(LAST_WORDS);
        if let Some(error) = self.up.fault_to_tell(&self.client, is_stuck) {
            return Some(Ended::Client(error));
        }
        if let Some(error) = self.down.fault_to_tell(&self.origin, is_stuck) {
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
    /// not yet: a reset would have the kernel drop what it still has to send, and
    /// so would a close while there is input. Boxed, since that is seldom so.
    fn last_words(
        &mut self,
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
        if is_stuck || undelivered(receiver.as_fd()) == 0 {
            return Ok(ended);
        }
        let patience = idle.min(LAST_WORDS);
        Err(Box::pin(async move {
            let (up, down) = match self.paces.as_deref_mut() {
                Some(StreamPaces { up, down }) => (Some(up), Some(down)),
                None => (None, None),
            };
            match ended {
                Ended::Client(_) => delivered(&mut self.origin, down, patience).await,
                _ => delivered(&mut self.client, up, patience).await,
            }
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
    cut: Cut,
    /// It has moved as much as it may for now. Nothing is pending then.
    waits: bool,
    /// The sender has failed, as its kernel told when it was written to, which it
    /// does once; what it had sent before is being carried on.
    fault: Option<io::Error>,
    /// So it has, and its kernel was not asked why: where it has been read to its
    /// end, that says whether its stream had ended before.
    fails: bool,
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

/// Whether the sender's stream was cut short, and the receiver is told so.
#[derive(Default, Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    #[default]
    No,
    Yes,
    /// It was, and this direction was the last.
    Last,
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
            discard(cx, from, pace);
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
                    let ended = if self.cut != Cut::No {
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
                if let Some(fault) = self.fault.take_if(|fault| !is_whole::<F>(fault)) {
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
        if std::mem::take(&mut self.fails) {
            return Err(Fault::Reading(error));
        }
        if error.kind() != io::ErrorKind::UnexpectedEof || !(last || T::CAN_BE_CUT) {
            return Err(Fault::Reading(error));
        }
        self.state = State::SenderDone;
        self.cut = match last {
            false => Cut::Yes,
            true if T::CAN_BE_CUT => Cut::Last,
            true => Cut::No,
        };
        Ok(0)
    }

    /// The sender is not being read: the receiver does not take what there
    /// is, it was too fast, or it is done. Its reset is not seen by itself then.
    fn is_blind<T: Leg>(&self, to: &T) -> bool {
        let unread = self.waits || !self.pending.is_empty() || to.holds();
        unread || self.state != State::Open || self.has_fault()
    }

    /// Notices where the sender has failed, though it is not read.
    fn notice_fault<F: Leg, T: Leg>(&mut self, from: &F, to: &T) {
        let is_unnoticed = !self.has_fault() && self.state != State::Lost && self.is_blind(to);
        self.fails |= is_unnoticed && has_failed(from.socket().as_fd());
    }

    fn has_fault(&self) -> bool {
        self.fault.is_some() || self.fails
    }

    /// Takes the sender's fault.
    fn fault_of<F: Leg>(&mut self, from: &F) -> Option<io::Error> {
        let fails = std::mem::take(&mut self.fails);
        let told = self.fault.take();
        if told.is_some() || !fails {
            return told;
        }
        from.socket().take_error().ok().flatten()
    }

    /// The sender's fault, where there is nothing to carry on any more, or the
    /// receiver `is_stuck`.
    fn fault_to_tell<F: Leg>(&mut self, from: &F, is_stuck: bool) -> Option<io::Error> {
        let is_due = is_stuck || self.state == State::Ended;
        if is_due { self.fault_of(from) } else { None }
    }

    /// The receiver has failed: what there is of `back`, the direction that it
    /// is the sender of, is all that is carried on. Where the sender had failed
    /// before, that is what is told.
    fn lose(&mut self, back: &mut Half, error: io::Error) {
        self.state = State::Lost;
        self.waits = false;
        self.pending = Pending::default();
        if !self.has_fault() {
            back.fault.get_or_insert(error);
            back.fails = false;
        }
    }

    fn untold(&self) -> u64 {
        self.bytes - self.told
    }

    fn tell(&mut self) -> u64 {
        let untold = self.untold();
        self.told = self.bytes;
        untold
    }

    /// Whether anything was read since the last look, or taken by the receiver's
    /// kernel: a slow receiver is not silent, also where its socket can be
    /// written to only once a third of what it has to send is gone.
    fn has_moved<T: Leg>(&mut self, to: &T) -> bool {
        let moving = u64::from(match self.written {
            0 => 0,
            _ => undelivered(to.socket().as_fd()),
        });
        let now = (self.bytes + self.written).wrapping_sub(moving);
        std::mem::replace(&mut self.looked_at, now) != now
    }
}

/// Whether the end of a sender's bytes is the end of its stream although it could
/// not be written to any more: in TLS anything else is told as an error, and
/// otherwise the kernel says "broken pipe" of a reset that came after the end.
fn is_whole<F: Leg>(fault: &io::Error) -> bool {
    F::CAN_BE_CUT || fault.kind() == io::ErrorKind::BrokenPipe
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

#[cfg(test)]
mod tests;
