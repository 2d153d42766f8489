//! UDP through the edge: what a datagram's way there and back has to hold, what real programs make
//! of it, and what happens when origins die and when somebody lies about who they are.
//! Needs root, dnsmasq, dig and iperf3.

#![allow(clippy::unwrap_used)]

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::num::{NonZeroU64, NonZeroUsize};
use std::process::Command;
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, Steering, eventually};
use anyport_lab::load::datagram as load;
use anyport_lab::load::serve::datagram::Server;
use anyport_lab::load::{Control, Load, Report, Who};
use anyport_lab::network::lost_datagrams;
use anyport_lab::servers::{Running, program};
use anyport_netns::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

#[path = "udp/events.rs"]
mod events;
#[path = "udp/loss.rs"]
mod loss;
#[path = "udp/transparent.rs"]
mod transparent;
#[path = "udp/upgrade.rs"]
mod upgrade;

const PREFIXES: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 203.0.113.0/24
  - cidr: 2001:db8:51::/64
"#;

fn cluster(origins: usize, apps: &str) -> Cluster {
    steered_by(Steering::Tproxy, origins, apps)
}

fn steered_by(steering: Steering, origins: usize, apps: &str) -> Cluster {
    let cluster = Cluster::start(Plan {
        origins,
        steering,
        ..Plan::default()
    })
    .unwrap();
    cluster.apply(&format!("{PREFIXES}{apps}")).unwrap();
    cluster
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn origin(cluster: &Cluster, index: usize) -> &Namespace {
    &cluster.topology().origins()[index].namespace
}

/// An echo on these ports of both addresses of an origin.
fn echo(cluster: &Cluster, index: usize, tag: &str, ports: &[u16]) -> Server {
    let ports = ports.iter().copied();
    cluster.echo_datagrams(index, tag, ports).unwrap()
}

/// A socket of the client's, not connected, so that it hears whoever speaks to it.
fn client(cluster: &Cluster, v6: bool) -> UdpSocket {
    let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
    let socket = cluster.topology().client().run(|| UdpSocket::bind(any));
    let socket = socket.unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What was not answered by then was lost, also on a busy machine.
const ANSWERED: Duration = Duration::from_secs(20);

/// Sends `request` and gives the reply and where it came from. What is lost is sent again.
fn ask(socket: &UdpSocket, to: SocketAddr, request: &[u8]) -> (Vec<u8>, SocketAddr) {
    let mut reply = vec![0; 1 << 16];
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    for sent_before in 0..30 {
        socket.send_to(request, to).unwrap();
        if let Ok((count, from)) = socket.recv_from(&mut reply) {
            reply.truncate(count);
            // What was late and not lost is answered too, and is no answer to what is asked next.
            for _ in 0..sent_before {
                let _ = socket.recv_from(&mut vec![0; 1 << 16]);
            }
            return (reply, from);
        }
    }
    panic!("no reply from {to}");
}

fn who(socket: &UdpSocket, to: &str) -> Who {
    let (reply, from) = ask(socket, at(to), b"who\n");
    assert_eq!(from, at(to), "the reply comes from elsewhere");
    String::from_utf8(reply).unwrap().parse().unwrap()
}

/// So many datagrams, and what comes within `time` after them, each as its length.
fn heard(socket: &UdpSocket, count: usize, time: Duration) -> Vec<usize> {
    let mut buffer = vec![0; 1 << 16];
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let first = (0..count).map(|_| socket.recv(&mut buffer).unwrap());
    let mut heard: Vec<usize> = first.collect();
    let end = Instant::now() + time;
    while let Some(left) = end
        .checked_duration_since(Instant::now())
        .filter(|l| !l.is_zero())
    {
        socket.set_read_timeout(Some(left)).unwrap();
        match socket.recv(&mut buffer) {
            Ok(count) => heard.push(count),
            Err(error) => assert!(matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::TimedOut
            )),
        }
    }
    heard
}

fn edge_metric(cluster: &Cluster, name: &str, labels: &[(&str, &str)]) -> u64 {
    let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
    metrics.sum(name, labels) as u64
}

fn dropped(cluster: &Cluster, reason: &str) -> u64 {
    edge_metric(
        cluster,
        "anyport_dropped_packets_total",
        &[("reason", reason)],
    )
}

fn sessions(cluster: &Cluster) -> u64 {
    edge_metric(cluster, "anyport_udp_sessions_open", &[])
}

fn descriptors(cluster: &Cluster) -> usize {
    let pid = cluster.pid(Service::EdgeAgent).unwrap();
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

fn asking(targets: &[&str], flows: usize, count: Option<u64>, pause: Duration) -> load::Plan {
    let targets = targets
        .iter()
        .map(|target| target.parse().unwrap())
        .collect();
    load::Plan {
        load: Load {
            count: count.and_then(NonZeroU64::new),
            connections: NonZeroUsize::new(flows).unwrap(),
            duration: Duration::from_secs(60),
            timeout: Duration::from_secs(2),
            ..Load::on(anyport_lab::load::Targets::new(targets).unwrap())
        },
        bytes: NonZeroU64::new(64).unwrap(),
        pause,
    }
}

fn run(cluster: &Cluster, plan: &load::Plan) -> Report {
    let client = cluster.topology().client();
    client.run(|| load::run(plan)).unwrap().unwrap()
}

const ECHO_APPS: &str = r#"
apps:
  - { name: all,   protocol: udp/*,         edge_ips: [198.51.100.10, "2001:db8:51::10"], origin_direct: ["udp://10.0.2.2:7000"] }
  - { name: range, protocol: udp/5000-5010, edge_ips: [203.0.113.7], origin_direct: ["udp://10.0.2.2:7000-7010"] }
  - { name: six,   protocol: udp/53,        edge_ips: ["2001:db8:51::53"], origin_direct: ["udp://[fd00:2::2]:7003"], timeouts: { udp_idle: 6s } }
  - { name: tcp,   protocol: tcp/53,        edge_ips: [198.51.100.11], origin_direct: ["tcp://10.0.2.2:7000"] }
"#;

anyport_lab::under_both_steerings![datagrams_go_there_and_answers_come_from_where_they_were_asked];

fn datagrams_go_there_and_answers_come_from_where_they_were_asked(steering: Steering) {
    let cluster = steered_by(steering, 1, ECHO_APPS);
    let _server = echo(&cluster, 0, "one", &[7000, 7001, 7003, 7010]);
    let (v4, v6) = (client(&cluster, false), client(&cluster, true));
    for (socket, to, local) in [
        (&v4, "198.51.100.10:1", "10.0.2.2:7000"),
        (&v4, "198.51.100.10:53", "10.0.2.2:7000"),
        (&v4, "198.51.100.10:65535", "10.0.2.2:7000"),
        (&v4, "203.0.113.7:5001", "10.0.2.2:7001"),
        (&v4, "203.0.113.7:5010", "10.0.2.2:7010"),
        (&v6, "[2001:db8:51::10]:443", "10.0.2.2:7000"),
        (&v6, "[2001:db8:51::53]:53", "[fd00:2::2]:7003"),
    ] {
        // Twice: the second goes past the steering, on the flow's own socket.
        let first = who(socket, to);
        assert_eq!(
            (first.tag.as_str(), first.local),
            ("one", at(local)),
            "{to}"
        );
        assert_eq!(who(socket, to).peer, first.peer, "{to}: another flow");
    }
    assert_eq!(sessions(&cluster), 7);
    assert_eq!(
        edge_metric(
            &cluster,
            "anyport_connections_opened_total",
            &[("app", "range")]
        ),
        2
    );

    // In one burst, before the flow has a socket: all arrive, in order.
    let burst = client(&cluster, false);
    for number in 0..200u32 {
        burst
            .send_to(&number.to_be_bytes(), at("198.51.100.10:99"))
            .unwrap();
    }
    for number in 0..200u32 {
        let mut reply = [0; 4];
        burst.recv_from(&mut reply).unwrap();
        assert_eq!(u32::from_be_bytes(reply), number);
    }

    // Any size that UDP has, in fragments, and none at all.
    for size in [0, 1, 1472, 1473, 4096, 9000, 40_000, 65_507] {
        let datagram: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        for (socket, to) in [(&v4, "198.51.100.10:1"), (&v6, "[2001:db8:51::10]:443")] {
            // Over IPv6 the header of a datagram takes from the same 65,535 bytes less.
            let (reply, from) = ask(socket, at(to), &datagram);
            assert!(reply == datagram && from == at(to), "{size} bytes to {to}");
        }
    }

    // A port that nobody claims: ICMP port unreachable, and the agent knows nothing of it.
    let before = edge_metric(&cluster, "anyport_connections_unclaimed_total", &[]);
    for to in [
        "198.51.100.11:53",
        "203.0.113.7:4999",
        "[2001:db8:51::53]:54",
    ] {
        let socket = client(&cluster, at(to).is_ipv6());
        socket.connect(at(to)).unwrap();
        socket.send(b"anyone").unwrap();
        let refused = socket.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    let after = edge_metric(&cluster, "anyport_connections_unclaimed_total", &[]);
    assert_eq!((before, after), (0, 0));
    assert_eq!(dropped(&cluster, "unclaimed"), 0);

    // A client that goes away with answers under way ends its flow.
    let to = at("198.51.100.10:7");
    let closed = |status| {
        let labels = [("app", "all"), ("status", status)];
        edge_metric(&cluster, "anyport_connections_closed_total", &labels)
    };
    eventually(PATIENCE, "the flow of a client that is gone ends", || {
        let gone = client(&cluster, false);
        gone.send_to(b"x", to).unwrap();
        let _ = gone.recv(&mut [0; 8]);
        // It may be that all are answered before it is gone; then another one is.
        for _ in 0..3 {
            gone.send_to(b"x", to).unwrap();
        }
        drop(gone);
        match closed("495") {
            0 => Err("it goes on"),
            _ => Ok(()),
        }
    });

    // What was asked on a flow that has its idle time behind it comes from a new one.
    let first = who(&v6, "[2001:db8:51::53]:53").peer;
    eventually(PATIENCE, "the idle flow ends", || {
        match edge_metric(&cluster, "anyport_udp_sessions_open", &[("app", "six")]) {
            0 => Ok(()),
            open => Err(format!("{open} open")),
        }
    });
    assert_ne!(who(&v6, "[2001:db8:51::53]:53").peer, first);
}

#[test]
fn thousands_of_flows_at_once_and_none_left_behind() {
    let apps = r#"
apps:
  - { name: all, protocol: udp/*, edge_ips: [198.51.100.0/24, "2001:db8:51::/64"], origin_direct: ["udp://10.0.2.2:7000"], timeouts: { udp_idle: 5s } }
"#;
    let cluster = cluster(1, apps);
    let _server = echo(&cluster, 0, "one", &[7000]);
    let before = descriptors(&cluster);
    let lost_before = lost_datagrams(cluster.topology());
    let control = Control::default();
    let plan = asking(
        &["198.51.100.0/24:*", "[2001:db8:51::/120]:*"],
        3000,
        None,
        Duration::from_millis(500),
    );
    let plan = load::Plan {
        load: Load {
            control: control.clone(),
            // What comes late on a busy machine is not lost.
            timeout: Duration::from_secs(5),
            ..plan.load
        },
        ..plan
    };
    let report = std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&cluster, &plan));
        eventually(PATIENCE * 2, "all flows are open", || {
            match sessions(&cluster) {
                3000 => Ok(()),
                open => Err(format!("{open} open")),
            }
        });
        assert!(descriptors(&cluster) >= before + 6000);
        eventually(PATIENCE * 2, "each has asked twice", || {
            match control.operations() {
                done if done >= 6000 => Ok(()),
                done => Err(format!("{done} done")),
            }
        });
        control.stop();
        running.join().unwrap()
    });
    // No answer was wrong; those may be missing that a full queue lost, or that come very late.
    let lost = lost_datagrams(cluster.topology()) - lost_before;
    let most = lost + report.operations() / 100;
    assert!(report.failed() <= most, "{report}, {lost} lost by queues");
    let only_late = |failure: &_| *failure == anyport_lab::load::Failure::Timeout;
    assert!(report.failures().keys().all(only_late), "{report}");

    eventually(PATIENCE, "all flows end", || match sessions(&cluster) {
        0 => Ok(()),
        open => Err(format!("{open} open")),
    });
    eventually(PATIENCE, "their descriptors are closed", || {
        let after = descriptors(&cluster);
        let all = after <= before + 2;
        all.then_some(())
            .ok_or_else(|| format!("{before} became {after}"))
    });
}

#[test]
fn an_origin_that_refuses_is_passed_over_before_the_client_notices() {
    const LOST: Duration = Duration::from_secs(5);
    let apps = r#"
pools:
  - name: servers
    policy: round_robin
    origins:
      - { name: a, address: "10.0.2.2:7000" }
      - { name: b, address: "10.0.2.3:7000" }
apps:
  - { name: app, protocol: udp/*, edge_ips: [198.51.100.10], origin_pool: servers }
  - { name: dead, protocol: udp/1, edge_ips: [203.0.113.1], origin_direct: ["udp://10.0.2.2:9"] }
"#;
    let cluster = cluster(2, apps);
    // Nothing serves on `a`. One datagram each, sent once: the edge has to move it.
    let second = echo(&cluster, 1, "b", &[7000]);
    for port in 1..=20 {
        let socket = client(&cluster, false);
        let to = SocketAddr::from((Ipv4Addr::new(198, 51, 100, 10), port));
        socket.send_to(b"who\n", to).unwrap();
        let mut reply = [0; 256];
        let (count, from) = socket.recv_from(&mut reply).unwrap();
        assert_eq!(from, to);
        let answer: Who = std::str::from_utf8(&reply[..count])
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(answer.tag.as_str(), "b");
    }

    // Killed under load: what was under way is lost, and everything after goes to the other one.
    let first = echo(&cluster, 0, "a", &[7000]);
    eventually(PATIENCE * 2, "what refused is tried again", || {
        let answer = who(&client(&cluster, false), "198.51.100.10:9");
        (answer.tag.as_str() == "a").then_some(()).ok_or("only b")
    });
    let control = Control::default();
    let plan = asking(&["198.51.100.10:*"], 100, None, Duration::from_millis(20));
    let plan = load::Plan {
        load: Load {
            control: control.clone(),
            // What comes late on a busy machine is not lost.
            timeout: LOST,
            ..plan.load
        },
        ..plan
    };
    let progress = |what: &str, more: u64| {
        let from = control.operations();
        eventually(PATIENCE, what, || match control.operations() - from {
            done if done >= more => Ok(()),
            done => Err(format!("{done} done")),
        });
    };
    let report = std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&cluster, &plan));
        progress("the load runs", 2000);
        assert!(first.answered() > 200 && second.answered() > 200);
        drop(second);
        let killed = Instant::now();
        progress("the load goes on", 2000);
        // By then everybody knows what was lost with it.
        eventually(PATIENCE, "what was under way has ended", || {
            let since = killed.elapsed();
            (since > LOST + Duration::from_secs(1))
                .then_some(())
                .ok_or_else(|| format!("{since:?}"))
        });
        progress("the load goes on without it", 2000);
        let failed = control.failures();
        progress("the load still goes on", 2000);
        assert_eq!(control.failures(), failed, "still lost long after");
        control.stop();
        running.join().unwrap()
    });
    // Each flow of the one that was killed loses at most what it had under way.
    assert!(report.failed() <= 150, "{report}");

    // No origin at all: the flow ends, and says why.
    let socket = client(&cluster, false);
    socket.send_to(b"x", at("203.0.113.1:1")).unwrap();
    eventually(PATIENCE, "the flow ends with 521", || {
        let labels = [("app", "dead"), ("status", "521")];
        match edge_metric(&cluster, "anyport_connections_closed_total", &labels) {
            0 => Err("it goes on"),
            _ => Ok(()),
        }
    });
}

#[test]
fn little_goes_back_to_who_has_not_shown_that_it_is_who_it_says() {
    let cluster = cluster(1, ECHO_APPS);
    // Ten datagrams of 1,000 bytes for each that comes.
    let server = origin(&cluster, 0).run(|| UdpSocket::bind("10.0.2.2:7000"));
    let server = server.unwrap().unwrap();
    let amplifier = std::thread::spawn(move || -> io::Result<()> {
        server.set_read_timeout(Some(PATIENCE))?;
        for _ in 0..2 {
            let (_, peer) = server.recv_from(&mut [0; 2000])?;
            for _ in 0..10 {
                server.send_to(&[7; 1000], peer)?;
            }
        }
        Ok(())
    });
    let socket = client(&cluster, false);
    socket.send_to(b"?", at("198.51.100.10:53")).unwrap();
    eventually(PATIENCE, "six answers are held back", || {
        match dropped(&cluster, "amplification") {
            6 => Ok(()),
            held => Err(format!("{held} held back")),
        }
    });
    let more = Duration::from_millis(300);
    assert_eq!(heard(&socket, 4, more), [1000; 4]);
    // It heard us, and says so by speaking again.
    socket.send_to(b"?", at("198.51.100.10:53")).unwrap();
    assert_eq!(heard(&socket, 10, more), [1000; 10]);
    assert_eq!(dropped(&cluster, "amplification"), 6);
    amplifier.join().unwrap().unwrap();
}

/// What an origin gets for each datagram of a client, one after the other.
fn received(server: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut datagram = vec![0; 1 << 16];
    let (count, peer) = server.recv_from(&mut datagram).unwrap();
    datagram.truncate(count);
    (datagram, peer)
}

#[test]
fn origins_learn_the_client_by_proxy_headers_and_answer_with_simple_ones() {
    let apps = r#"
apps:
  - { name: simple, protocol: udp/*, edge_ips: [198.51.100.10], origin_direct: ["udp://10.0.2.2:7000"], proxy_protocol: simple }
  - { name: second, protocol: udp/*, edge_ips: [198.51.100.11], origin_direct: ["udp://10.0.2.2:7000"], proxy_protocol: v2 }
"#;
    let cluster = cluster(1, apps);
    let server = origin(&cluster, 0).run(|| UdpSocket::bind("10.0.2.2:7000"));
    let server = server.unwrap().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let socket = client(&cluster, false);
    let port = socket.local_addr().unwrap().port();

    let mapped = |ip: [u8; 4]| Ipv4Addr::from(ip).to_ipv6_mapped().octets();
    let header: Vec<u8> = [
        &[0x56, 0xec][..],
        &mapped([10, 0, 1, 2]),
        &mapped([198, 51, 100, 10]),
        &port.to_be_bytes(),
        &5060u16.to_be_bytes(),
    ]
    .concat();
    let to = at("198.51.100.10:5060");
    for payload in [&b"first"[..], b"", b"third"] {
        socket.send_to(payload, to).unwrap();
        let (datagram, peer) = received(&server);
        assert_eq!(datagram, [&header[..], payload].concat());
        // Without the header, with that of another client, and right.
        server.send_to(b"stray", peer).unwrap();
        let mut other = datagram.clone();
        other[35] ^= 1;
        server.send_to(&other, peer).unwrap();
        server.send_to(&datagram, peer).unwrap();
        let mut answer = [0; 64];
        let (count, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!((&answer[..count], from), (payload, to));
    }
    assert_eq!(dropped(&cluster, "simple_header"), 6);

    let to = at("198.51.100.11:5060");
    socket.send_to(b"first", to).unwrap();
    socket.send_to(b"second", to).unwrap();
    let (datagram, peer) = received(&server);
    let addresses = [&[10, 0, 1, 2, 198, 51, 100, 11][..], &port.to_be_bytes()].concat();
    // Version 2, PROXY; UDP over IPv4.
    assert!(datagram.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x12"));
    assert_eq!(datagram[16..26], addresses);
    assert!(datagram.ends_with(b"first"));
    assert_eq!(received(&server), (b"second".to_vec(), peer));
    server.send_to(b"answer", peer).unwrap();
    let mut answer = [0; 64];
    let (count, from) = socket.recv_from(&mut answer).unwrap();
    assert_eq!((&answer[..count], from), (&b"answer"[..], to));
}

/// A socket for datagrams with any source.
fn forger(from: &Namespace) -> Socket {
    let socket = from.run(|| {
        // IPPROTO_RAW: the header is ours.
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))
    });
    socket.unwrap().unwrap()
}

/// An IPv4 datagram of UDP with four bytes in it. The kernel fills in the header's checksum, and
/// UDP's may be left out.
fn forged(source: Ipv4Addr, port: u16, to: (Ipv4Addr, u16)) -> [u8; 32] {
    let mut packet = [0; 32];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&32u16.to_be_bytes());
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&to.0.octets());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&to.1.to_be_bytes());
    packet[24..26].copy_from_slice(&12u16.to_be_bytes());
    packet
}

#[test]
fn a_datagram_from_port_0_begins_no_flow() {
    let cluster = cluster(1, ECHO_APPS);
    let server = echo(&cluster, 0, "one", &[7000]);
    let forger = forger(cluster.topology().client());
    let to = (Ipv4Addr::new(198, 51, 100, 10), 53);
    let packet = forged(Ipv4Addr::new(10, 0, 1, 2), 0, to);
    let place = SocketAddr::from((to.0, 0)).into();
    forger.send_to(&packet, &place).unwrap();
    eventually(PATIENCE, "it is dropped", || {
        match dropped(&cluster, "unanswerable") {
            1 => Ok(()),
            count => Err(count),
        }
    });
    assert_eq!((sessions(&cluster), server.answered()), (0, 0));
    // A socket that was connected to port 0 would be given what comes from every other port.
    let peers = [(); 2].map(|()| who(&client(&cluster, false), "198.51.100.10:53").peer);
    assert_ne!(peers[0], peers[1]);
}

#[test]
fn a_flood_with_forged_sources_costs_known_flows_and_memory_nothing() {
    let directory = tempfile::tempdir().unwrap();
    // Each flow is told of besides.
    let log = directory.path().join("events.json").display().to_string();
    let cluster = Cluster::start(Plan {
        environment: vec![("ANYPORT_EVENT_LOG".to_owned(), log)],
        // Few enough flows that also a slow machine fills the table.
        open_files: Some(4000),
        ..Plan::default()
    })
    .unwrap();
    cluster.apply(&format!("{PREFIXES}{ECHO_APPS}")).unwrap();
    let _server = echo(&cluster, 0, "one", &[7000]);
    // Answers to forged sources have to have somewhere to go.
    let mut route = cluster.topology().edge().command("ip");
    let status = route
        .args(["route", "add", "10.8.0.0/13", "via", "10.0.1.2"])
        .status();
    assert!(status.unwrap().success());

    let control = Control::default();
    let plan = asking(&["198.51.100.10:*"], 50, None, Duration::from_millis(20));
    let plan = load::Plan {
        load: Load {
            control: control.clone(),
            // What comes late on a busy machine is not lost.
            timeout: ANSWERED,
            ..plan.load
        },
        ..plan
    };
    let report = std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&cluster, &plan));
        eventually(
            PATIENCE,
            "all known flows have shown who they are",
            || match control.operations() {
                done if done >= 500 => Ok(()),
                done => Err(format!("{done} done")),
            },
        );
        let forger = forger(cluster.topology().client());
        let to = (Ipv4Addr::new(198, 51, 100, 10), 53);
        let flood = |first: u32, count: u32| {
            for number in first..first + count {
                let source = Ipv4Addr::from(0x0a08_0000 | number & 0x7_ffff);
                let packet = forged(source, number as u16 | 1, to);
                // The queue may be full: then one less.
                let _ = forger.send_to(&packet, &SocketAddr::from((to.0, 0)).into());
                // Slow enough that nothing is lost before it reaches the edge.
                if number % 16 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        };
        // Fills the table, so that what is measured from here on is the flood alone.
        flood(0, 20_000);
        let (memory, failed) = (
            cluster.resident(Service::EdgeAgent).unwrap(),
            control.failures(),
        );
        flood(20_000, 60_000);
        let grown = cluster
            .resident(Service::EdgeAgent)
            .unwrap()
            .saturating_sub(memory);
        assert!(grown < 8 << 20, "{grown} bytes more");
        let shed = dropped(&cluster, "sessions_full");
        // The rest found room that silent ones had to give.
        assert!(shed > 1000, "{shed} turned away");
        // 4,000 descriptors are a thousand flows at most.
        assert!(sessions(&cluster) <= 1000);
        let lost = control.failures() - failed;
        assert!(lost == 0, "known flows lost {lost} answers");
        control.stop();
        running.join().unwrap()
    });
    assert!(report.operations() > 1000, "{report}");
    // Whoever is new is served again as soon as the forged ones have been silent for a second.
    who(&client(&cluster, false), "198.51.100.10:77");
}

fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(text),
        false => Err(format!("{command:?}: {text}{errors}")),
    }
}

#[test]
fn dnsmasq_answers_dig_and_iperf3_finds_nothing_lost() {
    let apps = r#"
apps:
  - { name: dns,      protocol: udp/53, edge_ips: [198.51.100.53, "2001:db8:51::53"], origin_direct: ["udp://10.0.2.2:53"], timeouts: { udp_idle: 2s } }
  - { name: iperf,    protocol: udp/*,  edge_ips: [198.51.100.10, "2001:db8:51::10"], origin_direct: ["udp://10.0.2.2:1-65535"] }
  - { name: control,  protocol: tcp/*,  edge_ips: [198.51.100.10, "2001:db8:51::10"], origin_direct: ["tcp://10.0.2.2:1-65535"] }
"#;
    let cluster = cluster(1, apps);
    // 15 strings of 255 bytes and one of 200 make an answer of just under 4 KiB.
    let strings: Vec<String> = (0..15)
        .map(|n| format!("{n:x}").repeat(255))
        .chain(["f".repeat(170)])
        .collect();
    let _dnsmasq = Running::quietly(
        origin(&cluster, 0)
            .command(program("dnsmasq", "dnsmasq-base"))
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--user=root",
                "--pid-file",
            ])
            .args([
                "--no-resolv",
                "--no-hosts",
                "--bind-interfaces",
                "--listen-address=10.0.2.2",
            ])
            .args([
                "--edns-packet-max=4096",
                "--address=/small.test/203.0.113.99",
            ])
            .arg(format!("--txt-record=large.test,{}", strings.join(","))),
    );
    let dig = |server: &str, arguments: &[&str]| {
        let mut dig = cluster
            .topology()
            .client()
            .command(program("dig", "bind9-dnsutils"));
        dig.arg(format!("@{server}")).args(arguments);
        dig.args(["+notcp", "+ignore", "+tries=5", "+timeout=2"]);
        said(&mut dig)
    };
    for server in ["198.51.100.53", "2001:db8:51::53"] {
        eventually(PATIENCE, "dnsmasq answers", || {
            let small = dig(server, &["small.test", "A", "+short"])?;
            (small == "203.0.113.99\n").then_some(()).ok_or(small)
        });
        let large = dig(server, &["large.test", "TXT", "+bufsize=4096"]).unwrap();
        assert!(large.contains(&"e".repeat(255)), "{large}");
        let flags = large.lines().find(|line| line.contains("flags:")).unwrap();
        assert!(!flags.contains(" tc"), "truncated: {flags}");
        let size = large
            .lines()
            .find_map(|line| line.split_once("MSG SIZE  rcvd: "));
        let size: usize = size.unwrap().1.parse().unwrap();
        assert!((3900..=4096).contains(&size), "{size} bytes");
        assert!(large.contains(&format!("SERVER: {server}#53")), "{large}");
    }

    let iperf = program("iperf3", "iperf3");
    let _server = Running::quietly(
        origin(&cluster, 0)
            .command(&iperf)
            .args(["-s", "-B", "10.0.2.2"]),
    );
    for to in ["198.51.100.10", "2001:db8:51::10"] {
        let mut command = cluster.topology().client().command(&iperf);
        command.args(["-c", to, "-u", "-b", "40M", "-l", "1200", "-t", "2", "-J"]);
        // Its server has one client at a time, and resets others; of that, too, it says in JSON that
        // it went well.
        let sum = eventually(PATIENCE, "iperf3 serves", || {
            let output = command.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let report: serde_json::Value = serde_json::from_str(&text).unwrap();
            let sum = report["end"]["sum"].clone();
            sum.is_object().then_some(sum).ok_or(text)
        });
        let told = |name: &str| sum[name].as_u64().unwrap_or_else(|| panic!("{sum}"));
        let (packets, lost) = (told("packets"), told("lost_packets"));
        assert!(packets > 4000, "{sum}");
        // On a busy machine, who is to take them is too slow for his own queue.
        let full = lost_datagrams(cluster.topology());
        assert!(lost <= packets / 100 + full, "{sum}, {full} by queues");
    }
}

#[test]
fn flows_outlive_the_end_of_taking_new_ones() {
    let mut cluster = cluster(1, ECHO_APPS);
    let _server = echo(&cluster, 0, "one", &[7000, 7003]);
    let socket = client(&cluster, false);
    let six = client(&cluster, true);
    let first = who(&socket, "198.51.100.10:53");
    who(&six, "[2001:db8:51::53]:53");
    // It waits for its flows, and the longest idle time is longer than it waits.
    let status = std::thread::scope(|scope| {
        let socket = &socket;
        let asking = scope.spawn(move || {
            let mut kept = 0;
            for _ in 0..10 {
                std::thread::sleep(Duration::from_millis(100));
                kept += u32::from(who(socket, "198.51.100.10:53").peer == first.peer);
            }
            kept
        });
        let status = cluster.terminate(Service::EdgeAgent, Duration::from_secs(60));
        assert_eq!(asking.join().unwrap(), 10, "the flow was not kept");
        status.unwrap()
    });
    assert_eq!(status, Some(0));
    // Then nothing listens, and the kernel says so.
    let late = client(&cluster, false);
    late.connect(at("198.51.100.10:53")).unwrap();
    late.send(b"anyone").unwrap();
    let refused = late.recv(&mut [0; 8]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let _: IpAddr = first.peer.ip();
}
