//! Asking an origin whether it serves.

pub(crate) mod failure;
pub(crate) mod schedule;
mod tcp;
pub(crate) mod vantage;

use std::time::Duration;

use anyport_model::resource::Check;
use tokio::time::Instant;

use crate::membership::Target;
use failure::Failure;

/// How long a passed probe took, or why it failed.
pub(crate) type Outcome = Result<Duration, Failure>;

/// Probes once. A timeout is followed at once by the monitor's retries, because
/// one lost packet looks the same as a dead server; a refusal is an answer.
pub(crate) async fn probe(target: &Target) -> Outcome {
    let monitor = &target.monitor;
    let Check::Tcp { send, expect } = &monitor.check;
    let mut retries = monitor.retries;
    loop {
        let begun = Instant::now();
        match tcp::attempt(target.address(), send, expect, monitor.timeout).await {
            Ok(()) => return Ok(begun.elapsed()),
            Err(failure) if failure.is_timeout() && retries > 0 => retries -= 1,
            Err(failure) => return Err(failure),
        }
    }
}

#[cfg(test)]
mod tests;
