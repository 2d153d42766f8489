//! The bytes that are sent: at place `n` of a stream, `n mod 251`.
//!
//! 251 is a prime, so that no buffer or segment size is a multiple of the period: a block that is
//! lost, doubled or moved always shows.

use std::sync::LazyLock;

const PERIOD: usize = 251;

/// The longest slice given out at once, in bytes.
pub(super) const LONGEST: usize = 64 * 1024;

static TABLE: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..=250u8).cycle().take(PERIOD + LONGEST).collect());

/// What belongs at `place`: `len` bytes, or [`LONGEST`] if that is less.
pub(super) fn at(place: u64, len: usize) -> &'static [u8] {
    // The remainder is below 251.
    let start = (place % PERIOD as u64) as usize;
    &TABLE[start..start + len.min(LONGEST)]
}

/// Whether `data`, at most [`LONGEST`] bytes, is what belongs at `place`.
pub(super) fn belongs_at(place: u64, data: &[u8]) -> bool {
    data == at(place, data.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_its_own_byte() {
        for place in [0, 1, 250, 251, 252, 1_000_003, u64::from(u32::MAX) + 7] {
            let slice = at(place, 600);
            assert_eq!(slice.len(), 600);
            for (index, byte) in (place..).zip(slice) {
                assert_eq!(u64::from(*byte), index % 251);
            }
        }
        assert_eq!(at(5, usize::MAX).len(), LONGEST);
    }

    #[test]
    fn a_changed_a_lost_and_a_moved_byte_show() {
        let whole: Vec<u8> = (7..60_000u64).map(|place| (place % 251) as u8).collect();
        assert!(belongs_at(7, &whole));
        assert!(!belongs_at(8, &whole));
        let mut changed = whole.clone();
        changed[30_000] ^= 1;
        assert!(!belongs_at(7, &changed));
        let mut lost = whole.clone();
        lost.remove(30_000);
        assert!(!belongs_at(7, &lost));
        // A buffer of a usual size that is sent twice.
        let mut doubled = whole[..16_384].to_vec();
        doubled.extend_from_within(..16_384);
        assert!(!belongs_at(7, &doubled));
    }
}
