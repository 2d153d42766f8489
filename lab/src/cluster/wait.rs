//! Waiting for what will come, with an end.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks again and again until there is what is looked for, and gives it.
///
/// # Panics
///
/// When `within` is over, with `what` and with why the last look was in vain.
#[track_caller]
pub fn eventually<T, E: Display>(
    within: Duration,
    what: &str,
    look: impl FnMut() -> Result<T, E>,
) -> T {
    match until(within, look) {
        Ok(found) => found,
        Err(last) => panic!("not within {within:?}: {what}; last seen: {last}"),
    }
}

/// As [`eventually`], for those who go on without; gives why the last look was in vain.
pub(super) fn until<T, E: Display>(
    within: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> Result<T, String> {
    let started = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(last) if started.elapsed() >= within => return Err(last.to_string()),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
