//! Opens connections and holds them: the load of clients that are there and say nothing.

use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::Failure;
use super::plan::Load;
use super::report::Report;
use super::worker::{RunError, Stop, drive};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to, how many, how long. The number held is `connections`.
    pub load: Load,
}

/// Runs it to its end. An operation is a connection held to the end of the run; its latency is the
/// time it was held. One that is closed, reset or spoken to before is a failure, and opened anew.
///
/// # Errors
///
/// Where the plan is refused or a thread cannot be started. Failed operations are in the report.
pub fn run(plan: &Plan) -> Result<Report, RunError> {
    drive("idle", &plan.load, |worker| async move {
        while worker.begin() {
            let held = async {
                let mut stream = worker.connect_in_turn().await?;
                let started = Instant::now();
                match worker.hold(stream.read(&mut [0])).await {
                    None => Ok(started.elapsed()),
                    Some(Ok(0)) => Err(Failure::Eof.into()),
                    Some(Ok(_)) => Err(Failure::Mismatch.into()),
                    Some(Err(error)) => Err(error.into()),
                }
            };
            match held.await {
                Ok(time) => return worker.done(time),
                Err(Stop::Failed(failure)) => {
                    worker.failed(failure);
                    worker.pause_after_failure().await;
                }
                Err(Stop::RunOver) => return,
            }
        }
    })
}
