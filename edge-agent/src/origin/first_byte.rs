//! How long an origin takes to answer, for pools whose policy asks for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::stats::{OpenGuard, OriginStats, TransparentGuard};

/// What an origin is held by while a connection to it is open.
pub struct Held {
    /// Counts the connection at its origin until it is dropped.
    _open: OpenGuard,
    /// Boxed, so that a connection that needs none of it pays a pointer.
    more: Option<Box<More>>,
}

#[derive(Default)]
struct More {
    /// Waits for the origin's first byte.
    first_byte: Option<Waiting>,
    /// The origin sees the client's own address.
    transparent: Option<TransparentGuard>,
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
            more: None,
        }
    }

    /// And counted as one whose origin sees the client's own address.
    #[must_use]
    pub fn transparent(mut self, guard: Option<TransparentGuard>) -> Self {
        if guard.is_some() {
            self.more.get_or_insert_default().transparent = guard;
        }
        self
    }

    /// The connection to `origin` was made just now, and took `connect`.
    pub fn timed(open: OpenGuard, origin: &Arc<OriginStats>, connect: Duration) -> Self {
        origin.connected_after(connect);
        let first_byte = Some(Waiting {
            origin: Arc::clone(origin),
            connect,
            since: Instant::now(),
            owed: false,
        });
        let more = More {
            first_byte,
            transparent: None,
        };
        Self {
            _open: open,
            more: Some(Box::new(more)),
        }
    }

    /// So many bytes were moved since the last time.
    pub fn moved(&mut self, from_client: u64, from_origin: u64) {
        let Some(more) = &mut self.more else {
            return;
        };
        let Some(waiting) = &mut more.first_byte else {
            return;
        };
        if from_origin > 0 {
            waiting.owed = true;
            more.first_byte = None;
            if more.transparent.is_none() {
                self.more = None;
            }
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
