//! What the event log tells: each connection as it was, and every status code that one can end
//! with, each by its real cause. Needs root, iproute2, nftables and dnsmasq.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, eventually};
use anyport_lab::network::{LOST, await_acknowledged, ip, nft};
use anyport_lab::servers::Dnsmasq;
use anyport_lab::tls::{self, Authority};
use anyport_model::outcome::Status;
use anyport_netns::{Namespace, sysctl};
use serde_json::Value;
use socket2::SockRef;

const MANIFEST: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 2001:db8:51::/64
pools:
  - name: none
    origins:
      - { name: off, address: "10.0.2.2:7000", enabled: false }
  - name: game
    origins:
      - { name: a, address: "10.0.2.2:7000" }
apps:
  - { name: game,       protocol: tcp/443,  edge_ips: [198.51.100.10, "2001:db8:51::10"], origin_pool: game }
  - { name: plain,      protocol: tcp/1000, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7000"] }
  - { name: idle,       protocol: tcp/1001, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7000"], timeouts: { idle: 3s } }
  - { name: closed,     protocol: tcp/1002, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:9"] }
  - { name: silent,     protocol: tcp/1003, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.99:7000"], timeouts: { connect: 300ms } }
  - { name: no-route,   protocol: tcp/1004, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.250.0.1:7000"] }
  - { name: prohibited, protocol: tcp/1005, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.251.0.1:7000"] }
  - { name: blackhole,  protocol: tcp/1006, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.252.0.1:7000"] }
  - { name: none,       protocol: tcp/1007, edge_ips: [198.51.100.10], origin_pool: none }
"#;

fn at(target: &str) -> SocketAddr {
    target.parse().unwrap()
}

/// Apps for the statuses that names and TLS have.
const NAMED: &str = r#"
  - { name: denied,     protocol: tcp/2000, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7000"], access: { default: deny } }
  - { name: nowhere,    protocol: tcp/2001, edge_ips: [198.51.100.10], origin_dns: { name: nowhere.internal }, origin_port: 7000 }
  - { name: inside,     protocol: tcp/2002, edge_ips: [198.51.100.10], origin_dns: { name: inside.internal }, origin_port: 7000 }
  - { name: unasked,    protocol: tcp/2003, edge_ips: [198.51.100.10], origin_dns: { name: elsewhere.example }, origin_port: 7000 }
  - { name: another,    protocol: tcp/2004, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7000"], sni: [another.example.com] }
  - { name: terminated, protocol: tcp/2005, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7000"], tls: flexible, certificate: edge }
  - { name: no-tls,     protocol: tcp/2006, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7000"], tls: full, certificate: edge }
"#;

/// In the certificate.
const EDGE: &str = "edge.example.com";

/// One origin with a listener of the test's own on port 7000.
fn ready() -> (Cluster, TcpListener) {
    let cluster = Cluster::start(Plan::default()).unwrap();
    let listener = listening(&cluster);
    cluster.apply(MANIFEST).unwrap();
    (cluster, listener)
}

fn listening(cluster: &Cluster) -> TcpListener {
    let origin = &cluster.topology().origins()[0];
    let listen = || TcpListener::bind("10.0.2.2:7000");
    origin.namespace.run(listen).unwrap().unwrap()
}

fn both_ends(cluster: &Cluster, listener: &TcpListener, target: &str) -> (TcpStream, TcpStream) {
    let client = cluster.dial(at(target)).unwrap();
    let (origin, _) = listener.accept().unwrap();
    origin.set_read_timeout(Some(PATIENCE)).unwrap();
    (client, origin)
}

fn port_of(client: &TcpStream) -> u64 {
    client.local_addr().unwrap().port().into()
}

/// The reset of who is turned away may come as early as the answer to its SYN.
fn assert_refused(cluster: &Cluster, target: &str) {
    let ended = match cluster.dial(at(target)) {
        Ok(mut client) => client.read(&mut [0]).map_err(|error| format!("{error:?}")),
        Err(error) => Err(format!("{error:?}")),
    };
    let why = ended.unwrap_err();
    assert!(why.contains("reset by peer"), "{target}: {why}");
}

/// The events of the client with this port, once the last one is there.
fn events_of(cluster: &Cluster, app: &str, port: u64) -> Vec<Value> {
    events_where(cluster, app, |event| event["client_port"] == port)
}

fn events_where(cluster: &Cluster, app: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    eventually(PATIENCE, "the connection's last event", || {
        let said = cluster
            .anyport(&["events", "--app", app, "-o", "json"])
            .unwrap();
        let mut events = said.objects().unwrap();
        events.retain(&wanted);
        let ended = events.iter().any(|event| event["event"] != "connect");
        if ended { Ok(events) } else { Err(said) }
    })
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// The write timeout of a connection in the namespace becomes a second.
fn give_up_early(namespace: &Namespace) {
    sysctl::set(namespace, "net/ipv4/tcp_retries2", "2").unwrap();
}

#[test]
fn a_connection_is_listed_while_it_is_open_and_told_of_when_it_ends() {
    let (cluster, listener) = ready();
    for (target, edge_ip, client_ip) in [
        ("198.51.100.10:443", "198.51.100.10", "10.0.1.2"),
        ("[2001:db8:51::10]:443", "2001:db8:51::10", "fd00:1::2"),
    ] {
        let (mut client, mut origin) = both_ends(&cluster, &listener, target);
        client.write_all(b"question").unwrap();
        origin.read_exact(&mut [0; 8]).unwrap();
        origin.write_all(b"an answer").unwrap();
        client.read_exact(&mut [0; 9]).unwrap();
        let port = port_of(&client);
        let open = eventually(PATIENCE, "its bytes are told", || {
            let said = cluster.anyport(&["connections", "-o", "json"]).unwrap();
            let [open] = &said.objects().unwrap()[..] else {
                return Err(said);
            };
            let told = open["origin_bytes"] == 9 && open["client_bytes"] == 8;
            if told { Ok(open.clone()) } else { Err(said) }
        });
        for (field, value) in [
            ("application", "game"),
            ("edge", "edge1"),
            ("region", "lab"),
            ("edge_ip", edge_ip),
            ("client_ip", client_ip),
            ("client_proto", "tcp"),
            ("pool", "game"),
            ("origin", "a"),
            ("origin_ip", "10.0.2.2"),
            ("proxy_protocol", "off"),
            ("client_tls_protocol", "none"),
        ] {
            assert_eq!(open[field], value, "{field} in {open}");
        }
        assert_eq!(open["client_port"], port);
        assert_eq!(
            (&open["edge_port"], &open["origin_port"]),
            (&443.into(), &7000.into())
        );
        assert_eq!(open["config_revision"], 1);
        let of_another = cluster.anyport(&["connections", "--app", "plain", "-o", "json"]);
        assert!(of_another.unwrap().objects().unwrap().is_empty());
        let shown = cluster.anyport(&["connections"]).unwrap();
        assert!(shown.out.contains("game/a"), "{shown}");

        client.shutdown(Shutdown::Write).unwrap();
        origin.read_to_end(&mut Vec::new()).unwrap();
        drop((client, origin));
        let events = events_of(&cluster, "game", port);
        let [connect, disconnect] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(
            (&connect["event"], &connect["status"]),
            (&"connect".into(), &0.into())
        );
        assert_eq!(disconnect["event"], "disconnect");
        assert_eq!(disconnect["status"], 200);
        assert_eq!(disconnect["client_bytes"], 8);
        assert_eq!(disconnect["origin_bytes"], 9);
        assert_eq!(connect["connection"], disconnect["connection"]);
        // Nobody followed, so nothing was measured.
        assert_eq!(disconnect["client_tcp_rtt"], 0);
        eventually(PATIENCE, "it is no longer listed", || {
            let said = cluster.anyport(&["connections", "-o", "json"]).unwrap();
            if said.objects().unwrap().is_empty() {
                Ok(())
            } else {
                Err(said)
            }
        });
    }
    let shown = cluster.anyport(&["events"]).unwrap();
    let ends = shown.out.lines().filter(|line| line.contains("disconnect"));
    assert_eq!(ends.count(), 2, "{shown}");
    // The edge is found by its URL too, and a name that is none is refused.
    let by_url = cluster.anyport(&["events", "--edge", "http://127.0.0.1:7420"]);
    assert_eq!(by_url.unwrap().out, shown.out);
    let unknown = cluster.anyport(&["events", "--edge", "nowhere"]).unwrap();
    assert_eq!(unknown.status, Some(1), "{unknown}");
    let unreachable = cluster
        .anyport(&["events", "--edge", "http://127.0.0.1:9"])
        .unwrap();
    assert_eq!(unreachable.status, Some(3), "{unreachable}");
}

/// `anyport events --follow`, as it writes.
struct Followed {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn events_are_followed_and_written_to_a_file_with_round_trip_times() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.json");
    let cluster = Cluster::start(Plan {
        environment: vec![("ANYPORT_EVENT_LOG".to_owned(), path.display().to_string())],
        ..Plan::default()
    })
    .unwrap();
    let listener = listening(&cluster);
    cluster.apply(MANIFEST).unwrap();
    let mut command: Command = cluster.anyport_command().unwrap();
    command.args(["events", "--follow", "--app", "plain", "-o", "json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let out = child.stdout.take().unwrap();
    let mut followed = Followed {
        child,
        lines: BufReader::new(out),
    };
    // Of which app it is, is told apart.
    for target in ["198.51.100.10:443", "198.51.100.10:1000"] {
        let (client, origin) = both_ends(&cluster, &listener, target);
        drop(client);
        drop(origin);
    }
    for expected in ["connect", "disconnect"] {
        let mut line = String::new();
        followed.lines.read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&event["event"], &event["application"]),
            (&expected.into(), &"plain".into())
        );
        for rtt in ["client_tcp_rtt", "origin_tcp_rtt"] {
            let rtt = event[rtt].as_u64().unwrap();
            assert!((1..1_000_000_000).contains(&rtt), "{event}");
        }
    }
    drop(followed);
    eventually(PATIENCE, "the file has all four", || {
        let text = std::fs::read_to_string(&path).unwrap();
        let events: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let ended = events.iter().filter(|event| event["event"] == "disconnect");
        if (events.len(), ended.count()) == (4, 2) {
            Ok(())
        } else {
            Err(text)
        }
    });
}

#[test]
fn every_way_to_end_has_its_status() {
    let cluster = Cluster::start(Plan {
        environment: Dnsmasq::environment(),
        ..Plan::default()
    })
    .unwrap();
    let listener = listening(&cluster);
    let authority = Authority::new("test ca");
    let certificate = authority.issue(EDGE).declared(&cluster, "edge");
    let manifest = format!("{MANIFEST}{NAMED}certificates:\n{certificate}");
    let _dnsmasq = Dnsmasq::start(&cluster, "127.0.0.1 inside.internal\n", &[]);
    cluster.apply(&manifest).unwrap();
    let edge = cluster.topology().edge();
    let origin_host = &cluster.topology().origins()[0].namespace;
    ip(edge, "route add prohibit 10.251.0.1");
    ip(edge, "route add blackhole 10.252.0.1");

    // No origin was reached, or nobody was let in to one.
    for (app, port, kind, status, reason) in [
        ("closed", 1002, "originError", 521, "connection refused"),
        ("silent", 1003, "originError", 522, "timed out"),
        ("no-route", 1004, "originError", 523, "unreachable"),
        ("prohibited", 1005, "originError", 524, "ermission denied"),
        ("blackhole", 1006, "originError", 520, "nvalid argument"),
        ("none", 1007, "originError", 530, "no origin of the pool"),
        ("denied", 2000, "clientFiltered", 403, "access"),
        ("nowhere", 2001, "resolveOrigin", 531, "there is no name"),
        ("inside", 2002, "originError", 532, "loopback"),
        (
            "unasked",
            2003,
            "resolveOrigin",
            533,
            "asking for elsewhere",
        ),
    ] {
        assert_refused(&cluster, &format!("198.51.100.10:{port}"));
        is_refused_with(&cluster, app, kind, status, reason);
    }
    how_tls_ends(&cluster, &listener, &authority);

    let ends_with = |app: &str, port: u64, status: u16| {
        let events = events_of(&cluster, app, port);
        let last = events.last().unwrap();
        assert_eq!(
            (&last["event"], &last["status"]),
            (&"disconnect".into(), &status.into()),
            "{last}"
        );
    };
    let joined = |target: &str| {
        let (mut client, mut origin) = both_ends(&cluster, &listener, target);
        // Something before the end, so that the connection is known to be joined.
        client.write_all(b"x").unwrap();
        origin.read_exact(&mut [0]).unwrap();
        // An acknowledgement that is lost with what the network is about to lose
        // makes the client say it again, and what the network said be forgotten.
        await_acknowledged(&client);
        (client, origin)
    };
    let plain = "198.51.100.10:1000";

    let (client, origin) = joined(plain);
    let port = port_of(&client);
    drop((client, origin));
    ends_with("plain", port, 200);

    let (client, origin) = joined("198.51.100.10:1001");
    ends_with("idle", port_of(&client), 497);
    drop(origin);

    let (client, origin) = joined(plain);
    let port = port_of(&client);
    reset(client);
    ends_with("plain", port, 499);
    drop(origin);

    let (client, origin) = joined(plain);
    reset(origin);
    ends_with("plain", port_of(&client), 444);

    // A side that has ended its stream and then resets: a broken pipe to who writes to it.
    for client_ends in [false, true] {
        let (client, origin) = joined(plain);
        let port = port_of(&client);
        let (first, mut second) = if client_ends {
            (client, origin)
        } else {
            (origin, client)
        };
        first.shutdown(Shutdown::Write).unwrap();
        second.read_to_end(&mut Vec::new()).unwrap();
        reset(first);
        ends_with("plain", port, if client_ends { 498 } else { 448 });
    }

    // What the network says, or does not say, of a side that is written to.
    give_up_early(edge);
    let gone = "delete table ip lost";

    let (mut client, origin) = joined(plain);
    nft(origin_host, &format!("{LOST} dport 7000 drop"));
    client.write_all(b"into the void").unwrap();
    ends_with("plain", port_of(&client), 445);
    nft(origin_host, gone);
    drop(origin);

    let (mut client, origin) = joined(plain);
    nft(
        origin_host,
        &format!("{LOST} dport 7000 reject with icmp type port-unreachable"),
    );
    client.write_all(b"to nobody").unwrap();
    ends_with("plain", port_of(&client), 447);
    nft(origin_host, gone);
    drop(origin);

    let (mut client, origin) = joined(plain);
    nft(
        origin_host,
        &format!("{LOST} dport 7000 reject with icmp type prot-unreachable"),
    );
    client.write_all(b"in another protocol").unwrap();
    ends_with("plain", port_of(&client), 999);
    nft(origin_host, gone);
    drop(origin);

    let client_host = cluster.topology().client();
    for (what, status) in [
        ("drop", 497),
        ("reject with icmp type port-unreachable", 495),
        ("reject with icmp type prot-unreachable", 999),
    ] {
        let (client, mut origin) = joined(plain);
        nft(client_host, &format!("{LOST} sport 1000 {what}"));
        origin.write_all(b"into the void").unwrap();
        ends_with("plain", port_of(&client), status);
        nft(client_host, gone);
    }
    // Without a route any more to a side that has yet to confirm what it was sent.
    sysctl::set(edge, "net/ipv4/tcp_retries2", "4").unwrap();
    for (host, port, address, status) in [
        (origin_host, "dport 7000", "10.0.2.2", 446),
        (client_host, "sport 1000", "10.0.1.2", 496),
    ] {
        let (mut client, mut origin) = joined(plain);
        nft(host, &format!("{LOST} {port} drop"));
        let (sender, field, count) = match status {
            446 => (&mut client, "client_bytes", 5),
            _ => (&mut origin, "origin_bytes", 4),
        };
        sender.write_all(b"sent").unwrap();
        eventually(PATIENCE, "it is on its way", || {
            let said = cluster.anyport(&["connections", "-o", "json"]).unwrap();
            let sent = said
                .objects()
                .unwrap()
                .iter()
                .any(|open| open[field] == count);
            if sent { Ok(()) } else { Err(said) }
        });
        ip(edge, &format!("route add unreachable {address}"));
        ends_with("plain", port_of(&client), status);
        ip(edge, &format!("route del unreachable {address}"));
        nft(host, gone);
    }
    // All that there are, but for what only a panic of the agent's own has.
    let said = cluster.anyport(&["events", "-o", "json"]).unwrap();
    let statuses = said
        .objects()
        .unwrap()
        .into_iter()
        .map(|event| event["status"].as_u64());
    let seen: BTreeSet<u64> = statuses
        .map(Option::unwrap)
        .filter(|code| *code > 0)
        .collect();
    let known = Status::ALL
        .into_iter()
        .filter(|status| *status != Status::Internal);
    let known: BTreeSet<u64> = known.map(|status| status.code().into()).collect();
    assert_eq!(seen, known);
}

/// The only event of an app that had one connection.
fn is_refused_with(cluster: &Cluster, app: &str, kind: &str, status: u16, reason: &str) {
    let events = events_where(cluster, app, |_| true);
    let [event] = &events[..] else {
        panic!("{app}: {events:?}");
    };
    let ended = (&event["event"], &event["status"]);
    assert_eq!(ended, (&kind.into(), &status.into()), "{event}");
    let told = event["reason"].as_str().unwrap();
    assert!(told.contains(reason), "{app}: {event}");
}

fn how_tls_ends(cluster: &Cluster, listener: &TcpListener, authority: &Authority) {
    // A name that no app has, an origin without TLS, and a client without.
    let asks = |port: u16| {
        let to = format!("198.51.100.10:{port}");
        tls::shaken(cluster, &to, authority.client(), EDGE)
    };
    assert!(asks(2004).is_err());
    is_refused_with(cluster, "another", "tlsError", 400, "no app has the name");
    let answering = listener.try_clone().unwrap();
    let no_tls = thread::spawn(move || {
        let (mut origin, _) = answering.accept().unwrap();
        origin.write_all(b"220 mail.example.com\r\n").unwrap();
        origin.read_to_end(&mut Vec::new())
    });
    assert!(asks(2006).is_err());
    // However the edge has ended it.
    let _ = no_tls.join().unwrap();
    is_refused_with(cluster, "no-tls", "tlsError", 540, "TLS with the origin");
    let mut plain = cluster.dial(at("198.51.100.10:2005")).unwrap();
    plain.write_all(b"EHLO mail.example.com\r\n").unwrap();
    assert!(plain.read(&mut [0]).is_err());
    is_refused_with(cluster, "terminated", "tlsError", 443, "");

    // A stream that ends without saying so in TLS.
    let mut client = asks(2005).unwrap();
    let (mut origin, _) = listener.accept().unwrap();
    client.write_all(b"some of it").unwrap();
    origin.read_exact(&mut [0; 10]).unwrap();
    client.socket.shutdown(Shutdown::Write).unwrap();
    let events = events_of(cluster, "terminated", port_of(&client.socket));
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["status"]),
        (&"disconnect".into(), &490.into())
    );
}
