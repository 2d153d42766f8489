//! Health and weights of origins on a real network: one that flaps, half of them and all of them at
//! once, a fallback pool, and edges that cannot reach what others can. Needs root.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, Store, eventually};
use anyport_lab::load::Who;
use anyport_lab::load::serve::Server;
use anyport_lab::on_both_stores;
use anyport_lab::relay::relay;
use anyport_lab::servers::Running;
use anyport_netns::Namespace;
use anyport_netns::topology::EDGE_TO_ORIGINS_V4;

on_both_stores! {
    half_of_a_pool_carries_it_and_with_less_health_is_ignored,
    a_pool_that_is_down_gives_way_to_its_fallback_for_both_transports,
    an_edge_finds_the_fallback_of_a_pool_that_refuses_before_anybody_tells_it,
}

const TARGET: &str = "198.51.100.10:443";
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn at(target: &str) -> SocketAddr {
    target.parse().unwrap()
}

fn cluster(store: Store, origins: usize) -> Cluster {
    Cluster::start(Plan {
        origins,
        ..Plan::on(store)
    })
    .unwrap()
}

/// A pool of the first `origins`, with something more.
fn pool(name: &str, origins: std::ops::Range<usize>, more: &str) -> String {
    let origins: String = origins
        .map(|index| {
            let host = index + 2;
            format!(
                "      - {{ name: {}, address: \"10.0.2.{host}:7000\" }}\n",
                NAMES[index]
            )
        })
        .collect();
    format!("  - name: {name}\n    monitor: quick\n{more}    origins:\n{origins}")
}

/// Apps on TCP and UDP that go to pool `game`. Who is down refuses at once; who is late, on a busy
/// machine, is not down.
fn manifest(monitor: &str, pools: &str) -> String {
    format!(
        r#"
prefixes:
  - cidr: 198.51.100.0/24
monitors:
  - {{ name: quick, type: tcp, interval: 200ms, timeout: 5s, consecutive_up: 1, consecutive_down: 1{monitor} }}
pools:
{pools}
apps:
  - {{ name: stream, protocol: tcp/443, edge_ips: [198.51.100.10], origin_pool: game }}
  - {{ name: datagram, protocol: udp/443, edge_ips: [198.51.100.10], origin_pool: game }}
"#
    )
}

/// What the balancer counts of an origin of pool `game`.
fn of_origin(cluster: &Cluster, name: &str, origin: &str) -> Option<f64> {
    let metrics = cluster.metrics(Service::Balancer).unwrap();
    metrics.value(name, &[("pool", "game"), ("origin", origin)])
}

fn weights(cluster: &Cluster, origins: usize) -> Vec<f64> {
    let names = NAMES[..origins].iter();
    let weight = |origin: &&str| of_origin(cluster, "anyport_origin_weight", origin);
    names.map(|origin| weight(origin).unwrap_or(-1.0)).collect()
}

fn eventually_weighs(cluster: &Cluster, wanted: &[f64]) {
    eventually(PATIENCE, &format!("the weights are {wanted:?}"), || {
        let seen = weights(cluster, wanted.len());
        (seen == wanted).then_some(()).ok_or(format!("{seen:?}"))
    });
}

fn panics(cluster: &Cluster) -> bool {
    let metrics = cluster.metrics(Service::Balancer).unwrap();
    metrics.value("anyport_pool_panic", &[("pool", "game")]) == Some(1.0)
}

/// Who answers so many connections, all of which have to be answered.
fn answering(cluster: &Cluster, count: usize) -> BTreeSet<String> {
    let who = |_| cluster.who(at(TARGET)).unwrap().tag.to_string();
    (0..count).map(who).collect()
}

fn eventually_answer(cluster: &Cluster, wanted: &[&str]) {
    let wanted: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
    eventually(PATIENCE, &format!("{wanted:?} answer"), || {
        let seen = answering(cluster, 40);
        (seen == wanted).then_some(()).ok_or(format!("{seen:?}"))
    });
}

/// Origin `name` as `anyport status` has it.
fn status_of(cluster: &Cluster, name: &str) -> serde_json::Value {
    let said = cluster.anyport(&["status", "-o", "json"]).unwrap();
    let status: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let pools = status["pools"].as_array().unwrap();
    let game = pools.iter().find(|pool| pool["name"] == "game").unwrap();
    let origins = game["origins"].as_array().unwrap();
    let found = origins.iter().find(|origin| origin["name"] == name);
    found.unwrap().clone()
}

#[test]
fn an_origin_that_flaps_is_held_down_and_then_eased_in() {
    let cluster = cluster(Store::Embedded, 2);
    let _a = cluster.echo(0, "a", [7000]).unwrap();
    let mut b = Some(cluster.echo(1, "b", [7000]).unwrap());
    cluster
        .apply(&manifest("", &pool("game", 0..2, "")))
        .unwrap();
    eventually_weighs(&cluster, &[1.0, 1.0]);
    let held = || status_of(&cluster, "b")["held_until"].is_string();
    let mut flap = || {
        drop(b.take());
        eventually_weighs(&cluster, &[1.0, 0.0]);
        b = Some(cluster.echo(1, "b", [7000]).unwrap());
        let healthy = || of_origin(&cluster, "anyport_origin_healthy", "b");
        eventually(PATIENCE, "it is back, or held down", || {
            (healthy() == Some(1.0) || held())
                .then_some(())
                .ok_or("it is neither")
        });
    };
    flap();
    flap();
    assert!(!held());
    // On a machine that is slow enough the hold is over before all is seen, and the next one is
    // longer.
    for times in 3..6 {
        flap();
        // It answers, and gets nothing all the same.
        let why = format!("it turned down {times} times lately");
        eventually(PATIENCE, "it is told why, while it is so", || {
            let told = status_of(&cluster, "b")["reason"].to_string();
            let whole =
                told.contains("probes pass, but it is held down for") && told.contains(&why);
            (whole || !held()).then_some(()).ok_or(told)
        });
        let (tags, shares) = (answering(&cluster, 40), weights(&cluster, 2));
        if held() {
            assert_eq!(tags, ["a".to_owned()].into());
            assert_eq!(shares, [1.0, 0.0]);
            break;
        }
        eventually_weighs(&cluster, &[1.0, 1.0]);
    }
    // Its time ends, and it comes back little by little.
    let mut seen = Vec::new();
    eventually(PATIENCE, "it is back with all of its weight", || {
        seen.extend(of_origin(&cluster, "anyport_origin_weight", "b"));
        (seen.last() == Some(&1.0)).then_some(()).ok_or("it is not")
    });
    assert!(seen.is_sorted(), "{seen:?}");
    let on_the_way = seen.iter().filter(|weight| (0.1..1.0).contains(*weight));
    assert!(on_the_way.count() > 3, "{seen:?}");
    eventually_answer(&cluster, &["a", "b"]);
}

fn half_of_a_pool_carries_it_and_with_less_health_is_ignored(store: Store) {
    let cluster = cluster(store, 4);
    let start = |index: usize| cluster.echo(index, NAMES[index], [7000]).unwrap();
    let mut servers: Vec<Option<Server>> = (0..4).map(|index| Some(start(index))).collect();
    cluster
        .apply(&manifest("", &pool("game", 0..4, "")))
        .unwrap();
    eventually_weighs(&cluster, &[1.0; 4]);
    servers[0] = None;
    servers[1] = None;
    eventually_weighs(&cluster, &[0.0, 0.0, 1.0, 1.0]);
    assert!(!panics(&cluster));
    assert_eq!(
        answering(&cluster, 40),
        ["c".to_owned(), "d".to_owned()].into()
    );

    // One of four: connections are spread over all, and the edge finds out who answers.
    servers[2] = None;
    eventually_weighs(&cluster, &[1.0; 4]);
    assert!(panics(&cluster));
    assert_eq!(answering(&cluster, 40), ["d".to_owned()].into());
    // Status is told of it once a second.
    eventually(PATIENCE, "status says so", || {
        let said = cluster.anyport(&["status"]).unwrap();
        let line = "pool game: degraded, 3 of 4 down, so health is ignored";
        said.out.contains(line).then_some(()).ok_or(said)
    });

    // All at once, and whoever is first to be there again is found.
    servers[3] = None;
    eventually(PATIENCE, "the pool is down", || {
        let healthy = of_origin(&cluster, "anyport_origin_healthy", "d");
        (healthy == Some(0.0))
            .then_some(())
            .ok_or(format!("{healthy:?}"))
    });
    assert_eq!(weights(&cluster, 4), [1.0; 4]);
    servers[1] = Some(start(1));
    eventually(PATIENCE, "b is found", || match cluster.who(at(TARGET)) {
        Ok(who) if who.tag.to_string() == "b" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    servers[0] = Some(start(0));
    eventually_weighs(&cluster, &[1.0, 1.0, 0.0, 0.0]);
    assert!(!panics(&cluster));
    eventually_answer(&cluster, &["a", "b"]);
}

/// Who answers a datagram; nobody, if that takes longer than this.
fn datagram(cluster: &Cluster, wait: Duration) -> Option<String> {
    let client = cluster.topology().client();
    let socket = client
        .run(|| UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    socket.set_read_timeout(Some(wait)).unwrap();
    socket.send_to(b"who\n", at(TARGET)).unwrap();
    let mut reply = [0; 256];
    let count = socket.recv(&mut reply).ok()?;
    let who: Who = std::str::from_utf8(&reply[..count])
        .unwrap()
        .parse()
        .unwrap();
    Some(who.tag.to_string())
}

/// For an answer that may not come.
const SOON: Duration = Duration::from_secs(1);

/// Whether the events of an app name this origin of this pool.
fn was_used(cluster: &Cluster, app: &str, pool: &str, origin: &str) -> bool {
    let events = ["events", "--app", app, "-o", "json"];
    let events = cluster.anyport(&events).unwrap().objects().unwrap();
    let connected = events.iter().filter(|event| event["event"] == "connect");
    let mut of_pool = connected.filter(|event| event["pool"] == pool);
    of_pool.any(|event| event["origin"] == origin)
}

/// Nobody probes the pool, so each connection and each flow finds by itself that
/// all of it refuse.
fn an_edge_finds_the_fallback_of_a_pool_that_refuses_before_anybody_tells_it(store: Store) {
    let cluster = cluster(store, 3);
    let _c = cluster.echo(2, "c", [7000]).unwrap();
    let _d = cluster.echo_datagrams(2, "c", [7000]).unwrap();
    let game = pool("game", 0..2, "    fallback_pool: spare\n");
    let game = game.replace("    monitor: quick\n", "");
    let pools = [game, pool("spare", 2..3, "")];
    cluster.apply(&manifest("", &pools.concat())).unwrap();
    let c: BTreeSet<String> = ["c".to_owned()].into();
    for _ in 0..3 {
        assert_eq!(answering(&cluster, 40), c);
        assert_eq!(datagram(&cluster, PATIENCE).as_deref(), Some("c"));
    }
    for app in ["stream", "datagram"] {
        assert!(was_used(&cluster, app, "spare", "c"), "{app}");
        assert!(!was_used(&cluster, app, "game", "c"), "{app}");
    }
    // The flow that began with an origin that refused has been moved.
    let said = cluster
        .anyport(&["connections", "--app", "datagram", "-o", "json"])
        .unwrap();
    let flows = said.objects().unwrap();
    assert!(!flows.is_empty(), "{said}");
    let moved = |flow: &serde_json::Value| flow["pool"] == "spare" && flow["origin"] == "c";
    assert!(flows.iter().all(moved), "{said}");

    // They come back without anybody's word, too.
    let _a = cluster.echo(0, "a", [7000]).unwrap();
    eventually_answer(&cluster, &["a"]);
}

fn a_pool_that_is_down_gives_way_to_its_fallback_for_both_transports(store: Store) {
    let cluster = cluster(store, 3);
    let start = |index: usize| {
        let stream = cluster.echo(index, NAMES[index], [7000]).unwrap();
        (
            stream,
            cluster.echo_datagrams(index, NAMES[index], [7000]).unwrap(),
        )
    };
    let mut servers: Vec<_> = (0..3).map(|index| Some(start(index))).collect();
    let pools = [
        pool("game", 0..2, "    fallback_pool: spare\n"),
        pool("spare", 2..3, ""),
    ];
    cluster.apply(&manifest("", &pools.concat())).unwrap();
    eventually_answer(&cluster, &["a", "b"]);
    // One of two is enough, by `minimum_origins`.
    servers[0] = None;
    eventually_weighs(&cluster, &[0.0, 1.0]);
    assert_eq!(answering(&cluster, 20), ["b".to_owned()].into());
    servers[1] = None;
    eventually_weighs(&cluster, &[0.0, 0.0]);
    assert!(!panics(&cluster), "it has a fallback");
    eventually_answer(&cluster, &["c"]);
    eventually(PATIENCE, "datagrams go there, too", || {
        let answered = datagram(&cluster, SOON);
        (answered.as_deref() == Some("c"))
            .then_some(())
            .ok_or(format!("{answered:?}"))
    });
    // Each event names the pool that was used. A flow that began before the edge
    // was told did so with the pool that is down.
    eventually(PATIENCE, "flows begin with the fallback", || {
        datagram(&cluster, SOON);
        let began = was_used(&cluster, "datagram", "spare", "c");
        began.then_some(()).ok_or("none has")
    });
    assert!(was_used(&cluster, "stream", "spare", "c"));
    assert!(was_used(&cluster, "stream", "game", "b"));
    for app in ["stream", "datagram"] {
        assert!(!was_used(&cluster, app, "game", "c"), "{app}");
    }
    eventually(PATIENCE, "the command explains it", || {
        let said = cluster
            .anyport(&["explain", "tcp/198.51.100.10:443"])
            .unwrap();
        let lines = [
            "passes   pool game: down, 2 of 2 down",
            "goes to  pool spare (healthy)",
        ];
        let all = lines.iter().all(|line| said.out.contains(line));
        all.then_some(()).ok_or(said)
    });

    servers[1] = Some(start(1));
    eventually_answer(&cluster, &["b"]);
    eventually(PATIENCE, "datagrams come back, too", || {
        let answered = datagram(&cluster, SOON);
        (answered.as_deref() == Some("b"))
            .then_some(())
            .ok_or(format!("{answered:?}"))
    });
}

/// A second edge in the namespace of an origin, which reaches the control plane by a relay.
fn second_edge(cluster: &Cluster, host: usize) -> Running {
    let edge = cluster.topology().edge();
    let ports = [(17_400, 7400), (17_410, 7410)];
    let ways = ports.map(|(outside, inside)| {
        let outside = SocketAddr::new(EDGE_TO_ORIGINS_V4.into(), outside);
        (outside, SocketAddr::from(([127, 0, 0, 1], inside)))
    });
    // Ends with the test's process.
    let relayed = edge.spawn_thread(move || relay(&ways, 1));
    drop(relayed.unwrap());
    let namespace = &cluster.topology().origins()[host].namespace;
    let state = cluster.directory().join("edge2");
    let mut command = namespace.command(cluster.program("edge-agent").unwrap());
    command.args([
        "--name=edge2".to_owned(),
        format!("--config-service=http://{EDGE_TO_ORIGINS_V4}:17400"),
        format!("--balancer=http://{EDGE_TO_ORIGINS_V4}:17410"),
        format!("--state-dir={}", state.display()),
        "--steering=tproxy".to_owned(),
        "--workers=1".to_owned(),
    ]);
    Running::start("edge2", cluster, namespace, command, at("127.0.0.1:7421"))
}

fn ip(namespace: &Namespace, arguments: &[&str]) {
    let done = namespace.command("ip").args(arguments).status();
    assert!(done.unwrap().success(), "ip {arguments:?}");
}

/// Who answers a client behind the second edge.
fn ask_from(cluster: &Cluster, client: &Namespace) -> String {
    let stream: TcpStream = cluster.dial_from(client, at(TARGET)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (&stream).write_all(b"who\n").unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    let who: Who = line.parse().unwrap();
    who.tag.to_string()
}

#[test]
fn an_edge_that_cannot_reach_an_origin_takes_it_from_nobody_and_two_take_it_from_all() {
    let cluster = cluster(Store::Embedded, 4);
    // What is probed is another port than what clients use.
    let _probed = [0, 1].map(|index| cluster.echo(index, "probed", [7001]).unwrap());
    let _a = cluster.echo(0, "a", [7000]).unwrap();
    let b = cluster.echo(1, "b", [7000]).unwrap();
    let _edge2 = second_edge(&cluster, 2);
    let origins = cluster.topology().origins();
    let (host, client) = (&origins[2].namespace, &origins[3].namespace);
    ip(
        client,
        &["route", "add", "198.51.100.0/24", "via", "10.0.2.4"],
    );
    eventually(PATIENCE, "the second edge is known", || {
        let said = cluster.anyport(&["get", "edges", "edge2"]).unwrap();
        (said.status == Some(0))
            .then_some(())
            .ok_or(said.to_string())
    });
    let declared = manifest(", port: 7001", &pool("game", 0..2, ""));
    cluster.apply(&declared).unwrap();
    eventually_weighs(&cluster, &[1.0, 1.0]);
    eventually(PATIENCE, "b answers the second edge's clients", || {
        let tag = ask_from(&cluster, client);
        (tag == "b").then_some(()).ok_or(tag)
    });

    // The second edge has no way to b; for longer than evidence lasts, and under load.
    ip(host, &["route", "add", "unreachable", "10.0.2.3/32"]);
    let (mut first, mut second) = (BTreeSet::new(), BTreeSet::new());
    let end = Instant::now() + Duration::from_secs(12);
    while Instant::now() < end {
        first.extend(answering(&cluster, 3));
        second.insert(ask_from(&cluster, client));
        assert_eq!(weights(&cluster, 2), [1.0, 1.0], "taken from all");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(first, ["a".to_owned(), "b".to_owned()].into());
    assert_eq!(second, ["a".to_owned()].into(), "no connection failed");

    // Neither of them reaches what clients need, and probes pass.
    drop(b);
    eventually(PATIENCE, "it is taken from both", || {
        for _ in 0..5 {
            assert_eq!(answering(&cluster, 1), ["a".to_owned()].into());
            assert_eq!(ask_from(&cluster, client), "a");
        }
        let weighs = weights(&cluster, 2);
        (weighs == [1.0, 0.0])
            .then_some(())
            .ok_or(format!("{weighs:?}"))
    });
    // Status is told of it once a second.
    eventually(PATIENCE, "status says why", || {
        let shown = status_of(&cluster, "b");
        let reason = shown["reason"].as_str().unwrap_or_default();
        let says = reason.contains("connections failed at 2 of 2 edges");
        says.then_some(()).ok_or(shown)
    });
    ip(host, &["route", "del", "unreachable", "10.0.2.3/32"]);
    let _b = cluster.echo(1, "b", [7000]).unwrap();
    eventually_weighs(&cluster, &[1.0, 1.0]);
    eventually_answer(&cluster, &["a", "b"]);
}
