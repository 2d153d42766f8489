//! CRC-32C (Castagnoli; RFC 3720, appendix B.4), bit by bit: headers are short
//! and seldom carry one.

const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Of all `parts`, one after the other.
pub(super) fn crc32c(parts: &[&[u8]]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    !bytes.fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    /// The examples of RFC 3720.
    #[test]
    fn the_published_examples_come_out() {
        let counting: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(crc32c(&[&[0xff; 32]]), 0x62a8_ab43);
        assert_eq!(crc32c(&[&counting]), 0x46dd_794e);
        assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
    }
}
