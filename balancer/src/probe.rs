//! Asking an origin whether it serves.

mod attempt;
mod connection;
mod converse;
mod datagram;
pub(crate) mod failure;
mod grpc;
mod http;
mod icmp;
mod open;
pub(crate) mod schedule;
mod udp;
pub(crate) mod vantage;

use std::time::Duration;

use anyport_model::target::{Source, forbidden};
use tokio::time::Instant;

use crate::membership::Target;
use failure::Failure;
pub(crate) use open::Opener;

/// How long a passed probe took, or why it failed.
pub(crate) type Outcome = Result<Duration, Failure>;

/// What is read of an answer at most, in bytes; a server that pours out more is
/// not going to say the right thing.
const ANSWER_MAX: usize = 64 << 10;

/// Probes once. A timeout is followed at once by the monitor's retries, because
/// one lost packet looks the same as a dead server; a refusal is an answer.
pub(crate) async fn probe(opener: &Opener, target: &Target) -> Outcome {
    let ip = target.origin.ip();
    if let Some(why) = forbidden(ip, Source::Declared) {
        return Err(Failure::Forbidden(ip, why));
    }
    let mut retries = target.monitor.retries;
    loop {
        let begun = Instant::now();
        match attempt::attempt(opener, target).await {
            Ok(()) => return Ok(begun.elapsed()),
            Err(failure) if failure.is_timeout() && retries > 0 => retries -= 1,
            Err(failure) => return Err(failure),
        }
    }
}

#[cfg(test)]
mod tests;
