//! Tells each balancer what real dials showed.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyport_model::names::PoolName;
use anyport_node::rpc::Channel;
use anyport_proto::{
    convert::{read_duration, write_duration},
    v1::{self, balancer_service_client::BalancerServiceClient},
};
use tokio::time::timeout;
use tonic::Status;

use crate::stats::{OriginCounts, SeenOrigin, Stats};

/// Until the balancer says otherwise, and the bounds of what it may say.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A report that is later than this tells of the past: what it counts is no
/// evidence of now.
const LATE: Duration = Duration::from_secs(2);

/// A balancer that takes a report and never answers must not be the last one
/// that is reported to.
const DEADLINE: Duration = Duration::from_secs(5);

/// What was reported of each origin.
type Reported = HashMap<(PoolName, Arc<str>), OriginCounts>;

/// Reports to one balancer without end. Each has to know what all edges saw,
/// whoever follows its weights, and each takes the counts from where it has
/// them.
pub async fn report(stats: Arc<Stats>, edge: String, balancer: Channel) {
    let mut client = BalancerServiceClient::new(balancer);
    let mut told = Told::new(&stats, Instant::now());
    loop {
        tokio::time::sleep(told.pause).await;
        let (origins, now) = told.collect(&stats, Instant::now());
        let request = v1::ReportOriginsRequest {
            edge: edge.clone(),
            origins,
        };
        let answer = timeout(DEADLINE, client.report_origins(request)).await;
        match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            Ok(response) => {
                let next = response.into_inner().next_report;
                let next = next.and_then(|next| read_duration(next).ok());
                told.accepted(now, next, Instant::now());
            }
            Err(status) => {
                told.refused();
                tracing::debug!(reason = status.message(), "the report was not taken");
            }
        }
    }
}

/// What one balancer knows.
struct Told {
    counts: Reported,
    /// When it took a report last, or when there was nothing to tell yet.
    at: Instant,
    /// How long after that the next one is due.
    due: Duration,
    /// Until the next attempt.
    pause: Duration,
}

impl Told {
    fn new(stats: &Stats, now: Instant) -> Self {
        Self {
            counts: counts(stats),
            at: now,
            due: PAUSE,
            pause: PAUSE,
        }
    }

    /// What there is to say, and the counts to remember once it was taken.
    /// Origins of which nothing changed and nothing is open are left out; of a
    /// time that is long gone, only what is open is told.
    fn collect(&self, stats: &Stats, now: Instant) -> (Vec<v1::OriginReport>, Reported) {
        let is_late = now.saturating_duration_since(self.at) > self.due + LATE;
        let mut reports = Vec::new();
        let mut counts = Reported::new();
        for origin in stats.declared_origins() {
            let of_now = origin.stats.counts();
            let key = (origin.pool.clone(), Arc::clone(&origin.label));
            let before = match is_late {
                true => of_now,
                false => self.counts.get(&key).copied().unwrap_or_default(),
            };
            counts.insert(key, of_now);
            let report = describe(&origin, before, of_now);
            if report.dials > 0 || report.open_connections > 0 {
                reports.push(report);
            }
        }
        (reports, counts)
    }

    /// The balancer has these counts, and says how long to wait.
    fn accepted(&mut self, counts: Reported, next: Option<Duration>, now: Instant) {
        self.counts = counts;
        self.at = now;
        self.due = next.unwrap_or(PAUSE).clamp(PAUSE_MIN, PAUSE_MAX);
        self.pause = self.due;
    }

    fn refused(&mut self) {
        self.pause = PAUSE;
    }
}

fn counts(stats: &Stats) -> Reported {
    let origins = stats.declared_origins().into_iter();
    let counts = origins.map(|origin| ((origin.pool, origin.label), origin.stats.counts()));
    counts.collect()
}

fn describe(origin: &SeenOrigin, before: OriginCounts, now: OriginCounts) -> v1::OriginReport {
    // An origin that was removed and came back counts from nothing again.
    let dials = now.dials.saturating_sub(before.dials);
    let failures = now.failures.saturating_sub(before.failures);
    let succeeded = u32::try_from(dials.saturating_sub(failures)).unwrap_or(u32::MAX);
    let time = now.connect_time.saturating_sub(before.connect_time);
    v1::OriginReport {
        pool: origin.pool.to_string(),
        origin: origin.label.to_string(),
        dials,
        failures,
        last_failure: origin
            .stats
            .last_failure()
            .filter(|_| failures > 0)
            .unwrap_or_default(),
        open_connections: origin.stats.open().into(),
        connect_time: time.checked_div(succeeded).map(write_duration),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyport_node::metrics::Registry;

    use super::{super::fake_balancer::FakeBalancer, *};
    use crate::stats::{OriginStats, PoolId};

    const SECOND: Duration = Duration::from_secs(1);

    fn counted() -> (Arc<Stats>, Arc<OriginStats>) {
        let stats = Arc::new(Stats::new(&Registry::new()).unwrap());
        let pool = stats.pool(&PoolId::Declared("game".parse().unwrap()));
        (stats, pool.origin("a"))
    }

    /// Dials, failures and what is open, of the one origin, if it is told of.
    fn said(reports: &[v1::OriginReport]) -> Option<(u64, u64, u64)> {
        let report = reports.first()?;
        Some((report.dials, report.failures, report.open_connections))
    }

    #[test]
    fn each_report_counts_from_the_last_that_was_taken() {
        let ((stats, origin), start) = (counted(), Instant::now());
        let mut told = Told::new(&stats, start);
        origin.dialled(Ok(SECOND));
        let (reports, counts) = told.collect(&stats, start + SECOND);
        assert_eq!(said(&reports), Some((1, 0, 0)));
        told.refused();
        origin.dialled(Err(&"no"));
        let (reports, _) = told.collect(&stats, start + SECOND * 2);
        assert_eq!(said(&reports), Some((2, 1, 0)), "the first was not taken");
        told.accepted(counts, None, start + SECOND * 2);
        let (reports, counts) = told.collect(&stats, start + SECOND * 3);
        assert_eq!(said(&reports), Some((1, 1, 0)));
        told.accepted(counts, None, start + SECOND * 3);
        let (reports, _) = told.collect(&stats, start + SECOND * 4);
        assert_eq!(said(&reports), None);
    }

    #[test]
    fn a_balancer_that_was_away_is_told_what_is_open_and_nothing_of_the_time_between() {
        let ((stats, origin), start) = (counted(), Instant::now());
        let mut told = Told::new(&stats, start);
        origin.dialled(Err(&"no"));
        let _open = origin.hold();
        let (reports, counts) = told.collect(&stats, start + SECOND * 3);
        assert_eq!(said(&reports), Some((1, 1, 1)), "late, and not too late");
        told.accepted(counts, None, start + SECOND * 3);
        for _ in 0..10 {
            origin.dialled(Err(&"no"));
        }
        let back = start + SECOND * 7;
        let (reports, counts) = told.collect(&stats, back);
        assert_eq!(said(&reports), Some((0, 0, 1)));
        assert_eq!(reports.first().unwrap().last_failure, "");
        told.accepted(counts, None, back);
        origin.dialled(Err(&"no"));
        let (reports, _) = told.collect(&stats, back + SECOND);
        assert_eq!(said(&reports), Some((1, 1, 1)));
    }

    #[test]
    fn a_report_is_late_by_when_it_was_due() {
        let ((stats, origin), start) = (counted(), Instant::now());
        let mut told = Told::new(&stats, start);
        told.accepted(Reported::new(), Some(SECOND * 30), start);
        assert_eq!(told.pause, SECOND * 30);
        origin.dialled(Ok(SECOND));
        let (reports, _) = told.collect(&stats, start + SECOND * 31);
        assert_eq!(said(&reports), Some((1, 0, 0)));
        told.accepted(Reported::new(), Some(SECOND * 3600), start);
        assert_eq!(told.pause, PAUSE_MAX);
    }

    #[tokio::test]
    async fn every_balancer_is_told_all_of_it() {
        let (stats, origin) = counted();
        let mut balancers = [
            FakeBalancer::start(vec![]).await,
            FakeBalancer::start(vec![]).await,
        ];
        for balancer in &balancers {
            tokio::spawn(report(
                Arc::clone(&stats),
                "edge-1".to_owned(),
                balancer.channel(),
            ));
        }
        // Who has reported has begun to count.
        for balancer in &mut balancers {
            balancer.reported().await;
        }
        origin.dialled(Err(&"no"));
        for balancer in &mut balancers {
            let told = async {
                loop {
                    if let Some(told) = said(&balancer.reported().await.origins) {
                        return told;
                    }
                }
            };
            let told = timeout(SECOND * 20, told).await.unwrap();
            assert_eq!(told, (1, 1, 0));
        }
    }
}
