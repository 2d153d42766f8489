//! Edges and origins that an operator takes out of service, and back into it. Needs root.

#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyport_lab::cluster::{
    self, Cluster, Error, PATIENCE, Plan, Said, Service, Store, eventually,
};
use anyport_lab::load::Who;
use anyport_lab::on_both_stores;

const EDGE: Service = Service::EdgeAgent;

/// Of apps whose windows of a drain are short and long, and one of UDP.
const SHORT: &str = "198.51.100.10:443";
const LONG: &str = "198.51.100.10:444";
const FLOWS: &str = "198.51.100.10:53";

const WINDOW: Duration = Duration::from_secs(20);

const MANIFEST: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
pools:
  - name: game
    policy: round_robin
    origins:
      - { name: a, address: "10.0.2.2:7000" }
      - { name: b, address: "10.0.2.3:7000" }
apps:
  - { name: short, protocol: tcp/443, edge_ips: [198.51.100.10], origin_pool: game, timeouts: { drain: 20s } }
  - { name: long,  protocol: tcp/444, edge_ips: [198.51.100.10], origin_pool: game, timeouts: { drain: 1h } }
  - { name: flows, protocol: udp/53,  edge_ips: [198.51.100.10], origin_direct: ["udp://10.0.2.2:7000"], timeouts: { drain: 20s } }
"#;

on_both_stores!(
    an_edge_is_drained_and_comes_back,
    an_order_outlives_the_agent,
    an_origin_gets_no_new_connections,
);

fn at(target: &str) -> SocketAddr {
    target.parse().unwrap()
}

fn cluster(store: Store) -> Cluster {
    let plan = Plan {
        origins: 2,
        ..Plan::on(store)
    };
    Cluster::start(plan).unwrap()
}

fn echoes(stream: &mut TcpStream) {
    cluster::echoes(stream).unwrap();
}

fn is_refused(cluster: &Cluster, target: &str) {
    assert!(cluster.refuses(at(target)).unwrap(), "{target}");
}

fn run(cluster: &Cluster, line: &str) -> Said {
    let words: Vec<&str> = line.split(' ').collect();
    cluster.anyport(&words).unwrap()
}

/// What a command that does its work says.
fn says(cluster: &Cluster, line: &str) -> String {
    let said = run(cluster, line);
    assert_eq!(said.status, Some(0), "{line}: {said}");
    said.out.trim().to_owned()
}

/// The edge as `status` and `get edges` show it.
fn is_shown_as(cluster: &Cluster, state: &str) {
    for line in ["status", "get edges"] {
        eventually(PATIENCE, state, || {
            let shown = says(cluster, line);
            let edge = shown.lines().find(|line| line.contains("edge1"));
            let edge = edge.unwrap_or_default().to_owned();
            edge.contains(state).then_some(()).ok_or(edge)
        });
    }
}

fn is_not_ready(cluster: &Cluster) {
    eventually(PATIENCE, "it says why it is not ready", || {
        match cluster.get(EDGE, "/readyz") {
            Err(Error::Status {
                status: 503, body, ..
            }) if body.contains("anyport undrain edge") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn flow(cluster: &Cluster) -> UdpSocket {
    let client = cluster.topology().client().run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(FLOWS).unwrap();
        socket
    });
    let client = client.unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    client
}

/// Whether there is an answer; what was lost is asked again, and what is refused is not.
fn answers(socket: &UdpSocket) -> std::io::Result<()> {
    let mut last = Ok(());
    for _ in 0..30 {
        last = socket
            .send(b"who\n")
            .and_then(|_| socket.recv(&mut [0; 100]).map(drop));
        match &last {
            Err(error) if error.kind() != ErrorKind::ConnectionRefused => {}
            _ => break,
        }
    }
    last
}

fn an_edge_is_drained_and_comes_back(store: Store) {
    let cluster = cluster(store);
    let _a = cluster.echo(0, "a", [7000]).unwrap();
    let _b = cluster.echo(1, "b", [7000]).unwrap();
    let _datagrams = cluster.echo_datagrams(0, "a", [7000]).unwrap();
    cluster.apply(MANIFEST).unwrap();
    let mut short = cluster.dial(at(SHORT)).unwrap();
    let mut long = cluster.dial(at(LONG)).unwrap();
    let flow = flow(&cluster);
    for stream in [&mut short, &mut long] {
        echoes(stream);
    }
    answers(&flow).unwrap();
    is_shown_as(&cluster, "up to date");

    // As long as somebody may not have noticed, everything goes on.
    let said = says(&cluster, "drain edge edge1 --grace 1h");
    assert_eq!(
        said,
        "edge edge1 drains: new connections are refused after 3600s, 3 are open"
    );
    is_not_ready(&cluster);
    is_shown_as(&cluster, "draining");
    cluster.who(at(SHORT)).unwrap();
    // By its URL, and sooner.
    let began = Instant::now();
    let said = says(&cluster, "drain edge http://127.0.0.1:7420 --grace 0s");
    assert!(
        // One more, where the edge has not seen the end of the last yet.
        said.contains("new connections are refused, ") && said.ends_with(" are open"),
        "{said}"
    );
    is_refused(&cluster, SHORT);
    is_refused(&cluster, LONG);
    let refused = answers(&self::flow(&cluster)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    echoes(&mut short);
    answers(&flow).unwrap();
    assert!(
        began.elapsed() < WINDOW / 2,
        "the test is too slow for its window"
    );

    // The short window ends; what has a longer one goes on.
    assert_eq!(
        short.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    let after = began.elapsed();
    assert!(
        after >= WINDOW / 2 && after < WINDOW + PATIENCE,
        "{after:?}"
    );
    eventually(PATIENCE, "the flow has ended", || match answers(&flow) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => Err(format!("{other:?}")),
    });
    echoes(&mut long);
    is_shown_as(&cluster, "draining");
    // It is still in hand, and takes changes; they bring nothing back.
    cluster.apply(&MANIFEST.replace("20s", "21s")).unwrap();
    is_refused(&cluster, SHORT);
    let listed = says(&cluster, "connections");
    assert!(listed.contains("long"), "{listed}");
    let waited = run(&cluster, "drain edge edge1 --wait=1s");
    assert_eq!(waited.status, Some(4), "{waited}");
    assert!(
        waited
            .err
            .contains("edge edge1 still drains: 1 connections are open"),
        "{waited}"
    );
    drop(long);
    let said = says(&cluster, "drain edge edge1 --wait");
    assert!(said.ends_with("edge edge1 is drained"), "{said}");
    is_shown_as(&cluster, "drained");
    is_not_ready(&cluster);

    for _ in 0..2 {
        assert_eq!(
            says(&cluster, "undrain edge edge1"),
            "edge edge1 is in service"
        );
        assert_eq!(cluster.get(EDGE, "/readyz").unwrap().trim(), "ready");
        cluster.who(at(SHORT)).unwrap();
        is_shown_as(&cluster, "up to date");
    }
    answers(&self::flow(&cluster)).unwrap();

    // Undone, it closes nothing any more.
    let mut kept = cluster.dial(at(SHORT)).unwrap();
    echoes(&mut kept);
    says(&cluster, "drain edge edge1 --grace 0s");
    says(&cluster, "undrain edge edge1");
    std::thread::sleep(WINDOW + Duration::from_secs(2));
    echoes(&mut kept);
}

fn an_order_outlives_the_agent(store: Store) {
    let mut cluster = cluster(store);
    let _a = cluster.echo(0, "a", [7000]).unwrap();
    let _b = cluster.echo(1, "b", [7000]).unwrap();
    cluster.apply(MANIFEST).unwrap();
    let mut held = cluster.dial(at(LONG)).unwrap();
    echoes(&mut held);
    says(&cluster, "drain edge edge1 --grace 0s");
    // An upgrade: the successor is drained, and the earlier one goes on with its own.
    let successor = cluster.spawn_beside(EDGE).unwrap();
    eventually(PATIENCE, "it takes over", || {
        let log = cluster.log(EDGE);
        log.contains("has taken over")
            .then_some(())
            .ok_or("not yet")
    });
    let mut old = cluster.succeed(successor).unwrap();
    is_refused(&cluster, LONG);
    echoes(&mut held);
    is_shown_as(&cluster, "drain");
    drop(held);
    old.end_within(PATIENCE).unwrap();
    is_shown_as(&cluster, "drained");
    // And a death.
    cluster.kill9(EDGE).unwrap();
    cluster.spawn(EDGE).unwrap();
    // In this order: what is shown may be what the dead one said last.
    is_not_ready(&cluster);
    is_shown_as(&cluster, "drained");
    is_refused(&cluster, SHORT);
    cluster.apply(&MANIFEST.replace("20s", "21s")).unwrap();
    is_refused(&cluster, SHORT);
    says(&cluster, "undrain edge edge1");
    cluster.who(at(SHORT)).unwrap();
    cluster.kill9(EDGE).unwrap();
    cluster.restart(EDGE).unwrap();
    cluster.who(at(SHORT)).unwrap();
}

fn an_origin_gets_no_new_connections(store: Store) {
    let cluster = cluster(store);
    let a = cluster.echo(0, "a", [7000]).unwrap();
    let _b = cluster.echo(1, "b", [7000]).unwrap();
    cluster.apply(MANIFEST).unwrap();
    let mut held: Vec<_> = (0..10).map(|_| cluster.dial(at(LONG)).unwrap()).collect();
    held.iter_mut().for_each(echoes);
    let open = a.open();
    assert!(open > 0, "some of ten are on each");
    let said = says(&cluster, "drain origin game/a");
    assert!(said.contains("updated    pool     game"), "{said}");
    // The edge hears of it a moment later, and until then may have no origin at all.
    let moved = |to: &str| {
        eventually(PATIENCE, to, || {
            let answered: Vec<_> = (0..10).map(|_| cluster.who(at(LONG))).collect();
            let is_moved = |answer: &Result<Who, Error>| {
                answer.as_ref().is_ok_and(|who| who.tag.to_string() == to)
            };
            let all = answered.iter().all(is_moved);
            all.then_some(()).ok_or_else(|| format!("{answered:?}"))
        });
    };
    moved("b");
    eventually(PATIENCE, "all of before are open, and no more", || {
        let now = a.open();
        (now == open).then_some(()).ok_or(now)
    });
    held.iter_mut().for_each(echoes);
    let again = says(&cluster, "drain origin game/a");
    assert!(again.contains("unchanged"), "{again}");
    let last = says(&cluster, "drain origin game/b");
    assert!(last.contains("no origin of pool game is left"), "{last}");
    held.iter_mut().for_each(echoes);
    says(&cluster, "undrain origin game/a");
    moved("a");
    let history = says(&cluster, "history");
    assert!(history.contains("undrain origin game/a"), "{history}");
    let wrong = run(&cluster, "drain origin game/z");
    assert_eq!(wrong.status, Some(1), "{wrong}");
    assert!(
        wrong.err.contains("pool \"game\" has no origin \"z\""),
        "{wrong}"
    );
}

#[test]
fn an_edge_that_is_not_there_is_named() {
    let mut cluster = cluster(Store::Embedded);
    let unknown = run(&cluster, "drain edge edge9");
    assert_eq!(unknown.status, Some(1), "{unknown}");
    assert!(
        unknown.err.contains("there is no edge \"edge9\" connected"),
        "{unknown}"
    );
    let unreachable = run(&cluster, "undrain edge http://127.0.0.1:7499");
    assert_eq!(unreachable.status, Some(3), "{unreachable}");
    assert!(
        unreachable.err.contains("http://127.0.0.1:7499"),
        "{unreachable}"
    );
    for line in [
        "drain",
        "drain edge",
        "drain origin game",
        "drain edge edge1 --grace x",
    ] {
        assert_eq!(run(&cluster, line).status, Some(2), "{line}");
    }
    // Without the config service, by its URL.
    cluster
        .kill9(Service::ConfigService(anyport_lab::cluster::Replica::First))
        .unwrap();
    let by_name = run(&cluster, "drain edge edge1");
    assert_eq!(by_name.status, Some(3), "{by_name}");
    let said = says(&cluster, "drain edge http://127.0.0.1:7420 --grace 0s");
    assert_eq!(said, "edge http://127.0.0.1:7420 is drained");
}
