//! Requests and replies over UDP, each on a flow of its own that is kept: one request is under way on
//! a flow at a time, and a reply that does not come in time is a loss.

use std::io;
use std::num::NonZeroU64;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::failure::Failure;
use super::pattern;
use super::plan::Load;
use super::report::Report;
use super::worker::{RunError, Stop, Worker, drive};

/// What UDP over IPv4 carries at most.
const LARGEST: usize = 65_507;

/// Each request starts with a number of its own, big endian.
const NUMBER: usize = 8;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to, how much, how long. A connection is a flow, and the timeout is how long a reply is
    /// waited for.
    pub load: Load,
    /// How many bytes a request has, and a reply: 8 to 65,507.
    pub bytes: NonZeroU64,
    /// How long each flow rests after a reply.
    pub pause: Duration,
}

/// Runs it to its end. An operation is a request with its reply; its latency is from one to the
/// other. A loss is counted as a timeout, and the flow goes on.
///
/// # Errors
///
/// Where the plan is refused or a thread cannot be started. Failed operations are in the report.
pub fn run(plan: &Plan) -> Result<Report, RunError> {
    let bytes = usize::try_from(plan.bytes.get()).unwrap_or(LARGEST);
    let (bytes, pause) = (bytes.clamp(NUMBER, LARGEST), plan.pause);
    drive("udp", &plan.load, move |worker| async move {
        let mut flow = None;
        while worker.begin() {
            match ask(&worker, &mut flow, bytes).await {
                Ok(latency) => {
                    worker.done(latency);
                    worker.pause(pause).await;
                }
                Err(Stop::Failed(failure)) => {
                    worker.failed(failure);
                    worker.pause_after_failure().await;
                }
                Err(Stop::RunOver) => return,
            }
        }
    })
}

/// A flow, and room for one datagram.
struct Flow {
    socket: UdpSocket,
    number: u64,
    buffer: Vec<u8>,
}

async fn ask(worker: &Worker, flow: &mut Option<Flow>, bytes: usize) -> Result<Duration, Stop> {
    let flow = match flow {
        Some(open) => open,
        none => none.insert(Flow {
            socket: worker.datagrams()?,
            number: worker.random() >> 1,
            buffer: vec![0; bytes + 1],
        }),
    };
    flow.number += 1;
    let (number, body) = (
        flow.number.to_be_bytes(),
        pattern::at(flow.number, bytes - NUMBER),
    );
    flow.buffer[..NUMBER].copy_from_slice(&number);
    flow.buffer[NUMBER..bytes].copy_from_slice(body);
    let started = Instant::now();
    worker.step(flow.socket.send(&flow.buffer[..bytes])).await?;
    worker.sent(bytes);
    let Flow { socket, buffer, .. } = flow;
    let reply = async {
        loop {
            let count = socket.recv(buffer).await?;
            // An earlier request's reply that came too late: it was counted as lost.
            let late = count == bytes && buffer[..NUMBER] < number[..];
            if !late {
                return Ok::<_, io::Error>(count);
            }
        }
    };
    let count = worker.step(reply).await?;
    if count != bytes || buffer[..NUMBER] != number || buffer[NUMBER..count] != *body {
        return Err(Failure::Mismatch.into());
    }
    worker.received(count);
    Ok(started.elapsed())
}
