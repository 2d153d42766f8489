//! Origins that see the client itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, Store, eventually};

use super::{ask, at, client, echo, edge_metric, who};

/// `each` has an origin for each of its ports, `one` the same one for all.
const APPS: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 2001:db8:51::/64
pools:
  - name: first-refuses
    policy: round_robin
    origins:
      - { name: refuses, address: "10.0.2.2:9" }
      - { name: refuses6, address: "[fd00:2::2]:9" }
      - { name: answers, address: "10.0.2.2:7000" }
      - { name: answers6, address: "[fd00:2::2]:7000" }
apps:
  - name: each
    protocol: udp/100-104
    edge_ips: [198.51.100.10, "2001:db8:51::10"]
    origin_direct: ["udp://10.0.2.2:7000-7004", "udp://[fd00:2::2]:7000-7004"]
    client_ip: transparent
    timeouts: { udp_idle: 40s }
  - name: one
    protocol: udp/200-209
    edge_ips: [198.51.100.10, "2001:db8:51::10"]
    origin_direct: ["udp://10.0.2.2:7000", "udp://[fd00:2::2]:7000"]
    client_ip: transparent
    timeouts: { udp_idle: 40s }
  - name: refused
    protocol: udp/300-399
    edge_ips: [198.51.100.10, "2001:db8:51::10"]
    origin_pool: first-refuses
    client_ip: transparent
    timeouts: { udp_idle: 40s }
  - name: plain
    protocol: udp/81
    edge_ips: [198.51.100.10, "2001:db8:51::10"]
    origin_direct: ["udp://10.0.2.2:7000", "udp://[fd00:2::2]:7000"]
    timeouts: { udp_idle: 40s }
"#;

const DOORS: [(bool, &str); 2] = [(false, "198.51.100.10"), (true, "[2001:db8:51::10]")];

/// A client's socket on a port that the edge never chooses itself.
fn client_on(cluster: &Cluster, v6: bool, port: u16) -> UdpSocket {
    let any: IpAddr = if v6 { "::" } else { "0.0.0.0" }.parse().unwrap();
    let client = cluster.topology().client();
    let socket = client.run(|| UdpSocket::bind((any, port)));
    let socket = socket.unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Who the client is to its origins.
fn own(socket: &UdpSocket) -> SocketAddr {
    let local = socket.local_addr().unwrap();
    let ip: IpAddr = if local.is_ipv6() {
        "fd00:1::2".parse().unwrap()
    } else {
        "10.0.1.2".parse().unwrap()
    };
    SocketAddr::new(ip, local.port())
}

fn is_edge(peer: SocketAddr) -> bool {
    ["10.0.2.1", "fd00:2::1"].contains(&peer.ip().to_string().as_str())
}

anyport_lab::on_both_stores![origins_see_the_address_and_the_port_of_the_client_itself];

fn origins_see_the_address_and_the_port_of_the_client_itself(store: Store) {
    let cluster = Cluster::start(Plan::on(store)).unwrap();
    assert_eq!(cluster.return_path().unwrap(), "");
    cluster.apply(APPS).unwrap();
    let _server = echo(&cluster, 0, "one", &[7000, 7001, 7002, 7003, 7004]);

    for (v6, door) in DOORS {
        // From one port to several origins at once, and again on the flows that stand.
        let socket = client_on(&cluster, v6, 20_001);
        for _ in 0..2 {
            for port in 100..105 {
                let seen = who(&socket, &format!("{door}:{port}"));
                assert_eq!((seen.peer, seen.local.port()), (own(&socket), port + 6900));
            }
        }
        // To the same origin, which could not tell two flows from one port apart.
        let shared = client_on(&cluster, v6, 20_002);
        let seen: BTreeSet<SocketAddr> = (200..210)
            .map(|port| who(&shared, &format!("{door}:{port}")).peer)
            .collect();
        assert_eq!(seen.len(), 10, "{seen:?}");
        assert!(seen.contains(&own(&shared)), "{seen:?}");
        assert!(seen.iter().all(|peer| peer.ip() == own(&shared).ip()));

        // Fragments there and back.
        for size in [1473, 9000, 65_507] {
            let datagram: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let to = at(&format!("{door}:100"));
            let (reply, from) = ask(&socket, to, &datagram);
            assert!(reply == datagram && from == to, "{size} bytes to {to}");
        }

        // ICMP errors find their way back too: one datagram each, sent once.
        for port in 300..310 {
            let socket = client_on(&cluster, v6, 20_000 + port);
            let to = at(&format!("{door}:{port}"));
            socket.send_to(b"who\n", to).unwrap();
            let mut reply = [0; 256];
            let (count, from) = socket.recv_from(&mut reply).unwrap();
            let reply = String::from_utf8_lossy(&reply[..count]);
            assert_eq!(from, to);
            assert!(reply.contains(&format!("peer={}", own(&socket))), "{reply}");
        }

        let seen = who(&client(&cluster, v6), &format!("{door}:81")).peer;
        assert!(is_edge(seen), "{seen}");

        // A port that a program of the edge's host has cannot come along; the address does.
        let edge = cluster.topology().edge();
        let any = if v6 { "[::]:7777" } else { "0.0.0.0:7777" };
        let _taken = edge.run(|| UdpSocket::bind(any)).unwrap().unwrap();
        let bound = client_on(&cluster, v6, 7777);
        let seen = who(&bound, &format!("{door}:100")).peer;
        assert_eq!(seen.ip(), own(&bound).ip());
        assert_ne!(seen.port(), 7777);
    }

    // Many at once: each has its own, and what it asked.
    let before = edge_metric(&cluster, "anyport_connections_transparent_open", &[]);
    assert_eq!(before, 2 * (5 + 10 + 10 + 1));
    let sockets: Vec<_> = (0..200)
        .map(|number| client_on(&cluster, number % 2 == 1, 21_000 + number))
        .collect();
    let target = |number: usize| format!("{}:{}", DOORS[number % 2].1, 100 + number % 5);
    for (number, socket) in sockets.iter().enumerate() {
        assert_eq!(who(socket, &target(number)).peer, own(socket));
    }
    let now = edge_metric(&cluster, "anyport_connections_transparent_open", &[]);
    assert_eq!(now, before + 200, "the test is too slow for its idle time");
    assert!(cluster.return_path().unwrap().contains("anyport_return"));

    // What is taken back leaves open flows alone, and nothing of it when they are gone.
    cluster
        .apply(&APPS.replace("client_ip: transparent", "client_ip: edge"))
        .unwrap();
    let seen = who(&client(&cluster, false), "198.51.100.10:100").peer;
    assert!(is_edge(seen), "{seen}");
    for (number, socket) in sockets.iter().enumerate() {
        assert_eq!(who(socket, &target(number)).peer, own(socket));
    }
    assert_ne!(cluster.return_path().unwrap(), "");
    eventually(PATIENCE * 3, "nothing is left of the way back", || {
        let left = cluster.return_path().unwrap();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
    let repaired = [("what", "return_path")];
    assert_eq!(
        metrics.sum("anyport_kernel_drift_repaired_total", &repaired),
        0.0
    );
    assert_eq!(
        metrics.sum("anyport_connections_closed_total", &[("status", "524")]),
        0.0,
        "flows for which there was no port"
    );
}
