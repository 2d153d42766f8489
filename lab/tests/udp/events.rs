//! What is told of flows: while they are open, at their ends, and where there is no origin.

use std::net::UdpSocket;

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Store, eventually};
use anyport_lab::servers::Dnsmasq;
use serde_json::Value;

use super::{PREFIXES, at, client, dropped, echo, edge_metric, origin, who};

const APPS: &str = r#"
pools:
  - name: servers
    origins:
      - { name: refuses, address: "10.0.2.2:9", weight: 1.0 }
      - { name: answers, address: "10.0.2.2:7000", weight: 0.0001 }
  - name: none
    origins:
      - { name: off, address: "10.0.2.2:7000", enabled: false }
apps:
  - { name: idle,    protocol: udp/1, edge_ips: [198.51.100.10, "2001:db8:51::10"], origin_pool: servers, timeouts: { udp_idle: 1s } }
  - { name: stays,   protocol: udp/2, edge_ips: [198.51.100.10], origin_direct: ["udp://10.0.2.2:7000"] }
  - { name: refused, protocol: udp/3, edge_ips: [198.51.100.10], origin_direct: ["udp://10.0.2.2:9"] }
  - { name: none,    protocol: udp/4, edge_ips: [198.51.100.10], origin_pool: none }
  - { name: named,   protocol: udp/5, edge_ips: [198.51.100.10], origin_dns: { name: good.internal }, origin_port: 7000 }
  - { name: inside,  protocol: udp/6, edge_ips: [198.51.100.10], origin_dns: { name: inside.internal }, origin_port: 7000 }
  - { name: nothing, protocol: udp/7, edge_ips: [198.51.100.10], origin_dns: { name: nothing.internal }, origin_port: 7000 }
  - { name: itself,  protocol: udp/8, edge_ips: [198.51.100.10], origin_direct: ["udp://127.0.0.1:7420"] }
"#;

/// The events of this client of an app, once there are `count`.
fn events(cluster: &Cluster, app: &str, client: &UdpSocket, count: usize) -> Vec<Value> {
    let port = client.local_addr().unwrap().port();
    eventually(PATIENCE, "its events are told", || {
        let said = cluster.anyport(&["events", "--app", app, "-o", "json"]);
        let said = said.unwrap();
        let mut events = said.objects().unwrap();
        events.retain(|event| event["client_port"] == port);
        if events.len() == count {
            Ok(events)
        } else {
            Err(said)
        }
    })
}

fn assert_is(told: &Value, fields: &[(&str, Value)]) {
    for (field, value) in fields {
        assert_eq!(&told[*field], value, "{field} in {told}");
    }
}

anyport_lab::on_both_stores![a_flow_is_listed_while_it_is_open_and_told_of_when_it_ends];

fn a_flow_is_listed_while_it_is_open_and_told_of_when_it_ends(store: Store) {
    let cluster = Cluster::start(Plan::on(store)).unwrap();
    cluster.apply(&format!("{PREFIXES}{APPS}")).unwrap();
    let server = echo(&cluster, 0, "one", &[7000]);
    for (v6, edge_ip, client_ip) in [
        (false, "198.51.100.10", "10.0.1.2"),
        (true, "2001:db8:51::10", "fd00:1::2"),
    ] {
        let socket = client(&cluster, v6);
        let to = std::net::SocketAddr::new(edge_ip.parse().unwrap(), 1);
        let answer = who(&socket, &to.to_string());
        let bytes = answer.to_string().len();
        let open = eventually(PATIENCE, "it is listed with its bytes", || {
            who(&socket, &to.to_string());
            let said = cluster.anyport(&["connections", "--app", "idle", "-o", "json"]);
            let said = said.unwrap();
            match &said.objects().unwrap()[..] {
                [open] if open["client_bytes"] != 0 => Ok(open.clone()),
                _ => Err(said),
            }
        });
        let what_it_is = [
            ("application", "idle".into()),
            ("edge", "edge1".into()),
            ("edge_ip", edge_ip.into()),
            ("edge_port", 1.into()),
            ("client_ip", client_ip.into()),
            ("client_port", socket.local_addr().unwrap().port().into()),
            ("client_proto", "udp".into()),
            ("pool", "servers".into()),
            ("origin", "answers".into()),
            ("origin_ip", "10.0.2.2".into()),
            ("origin_port", 7000.into()),
            ("origin_proto", "udp".into()),
            ("proxy_protocol", "off".into()),
            ("config_revision", 1.into()),
        ];
        assert_is(&open, &what_it_is);
        let of_another = cluster.anyport(&["connections", "--app", "stays", "-o", "json"]);
        assert!(of_another.unwrap().objects().unwrap().is_empty());

        let told = events(&cluster, "idle", &socket, 2);
        assert_is(
            &told[0],
            &[("event", "connect".into()), ("status", 0.into())],
        );
        let ended = [("event", "disconnect"), ("reason", "idle")];
        assert_is(&told[1], &ended.map(|(field, value)| (field, value.into())));
        assert_is(&told[1], &what_it_is);
        assert_eq!(told[1]["status"], 200);
        let (sent, got) = (&told[1]["client_bytes"], &told[1]["origin_bytes"]);
        let asked = sent.as_u64().unwrap() / 4;
        assert!(asked >= 2 && *got == asked * bytes as u64, "{}", told[1]);
        assert_eq!(told[0]["connection"], told[1]["connection"]);
    }

    // Open until the app is disabled; a table names the protocol.
    let stays = client(&cluster, false);
    who(&stays, "198.51.100.10:2");
    let shown = cluster.anyport(&["connections"]).unwrap();
    let row = shown.out.lines().find(|line| line.contains("stays"));
    let row: Vec<_> = row.unwrap().split_whitespace().collect();
    assert!(
        row.contains(&"udp") && shown.out.contains("PROTOCOL"),
        "{shown}"
    );
    let disabled = APPS.replace("udp/2,", "udp/2, disable: { close: now },");
    cluster.apply(&format!("{PREFIXES}{disabled}")).unwrap();
    let told = events(&cluster, "stays", &stays, 2);
    let reason = ("reason", "the app was disabled".into());
    assert_is(&told[1], &[("status", 200.into()), reason]);

    // No origin takes it, none is there, and a client that goes away.
    let refused = client(&cluster, false);
    refused.send_to(b"x", at("198.51.100.10:3")).unwrap();
    let told = events(&cluster, "refused", &refused, 2);
    assert_is(
        &told[1],
        &[("event", "disconnect".into()), ("status", 521.into())],
    );
    assert!(
        told[1]["reason"]
            .as_str()
            .unwrap()
            .contains("port unreachable")
    );

    let none = client(&cluster, false);
    none.send_to(b"x", at("198.51.100.10:4")).unwrap();
    let told = events(&cluster, "none", &none, 1);
    assert_is(
        &told[0],
        &[("event", "originError".into()), ("status", 530.into())],
    );
    let reason = told[0]["reason"].as_str().unwrap();
    assert!(reason.contains("no origin of the pool"), "{reason}");

    drop(server);
    let late = origin(&cluster, 0).run(|| UdpSocket::bind("10.0.2.2:7000"));
    let late = late.unwrap().unwrap();
    let gone = client(&cluster, false);
    let port = gone.local_addr().unwrap().port();
    gone.send_to(b"x", at("198.51.100.10:1")).unwrap();
    let (_, peer) = late.recv_from(&mut [0; 8]).unwrap();
    drop(gone);
    late.send_to(b"who is there?", peer).unwrap();
    eventually(PATIENCE, "it ends", || {
        let said = cluster.anyport(&["events", "--app", "idle", "-o", "json"]);
        let said = said.unwrap();
        let ended = said
            .objects()
            .unwrap()
            .into_iter()
            .any(|event| event["client_port"] == port && event["status"] == 495);
        if ended { Ok(()) } else { Err(said) }
    });
}

#[test]
fn names_are_resolved_for_flows_and_what_must_not_be_spoken_to_is_not() {
    let cluster = Cluster::start(Plan {
        environment: Dnsmasq::environment(),
        ..Plan::default()
    })
    .unwrap();
    let edge = cluster.topology().edge();
    // Who would be reached, were it not refused.
    let inside = ["127.0.0.1:7000", "127.0.0.1:7420"].map(|place| {
        let socket = edge.run(|| UdpSocket::bind(place)).unwrap().unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    });
    let hosts = "10.0.2.2 good.internal\n127.0.0.1 inside.internal\n";
    let _dnsmasq = Dnsmasq::start(&cluster, hosts, &[]);
    let _server = echo(&cluster, 0, "one", &[7000]);
    cluster.apply(&format!("{PREFIXES}{APPS}")).unwrap();

    let answer = who(&client(&cluster, false), "198.51.100.10:5");
    assert_eq!(answer.local, at("10.0.2.2:7000"));
    for (app, to, event, status, reason) in [
        ("inside", "198.51.100.10:6", "originError", 532, "loopback"),
        ("itself", "198.51.100.10:8", "originError", 532, "itself"),
        (
            "nothing",
            "198.51.100.10:7",
            "resolveOrigin",
            531,
            "no name",
        ),
    ] {
        // Before the name was asked for, there is no origin either.
        let told = eventually(PATIENCE, "it is told why", || {
            let socket = client(&cluster, false);
            socket.send_to(b"x", at(to)).unwrap();
            let told = events(&cluster, app, &socket, 1);
            match told[0]["status"] == 530 {
                true => Err(told[0].clone()),
                false => Ok(told[0].clone()),
            }
        });
        assert_is(&told, &[("event", event.into()), ("status", status.into())]);
        assert!(told["reason"].as_str().unwrap().contains(reason), "{told}");
        let labels = [("app", app), ("status", &status.to_string()[..])];
        let closed = edge_metric(&cluster, "anyport_connections_closed_total", &labels);
        assert_eq!(closed, 1, "{app}");
    }
    let blocked = edge_metric(&cluster, "anyport_origins_blocked_total", &[]);
    assert_eq!(blocked, 2);
    assert!(dropped(&cluster, "no_origin") >= 3);
    for socket in inside {
        let heard = socket.recv(&mut [0; 8]).map_err(|error| error.kind());
        assert_eq!(heard, Err(std::io::ErrorKind::WouldBlock));
    }
}
