//! Origins at different distances, and one that becomes slow, as clients see them. Needs root.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::thread;
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, Store, eventually};
use anyport_lab::delay::{Delayed, far_end};
use anyport_lab::load::Load;
use anyport_lab::load::connect::{Close, Request};
use anyport_lab::load::paced::{self, Visit};
use anyport_lab::load::serve::{self, Mode, Server};

/// Origins by their names and their distances there and back, far enough apart for a busy machine.
const ORIGINS: [(&str, Duration); 3] = [
    ("near", Duration::from_millis(4)),
    ("away", Duration::from_millis(20)),
    ("far", Duration::from_millis(60)),
];
const SLOW: Duration = Duration::from_millis(300);

/// Ports of the same origins, by policy.
const LATENCY: u16 = 443;
const ROUND_ROBIN: u16 = 444;

const PER_SECOND: u32 = 100;
/// What an edge knows of origins that it has not asked yet, it learns in this time.
const LEARNT: Duration = Duration::from_secs(1);

struct Stage {
    cluster: Cluster,
    near: Delayed,
    _others: Vec<Delayed>,
    _servers: Vec<Server>,
}

impl Stage {
    fn set() -> Self {
        let cluster = Cluster::start(Plan {
            origins: ORIGINS.len(),
            ..Plan::on(Store::Embedded)
        })
        .unwrap();
        let mut cables = Vec::new();
        let mut servers = Vec::new();
        let hosts = cluster.topology().origins();
        for (index, ((name, distance), host)) in ORIGINS.into_iter().zip(hosts).enumerate() {
            cables.push(Delayed::to_origin(cluster.topology(), index, distance).unwrap());
            let plan = serve::Plan {
                listen: vec![(far_end(index), 7000).into()],
                mode: Mode::Echo {
                    tag: Some(name.parse().unwrap()),
                },
                threads: NonZeroUsize::MIN,
            };
            servers.push(host.namespace.run(|| serve::start(&plan)).unwrap().unwrap());
        }
        cluster.apply(&manifest()).unwrap();
        eventually(PATIENCE, "all are up", || {
            let metrics = cluster.metrics(Service::Balancer).unwrap();
            let up = metrics.sum("anyport_origin_healthy", &[]);
            (up == 6.0).then_some(()).ok_or(format!("{up} are"))
        });
        let near = cables.remove(0);
        Self {
            cluster,
            near,
            _others: cables,
            _servers: servers,
        }
    }

    /// Those who came for so long, each of whom was answered.
    fn load(&self, port: u16, duration: Duration) -> Vec<Visit> {
        let target = SocketAddr::from(([198, 51, 100, 10], port));
        let plan = paced::Plan {
            load: Load {
                duration,
                ..Load::on(target)
            },
            per_second: PER_SECOND,
            request: Request::Who,
            close: Close::Fin,
        };
        let client = self.cluster.topology().client();
        let (report, visits) = client.run(|| paced::run(&plan)).unwrap().unwrap();
        assert_eq!((report.failed(), report.unfinished()), (0, 0), "{report}");
        visits
    }
}

fn manifest() -> String {
    let origin = |(index, (name, _)): (usize, &(&str, Duration))| {
        let address = far_end(index);
        format!("      - {{ name: {name}, address: \"{address}:7000\" }}\n")
    };
    let origins: String = ORIGINS.iter().enumerate().map(origin).collect();
    let pool = |policy: &str| {
        format!(
            "  - name: {}\n    monitor: quick\n    policy: {policy}\n    origins:\n{origins}",
            policy.replace('_', "-")
        )
    };
    let (latency, round_robin) = (pool("latency"), pool("round_robin"));
    format!(
        "prefixes:
  - cidr: 198.51.100.0/24
monitors:
  - {{ name: quick, type: tcp, interval: 1s, timeout: 5s }}
pools:
{latency}{round_robin}apps:
  - {{ name: latency, protocol: tcp/{LATENCY}, edge_ips: [198.51.100.10], origin_pool: latency }}
  - {{ name: round-robin, protocol: tcp/{ROUND_ROBIN}, edge_ips: [198.51.100.10], origin_pool: round-robin }}
"
    )
}

/// Those who came later than so long after the first.
fn after(visits: &[Visit], time: Duration) -> &[Visit] {
    let first = visits[0].due;
    let at = visits.partition_point(|visit| visit.due < first + time);
    &visits[at..]
}

fn answered_by(visits: &[Visit], name: &str) -> usize {
    let tag = |visit: &Visit| visit.outcome.clone().unwrap().unwrap();
    visits
        .iter()
        .filter(|visit| tag(visit).as_str() == name)
        .count()
}

fn mean(visits: &[Visit]) -> Duration {
    let sum: Duration = visits.iter().map(|visit| visit.took).sum();
    sum / u32::try_from(visits.len()).unwrap()
}

fn percentile(visits: &[Visit], percent: usize) -> Duration {
    let mut took: Vec<_> = visits.iter().map(|visit| visit.took).collect();
    took.sort();
    took[(took.len() - 1) * percent / 100]
}

#[test]
fn a_cable_is_as_long_as_it_is_said_to_be() {
    let stage = Stage::set();
    let edge = stage.cluster.topology().edge();
    let connect = |index| {
        let to = SocketAddr::from((far_end(index), 7000));
        let started = Instant::now();
        stage.cluster.dial_from(edge, to).unwrap();
        started.elapsed()
    };
    // Never sooner, and as soon as that where the machine has nothing else to do.
    let is_so_far = |index, name: &str, distance: Duration| {
        eventually(PATIENCE, name, || {
            let took = connect(index);
            assert!(took >= distance, "{name}: {took:?}");
            let late = took - distance;
            (late < Duration::from_millis(4))
                .then_some(())
                .ok_or_else(|| format!("{took:?}"))
        });
    };
    for (index, (name, distance)) in ORIGINS.into_iter().enumerate() {
        is_so_far(index, name, distance);
    }
    stage.near.set_round_trip(SLOW);
    is_so_far(0, "near, slow", SLOW);
}

/// Who came, by whom they were answered and how soon.
fn said(visits: &[Visit]) -> String {
    let by = ORIGINS.map(|(name, _)| answered_by(visits, name));
    format!(
        "mean {:?}, p90 {:?}, by {by:?}",
        mean(visits),
        percentile(visits, 90)
    )
}

/// Beside others who come at the same time and are served in turn.
fn the_near_is_preferred(stage: &Stage) -> Result<(), String> {
    let time = Duration::from_secs(4);
    let (near, in_turn) = thread::scope(|scope| {
        let in_turn = scope.spawn(|| stage.load(ROUND_ROBIN, time));
        (stage.load(LATENCY, time), in_turn.join().unwrap())
    });
    let (near, in_turn) = (after(&near, LEARNT), after(&in_turn, LEARNT));
    let said = format!("latency: {}\nround_robin: {}", said(near), said(in_turn));
    eprintln!("{said}");
    let sooner = mean(near) * 3 < mean(in_turn) * 2
        && percentile(near, 90) * 2 < percentile(in_turn, 90)
        && answered_by(near, "near") * 2 > near.len();
    sooner.then_some(()).ok_or(said)
}

/// It costs those who come until its first answer does, and hardly anybody later.
fn the_slow_is_left(stage: &Stage) -> Result<(), String> {
    let degraded = stage.load(LATENCY, Duration::from_secs(3));
    let later = after(&degraded, LEARNT);
    let said = format!("near is slow: {}\nlater: {}", said(&degraded), said(later));
    eprintln!("{said}");
    let (all, late) = (answered_by(&degraded, "near"), answered_by(later, "near"));
    // Else it says nothing. A third would not mind; what few do is that others look slow, too.
    let left = all > 0 && all * 4 < degraded.len() && late * 5 < later.len();
    left.then_some(()).ok_or(said)
}

/// A machine that stands still for a moment makes every origin look far for a while. So it is done
/// again where it did not come out, which a policy that does not mind distance never would.
#[test]
fn the_near_is_preferred_left_when_it_is_slow_and_tried_again_when_it_is_not() {
    let stage = Stage::set();
    let (_, distance) = ORIGINS[0];
    eventually(PATIENCE * 3, "the near one is preferred, and left", || {
        stage.near.set_round_trip(distance);
        the_near_is_preferred(&stage)?;
        stage.near.set_round_trip(SLOW);
        the_slow_is_left(&stage)
    });
    stage.near.set_round_trip(distance);
    let recovered = Instant::now();
    eventually(PATIENCE, "the near one is as good as before", || {
        let visits = stage.load(LATENCY, Duration::from_secs(1));
        let near = answered_by(&visits, "near");
        eprintln!("{:?} later: {}", recovered.elapsed(), said(&visits));
        (near > 10).then_some(()).ok_or(format!("{near} are its"))
    });
}
