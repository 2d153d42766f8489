//! How long an origin takes to answer, for pools whose policy asks for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::stats::{OpenGuard, OriginStats};

/// What an origin is held by while a connection to it is open.
pub struct Held {
    /// Counts the connection at its origin until it is dropped.
    _open: OpenGuard,
    /// Waits for the origin's first byte. Boxed, so that a connection of
    /// another policy pays a pointer for it.
    first_byte: Option<Box<Waiting>>,
}

struct Waiting {
    origin: Arc<OriginStats>,
    connect: Duration,
    /// When the client first said something, or the connection was made.
    since: Instant,
    /// Somebody was asked and has not answered yet.
    owed: bool,
}

impl Held {
    pub fn counted(open: OpenGuard) -> Self {
        Self {
            _open: open,
            first_byte: None,
        }
    }

    /// The connection to `origin` was made just now, and took `connect`.
    pub fn timed(open: OpenGuard, origin: &Arc<OriginStats>, connect: Duration) -> Self {
        origin.connected_after(connect);
        let first_byte = Some(Box::new(Waiting {
            origin: Arc::clone(origin),
            connect,
            since: Instant::now(),
            owed: false,
        }));
        Self {
            _open: open,
            first_byte,
        }
    }

    /// So many bytes were moved since the last time.
    pub fn moved(&mut self, from_client: u64, from_origin: u64) {
        let Some(waiting) = &mut self.first_byte else {
            return;
        };
        if from_origin > 0 {
            waiting.owed = true;
            self.first_byte = None;
        } else if from_client > 0 && !waiting.owed {
            waiting.owed = true;
            waiting.since = Instant::now();
        }
    }
}

/// The answer came; or the connection ended without one, and it would have
/// taken at least so long.
impl Drop for Waiting {
    fn drop(&mut self) {
        if self.owed {
            let took = self.connect + self.since.elapsed();
            self.origin.answered_after(took);
        }
    }
}
