//! Memory for bytes on their way, per worker thread and not per connection.
//!
//! Bytes are read into one scratch buffer that all connections of a worker
//! share, and written from it at once. Only what the receiver does not take is
//! kept with the connection, in a buffer that goes back to the worker when it
//! is empty: an idle connection holds none.

use std::cell::RefCell;

/// Large enough that a bulk flow costs few system calls, small enough to stay
/// in the L2 cache together with the kernel's copy.
pub(super) const SCRATCH: usize = 256 << 10;

/// Empty buffers that a worker keeps for the next slow receiver.
const SPARE: usize = 16;

thread_local! {
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
    static SPARE_BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Lends the worker's scratch buffer. Its contents are of no meaning before.
///
/// # Panics
/// If called within itself.
pub fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH_BUFFER.with_borrow_mut(|scratch| use_it(scratch))
}

/// Bytes that were read and could not be written yet.
#[derive(Default)]
pub(super) struct Pending {
    bytes: Vec<u8>,
    written: usize,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn unwritten(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    /// Keeps bytes; there must be none kept already.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        debug_assert!(self.is_empty());
        if self.bytes.capacity() == 0
            && let Some(spare) = SPARE_BUFFERS.with_borrow_mut(Vec::pop)
        {
            self.bytes = spare;
        }
        self.bytes.extend_from_slice(bytes);
        self.written = 0;
    }

    /// Notes that the first `count` unwritten bytes were written.
    pub(super) fn wrote(&mut self, count: usize) {
        self.written += count;
        if self.written >= self.bytes.len() {
            self.written = 0;
            let mut empty = std::mem::take(&mut self.bytes);
            empty.clear();
            SPARE_BUFFERS.with_borrow_mut(|spare| {
                if spare.len() < SPARE {
                    spare.push(empty);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_out_once_and_in_order() {
        let mut pending = Pending::default();
        pending.keep(b"abcdef");
        pending.wrote(2);
        assert_eq!(pending.unwritten(), b"cdef");
        pending.wrote(4);
        assert!(pending.is_empty() && pending.unwritten().is_empty());
        pending.keep(b"xyz");
        assert_eq!(pending.unwritten(), b"xyz");
    }

    #[test]
    fn a_written_out_buffer_leaves_the_connection_without_memory() {
        let mut pending = Pending::default();
        pending.keep(&[0; 4096]);
        pending.wrote(4096);
        assert_eq!(pending.bytes.capacity(), 0);
    }
}
