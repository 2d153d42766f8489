//! One attempt of a probe of any type, within the monitor's timeout.

use std::time::Duration;

use anyport_model::check::{Check, Exchange};
use tokio::time::Instant;

use super::{
    Opener, converse,
    failure::{Failure, Quote, Waiting},
    grpc, http, icmp, open, udp,
};
use crate::membership::Target;

/// A timer that fires later than this after its time, or than a quarter of the
/// timeout if that is more, says that this host is too busy to judge others: the
/// answer may have been there all along.
const LATE_MIN: Duration = Duration::from_millis(50);

/// How far an attempt is, for what is said when its time is up.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) waiting: Waiting,
    /// What the origin has said so far.
    pub(super) heard: Vec<u8>,
}

/// Returns once the origin has passed. The monitor's timeout bounds all phases
/// together.
pub(super) async fn attempt(opener: &Opener, target: &Target) -> Result<(), Failure> {
    let within = target.monitor.timeout;
    let deadline = Instant::now() + within;
    let check = &target.monitor.check;
    let mut progress = Progress {
        waiting: Waiting::Connect,
        heard: Vec::new(),
    };
    let run = Box::pin(run(opener, target, &mut progress));
    match tokio::time::timeout_at(deadline, run).await {
        Ok(outcome) => outcome,
        Err(_) if is_late(deadline, within) => Err(Failure::Busy(deadline.elapsed())),
        Err(_) if is_silence_enough(check) && progress.waiting == Waiting::Reply => Ok(()),
        Err(_) => Err(Failure::Timeout {
            waiting: progress.waiting,
            expected: expected(check).map(Quote::of),
            within,
            heard: Quote::of_any(&progress.heard),
        }),
    }
}

fn is_late(deadline: Instant, within: Duration) -> bool {
    deadline.elapsed() > LATE_MIN.max(within / 4)
}

/// Nobody has to answer a datagram. That the port is closed would have been said.
fn is_silence_enough(check: &Check) -> bool {
    matches!(check, Check::Udp(exchange) if exchange.expect.is_empty())
}

fn expected(check: &Check) -> Option<&[u8]> {
    match check {
        Check::Tcp(Exchange { expect, .. })
        | Check::Tls(Exchange { expect, .. })
        | Check::Udp(Exchange { expect, .. }) => Some(expect),
        Check::Http(request) | Check::Https(request) => Some(request.expected_body.as_bytes()),
        Check::Grpc { .. } | Check::Icmp => None,
    }
}

async fn run(opener: &Opener, target: &Target, progress: &mut Progress) -> Result<(), Failure> {
    let address = target.address();
    match &target.monitor.check {
        Check::Tcp(exchange) => {
            let mut stream = opener.tcp(address).await?;
            converse::converse(&mut stream, exchange, progress).await
        }
        Check::Tls(exchange) => {
            let mut stream = opener.tls(address, progress).await?;
            converse::converse(&mut stream, exchange, progress).await?;
            open::say_goodbye(stream);
            Ok(())
        }
        Check::Http(request) => {
            let stream = opener.tcp(address).await?;
            http::ask(stream, http::authority(address, 80), request, progress).await
        }
        Check::Https(request) => {
            let stream = opener.https(address, progress).await?;
            http::ask(stream, http::authority(address, 443), request, progress).await
        }
        Check::Grpc { service } => {
            let stream = opener.tcp(address).await?;
            grpc::check(stream, address, service, progress).await
        }
        Check::Udp(exchange) => udp::exchange(address, exchange, progress).await,
        Check::Icmp => icmp::echo(address.ip(), progress).await,
    }
}
