//! Which part of what all connections share a thread writes to: each thread to
//! one of its own, as long as there are not more threads than parts, so that
//! workers do not wait for each other.

use std::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Parts; more than workers on most hosts, few enough to visit all.
pub(super) const SHARDS: usize = 16;

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MINE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The part of the calling thread.
pub(super) fn mine() -> usize {
    MINE.with(|mine| {
        mine.get().unwrap_or_else(|| {
            let index = THREADS.fetch_add(1, Relaxed) % SHARDS;
            mine.set(Some(index));
            index
        })
    })
}
