//! What a monitor sends and expects: text, or, where it is no text,
//! `{ hex: ff00 }`.

use std::fmt::Write;

/// Reads pairs of hexadecimal digits; spaces between them are left out.
pub(super) fn parse_hex(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("{text:?} is no row of hexadecimal bytes; right is \"16 03 01\"");
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(wrong());
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

pub(super) fn write_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_whole_bytes_are_read() {
        assert_eq!(parse_hex("16 03 Ff"), Ok(vec![0x16, 3, 0xff]));
        for wrong in ["1", "123", "xy", "0x10", "é0"] {
            assert!(parse_hex(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn bytes_and_back(bytes: Vec<u8>) {
            prop_assert_eq!(parse_hex(&write_hex(&bytes)), Ok(bytes));
        }
    }
}
