//! Every process is killed with SIGKILL in its turn, under load. What is open stays open, what is
//! new is served, and what comes back is in step again. Needs root, and etcd.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::thread::JoinHandle;
use std::time::Duration;

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Replica, Service, Store, eventually};
use anyport_lab::load::connect::{self, Close, Request};
use anyport_lab::load::{Control, Failure, Load, Report, RunError, pingpong};
use anyport_proto::v1::GetStatusRequest;
use anyport_proto::v1::edge_service_client::EdgeServiceClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

anyport_lab::on_both_stores![
    without_the_config_service_the_edge_goes_on_and_catches_up_after,
    without_the_balancer_the_edge_goes_on_with_the_last_weights,
    an_edge_that_starts_alone_serves_its_last_known_good,
    a_config_service_killed_in_an_apply_leaves_nothing_half_done,
];

const TARGET: &str = "198.51.100.10:443";
const ORIGINS: [&str; 3] = ["a", "b", "c"];

fn at(target: &str) -> SocketAddr {
    target.parse().unwrap()
}

/// One app on three origins, of which weights are what is given.
fn manifest(weights: [&str; 3]) -> String {
    let [a, b, c] = weights;
    format!(
        r#"
prefixes:
  - cidr: 198.51.100.0/24
monitors:
  - {{ name: quick, type: tcp, interval: 300ms, timeout: 5s, consecutive_up: 1, consecutive_down: 1 }}
pools:
  - name: three
    monitor: quick
    origins:
      - {{ name: a, address: "10.0.2.2:7000", weight: {a} }}
      - {{ name: b, address: "10.0.2.3:7000", weight: {b} }}
      - {{ name: c, address: "10.0.2.4:7000", weight: {c} }}
apps:
  - {{ name: app, protocol: tcp/443, edge_ips: [198.51.100.10], origin_pool: three }}
"#
    )
}

fn cluster(store: Store) -> Cluster {
    let origins = ORIGINS.len();
    Cluster::start(Plan {
        origins,
        ..Plan::on(store)
    })
    .unwrap()
}

fn weights_of_balancer(cluster: &Cluster) -> [Option<f64>; 3] {
    let metrics = cluster.metrics(Service::Balancer).unwrap();
    ORIGINS.map(|origin| {
        let labels = &[("pool", "three"), ("origin", origin)];
        metrics.value("anyport_origin_weight", labels)
    })
}

fn balancer_says(cluster: &Cluster, weights: [f64; 3]) {
    eventually(PATIENCE, "the balancer has its verdicts", || {
        let seen = weights_of_balancer(cluster);
        let wanted = weights.map(Some);
        (seen == wanted).then_some(()).ok_or(format!("{seen:?}"))
    });
}

/// Which origins answer new connections.
fn answering(cluster: &Cluster, count: u64) -> BTreeSet<String> {
    let plan = connect::Plan {
        load: Load {
            count: NonZeroU64::new(count),
            ..load(4, &Control::default())
        },
        request: Request::Who,
        close: Close::Reset,
    };
    let client = cluster.topology().client();
    let report = client.run(|| connect::run(&plan)).unwrap().unwrap();
    assert_eq!(
        (report.operations(), report.failed()),
        (count, 0),
        "{report}"
    );
    report.answers().keys().map(ToString::to_string).collect()
}

fn answered_by(cluster: &Cluster, origins: &[&str]) {
    let wanted: BTreeSet<String> = origins.iter().map(ToString::to_string).collect();
    eventually(PATIENCE, "the edge follows", || {
        let seen = answering(cluster, 60);
        (seen == wanted)
            .then_some(())
            .ok_or(format!("{seen:?} answered"))
    });
}

fn load(at_once: usize, control: &Control) -> Load {
    Load {
        connections: NonZeroUsize::new(at_once).unwrap(),
        duration: Duration::from_secs(120),
        control: control.clone(),
        ..Load::on(at(TARGET))
    }
}

type Run = JoinHandle<anyport_netns::Result<Result<Report, RunError>>>;

/// New connections without end, and conversations that last.
struct Traffic {
    new: (Control, Run),
    held: (Control, Run),
}

const HELD: u64 = 20;

impl Traffic {
    fn start(cluster: &Cluster) -> Self {
        let client = cluster.topology().client();
        let control = Control::default();
        let plan = connect::Plan {
            load: load(4, &control),
            request: Request::Echo(NonZeroU64::new(100).unwrap()),
            close: Close::Reset,
        };
        let run = client.spawn_thread(move || connect::run(&plan)).unwrap();
        let new = (control, run);
        let control = Control::default();
        let plan = pingpong::Plan {
            load: load(usize::try_from(HELD).unwrap(), &control),
            bytes: NonZeroU64::new(100).unwrap(),
            pause: Duration::from_millis(20),
        };
        let run = client.spawn_thread(move || pingpong::run(&plan)).unwrap();
        let held = (control, run);
        let traffic = Self { new, held };
        eventually(PATIENCE, "all conversations are open", || {
            let opened = traffic.held.0.opened();
            (opened == HELD).then_some(()).ok_or(format!("{opened}"))
        });
        traffic.passes();
        traffic
    }

    /// A good deal more of both went through, and nothing ever failed.
    fn passes(&self) {
        for (control, _) in [&self.new, &self.held] {
            let from = control.operations();
            eventually(PATIENCE, "the traffic goes on", || {
                let done = control.operations() - from;
                (done >= 200).then_some(()).ok_or(format!("{done} of 200"))
            });
            assert_eq!(control.failures(), 0);
        }
    }

    /// Ends it: not one connection was lost.
    fn all_was_well(self) {
        for (control, run) in [self.new, self.held] {
            control.stop();
            let report = run.join().unwrap().unwrap().unwrap();
            assert_eq!(report.failed(), 0, "{report}");
        }
    }
}

/// The config service, all of it, and what it keeps its state in.
fn control_plane(cluster: &Cluster, store: Store) -> Vec<Service> {
    let replicas = cluster.replicas().iter();
    let replicas = replicas.map(|replica| Service::ConfigService(*replica));
    match store {
        Store::Embedded => replicas.collect(),
        Store::Etcd => [Service::Etcd].into_iter().chain(replicas).collect(),
    }
}

/// The edge has the revision that the config service has.
fn in_step(cluster: &Cluster) {
    eventually(PATIENCE, "the edge is in step", || {
        let of = |service, name| {
            let metrics = cluster.metrics(service).unwrap();
            metrics.value(name, &[])
        };
        let stored = of(
            Service::ConfigService(Replica::First),
            "anyport_config_revision",
        );
        let applied = of(Service::EdgeAgent, "anyport_edge_applied_revision");
        (stored == applied && stored > Some(0.0))
            .then_some(())
            .ok_or(format!("{stored:?} is stored, {applied:?} applied"))
    });
}

fn without_the_config_service_the_edge_goes_on_and_catches_up_after(store: Store) {
    let mut cluster = cluster(store);
    let _servers = [0, 1, 2].map(|i| cluster.echo(i, ORIGINS[i], [7000]).unwrap());
    cluster.apply(&manifest(["1", "1", "0"])).unwrap();
    balancer_says(&cluster, [1.0, 1.0, 0.0]);
    answered_by(&cluster, &["a", "b"]);
    let traffic = Traffic::start(&cluster);
    let control_plane = control_plane(&cluster, store);
    for service in &control_plane {
        cluster.kill9(*service).unwrap();
    }
    traffic.passes();
    let said = cluster.try_apply(&manifest(["1", "0", "0"]), &[]).unwrap();
    assert_eq!(said.status, Some(3), "{said}");
    cluster.get(Service::EdgeAgent, "/readyz").unwrap();
    traffic.passes();
    for service in &control_plane {
        cluster.restart(*service).unwrap();
    }
    in_step(&cluster);
    // `--wait` waits for connected edges, so the edge has to be back for this to mean anything.
    eventually(PATIENCE, "the edge is back", || {
        let edges = cluster.anyport(&["get", "edges"]).unwrap();
        edges
            .out
            .contains("edge1")
            .then_some(())
            .ok_or(edges.to_string())
    });
    cluster.apply(&manifest(["0", "0", "1"])).unwrap();
    answered_by(&cluster, &["c"]);
    traffic.all_was_well();
}

fn without_the_balancer_the_edge_goes_on_with_the_last_weights(store: Store) {
    let mut cluster = cluster(store);
    let mut servers = [0, 1].map(|i| Some(cluster.echo(i, ORIGINS[i], [7000]).unwrap()));
    cluster.apply(&manifest(["1", "1", "1"])).unwrap();
    // Nobody listens at the third, which only the balancer knows.
    balancer_says(&cluster, [1.0, 1.0, 0.0]);
    // And now the edge: of all weights, it says only when it has the first.
    let said = |cluster: &Cluster| {
        let log = cluster.log(Service::EdgeAgent);
        log.matches("following the balancer's weights").count()
    };
    let before = said(&cluster);
    cluster.kill9(Service::EdgeAgent).unwrap();
    cluster.restart(Service::EdgeAgent).unwrap();
    eventually(PATIENCE, "the edge has the weights", || {
        let now = said(&cluster);
        (now > before)
            .then_some(())
            .ok_or(format!("{now}, {before} before"))
    });
    answered_by(&cluster, &["a", "b"]);
    let traffic = Traffic::start(&cluster);
    cluster.kill9(Service::Balancer).unwrap();
    let third = cluster.echo(2, ORIGINS[2], [7000]).unwrap();
    traffic.passes();
    assert_eq!(third.accepted(), 0, "the last weights say that it is down");
    cluster.restart(Service::Balancer).unwrap();
    answered_by(&cluster, &["a", "b", "c"]);
    traffic.all_was_well();
    servers[0] = None;
    balancer_says(&cluster, [0.0, 1.0, 1.0]);
    answered_by(&cluster, &["b", "c"]);
}

/// Where the agent says that its configuration came from.
fn source(cluster: &Cluster) -> Result<String, String> {
    let address = format!("http://{}", Service::EdgeAgent.listen());
    let ask = || async {
        let mut client = EdgeServiceClient::connect(address)
            .await
            .map_err(|error| error.to_string())?;
        let status = client.get_status(GetStatusRequest {}).await;
        let status = status.map_err(|status| status.to_string())?.into_inner();
        Ok(status.source)
    };
    cluster.topology().edge().block_on(ask).unwrap()
}

fn an_edge_that_starts_alone_serves_its_last_known_good(store: Store) {
    let mut cluster = cluster(store);
    let _servers = [0, 1, 2].map(|i| cluster.echo(i, ORIGINS[i], [7000]).unwrap());
    cluster.apply(&manifest(["1", "1", "0"])).unwrap();
    balancer_says(&cluster, [1.0, 1.0, 0.0]);
    let traffic = Traffic::start(&cluster);
    let control_plane = control_plane(&cluster, store);
    let others = [Service::Balancer].into_iter().chain(control_plane);
    let others: Vec<_> = others.collect();
    for service in &others {
        cluster.kill9(*service).unwrap();
    }
    traffic.passes();
    cluster.kill9(Service::EdgeAgent).unwrap();
    // Its own death is the one thing that its connections do not survive; new ones are refused,
    // which tells a client more than silence does.
    let refused = format!("{:?}", cluster.dial(at(TARGET)).unwrap_err());
    assert!(refused.contains("refused"), "{refused}");
    for (control, run) in [traffic.new, traffic.held] {
        control.stop();
        let report = run.join().unwrap().unwrap().unwrap();
        let kinds = report.failures().keys();
        let cut = [Failure::Reset, Failure::Refused, Failure::Eof];
        assert!(kinds.clone().all(|kind| cut.contains(kind)), "{report}");
    }
    cluster.restart(Service::EdgeAgent).unwrap();
    assert_eq!(source(&cluster).as_deref(), Ok("last-known-good"));
    assert_eq!(
        answering(&cluster, 60),
        ["a", "b"].map(str::to_owned).into()
    );
    let traffic = Traffic::start(&cluster);
    for service in others.iter().rev() {
        cluster.spawn(*service).unwrap();
    }
    for service in &others {
        cluster.wait_until_ready(*service).unwrap();
    }
    eventually(PATIENCE, "it has the config service's", || {
        let source = source(&cluster)?;
        (source == "config-service").then_some(()).ok_or(source)
    });
    in_step(&cluster);
    cluster.apply(&manifest(["0", "0", "1"])).unwrap();
    answered_by(&cluster, &["c"]);
    traffic.all_was_well();
}

/// Many apps, all of them to the one origin or all to the other.
fn many(origin: usize) -> String {
    let mut manifest = "prefixes: [ { cidr: 198.51.100.0/24 } ]\napps:\n".to_owned();
    for number in 0..MANY {
        manifest += &format!(
            "  - {{ name: app-{number}, protocol: tcp/{}, edge_ips: [198.51.100.10], \
             origin_direct: [\"tcp://10.0.2.{}:7000\"] }}\n",
            2000 + number,
            2 + origin,
        );
    }
    manifest
}

const MANY: u16 = 60;

fn a_config_service_killed_in_an_apply_leaves_nothing_half_done(store: Store) {
    let mut cluster = cluster(store);
    let _servers = [0, 1].map(|i| cluster.echo(i, ORIGINS[i], [7000]).unwrap());
    cluster.apply(&many(0)).unwrap();
    let writer = Service::ConfigService(Replica::First);
    for round in 1..=8u64 {
        let pid = i32::try_from(cluster.pid(writer).unwrap()).unwrap();
        let next = many(usize::try_from(round % 2).unwrap());
        // Swept over the time that an apply takes, from before it is sent to after it is stored.
        let after = Duration::from_millis(round * 12);
        let killer = std::thread::spawn(move || {
            std::thread::sleep(after);
            // The test has not waited for it, so the id is still its own.
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        });
        let said = cluster.try_apply(&next, &[]).unwrap();
        killer.join().unwrap();
        assert!(matches!(said.status, Some(0 | 3)), "round {round}: {said}");
        cluster.kill9(writer).unwrap();
        cluster.restart(writer).unwrap();
        in_step(&cluster);
        let mut tags = BTreeSet::new();
        for number in 0..MANY {
            let target = SocketAddr::new("198.51.100.10".parse().unwrap(), 2000 + number);
            tags.insert(cluster.who(target).unwrap().tag.to_string());
        }
        assert_eq!(tags.len(), 1, "round {round}: both at once");
        if said.status == Some(0) {
            let wanted = ORIGINS[usize::try_from(round % 2).unwrap()];
            assert!(
                tags.contains(wanted),
                "round {round}: acknowledged and lost"
            );
        }
    }
}
