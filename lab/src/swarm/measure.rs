//! One fleet of a size, with so many apps.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyport_netns::counters::{LinkBytes, link_bytes};
use anyport_netns::topology::EDGE_LINK;
use serde::Serialize;

use super::declared::{app, apps};
use super::process::Usage;
use super::stage::{Fleet, Held, Stage};
use crate::cluster::{Error, Replica, Result, Service, eventually};

/// Apps in one request.
const IN_A_REQUEST: usize = 20_000;

/// Between the last that the fleet did and a look at memory: what is freed by then is free.
const SETTLE: Duration = Duration::from_secs(2);

/// Where a whole state for each edge is more than this many apps, edges come with the state.
const COLD_MOST: usize = 10_000_000;

/// A size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Point {
    /// Edges.
    pub edges: usize,
    /// Apps.
    pub apps: usize,
}

/// What was found of one. Times in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Its size.
    pub point: Point,
    /// Changes of one app each.
    pub changes: usize,
    /// From commit to applied, over all edges and changes.
    pub applied_p50: f64,
    /// See `applied_p50`.
    pub applied_p99: f64,
    /// See `applied_p50`.
    pub applied_max: f64,
    /// Bytes on the wire to an edge for a change, with all headers.
    pub bytes_to_edge: f64,
    /// And back.
    pub bytes_from_edge: f64,
    /// Memory of a subscriber in its replica, in bytes.
    pub subscriber_bytes: f64,
    /// Processor time of the two replicas for a change, of all edges together.
    pub cpu_per_change: f64,
    /// Until every edge had everything that came with nothing; none: they came with the state.
    pub cold_start: Option<f64>,
    /// The most memory of the two replicas meanwhile, in bytes.
    pub cold_peak: Option<u64>,
    /// From the start of both replicas, which were killed, until all edges are in step.
    pub restart: f64,
    /// The most memory of the two replicas meanwhile, in bytes.
    pub restart_peak: u64,
    /// Whole states sent after the restart.
    pub restart_whole: u64,
}

/// What is being done.
pub type Progress<'a> = &'a mut dyn FnMut(&str);

/// Measures a fleet of this size over so many changes.
///
/// # Errors
///
/// Where the processes cannot be started or looked at.
///
/// # Panics
///
/// Where the fleet does not do what it should.
pub fn measure(point: Point, changes: usize, progress: Progress<'_>) -> Result<Measured> {
    progress("starting etcd and two replicas");
    let mut stage = Stage::start()?;
    progress("declaring apps");
    let declared = declare(&stage, point.apps);
    let before = stage.usage()?;

    progress("edges connect");
    let cold = point.edges * point.apps <= COLD_MOST;
    let held = Some(&declared).filter(|_| !cold);
    let started = Instant::now();
    let fleet = stage.fleet(point.edges, held)?;
    fleet.reaches(declared.0);
    let cold_start = started.elapsed();
    let with_fleet = stage.usage()?;
    thread::sleep(SETTLE);
    let settled = stage.usage()?;
    let more = settled.anonymous.saturating_sub(before.anonymous);
    let _ = fleet.book.take_times();

    let mut last = declared;
    let mut wire = LinkBytes::default();
    let mut cpu = Duration::ZERO;
    for change in 0..changes {
        progress(&format!("change {} of {changes}", change + 1));
        let bytes = stage.bytes()?;
        let used = stage.usage()?.cpu;
        let number = change * 7919 % point.apps;
        last = stage.apply(vec![app(number, 8000 + change as u16)]);
        fleet.reaches(last.0);
        // Acknowledgements are on their way, and the replicas tell each other.
        thread::sleep(SETTLE / 4);
        cpu += stage.usage()?.cpu - used;
        let after = stage.bytes()?;
        wire.received += after.received - bytes.received;
        wire.sent += after.sent - bytes.sent;
    }
    let mut took = fleet.book.take_times();
    took.sort_unstable();
    let per_edge = |bytes: u64| bytes as f64 / (point.edges * changes.max(1)) as f64;

    progress("both replicas are killed");
    let restarted = restart(&mut stage, &fleet, &last)?;
    Ok(Measured {
        point,
        changes,
        applied_p50: quantile(&took, 0.5),
        applied_p99: quantile(&took, 0.99),
        applied_max: quantile(&took, 1.0),
        bytes_to_edge: per_edge(wire.received),
        bytes_from_edge: per_edge(wire.sent),
        subscriber_bytes: more as f64 / point.edges as f64,
        cpu_per_change: cpu.as_secs_f64() / changes.max(1) as f64,
        cold_start: cold.then_some(cold_start.as_secs_f64()),
        cold_peak: cold.then_some(with_fleet.peak),
        restart: restarted.took.as_secs_f64(),
        restart_peak: restarted.peak,
        restart_whole: restarted.whole,
    })
}

fn declare(stage: &Stage, count: usize) -> Held {
    let all = apps(count);
    let mut held = Held::default();
    for part in all.chunks(IN_A_REQUEST) {
        held = stage.apply(part.to_vec());
    }
    held
}

struct Restarted {
    took: Duration,
    peak: u64,
    whole: u64,
}

fn restart(stage: &mut Stage, fleet: &Fleet, last: &Held) -> Result<Restarted> {
    let whole = |fleet: &Fleet| -> u64 { fleet.book.standings().iter().map(|e| e.whole).sum() };
    let before = whole(fleet);
    for replica in REPLICAS {
        stage.cluster.kill9(replica)?;
    }
    let gone = || match fleet.book.count(|edge| edge.connected) {
        0 => Ok(()),
        some => Err(some),
    };
    eventually(SETTLE * 10, "every edge notices", gone);
    let started = Instant::now();
    for replica in REPLICAS {
        stage.cluster.spawn(replica)?;
    }
    fleet.reaches(last.0);
    let took = started.elapsed();
    let peak = stage.usage()?.peak;
    Ok(Restarted {
        took,
        peak,
        whole: whole(fleet) - before,
    })
}

const REPLICAS: [Service; 2] = [
    Service::ConfigService(Replica::First),
    Service::ConfigService(Replica::Second),
];

impl Stage {
    fn usage(&self) -> Result<Usage> {
        let [first, second] = REPLICAS.map(|replica| self.cluster.pid(replica));
        let usage = Usage::of(&[first?, second?]);
        usage.map_err(|source: io::Error| Error::Io {
            what: "looking at the replicas".to_owned(),
            source,
        })
    }

    fn bytes(&self) -> Result<LinkBytes> {
        Ok(link_bytes(self.outside(), EDGE_LINK)?)
    }
}

fn quantile(sorted: &[Duration], quantile: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * quantile).ceil() as usize;
    sorted.get(at).map_or(f64::NAN, Duration::as_secs_f64)
}
