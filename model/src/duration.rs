//! Durations as users write them: `500ms`, `2s`, `5m`, `1h`, `30d`.

use std::time::Duration;

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("{0:?} is no duration; right is 500ms, 2s, 5m, 1h or 30d")]
    Malformed(String),
    #[error("{0:?} is longer than any duration can be; right is 500ms, 2s, 5m, 1h or 30d")]
    TooLong(String),
}

const UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Longest duration on the wire, in nanoseconds.
const NANOS_MAX: u128 = i64::MAX as u128 * 1_000_000_000 + 999_999_999;

/// Reads a whole number with its unit. Also knows `us` and `ns`, so that
/// everything that [`write_duration`] writes can be read.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let malformed = || DurationError::Malformed(text.chars().take(40).collect());
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let known = UNITS.iter().find(|(name, _)| *name == unit);
    let (_, nanos) = known.ok_or_else(malformed)?;
    if number.is_empty() {
        return Err(malformed());
    }
    number
        .parse::<u128>()
        .ok()
        .and_then(|number| number.checked_mul(*nanos))
        .filter(|nanos| *nanos <= NANOS_MAX)
        .and_then(|nanos| {
            let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
            let part = u32::try_from(nanos % 1_000_000_000).ok()?;
            Some(Duration::new(seconds, part))
        })
        .ok_or_else(|| DurationError::TooLong(text.chars().take(40).collect()))
}

/// The shortest exact spelling: `90m`, `1500ms`.
pub fn write_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let fitting = |(_, unit): &&(&str, u128)| nanos.is_multiple_of(*unit);
    match UNITS.iter().find(fitting) {
        Some((name, unit)) if nanos > 0 => format!("{}{name}", nanos / unit),
        _ => "0s".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, millis) in [
            ("500ms", 500),
            ("2s", 2_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("2d", 172_800_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
        }
        for text in [
            "",
            "5",
            "s",
            "5 parsecs",
            "-1s",
            "+1s",
            "1.5s",
            "5 s",
            "5S",
            "1h30m",
            "٥s",
        ] {
            let fault = parse_duration(text).expect_err(text).to_string();
            assert_eq!(
                fault,
                format!("{text:?} is no duration; right is 500ms, 2s, 5m, 1h or 30d")
            );
        }
        let huge = "9".repeat(60) + "h";
        assert!(matches!(
            parse_duration(&huge),
            Err(DurationError::TooLong(_))
        ));
    }

    #[test]
    fn the_largest_unit_that_fits_is_written() {
        for (text, written) in [
            ("60s", "1m"),
            ("90m", "90m"),
            ("1500ms", "1500ms"),
            ("3600000ms", "1h"),
            ("48h", "2d"),
            ("0h", "0s"),
            ("1000ns", "1us"),
        ] {
            let duration = parse_duration(text).expect(text);
            assert_eq!(write_duration(duration), written, "{text}");
        }
    }

    proptest! {
        #[test]
        fn written_durations_are_read_back(seconds in 0..=i64::MAX as u64, nanos in 0u32..1_000_000_000) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(parse_duration(&write_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse_duration(&text);
        }
    }
}
