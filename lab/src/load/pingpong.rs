//! Round trips on kept connections: the load of long conversations, and a watch on them.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::Instant;

use super::bulk::there_and_back;
use super::plan::Load;
use super::report::Report;
use super::worker::{RunError, Stop, drive};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to, how much, how long.
    pub load: Load,
    /// How many bytes go there and come back.
    pub bytes: NonZeroU64,
    /// How long each connection rests after a round trip.
    pub pause: Duration,
}

/// Runs it to its end. An operation is a round trip; its latency is from the first byte sent to the
/// last received. A connection that fails is counted and opened anew.
///
/// # Errors
///
/// Where the plan is refused or a thread cannot be started. Failed operations are in the report.
pub fn run(plan: &Plan) -> Result<Report, RunError> {
    let (bytes, pause) = (plan.bytes.get(), plan.pause);
    drive("pingpong", &plan.load, move |worker| async move {
        let mut connection = None;
        while worker.begin() {
            let round_trip = async {
                let (stream, place) = match &mut connection {
                    Some(open) => open,
                    none => none.insert((worker.connect_in_turn().await?, worker.random() >> 1)),
                };
                let started = Instant::now();
                there_and_back(&worker, stream, *place, bytes).await?;
                // The next one goes on where this one ended, so that an answer of an earlier round
                // is not taken for this one's.
                *place = place.wrapping_add(bytes);
                Ok(started.elapsed())
            };
            match round_trip.await {
                Ok(latency) => {
                    worker.done(latency);
                    worker.pause(pause).await;
                }
                Err(Stop::Failed(failure)) => {
                    worker.failed(failure);
                    connection = None;
                    worker.pause_after_failure().await;
                }
                Err(Stop::RunOver) => return,
            }
        }
    })
}
