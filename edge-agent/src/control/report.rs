//! Tells the balancer what real dials showed.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyport_model::names::PoolName;
use anyport_proto::{
    convert::{read_duration, write_duration},
    v1,
};
use tokio::{sync::watch, time::timeout};
use tonic::Status;

use super::weights::Balancer;
use crate::stats::{OriginCounts, SeenOrigin, Stats};

/// Until the balancer says otherwise, and the bounds of what it may say.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A balancer that takes a report and never answers must not be the last one
/// that is reported to.
const DEADLINE: Duration = Duration::from_secs(5);

/// What was reported, and answered, of each origin.
type Reported = HashMap<(PoolName, Arc<str>), OriginCounts>;

/// Reports without end, while there is a balancer to report to.
pub async fn report(stats: Arc<Stats>, edge: String, mut balancer: watch::Receiver<Balancer>) {
    let mut reported = Reported::new();
    let mut pause = PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        pause = PAUSE;
        let Ok(client) = balancer.wait_for(Option::is_some).await.map(|b| b.clone()) else {
            return;
        };
        let Some(mut client) = client else {
            continue;
        };
        let (origins, now) = collect(&stats, &reported);
        let request = v1::ReportOriginsRequest {
            edge: edge.clone(),
            origins,
        };
        let answer = timeout(DEADLINE, client.report_origins(request)).await;
        match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            Ok(response) => {
                reported = now;
                let wanted = response.into_inner().next_report;
                let wanted = wanted.and_then(|wanted| read_duration(wanted).ok());
                pause = wanted.unwrap_or(PAUSE).clamp(PAUSE / 10, PAUSE_MAX);
            }
            Err(status) => tracing::debug!(reason = status.message(), "the report was not taken"),
        }
    }
}

/// What there is to say since the last report, and the counts to remember once
/// it was taken. Origins of which nothing changed and nothing is open are left
/// out.
fn collect(stats: &Stats, reported: &Reported) -> (Vec<v1::OriginReport>, Reported) {
    let mut reports = Vec::new();
    let mut now = Reported::new();
    for origin in stats.declared_origins() {
        let counts = origin.stats.counts();
        let key = (origin.pool.clone(), Arc::clone(&origin.label));
        let before = reported.get(&key).copied().unwrap_or_default();
        now.insert(key, counts);
        let report = describe(&origin, before, counts);
        if report.dials > 0 || report.open_connections > 0 {
            reports.push(report);
        }
    }
    (reports, now)
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
