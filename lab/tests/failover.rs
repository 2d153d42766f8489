//! What clients see when an origin dies under load. Needs root.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, Store, eventually};
use anyport_lab::dials::Dials;
use anyport_lab::fault::Fault;
use anyport_lab::load::connect::{Close, Request};
use anyport_lab::load::paced::{self, Visit};
use anyport_lab::load::{Failure, Load, Report, RunError};

const TARGET: &str = "198.51.100.10:443";
/// An app of which no origin dies: what its clients wait is the machine's.
const CONTROL: &str = "198.51.100.10:444";
const NAMES: [&str; 3] = ["a", "b", "c"];
/// Which of them dies.
const DEAD: usize = 1;

const PER_SECOND: u32 = 250;
/// How long clients come, and when in it the origin dies.
const LOAD: Duration = Duration::from_secs(12);
const HEALTHY: Duration = Duration::from_secs(2);

/// The app's `timeouts.connect`, which the pool's three origins share: a first dial may take a third
/// of it, and is waited for as long as a SYN that is sent again after a second could be answered.
const CONNECT: Duration = Duration::from_secs(5);
const FIRST_DIAL: Duration = Duration::from_millis(1200);
/// The monitor's interval and timeout, twice, an interval more for jitter, and two seconds in which
/// the machine has other things to do. By an edge alone it would be dialled 7.5 s after its death
/// once more.
const FOUND_OUT: Duration = Duration::from_secs(6);
/// Of a machine that has other things to do, beside what others lose by it at the same time.
const BUSY: Duration = Duration::from_millis(700);

fn manifest() -> String {
    let origin = |(index, name): (usize, &&str)| {
        let host = index + 2;
        format!("      - {{ name: {name}, address: \"10.0.2.{host}:7000\" }}\n")
    };
    let origins: String = NAMES.iter().enumerate().map(origin).collect();
    // What is probed is another port, so that dials are clients' only.
    format!(
        r#"
prefixes:
  - cidr: 198.51.100.0/24
monitors:
  - {{ name: quick, type: tcp, port: 7001, interval: 1s, timeout: 500ms, consecutive_down: 2 }}
pools:
  - name: game
    monitor: quick
    policy: round_robin
    origins:
{origins}apps:
  - name: game
    protocol: tcp/443
    edge_ips: [198.51.100.10]
    origin_pool: game
    timeouts: {{ connect: {}s }}
  - name: control
    protocol: tcp/444
    edge_ips: [198.51.100.10]
    origin_direct: ["tcp://10.0.2.2:7000"]
"#,
        CONNECT.as_secs()
    )
}

type Run = JoinHandle<anyport_netns::Result<Result<(Report, Vec<Visit>), RunError>>>;

/// Clients of an app.
fn come(cluster: &Cluster, target: &str) -> Run {
    let target: SocketAddr = target.parse().unwrap();
    let come = move || {
        paced::run(&paced::Plan {
            load: Load {
                duration: LOAD,
                timeout: CONNECT * 2,
                ..Load::on(target)
            },
            per_second: PER_SECOND,
            request: Request::Who,
            close: Close::Fin,
        })
    };
    cluster.topology().client().spawn_thread(come).unwrap()
}

struct Story {
    /// Since the origin died, by when they came.
    visits: Vec<(Duration, Visit)>,
    /// The longest that somebody waited meanwhile whose app has nothing to do with it.
    machine: Duration,
    /// At the dead origin.
    dials: Vec<Duration>,
}

impl Story {
    fn of(fault: Fault) -> Self {
        let cluster = Cluster::start(Plan {
            origins: NAMES.len(),
            ..Plan::on(Store::Embedded)
        })
        .unwrap();
        let start = |index: usize| cluster.echo(index, NAMES[index], [7000, 7001]).unwrap();
        let mut servers = [0, 1, 2].map(|index| Some(start(index)));
        cluster.apply(&manifest()).unwrap();
        eventually(PATIENCE, "all are up", || {
            let metrics = cluster.metrics(Service::Balancer).unwrap();
            let up = metrics.sum("anyport_origin_healthy", &[("pool", "game")]);
            (up == 3.0).then_some(()).ok_or(format!("{up} are"))
        });
        let host = &cluster.topology().origins()[DEAD].namespace;
        let dials = Dials::watch(host, 7000).unwrap();
        let loads = [TARGET, CONTROL].map(|target| come(&cluster, target));
        thread::sleep(HEALTHY);
        let dead = fault.strike(host, servers[DEAD].take().unwrap());
        let [visits, control] = loads.map(|load| {
            let (report, visits) = load.join().unwrap().unwrap().unwrap();
            assert_eq!(report.unfinished(), 0, "{report}");
            visits
        });
        let machine = control.iter().map(|visit| visit.took).max().unwrap();
        let after = |moment: Instant| moment.checked_duration_since(dead.since);
        let visits: Vec<_> = visits
            .into_iter()
            .filter_map(|visit| Some((after(visit.due)?, visit)))
            .collect();
        let dials: Vec<_> = dials.end().unwrap().into_iter().filter_map(after).collect();
        let story = Self {
            visits,
            machine,
            dials,
        };
        eprintln!(
            "{fault:?}: {} visits, p50 {:?}, p99 {:?}, slowest {:?} (beside {machine:?}), {} dials, \
             the last after {:?}",
            story.visits.len(),
            story.percentile(50),
            story.percentile(99),
            story.percentile(100),
            story.dials.len(),
            story.dials.last()
        );
        story
    }

    fn failures(&self) -> Vec<(Duration, &Failure)> {
        let all = self.visits.iter();
        all.filter_map(|(at, visit)| Some((*at, visit.outcome.as_ref().err()?)))
            .collect()
    }

    fn percentile(&self, percent: usize) -> Duration {
        let mut took: Vec<_> = self.visits.iter().map(|(_, visit)| visit.took).collect();
        took.sort();
        took[(took.len() - 1) * percent / 100]
    }

    /// Who answered those who came so long after.
    fn answered_after(&self, at: Duration) -> Vec<&str> {
        let later = self.visits.iter().filter(|(came, _)| *came > at);
        let mut tags: Vec<_> = later
            .filter_map(|(_, visit)| Some(visit.outcome.as_ref().ok()?.as_ref()?.as_str()))
            .collect();
        tags.sort_unstable();
        tags.dedup();
        tags
    }

    /// No connection failed, none waited longer than this and the machine, and once the monitor has found out, nobody
    /// dials the dead origin any more.
    fn holds(&self, slowest: Duration) {
        assert!(self.visits.len() > 1500, "{}", self.visits.len());
        let failures = self.failures();
        assert!(
            failures.is_empty(),
            "{} failed, the first {:?}",
            failures.len(),
            failures[0]
        );
        let waited = self.percentile(100);
        let bound = slowest + BUSY + 2 * self.machine;
        assert!(waited < bound, "{waited:?}, more than {bound:?}");
        assert!(!self.dials.is_empty(), "else it says nothing");
        let last = self.dials.last().unwrap();
        let found_out = FOUND_OUT + 2 * self.machine;
        assert!(*last < found_out, "dialled {last:?} after");
        assert_eq!(self.answered_after(found_out), ["a", "c"]);
    }
}

#[test]
fn nobody_fails_where_an_origin_refuses() {
    let story = Story::of(Fault::Refuses);
    story.holds(Duration::ZERO);
    // The edge leaves it alone at once; not each finds out anew, but those who come together.
    let together = f64::from(PER_SECOND) * story.machine.as_secs_f64();
    let dials = story.dials.len();
    assert!(dials < 30 + together as usize, "{dials} dials");
}

#[test]
fn nobody_fails_where_an_origin_is_silent_and_none_waits_longer_than_its_share_of_a_dial() {
    Story::of(Fault::Silent).holds(FIRST_DIAL);
}
