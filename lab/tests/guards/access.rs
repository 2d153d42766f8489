//! Whom access rules let in.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Store, eventually};
use anyport_lab::tls::{self, Authority};
use anyport_model::limits::Source;
use serde_json::Value;

use super::{
    CLIENTS, PREFIXES, V4, V6, address, at, cluster, datagram_echo, dial, echo, enter, events,
    filtered, metric, refused, source,
};

anyport_lab::on_both_stores![the_longest_rule_decides_who_is_let_in];

/// Rules in rules, in no order: of each family, the first clients are denied by a wide rule, the
/// next are allowed by a narrower one, and of these one address is denied again.
const NESTED: &str = r#"
      default: allow
      rules:
        - { action: deny, source: 10.0.1.13 }
        - { action: deny, source: 10.0.1.8/29 }
        - { action: allow, source: 10.0.1.12/31 }
        - { action: deny, source: "fd00:1::/48" }
        - { action: allow, source: "fd00:1:0:3::/64" }
        - { action: deny, source: "fd00:1:0:3::3" }
"#;

/// By whom a client is let in or not; the rule as it is written out.
fn decided(client: IpAddr) -> (&'static str, &'static str) {
    match client.to_string().as_str() {
        "10.0.1.10" | "10.0.1.11" => ("deny", "10.0.1.8/29"),
        "10.0.1.12" => ("allow", "10.0.1.12/31"),
        "10.0.1.13" => ("deny", "10.0.1.13/32"),
        "fd00:1:0:3::2" => ("allow", "fd00:1:0:3::/64"),
        "fd00:1:0:3::3" => ("deny", "fd00:1:0:3::3/128"),
        other if other.starts_with("fd00:1:0:") => ("deny", "fd00:1::/48"),
        other => panic!("nobody is {other}"),
    }
}

fn the_longest_rule_decides_who_is_let_in(store: Store) {
    let cluster = cluster(store);
    let (_echo, _datagrams) = (echo(&cluster), datagram_echo(&cluster));
    let app = |name: &str, transport: &str, access: &str| {
        format!(
            "  - name: {name}\n    protocol: {transport}/2001\n    edge_ips: [{V4}, \"{V6}\"]\n    \
             origin_direct: [\"{transport}://10.0.2.2:7000\"]\n    access:{access}"
        )
    };
    let apps = [app("tcp", "tcp", NESTED), app("udp", "udp", NESTED)];
    let manifest = format!("{PREFIXES}apps:\n{}", apps.concat());
    cluster.apply(&manifest).unwrap();
    let all = [V4, V6].into_iter().flat_map(|door| {
        let to = at(door, 2001);
        (0..CLIENTS).map(move |client| (address(client, to), to))
    });
    let all: BTreeSet<(IpAddr, SocketAddr)> = all.collect();
    let client = cluster.topology().client();
    let mut held = Vec::new();
    let mut denied = BTreeSet::new();
    for (from, to) in &all {
        let (action, rule) = decided(*from);
        let stream = client.run(|| enter(*from, *to)).unwrap();
        assert_eq!(stream.is_some(), action == "allow", "{from}");
        held.extend(stream.map(|stream| (*from, stream)));
        if action == "deny" {
            denied.insert(from.to_string());
        }
        let (to, from) = (format!("tcp/{to}"), from.to_string());
        let told = cluster.anyport(&["explain", &to, "--from", &from]).unwrap();
        assert_eq!(told.status, Some(i32::from(action == "deny")), "{told}");
        let says = format!("the access rule for {rule} says {action}");
        assert!(told.out.contains(&says), "{told}");
    }
    // One of each source: of a /64, of whoever came first.
    let sources: BTreeSet<Source> = denied.iter().map(|ip| source_of(ip)).collect();
    let told = filtered(&cluster, "tcp", sources.len());
    assert_eq!(told.iter().map(source).collect::<BTreeSet<_>>(), sources);
    assert_said(&told);
    assert_eq!(refused(&cluster, "tcp", "access"), denied.len() as u64);
    for event in events(&cluster, "tcp", "connect") {
        assert_eq!(
            said_of(&event),
            (0, true, "WHITELIST_IP".to_owned()),
            "{event}"
        );
    }

    // The same over UDP, where the client is not told.
    let asked: Vec<(IpAddr, UdpSocket)> = client
        .run(|| {
            let ask = |(from, to): &(IpAddr, SocketAddr)| {
                let socket = UdpSocket::bind(SocketAddr::new(*from, 0)).unwrap();
                socket.connect(to).unwrap();
                socket.send(b"x").unwrap();
                (*from, socket)
            };
            all.iter().map(ask).collect()
        })
        .unwrap();
    let dropped = || {
        let reason = [("reason", "access_denied")];
        metric(&cluster, "anyport_dropped_packets_total", &reason)
    };
    eventually(PATIENCE, "who is not let in is not heard", || {
        let dropped = dropped();
        if dropped == denied.len() as u64 {
            Ok(())
        } else {
            Err(dropped)
        }
    });
    for (from, socket) in &asked {
        let is_let_in = decided(*from).0 == "allow";
        socket.set_nonblocking(!is_let_in).unwrap();
        assert_eq!(socket.recv(&mut [0]).is_ok(), is_let_in, "{from}");
    }
    assert_eq!(refused(&cluster, "udp", "access"), denied.len() as u64);
    let told = filtered(&cluster, "udp", denied.len());
    let of: BTreeSet<String> = told.iter().map(|event| text(event, "client_ip")).collect();
    assert_eq!(of, denied);
    assert_said(&told);
    // Who goes on is told of once.
    for (_, socket) in &asked {
        socket.send(b"x").unwrap();
    }
    eventually(PATIENCE, "who goes on is not heard again", || {
        let dropped = dropped();
        if dropped == 2 * denied.len() as u64 {
            Ok(())
        } else {
            Err(dropped)
        }
    });
    filtered(&cluster, "udp", denied.len());
    for (from, socket) in &asked {
        if decided(*from).0 == "allow" {
            socket.recv(&mut [0]).unwrap();
        }
    }

    // Everyone is denied now, and those who are inside stay.
    let closed = [
        app("tcp", "tcp", " { default: deny }\n"),
        app("udp", "udp", " { default: deny }\n"),
    ];
    cluster
        .apply(&format!("{PREFIXES}apps:\n{}", closed.concat()))
        .unwrap();
    for (from, stream) in &mut held {
        stream.write_all(b"y").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        let to = stream.peer_addr().unwrap();
        assert!(client.run(|| enter(*from, to)).unwrap().is_none());
    }
    let all = (denied.len() + held.len()) as u64;
    assert_eq!(refused(&cluster, "tcp", "access"), all);
    // One of them shares its source with somebody who was told of.
    eventually(PATIENCE, "one is told of that was let in before", || {
        let told = events(&cluster, "tcp", "clientFiltered");
        let by_default = |event: &&Value| event["reason"] == "access: deny by default";
        let from: Vec<_> = told.iter().filter(by_default).map(source).collect();
        if from.contains(&source_of("10.0.1.12")) {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    });
    for (from, socket) in &asked {
        if decided(*from).0 == "allow" {
            socket.send(b"y").unwrap();
            socket.recv(&mut [0]).unwrap();
        }
    }
}

fn source_of(client: &str) -> Source {
    client.parse::<IpAddr>().unwrap().into()
}

/// The event of a client that was denied says by which rule.
fn assert_said(told: &[Value]) {
    for event in told {
        let (_, rule) = decided(text(event, "client_ip").parse().unwrap());
        let reason = format!("access: deny by the rule for {rule}");
        assert_eq!(text(event, "reason"), reason);
        assert_eq!(
            said_of(event),
            (403, true, "BLOCK_IP".to_owned()),
            "{event}"
        );
    }
}

fn text(event: &Value, field: &str) -> String {
    event[field].as_str().unwrap().to_owned()
}

/// Status, whether there are rules, and what they said.
fn said_of(event: &Value) -> (u64, bool, String) {
    (
        event["status"].as_u64().unwrap(),
        event["ip_firewall"].as_bool().unwrap(),
        text(event, "client_matched_ip_firewall"),
    )
}

#[test]
fn a_client_that_a_header_names_is_the_client() {
    let cluster = cluster(Store::Embedded);
    let _echo = echo(&cluster);
    let manifest = |denied: &str| {
        format!(
            "{PREFIXES}apps:\n  - name: behind\n    protocol: tcp/2003\n    edge_ips: [{V4}]\n    \
             origin_direct: [\"tcp://10.0.2.2:7000\"]\n    accept_proxy_protocol: [10.0.1.0/24]\n    \
             access: {{ rules: [ {{ action: deny, source: {denied} }}, \
               {{ action: deny, source: 10.0.0.0/8 }} ] }}\n    \
             limits: {{ connections_per_source: 1 }}\n"
        )
    };
    cluster.apply(&manifest("203.0.113.0/24")).unwrap();
    let claim = |client: &str, port: u16| {
        let header = format!("PROXY TCP4 {client} {V4} {port} 2003\r\n");
        let talk = || {
            let mut stream = dial(address(0, at(V4, 1)), at(V4, 2003))?;
            stream.write_all(header.as_bytes())?;
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
            std::io::Result::Ok(stream)
        };
        cluster.topology().client().run(|| talk().ok()).unwrap()
    };
    assert!(claim("203.0.113.5", 1).is_none());
    let first = claim("203.0.114.5", 2).unwrap();
    assert!(claim("203.0.114.5", 3).is_none());
    let _other = claim("203.0.114.6", 4).unwrap();
    let told = filtered(&cluster, "behind", 2);
    let told: Vec<_> = told
        .iter()
        .map(|event| {
            (
                text(event, "client_ip"),
                event["client_port"].as_u64().unwrap(),
                text(event, "reason"),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (
                "203.0.113.5".to_owned(),
                1,
                "access: deny by the rule for 203.0.113.0/24".to_owned()
            ),
            (
                "203.0.114.5".to_owned(),
                3,
                "limits.connections_per_source: 1 are open from 203.0.114.5".to_owned()
            ),
        ]
    );
    drop(first);
    eventually(PATIENCE, "there is room again", || {
        claim("203.0.114.5", 5).ok_or("there is none")
    });

    // A header may take seconds; the rules of then are asked.
    let connected = cluster
        .topology()
        .client()
        .run(|| dial(address(0, at(V4, 1)), at(V4, 2003)));
    let mut slow = connected.unwrap().unwrap();
    slow.write_all(b"PROXY TCP4 203.0.115.5 ").unwrap();
    cluster.apply(&manifest("203.0.115.0/24")).unwrap();
    slow.write_all(format!("{V4} 6 2003\r\n").as_bytes())
        .unwrap();
    let error = slow.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let reason = "access: deny by the rule for 203.0.115.0/24";
    eventually(PATIENCE, "it is told of", || {
        let told = events(&cluster, "behind", "clientFiltered");
        let found = told.iter().any(|event| event["reason"] == reason);
        if found {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    });
}

/// Until the name is known, no app's limits count a connection, and its app's rules are not known.
#[test]
fn who_says_no_name_is_turned_away_at_once_or_waits_with_few_of_its_source() {
    const MOST: usize = 64;
    let cluster = cluster(Store::Embedded);
    let authority = Authority::new("everybody");
    let server = authority.issue("a.example.com").server();
    tls::serve(&cluster, 0, 8001, Some(server), tls::echo);
    let app = |name: &str| {
        format!(
            "  - {{ name: {name}, protocol: tcp/443, edge_ips: [{V4}, \"{V6}\"], \
             origin_direct: [\"tcp://10.0.2.2:8001\"], sni: [{name}.example.com], \
             timeouts: {{ tls_handshake: 60s }}, limits: {{ connections_per_source: 3 }}, \
             access: {{ rules: [ {{ action: deny, source: 10.0.1.10 }}, \
               {{ action: deny, source: \"fd00:1:0:1::/64\" }} ] }} }}\n"
        )
    };
    let apps = [app("a"), app("b")].concat();
    cluster.apply(&format!("{PREFIXES}apps:\n{apps}")).unwrap();
    let client = cluster.topology().client();
    // Reset at once, it may be so before the connect has looked.
    let silent = |number: usize, to: SocketAddr| {
        let stream = client.run(|| dial(address(number, to), to)).unwrap();
        let stream = stream.ok()?;
        stream.set_nonblocking(true).unwrap();
        Some(stream)
    };
    let is_reset = |stream: &TcpStream| match (&*stream).read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
        other => panic!("{other:?}"),
    };
    let await_reset = |streams: &mut [Option<TcpStream>], expected: usize| {
        eventually(PATIENCE, "so many are reset", || {
            for stream in streams.iter_mut() {
                stream.take_if(|stream| is_reset(stream));
            }
            let count = streams.iter().filter(|stream| stream.is_none()).count();
            if count == expected {
                Ok(())
            } else {
                Err(count)
            }
        });
    };
    let sum = |name: &str, label: (&str, &str)| metric(&cluster, name, &[label]);
    let refused = |cause: &str| sum("anyport_connections_refused_total", ("cause", cause));

    await_reset(&mut [silent(0, at(V4, 443)), silent(1, at(V6, 443))], 2);
    assert_eq!(refused("access"), 2);

    let begun = |door: &str, count: usize| -> Vec<Option<TcpStream>> {
        (0..count).map(|_| silent(2, at(door, 443))).collect()
    };
    for (round, door) in [(1, V4), (2, V6)] {
        let mut waiting = begun(door, MOST + 6);
        await_reset(&mut waiting, 6);
        assert_eq!(refused("client_hello"), 6 * round, "{door}");
        // Others have room, and those of the source once some do not wait any more.
        let to = at(door, 443).to_string();
        let shaken = || tls::shaken(&cluster, &to, authority.client(), "a.example.com");
        let mut other = shaken().unwrap();
        other.write_all(b"x").unwrap();
        other.read_exact(&mut [0]).unwrap();
        drop(waiting);
        let ended = || sum("anyport_connections_closed_total", ("status", "443"));
        eventually(PATIENCE, "who waited is gone", || {
            let ended = ended();
            if ended == (2 * round - 1) * MOST as u64 {
                Ok(())
            } else {
                Err(ended)
            }
        });
        // As many as may are let wait, and none is reset: each ends as one that said nothing.
        drop(begun(door, MOST));
        eventually(PATIENCE, "they are gone too", || {
            let ended = ended();
            if ended == 2 * round * MOST as u64 {
                Ok(())
            } else {
                Err(ended)
            }
        });
        assert_eq!(refused("client_hello"), 6 * round, "{door}");
    }
    let told: Vec<_> = ["a", "b"]
        .into_iter()
        .flat_map(|app| events(&cluster, app, "clientFiltered"))
        .map(|event| text(&event, "reason"))
        .collect();
    for reason in [
        "access: deny by the rule for 10.0.1.10/32",
        "access: deny by the rule for fd00:1:0:1::/64",
        "64 connections from 10.0.1.11 wait for their ClientHello",
        "64 connections from fd00:1:0:2::/64 wait for their ClientHello",
    ] {
        assert_eq!(
            told.iter().filter(|said| *said == reason).count(),
            1,
            "{told:?}"
        );
    }
}

/// Two apps at one place, and one whose TLS ends at the edge, each with its own rules.
#[test]
fn where_a_name_decides_its_app_is_asked() {
    let cluster = Cluster::start(Plan::default()).unwrap();
    let authority = Authority::new("everybody");
    let names = ["a.example.com", "b.example.com"];
    for (port, name) in [(8001, names[0]), (8002, names[1])] {
        let server = authority.issue(name).server();
        tls::serve(&cluster, 0, port, Some(server), tls::echo);
    }
    tls::serve(&cluster, 0, 8003, None, tls::echo);
    let app = |name: &str, port: u16, origin: u16, more: &str| {
        format!(
            "  - {{ name: {name}, protocol: tcp/{port}, edge_ips: [{V4}], \
             origin_direct: [\"tcp://10.0.2.2:{origin}\"], {more} }}\n"
        )
    };
    let deny = "access: { rules: [ { action: deny, source: 10.0.1.2 } ] }";
    let manifest = [
        PREFIXES,
        "certificates:\n",
        &authority.issue("edge").declared(&cluster, "edge"),
        "apps:\n",
        &app("a", 443, 8001, &format!("sni: [a.example.com], {deny}")),
        &app(
            "b",
            443,
            8002,
            "sni: [b.example.com], limits: { connections: 1 }",
        ),
        &app(
            "ends",
            444,
            8003,
            &format!("tls: flexible, certificate: edge, {deny}"),
        ),
    ]
    .concat();
    cluster.apply(&manifest).unwrap();
    let enter = |port: u16, name: &str| {
        let to = at(V4, port).to_string();
        tls::shaken(&cluster, &to, authority.client(), name)
    };
    assert!(enter(443, names[0]).is_err());
    let first = enter(443, names[1]).unwrap();
    assert!(enter(443, names[1]).is_err());
    assert!(enter(444, "edge").is_err());
    for (app, reason) in [
        ("a", "access: deny by the rule for 10.0.1.2/32"),
        ("b", "limits.connections: 1 are open"),
        ("ends", "access: deny by the rule for 10.0.1.2/32"),
    ] {
        let told = filtered(&cluster, app, 1);
        assert_eq!(
            (text(&told[0], "reason").as_str(), &told[0]["status"]),
            (reason, &403.into())
        );
    }
    drop(first);
    let entered = || enter(443, names[1]).map_err(|error| error.to_string());
    eventually(PATIENCE, "there is room again", entered);
}
