//! Starts connections by the clock, however long each takes: the load of clients that know nothing of
//! each other.
//!
//! A closed loop asks a slow server less often, and what it would have asked meanwhile is in no
//! figure. Here each connection has its moment, and its time counts from that.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::connect::{Close, Request, once};
use super::plan::Load;
use super::report::Report;
use super::worker::{RunError, Stop, Worker, drive};
use super::{Failure, Tag};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to, and for how long connections are started. All of them are waited for, each step for
    /// the load's timeout at most. As many are open at once as it takes, on one thread.
    pub load: Load,
    /// How many connections are started in a second, at equal distances.
    pub per_second: u32,
    /// What to ask on each connection.
    pub request: Request,
    /// How to close it.
    pub close: Close,
}

/// One connection: the moment that it had, and what became of it.
#[derive(Clone, Debug)]
pub struct Visit {
    /// When it was to be started.
    pub due: Instant,
    /// From then to the last byte of the answer, or to the failure.
    pub took: Duration,
    /// Who answered, where that was asked.
    pub outcome: Result<Option<Tag>, Failure>,
}

/// Runs it to its end, and gives the connections by their moments.
///
/// # Errors
///
/// Where the plan is refused or a thread cannot be started. Failed operations are in the report.
pub fn run(plan: &Plan) -> Result<(Report, Vec<Visit>), RunError> {
    // Above zero, so that a plan of nothing ends.
    let per_second = plan.per_second.max(1);
    let starts = (plan.load.duration.as_secs_f64() * f64::from(per_second)).round() as u32;
    let load = Load {
        connections: std::num::NonZeroUsize::MIN,
        // A connection has three steps.
        duration: plan.load.duration + plan.load.timeout * 3,
        ..plan.load.clone()
    };
    let visits = Arc::<Mutex<Vec<Visit>>>::default();
    let (request, close) = (plan.request, plan.close);
    let work = |worker: Worker| {
        let visits = visits.clone();
        let (mut under_way, begun) = (JoinSet::new(), tokio::time::Instant::now());
        async move {
            for number in 0..starts {
                let due = begun + Duration::from_secs(1) * number / per_second;
                sleep_until(due).await;
                if !worker.begin() {
                    break;
                }
                let (worker, visits) = (worker.clone(), visits.clone());
                under_way.spawn_local(async move {
                    let visit = visit(&worker, due.into_std(), request, close).await;
                    visits
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend(visit);
                });
                while under_way.try_join_next().is_some() {}
            }
            under_way.join_all().await;
        }
    };
    let report = drive("paced", &load, work)?;
    let mut visits = std::mem::take(&mut *visits.lock().unwrap_or_else(PoisonError::into_inner));
    visits.sort_by_key(|visit| visit.due);
    Ok((report, visits))
}

/// None, where the run was over before its end.
async fn visit(worker: &Worker, due: Instant, request: Request, close: Close) -> Option<Visit> {
    let done = once(worker, request, close).await;
    let took = due.elapsed();
    let outcome = match done {
        Ok(who) => {
            worker.done(took);
            Ok(who)
        }
        Err(Stop::Failed(failure)) => {
            worker.failed(failure.clone());
            Err(failure)
        }
        Err(Stop::RunOver) => return None,
    };
    Some(Visit { due, took, outcome })
}
