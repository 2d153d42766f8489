//! How fast a connection may move bytes, each direction by itself. What it was
//! when the connection began holds to its end.

use std::{
    num::NonZeroU32,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use anyport_model::bucket::Bucket;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::time::{Sleep, sleep};

/// A direction that used up what it may is read again when it may have a part
/// of a second's worth: often enough to be smooth, and not for every byte.
const STEPS: u32 = 20;

/// Of a stream, whose sender waits: what is not read stays with the kernel, and
/// TCP tells the sender.
pub struct StreamPaces {
    pub up: StreamPace,
    pub down: StreamPace,
}

pub struct StreamPace {
    pace: Pace,
    timer: Pin<Box<Sleep>>,
    waits: bool,
}

impl StreamPaces {
    pub fn new(rate: NonZeroU32) -> Self {
        Self {
            up: StreamPace::new(rate),
            down: StreamPace::new(rate),
        }
    }

    /// Has a sender wait about a second after it began to be too fast: the
    /// kernel would take in as many megabytes as it has for a socket.
    pub fn stop_early(&self, socket: &impl AsFd) {
        let second = self.up.pace.rate.get();
        if second < WAITING_MAX {
            let bytes = second.max(WAITING_MIN) as usize;
            // Beyond net.core.rmem_max for those who may; where neither is
            // possible, more waits.
            let forced = setsockopt(socket, sockopt::RcvBufForce, &bytes);
            let _ = forced.or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes));
        }
    }
}

/// What may wait of a stream, in bytes: as much as a round trip needs at least,
/// and no more than the kernel would take anyway.
const WAITING_MIN: u32 = 64 << 10;
const WAITING_MAX: u32 = 4 << 20;

impl StreamPace {
    fn new(rate: NonZeroU32) -> Self {
        Self {
            pace: Pace::new(rate, Instant::now()),
            timer: Box::pin(sleep(Duration::ZERO)),
            waits: false,
        }
    }

    /// How many bytes may be read now. Waits while it is too few.
    pub fn poll_allowed(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            if self.waits {
                ready!(self.timer.as_mut().poll(cx));
                self.waits = false;
            }
            let now = Instant::now();
            let least = (self.pace.rate.get() / STEPS).max(1);
            let there = self.pace.tokens(now);
            if there >= least {
                return Poll::Ready(usize::try_from(there).unwrap_or(usize::MAX));
            }
            let after = self.pace.ready_in(now, least);
            self.timer.as_mut().reset((now + after).into());
            self.waits = true;
        }
    }

    /// Notes that so many were read, which is no more than there were.
    pub fn read(&mut self, bytes: usize) {
        self.pace.spend(bytes);
    }
}

/// Of a flow's datagrams: those that come too fast are dropped, since whoever
/// sends them does not wait.
pub struct DatagramPaces {
    pub up: DatagramPace,
    pub down: DatagramPace,
}

pub struct DatagramPace(Pace);

impl DatagramPaces {
    pub fn new(rate: NonZeroU32, now: Instant) -> Self {
        Self {
            up: DatagramPace(Pace::new(rate, now)),
            down: DatagramPace(Pace::new(rate, now)),
        }
    }
}

impl DatagramPace {
    /// Whether a datagram may pass; counted if so. One that is larger than what
    /// is left passes and is paid for by those after it, so that any size can.
    pub fn passes(&mut self, bytes: usize, now: Instant) -> bool {
        let passes = self.0.tokens(now) > 0;
        if passes {
            self.0.spend(bytes);
        }
        passes
    }
}

struct Pace {
    rate: NonZeroU32,
    since: Instant,
    bucket: Bucket,
}

impl Pace {
    fn new(rate: NonZeroU32, now: Instant) -> Self {
        Self {
            rate,
            since: now,
            bucket: Bucket::full(rate, Duration::ZERO),
        }
    }

    fn tokens(&mut self, now: Instant) -> u32 {
        let now = now.saturating_duration_since(self.since);
        self.bucket.tokens(self.rate, now)
    }

    fn ready_in(&mut self, now: Instant, count: u32) -> Duration {
        let now = now.saturating_duration_since(self.since);
        self.bucket.ready_in(self.rate, now, count)
    }

    fn spend(&mut self, bytes: usize) {
        self.bucket.spend(u32::try_from(bytes).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn datagrams_of_any_size_pass_at_the_rate() {
        for (rate, size) in [(1000, 100), (1000, 1400), (100_000, 65_507), (3, 1)] {
            let rate = NonZeroU32::new(rate).unwrap();
            let start = Instant::now();
            let mut pace = DatagramPaces::new(rate, start).up;
            let mut bytes = 0;
            for ms in 0..100_000 {
                if pace.passes(size, start + Duration::from_millis(ms)) {
                    bytes += size;
                }
            }
            let rate = rate.get() as usize;
            // A hundred seconds' worth, the first one at once, and one datagram too much.
            let most = 101 * rate + size;
            assert!((99 * rate..=most).contains(&bytes), "{rate} {size} {bytes}");
        }
    }
}
