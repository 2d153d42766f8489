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

/// Bytes that were read and could not be written yet. Most connections have
/// none at most times.
#[derive(Default)]
pub struct Pending(Option<Box<Kept>>);

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    written: usize,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn unwritten(&self) -> &[u8] {
        let kept = self.0.as_deref();
        let unwritten = kept.and_then(|kept| kept.bytes.get(kept.written..));
        unwritten.unwrap_or_default()
    }

    /// Keeps bytes, after those that are kept already.
    pub fn keep(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let kept = self.0.get_or_insert_with(|| {
            let spare = SPARE_BUFFERS.with_borrow_mut(Vec::pop);
            let bytes = spare.unwrap_or_default();
            Box::new(Kept { bytes, written: 0 })
        });
        kept.bytes.extend_from_slice(bytes);
    }

    /// Notes that the first `count` unwritten bytes were written.
    pub fn wrote(&mut self, count: usize) {
        let Some(kept) = &mut self.0 else {
            return;
        };
        kept.written += count;
        if kept.written >= kept.bytes.len() {
            let mut empty = std::mem::take(&mut kept.bytes);
            self.0 = None;
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
        pending.keep(b"gh");
        assert_eq!(pending.unwritten(), b"cdefgh");
        pending.wrote(6);
        assert!(pending.is_empty() && pending.unwritten().is_empty());
        pending.keep(b"xyz");
        assert_eq!(pending.unwritten(), b"xyz");
    }

    #[test]
    fn a_written_out_buffer_leaves_the_connection_without_memory() {
        let mut pending = Pending::default();
        pending.keep(&[0; 4096]);
        pending.wrote(4096);
        assert_eq!(size_of_val(&pending), size_of::<usize>());
        assert!(pending.0.is_none());
    }
}
