//! Moves bytes both ways between two sockets until both are done.
//!
//! End of stream, reset and back-pressure are carried over as they came: a
//! half-close becomes a half-close, a reset becomes a reset, and a side that
//! does not read stops the other one from being read.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::buffers::{Pending, SCRATCH, with_scratch};

/// What one direction may move before the worker's other connections get
/// their turn.
const TURN: usize = 4 * SCRATCH;

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

/// Relays until both sides are done. `progress` is told of bytes moved, every
/// now and then and at the end.
pub(super) async fn relay(
    mut client: TcpStream,
    mut origin: TcpStream,
    idle: Duration,
    mut progress: impl FnMut(Moved),
) -> Ended {
    let mut up = Half::default();
    let mut down = Half::default();
    let mut silence = Silence::new(idle);
    let mut timer = pin!(sleep(silence.step));
    let ended = poll_fn(|cx| {
        let sent = match up.pump(cx, &mut client, &mut origin) {
            Poll::Ready(Err(fault)) => return Poll::Ready(fault.of(Ended::Client, Ended::Origin)),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        let received = match down.pump(cx, &mut origin, &mut client) {
            Poll::Ready(Err(fault)) => return Poll::Ready(fault.of(Ended::Origin, Ended::Client)),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        if sent && received {
            return Poll::Ready(Ended::Done);
        }
        silence.look_often(timer.as_mut(), up.is_blind() || down.is_blind());
        while timer.as_mut().poll(cx).is_ready() {
            if let Some(error) = up.unread_fault(&client) {
                return Poll::Ready(Ended::Client(error));
            }
            if let Some(error) = down.unread_fault(&origin) {
                return Poll::Ready(Ended::Origin(error));
            }
            let moved = Moved {
                from_client: up.moved_since_told(),
                from_origin: down.moved_since_told(),
            };
            progress(moved);
            if silence.is_over(moved == Moved::default()) {
                return Poll::Ready(Ended::Idle);
            }
            silence.next_step(timer.as_mut());
        }
        Poll::Pending
    })
    .await;
    progress(Moved {
        from_client: up.moved_since_told(),
        from_origin: down.moved_since_told(),
    });
    match &ended {
        Ended::Client(_) => pass_on_reset(&origin, &up),
        Ended::Origin(_) => pass_on_reset(&client, &down),
        Ended::Done | Ended::Idle => {}
    }
    ended
}

/// One side failed: the other one is closed with a reset, so that it cannot
/// take what it has for all there is. Where the failed side had ended its
/// stream before, all of it was delivered, and an ordinary close keeps it so.
fn pass_on_reset(to: &TcpStream, from_failed: &Half) {
    if from_failed.state != State::Ended {
        // The socket is being dropped: there is nobody left to tell.
        let _ = to.set_zero_linger();
    }
}

/// Which side of a direction failed.
enum Fault {
    Reading(io::Error),
    Writing(io::Error),
}

impl Fault {
    fn of(self, reader: fn(io::Error) -> Ended, writer: fn(io::Error) -> Ended) -> Ended {
        match self {
            Fault::Reading(error) => reader(error),
            Fault::Writing(error) => writer(error),
        }
    }
}

/// One direction.
#[derive(Default)]
struct Half {
    state: State,
    pending: Pending,
    bytes: u64,
    told: u64,
}

#[derive(Default, Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The sender is done; what is pending has still to be written.
    SenderDone,
    /// The receiver was told the end of stream.
    Ended,
}

impl Half {
    /// Moves what can be moved. Ready when the receiver was told the end.
    fn pump(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
    ) -> Poll<Result<(), Fault>> {
        let mut moved = 0;
        loop {
            ready!(self.write_pending(cx, to)).map_err(Fault::Writing)?;
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::SenderDone => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))
                        .or_else(not_connected)
                        .map_err(Fault::Writing)?;
                    self.state = State::Ended;
                }
                State::Open if moved >= TURN => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                State::Open => moved += ready!(self.read_and_write(cx, from, to))?,
            }
        }
    }

    fn write_pending(&mut self, cx: &mut Context<'_>, to: &mut TcpStream) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut *to).poll_write(cx, self.pending.unwritten()))?;
            self.pending.wrote(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, writes at once, and keeps what the receiver did not take.
    fn read_and_write(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
    ) -> Poll<Result<usize, Fault>> {
        with_scratch(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(from).poll_read(cx, &mut buffer)).map_err(Fault::Reading)?;
            let bytes = buffer.filled();
            if bytes.is_empty() {
                self.state = State::SenderDone;
                return Poll::Ready(Ok(0));
            }
            self.bytes += bytes.len() as u64;
            let written = match Pin::new(to).poll_write(cx, bytes) {
                Poll::Ready(written) => written.map_err(Fault::Writing)?,
                Poll::Pending => 0,
            };
            if let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
                self.pending.keep(rest);
            }
            Poll::Ready(Ok(bytes.len()))
        })
    }

    /// The sender is not being read: the receiver does not take what there
    /// is, or the sender is done. Its reset is not seen by itself then.
    fn is_blind(&self) -> bool {
        !self.pending.is_empty() || self.state != State::Open
    }

    fn unread_fault(&self, from: &TcpStream) -> Option<io::Error> {
        self.is_blind().then(|| from.take_error().ok().flatten())?
    }

    fn moved_since_told(&mut self) -> u64 {
        let moved = self.bytes - self.told;
        self.told = self.bytes;
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

    fn new(limit: Duration) -> Self {
        Self {
            limit,
            so_far: Duration::ZERO,
            step: limit / Self::STEPS,
            often: false,
        }
    }

    fn look_often(&mut self, timer: Pin<&mut Sleep>, often: bool) {
        let shortens = often && !self.often;
        self.often = often;
        if shortens {
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
    fn is_over(&mut self, silent: bool) -> bool {
        self.so_far = if silent {
            self.so_far + self.step
        } else {
            Duration::ZERO
        };
        self.so_far >= self.limit
    }
}
