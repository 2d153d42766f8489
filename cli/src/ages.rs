//! How long ago something was, in a word: `12s`, `5m`, `3h`, `40d`.

use std::time::{Duration, SystemTime};

/// `-` for what is not set.
pub fn age(now: SystemTime, since: Option<prost_types::Timestamp>) -> String {
    match since.and_then(|since| SystemTime::try_from(since).ok()) {
        // A clock that is ahead of ours by a little is no future.
        Some(since) => short(now.duration_since(since).unwrap_or_default()),
        None => "-".to_owned(),
    }
}

/// Rounded down to one unit.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unit_says_enough() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_199, "119m"),
            (7_200, "2h"),
            (172_800, "2d"),
        ] {
            assert_eq!(short(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_clock_that_is_ahead_is_no_future() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let later = prost_types::Timestamp {
            seconds: 200,
            nanos: 0,
        };
        assert_eq!(age(now, Some(later)), "0s");
        assert_eq!(age(now, None), "-");
    }
}
