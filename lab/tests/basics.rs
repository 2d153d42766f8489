//! What a user relies on from the first day: which app takes a connection, where it goes, that its
//! bytes and its end arrive, and that a faulty manifest changes nothing. Each on both stores; with
//! etcd there are two replicas, and commands talk to the one that the edge does not talk to.
//! Needs root, and etcd.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Replica, Service, Store, eventually};
use anyport_lab::load::connect::{self, Close, Request};
use anyport_lab::load::{Control, Failure, Load, Report};
use socket2::SockRef;

anyport_lab::on_both_stores![
    a_connection_goes_where_the_most_specific_app_says,
    the_next_origin_is_dialled_when_one_refuses,
    weights_decide_the_shares_and_new_weights_new_ones,
    every_apply_of_a_quick_series_arrives,
    round_robin_takes_turns,
    least_connections_goes_to_the_idle_origin,
    no_new_connection_fails_when_an_origin_is_killed_under_load,
    each_side_can_end_first_and_still_hear_the_other,
    a_reset_of_either_side_arrives_as_a_reset,
    ten_faults_are_ten_messages_and_nothing_is_stored,
];

const PREFIXES: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 203.0.113.0/24
  - cidr: 2001:db8:51::/64
"#;

fn cluster(store: Store, origins: usize) -> Cluster {
    Cluster::start(Plan {
        origins,
        ..Plan::on(store)
    })
    .unwrap()
}

fn at(target: &str) -> SocketAddr {
    target.parse().unwrap()
}

/// A load of short connections that ask who answers.
fn asking(target: &str, count: u64, at_once: usize) -> connect::Plan {
    connect::Plan {
        load: Load {
            count: NonZeroU64::new(count),
            connections: NonZeroUsize::new(at_once).unwrap(),
            duration: Duration::from_secs(60),
            ..Load::on(at(target))
        },
        request: Request::Who,
        close: Close::Reset,
    }
}

fn run(cluster: &Cluster, plan: &connect::Plan) -> Report {
    let client = cluster.topology().client();
    client.run(|| connect::run(plan)).unwrap().unwrap()
}

/// How many of the answers came from each server; no connection may have failed.
fn shares(cluster: &Cluster, target: &str, count: u64) -> BTreeMap<String, u64> {
    let report = run(cluster, &asking(target, count, 8));
    assert_eq!(
        (report.operations(), report.failed()),
        (count, 0),
        "{report}"
    );
    let answers = report.answers().iter();
    answers
        .map(|(tag, count)| (tag.to_string(), *count))
        .collect()
}

fn a_connection_goes_where_the_most_specific_app_says(store: Store) {
    let cluster = cluster(store, 2);
    let _one = cluster.echo(0, "one", 7000..=7010).unwrap();
    let _two = cluster.echo(1, "two", 7000..=7010).unwrap();
    // Each app has an origin's port of its own, so the port that answers tells the app.
    let manifest = format!(
        r#"{PREFIXES}
apps:
  - {{ name: prefix-star,   protocol: tcp/*,           edge_ips: [198.51.100.0/24, "2001:db8:51::/64"], origin_direct: ["tcp://10.0.2.2:7000"] }}
  - {{ name: prefix-range,  protocol: tcp/8000-9000,   edge_ips: [198.51.100.0/24, "2001:db8:51::/64"], origin_direct: ["tcp://10.0.2.2:7001"] }}
  - {{ name: prefix-narrow, protocol: tcp/8100-8200,   edge_ips: [198.51.100.0/24, "2001:db8:51::/64"], origin_direct: ["tcp://10.0.2.2:7002"] }}
  - {{ name: prefix-port,   protocol: tcp/8150,        edge_ips: [198.51.100.0/24, "2001:db8:51::/64"], origin_direct: ["tcp://10.0.2.2:7003"] }}
  - {{ name: address-star,  protocol: tcp/*,           edge_ips: [198.51.100.10, "2001:db8:51::10"],    origin_direct: ["tcp://10.0.2.2:7004"] }}
  - {{ name: half-star,     protocol: tcp/*,           edge_ips: [198.51.100.128/25],                   origin_direct: ["tcp://10.0.2.2:7005"] }}
  - {{ name: offset,        protocol: tcp/15000-15010, edge_ips: [203.0.113.7],                         origin_direct: ["tcp://10.0.2.3:7000-7010"] }}
  - {{ name: six,           protocol: tcp/22,          edge_ips: [203.0.113.7],                         origin_direct: ["tcp://[fd00:2::3]:7006"] }}
"#
    );
    let applied = cluster.apply(&manifest).unwrap();
    assert!(
        applied.out.contains("edge1"),
        "the edge is not named: {applied}"
    );
    for (target, origin) in [
        ("198.51.100.1:1", "10.0.2.2:7000"),
        ("198.51.100.1:65535", "10.0.2.2:7000"),
        ("198.51.100.1:7999", "10.0.2.2:7000"),
        ("198.51.100.1:8000", "10.0.2.2:7001"),
        ("198.51.100.1:9000", "10.0.2.2:7001"),
        ("198.51.100.1:9001", "10.0.2.2:7000"),
        ("198.51.100.1:8100", "10.0.2.2:7002"),
        ("198.51.100.1:8200", "10.0.2.2:7002"),
        ("198.51.100.1:8150", "10.0.2.2:7003"),
        ("[2001:db8:51::1]:1", "10.0.2.2:7000"),
        ("[2001:db8:51::1]:8000", "10.0.2.2:7001"),
        ("[2001:db8:51::ffff]:8149", "10.0.2.2:7002"),
        ("[2001:db8:51::ffff]:8150", "10.0.2.2:7003"),
        // The longer prefix wins over the exact port.
        ("198.51.100.10:8150", "10.0.2.2:7004"),
        ("[2001:db8:51::10]:8150", "10.0.2.2:7004"),
        ("198.51.100.127:443", "10.0.2.2:7000"),
        ("198.51.100.128:443", "10.0.2.2:7005"),
        ("198.51.100.255:8150", "10.0.2.2:7005"),
        // A range maps by equal offset, which also shows that the edge saw the port dialled.
        ("203.0.113.7:15000", "10.0.2.3:7000"),
        ("203.0.113.7:15004", "10.0.2.3:7004"),
        ("203.0.113.7:15010", "10.0.2.3:7010"),
        // IPv4 in front, IPv6 behind.
        ("203.0.113.7:22", "[fd00:2::3]:7006"),
    ] {
        let who = cluster.who(at(target)).unwrap();
        assert_eq!(who.local, at(origin), "{target}");
    }
    for nobodys in ["203.0.113.7:14999", "203.0.113.7:15011", "203.0.113.8:22"] {
        let error = cluster.dial(at(nobodys)).unwrap_err();
        let error = format!("{error:?}");
        assert!(error.contains("refused"), "{nobodys}: {error}");
    }
}

fn the_next_origin_is_dialled_when_one_refuses(store: Store) {
    let cluster = cluster(store, 2);
    let _answers = cluster.echo(1, "answers", [7000]).unwrap();
    let manifest = format!(
        r#"{PREFIXES}
pools:
  - name: half
    policy: round_robin
    origins:
      - {{ name: refuses, address: "10.0.2.2:7000" }}
      - {{ name: answers, address: "10.0.2.3:7000" }}
apps:
  - {{ name: app, protocol: tcp/443, edge_ips: [198.51.100.10], origin_pool: half }}
"#
    );
    cluster.apply(&manifest).unwrap();
    let shares = shares(&cluster, "198.51.100.10:443", 400);
    assert_eq!(shares, BTreeMap::from([("answers".to_owned(), 400)]));
}

fn three_to_one(policy: &str, weights: [&str; 2]) -> String {
    let [a, b] = weights;
    format!(
        r#"{PREFIXES}
pools:
  - name: two
    policy: {policy}
    origins:
      - {{ name: a, address: "10.0.2.2:7000", weight: {a} }}
      - {{ name: b, address: "10.0.2.3:7000", weight: {b} }}
apps:
  - {{ name: app, protocol: tcp/443, edge_ips: [198.51.100.10], origin_pool: two }}
"#
    )
}

/// Within five standard deviations of what the chance `p` gives: wrong once in a million runs.
fn assert_share(shares: &BTreeMap<String, u64>, tag: &str, p: f64) {
    let count: u64 = shares.values().sum();
    let expected = count as f64 * p;
    let deviation = (count as f64 * p * (1.0 - p)).sqrt();
    let got = *shares.get(tag).unwrap_or(&0) as f64;
    assert!(
        (got - expected).abs() <= 5.0 * deviation,
        "{tag} has {got} of {count}, not about {expected}"
    );
}

fn weights_decide_the_shares_and_new_weights_new_ones(store: Store) {
    let cluster = cluster(store, 2);
    let _a = cluster.echo(0, "a", [7000]).unwrap();
    let _b = cluster.echo(1, "b", [7000]).unwrap();
    for (weights, share_of_a) in [(["3.0", "1.0"], 0.75), (["1.0", "4.0"], 0.2)] {
        cluster.apply(&three_to_one("weighted", weights)).unwrap();
        // The agent has the revision; the balancer, which has the last word, follows in a moment.
        let of_a = &[("pool", "two"), ("origin", "a")];
        eventually(PATIENCE, "the balancer has the weights", || {
            let metrics = cluster.metrics(Service::Balancer).unwrap();
            let weight = metrics.value("anyport_origin_weight", of_a);
            let wanted = weights[0].parse().ok();
            (weight == wanted)
                .then_some(())
                .ok_or(format!("{weight:?}"))
        });
        eventually(PATIENCE, "the shares follow", || {
            let got = shares(&cluster, "198.51.100.10:443", 200);
            let of_a = *got.get("a").unwrap_or(&0) as f64 / 200.0;
            let near = (of_a - share_of_a).abs() < 0.15;
            near.then_some(()).ok_or(format!("{of_a}"))
        });
        let got = shares(&cluster, "198.51.100.10:443", 2000);
        assert_share(&got, "a", share_of_a);
    }
    cluster
        .apply(&three_to_one("weighted", ["0", "1.0"]))
        .unwrap();
    eventually(PATIENCE, "weight 0 gets nothing", || {
        let got = shares(&cluster, "198.51.100.10:443", 100);
        (got.len() == 1 && got.contains_key("b"))
            .then_some(())
            .ok_or(format!("{got:?}"))
    });
}

fn every_apply_of_a_quick_series_arrives(store: Store) {
    let cluster = cluster(store, 2);
    let _a = cluster.echo(0, "a", [7000]).unwrap();
    for round in 1..=40 {
        let weight = round.to_string();
        let manifest = three_to_one("weighted", [&weight, "0"]);
        cluster.apply(&manifest).unwrap();
        let applied = cluster.metrics(Service::EdgeAgent).unwrap();
        let applied = applied.value("anyport_edge_applied_revision", &[]);
        assert_eq!(applied, Some(f64::from(round)), "what --wait waits for");
        assert_eq!(
            cluster.who(at("198.51.100.10:443")).unwrap().tag.as_str(),
            "a"
        );
    }
}

fn round_robin_takes_turns(store: Store) {
    let cluster = cluster(store, 2);
    let _a = cluster.echo(0, "a", [7000]).unwrap();
    let _b = cluster.echo(1, "b", [7000]).unwrap();
    cluster
        .apply(&three_to_one("round_robin", ["1.0", "1.0"]))
        .unwrap();
    let mut last = String::new();
    for _ in 0..20 {
        let who = cluster
            .who(at("198.51.100.10:443"))
            .unwrap()
            .tag
            .to_string();
        assert_ne!(who, last, "twice the same");
        last = who;
    }
}

fn least_connections_goes_to_the_idle_origin(store: Store) {
    let cluster = cluster(store, 2);
    let a = cluster.echo(0, "a", [7000]).unwrap();
    let b = cluster.echo(1, "b", [7000]).unwrap();
    cluster
        .apply(&three_to_one("least_connections", ["1.0", "1.0"]))
        .unwrap();
    let target = at("198.51.100.10:443");
    let mut held = Vec::new();
    for count in 1..=20 {
        held.push(cluster.dial(target).unwrap());
        eventually(PATIENCE, "the origin has it", || {
            let open = a.open() + b.open();
            (open == count).then_some(()).ok_or(format!("{open} open"))
        });
        let (of_a, of_b) = (a.open(), b.open());
        assert!(
            of_a.abs_diff(of_b) <= 1,
            "{of_a} and {of_b} are not balanced"
        );
    }
    // All of one origin's connections end: the next ones fill it up again.
    let (of_a, of_b): (Vec<_>, Vec<_>) = held.into_iter().partition(|stream| {
        let mut stream = stream;
        stream.write_all(b"who\n").unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        &answer == b"tag=a"
    });
    assert_eq!((of_a.len(), of_b.len()), (10, 10));
    drop(of_a);
    eventually(PATIENCE, "the edge knows that they ended", || {
        let open = cluster
            .metrics(Service::EdgeAgent)
            .unwrap()
            .value("anyport_connections_open", &[("app", "app")]);
        (open == Some(10.0))
            .then_some(())
            .ok_or(format!("{open:?}"))
    });
    let refill: Vec<_> = (0..10).map(|_| cluster.dial(target).unwrap()).collect();
    eventually(PATIENCE, "the idle one took all", || {
        let open = (a.open(), b.open());
        (open == (10, 10)).then_some(()).ok_or(format!("{open:?}"))
    });
    drop((refill, of_b));
}

fn no_new_connection_fails_when_an_origin_is_killed_under_load(store: Store) {
    const AT_ONCE: usize = 8;
    let cluster = cluster(store, 3);
    let mut servers: Vec<_> = ["a", "b", "c"]
        .iter()
        .enumerate()
        .map(|(index, tag)| cluster.echo(index, tag, [7000]).unwrap())
        .collect();
    let manifest = format!(
        r#"{PREFIXES}
monitors:
  - {{ name: quick, type: tcp, interval: 300ms, timeout: 5s, consecutive_up: 1, consecutive_down: 1 }}
pools:
  - name: three
    monitor: quick
    policy: round_robin
    origins:
      - {{ name: a, address: "10.0.2.2:7000" }}
      - {{ name: b, address: "10.0.2.3:7000" }}
      - {{ name: c, address: "10.0.2.4:7000" }}
apps:
  - {{ name: app, protocol: tcp/443, edge_ips: [198.51.100.10], origin_pool: three }}
"#
    );
    cluster.apply(&manifest).unwrap();
    let healthy = |origin: &str| {
        let metrics = cluster.metrics(Service::Balancer).unwrap();
        metrics.value(
            "anyport_origin_healthy",
            &[("pool", "three"), ("origin", origin)],
        )
    };
    eventually(PATIENCE, "all are healthy", || {
        let seen = ["a", "b", "c"].map(healthy);
        (seen == [Some(1.0); 3])
            .then_some(())
            .ok_or(format!("{seen:?}"))
    });

    let control = Control::default();
    let mut plan = asking("198.51.100.10:443", u64::MAX, AT_ONCE);
    plan.load.control = control.clone();
    let client = cluster.topology().client();
    let load = client.spawn_thread(move || connect::run(&plan)).unwrap();
    let passes = |more: u64| {
        let from = control.operations();
        eventually(PATIENCE, "the load goes on", || {
            let done = control.operations() - from;
            (done >= more)
                .then_some(())
                .ok_or(format!("{done} of {more}"))
        });
    };
    passes(300);
    assert_eq!(control.failures(), 0);
    drop(servers.remove(0));
    // Those that the origin had already accepted are lost with it, at most one for each of the
    // load's hands. Once every hand has gone on, nothing may fail any more.
    passes(1000);
    let lost = control.failures();
    assert!(lost <= AT_ONCE as u64, "{lost} failed");
    eventually(PATIENCE, "the balancer sees it", || {
        let seen = healthy("a");
        (seen == Some(0.0)).then_some(()).ok_or(format!("{seen:?}"))
    });
    passes(1000);
    control.stop();
    let report = load.join().unwrap().unwrap().unwrap();
    assert_eq!(report.failed(), lost, "{report}");
    let kinds = report.failures().keys();
    let torn = [Failure::Reset, Failure::Eof];
    assert!(kinds.clone().all(|kind| torn.contains(kind)), "{report}");
}

/// A client's and an origin's end of one connection through the edge.
fn both_ends(cluster: &Cluster, listener: &TcpListener, target: &str) -> (TcpStream, TcpStream) {
    let client = cluster.dial(at(target)).unwrap();
    let (origin, _) = listener.accept().unwrap();
    origin.set_read_timeout(Some(PATIENCE)).unwrap();
    (client, origin)
}

const ONE_APP: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 2001:db8:51::/64
apps:
  - name: app
    protocol: tcp/443
    edge_ips: [198.51.100.10, "2001:db8:51::10"]
    origin_direct: ["tcp://10.0.2.2:7000"]
"#;

const BOTH_FAMILIES: [&str; 2] = ["198.51.100.10:443", "[2001:db8:51::10]:443"];

fn listening(cluster: &Cluster) -> TcpListener {
    let origin = &cluster.topology().origins()[0];
    let listen = || TcpListener::bind("10.0.2.2:7000");
    origin.namespace.run(listen).unwrap().unwrap()
}

fn each_side_can_end_first_and_still_hear_the_other(store: Store) {
    let cluster = cluster(store, 1);
    cluster.apply(ONE_APP).unwrap();
    let listener = listening(&cluster);
    for target in BOTH_FAMILIES {
        for client_ends_first in [true, false] {
            let (client, origin) = both_ends(&cluster, &listener, target);
            let (mut first, mut second) = if client_ends_first {
                (client, origin)
            } else {
                (origin, client)
            };
            let mut heard = String::new();
            first.write_all(b"the last words").unwrap();
            first.shutdown(Shutdown::Write).unwrap();
            second.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "the last words", "{target}");
            heard.clear();
            second.write_all(b"the answer to them").unwrap();
            second.shutdown(Shutdown::Write).unwrap();
            first.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "the answer to them", "{target}");
        }
    }
    eventually(PATIENCE, "all four ended well", || {
        let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
        let closed = "anyport_connections_closed_total";
        let (all, well) = (
            metrics.sum(closed, &[]),
            metrics.sum(closed, &[("status", "200")]),
        );
        ((all, well) == (4.0, 4.0))
            .then_some(())
            .ok_or(format!("{well} of {all}"))
    });
}

fn a_reset_of_either_side_arrives_as_a_reset(store: Store) {
    let cluster = cluster(store, 1);
    cluster.apply(ONE_APP).unwrap();
    let listener = listening(&cluster);
    for target in BOTH_FAMILIES {
        for client_resets in [true, false] {
            let (client, origin) = both_ends(&cluster, &listener, target);
            let (mut resets, mut other) = if client_resets {
                (client, origin)
            } else {
                (origin, client)
            };
            // Something before it, so that the connection is known to be joined.
            resets.write_all(b"x").unwrap();
            other.read_exact(&mut [0]).unwrap();
            SockRef::from(&resets)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(resets);
            let end = other.read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(
                end,
                Err(ErrorKind::ConnectionReset),
                "{target} {client_resets}"
            );
        }
    }
    eventually(PATIENCE, "the ends are counted by whose they were", || {
        let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
        let closed =
            |status| metrics.sum("anyport_connections_closed_total", &[("status", status)]);
        let seen = (closed("499"), closed("444"));
        (seen == (2.0, 2.0))
            .then_some(())
            .ok_or(format!("{seen:?}"))
    });
}

fn ten_faults_are_ten_messages_and_nothing_is_stored(store: Store) {
    let cluster = cluster(store, 1);
    cluster.apply(ONE_APP).unwrap();
    let stored = || {
        let service = Service::ConfigService(Replica::First);
        let metrics = cluster.metrics(service).unwrap();
        let revision = metrics.value("anyport_config_revision", &[]);
        (
            revision.unwrap(),
            cluster.anyport(&["history"]).unwrap().out,
        )
    };
    let before = stored();
    let faulty = r#"
prefixes:
  - cidr: 198.51.100.0/33
monitors:
  - name: quick
    type: tcp
    interval: 0s
pools:
  - name: "not a name"
    origins: [ { name: a, address: "10.0.2.2:7000" } ]
  - name: empty
    origins: []
  - name: unwatched
    monitor: missing
    origins: [ { name: a, address: "10.0.2.2:7000" } ]
  - name: odd
    origins:
      - { name: a, address: "10.0.2.2" }
      - { name: b, address: "10.0.2.3:7000", weight: -1 }
apps:
  - name: ports
    protocol: tcp/70000
    edge_ips: [198.51.100.20]
    origin_pool: odd
  - name: elsewhere
    protocol: tcp/25
    edge_ips: [192.168.7.7]
    origin_pool: odd
  - name: nowhere
    protocol: tcp/26
    edge_ips: [198.51.100.21]
    origin_pool: absent
"#;
    let said = cluster.try_apply(faulty, &[]).unwrap();
    assert_eq!(said.status, Some(1), "{said}");
    for path in [
        "prefixes[0].cidr",
        "monitors[0].interval",
        "pools[0].name",
        "pools[1].origins",
        "pools[2].monitor",
        "pools[3].origins[0].address",
        "pools[3].origins[1].weight",
        "apps[0].protocol",
        "apps[1].edge_ips[0]",
        "apps[2].origin_pool",
    ] {
        let lines = said.err.lines();
        let count = lines
            .filter(|line| line.contains(&format!(" {path}: ")))
            .count();
        assert_eq!(count, 1, "{path} in {said}");
    }
    assert!(said.err.contains("10 faults"), "{said}");
    assert_eq!(stored(), before);
    // What was declared before is still served.
    let _server = cluster.echo(0, "still", [7000]).unwrap();
    assert_eq!(
        cluster.who(at("198.51.100.10:443")).unwrap().tag.as_str(),
        "still"
    );
}
