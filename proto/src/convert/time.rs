//! Durations and points in time.

use std::time::{Duration, SystemTime};

/// A wire duration that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{seconds} s and {nanos} ns is no duration; it is negative or its parts do not fit")]
pub struct DurationError {
    seconds: i64,
    nanos: i32,
}

pub fn read_duration(wire: prost_types::Duration) -> Result<Duration, DurationError> {
    let prost_types::Duration { seconds, nanos } = wire;
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(whole), Ok(part)) if part < 1_000_000_000 => Ok(Duration::new(whole, part)),
        _ => Err(DurationError { seconds, nanos }),
    }
}

/// Durations beyond the wire's range (292 billion years) are cut to it.
pub fn write_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

pub fn write_timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}
