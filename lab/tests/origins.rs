//! The way to the origins: names that a real dnsmasq answers for, addresses that are never dialled,
//! and the policies that need more than weights. Needs root and dnsmasq.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, eventually};
use anyport_lab::load::Who;
use anyport_lab::load::serve::{self, Mode};
use anyport_lab::servers::Dnsmasq;
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

const PREFIXES: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 2001:db8:51::/64
"#;

const SRV: [&str; 2] = [
    "--srv-host=_game._tcp.internal,one.internal,7000,10,0",
    "--srv-host=_game._tcp.internal,two.internal,7001,20,0",
];

fn cluster(origins: usize) -> Cluster {
    Cluster::start(Plan {
        origins,
        environment: Dnsmasq::environment(),
        ..Plan::default()
    })
    .unwrap()
}

fn at(target: &str) -> SocketAddr {
    target.parse().unwrap()
}

/// The tag of who answers, or why nobody does.
fn answers(cluster: &Cluster, target: &str) -> Result<String, String> {
    let who = cluster
        .who(at(target))
        .map_err(|error| format!("{error:?}"))?;
    Ok(who.tag.to_string())
}

/// Until it is this server that answers.
fn eventually_answers(cluster: &Cluster, target: &str, tag: &str) {
    eventually(
        PATIENCE,
        &format!("{tag} answers at {target}"),
        || match answers(cluster, target) {
            Ok(other) if other != tag => Err(other),
            answered => answered,
        },
    );
}

fn metric(cluster: &Cluster, name: &str, labels: &[(&str, &str)]) -> f64 {
    let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
    metrics.value(name, labels).unwrap_or_default()
}

const NAMED: &str = r#"
apps:
  - { name: a,      protocol: tcp/1001, edge_ips: [198.51.100.0/24], origin_dns: { name: one.internal, type: A },           origin_port: 7000 }
  - { name: aaaa,   protocol: tcp/1002, edge_ips: [198.51.100.0/24], origin_dns: { name: one.internal, type: AAAA },        origin_port: 7000 }
  - { name: both,   protocol: tcp/1003, edge_ips: [198.51.100.0/24], origin_dns: { name: one.internal },                    origin_port: 7000 }
  - { name: srv,    protocol: tcp/1004, edge_ips: [198.51.100.0/24], origin_dns: { name: _game._tcp.internal, type: SRV } }
  - { name: moving, protocol: tcp/1005, edge_ips: [198.51.100.0/24], origin_dns: { name: moving.internal, type: A },        origin_port: 7000 }
  - { name: range,  protocol: tcp/15000-15002, edge_ips: [198.51.100.0/24], origin_dns: { name: two.internal, type: A, ttl: 1s }, origin_port: 7000-7002 }
  - { name: half,   protocol: tcp/1006, edge_ips: [198.51.100.0/24], origin_dns: { name: half.internal, type: A },          origin_port: 7000 }
"#;

const HOSTS: &str = "\
10.0.2.2 one.internal
fd00:2::2 one.internal
10.0.2.3 two.internal
10.0.2.9 half.internal
10.0.2.3 half.internal
";

fn hosts(moving: &str) -> String {
    format!("{HOSTS}{moving} moving.internal\n")
}

#[test]
fn names_are_resolved_followed_and_outlive_their_server() {
    let cluster = cluster(2);
    let one = cluster.echo(0, "one", [7000]).unwrap();
    let _two = cluster.echo(1, "two", [7000, 7001, 7002]).unwrap();
    let mut dnsmasq = Dnsmasq::start(&cluster, &hosts("10.0.2.2"), &SRV);
    // Asked before it answers, names are waited for.
    dnsmasq.signal(Signal::SIGSTOP);
    cluster.apply(&format!("{PREFIXES}{NAMED}")).unwrap();
    let first = thread::scope(|scope| {
        let dialling = scope.spawn(|| cluster.who(at("198.51.100.1:1001")));
        eventually(PATIENCE, "the connection is there", || {
            let open = metric(&cluster, "anyport_connections_open", &[("app", "a")]);
            (open > 0.0).then_some(()).ok_or("none is open")
        });
        dnsmasq.signal(Signal::SIGCONT);
        dialling.join().unwrap().unwrap()
    });
    assert_eq!(first.local, at("10.0.2.2:7000"));

    for (target, origin) in [
        ("198.51.100.1:1002", "[fd00:2::2]:7000"),
        ("198.51.100.1:1004", "10.0.2.2:7000"),
        ("198.51.100.1:15000", "10.0.2.3:7000"),
        ("198.51.100.1:15002", "10.0.2.3:7002"),
        // The other address of the name is nobody's, and costs no connection.
        ("198.51.100.1:1006", "10.0.2.3:7000"),
    ] {
        eventually(PATIENCE, target, || match cluster.who(at(target)) {
            Ok(who) if who.local == at(origin) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    let mut families = [0; 2];
    for _ in 0..40 {
        let who = cluster.who(at("198.51.100.1:1003")).unwrap();
        families[usize::from(who.local.is_ipv6())] += 1;
    }
    assert!(families.iter().all(|count| *count > 5), "{families:?}");
    let both = [("name", "one.internal"), ("type", "A+AAAA")];
    assert_eq!(metric(&cluster, "anyport_dns_origins", &both), 2.0);

    // The first priority of SRV records, and the next one while it refuses.
    for _ in 0..5 {
        assert_eq!(answers(&cluster, "198.51.100.1:1004").unwrap(), "one");
    }
    drop(one);
    for _ in 0..5 {
        let who = cluster.who(at("198.51.100.1:1004")).unwrap();
        assert_eq!(who.local, at("10.0.2.3:7001"));
    }
    let _one = cluster.echo(0, "one", [7000]).unwrap();
    eventually_answers(&cluster, "198.51.100.1:1004", "one");

    // A record that changes moves new connections, and no other.
    eventually_answers(&cluster, "198.51.100.1:1005", "one");
    let mut old = cluster.dial(at("198.51.100.1:1005")).unwrap();
    say(&mut old, "before");
    dnsmasq.change(&hosts("10.0.2.3"));
    eventually_answers(&cluster, "198.51.100.1:1005", "two");
    say(&mut old, "after");

    // Without a name server, the last answer goes on, for as long as it takes.
    dnsmasq.stop();
    let failed = [
        ("name", "moving.internal"),
        ("type", "A"),
        ("outcome", "failed"),
    ];
    eventually(PATIENCE, "lookups fail", || {
        let count = metric(&cluster, "anyport_dns_lookups_total", &failed);
        (count > 0.0).then_some(()).ok_or("none failed")
    });
    assert_eq!(answers(&cluster, "198.51.100.1:1005").unwrap(), "two");
    let moving = [("name", "moving.internal"), ("type", "A")];
    assert_eq!(metric(&cluster, "anyport_dns_origins", &moving), 1.0);
    say(&mut old, "still");
    let told = cluster.log(Service::EdgeAgent);
    let told = told
        .lines()
        .filter(|line| line.contains("moving.internal") && line.contains("the last answer stays"));
    assert_eq!(told.count(), 1, "it is told once");

    // And is followed again when there is one.
    dnsmasq.write(&hosts("10.0.2.2"));
    dnsmasq.run();
    eventually_answers(&cluster, "198.51.100.1:1005", "one");
    say(&mut old, "to the end");
}

/// A line to an echo server and back.
fn say(stream: &mut TcpStream, word: &str) {
    writeln!(stream, "{word}").unwrap();
    let mut line = String::new();
    BufReader::new(&*stream).read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), word);
}

/// Dials, and sees how the edge turns it away.
///
/// The reset may be there before the client has seen the connection.
fn is_refused(cluster: &Cluster, target: &str) {
    let dialled = cluster.dial(at(target));
    let read = dialled.map(|mut stream| stream.read(&mut [0; 1]));
    let reset = match &read {
        Ok(Err(error)) => error.kind() == ErrorKind::ConnectionReset,
        Ok(Ok(_)) => false,
        Err(error) => format!("{error:?}").contains("Connection reset by peer"),
    };
    assert!(reset, "{target}: {read:?}");
}

/// Until the edge has counted this many connections of an app that ended so.
fn eventually_closed(cluster: &Cluster, app: &str, status: &str, count: f64) {
    eventually(PATIENCE, &format!("{app} ends with {status}"), || {
        let closed = cluster.closed(app, status).unwrap();
        (closed == count).then_some(()).ok_or(closed)
    });
}

/// Name, and what it resolves to, of each app that must not be connected.
const FORBIDDEN: [(&str, &str, &str); 8] = [
    ("loopback", "127.0.0.1", "loopback"),
    ("loopback6", "::1", "loopback"),
    ("metadata", "169.254.169.254", "metadata"),
    ("mapped", "::ffff:169.254.169.254", "metadata"),
    ("linklocal", "169.254.7.7", "link_local"),
    ("edge", "198.51.100.77", "prefix"),
    ("edge6", "2001:db8:51::77", "prefix"),
    ("nat64", "64:ff9b::127.0.0.1", "loopback"),
];

#[test]
fn what_must_not_be_dialled_is_refused_whatever_the_name_server_says() {
    let cluster = cluster(1);
    let _origin = cluster.echo(0, "origin", [7000]).unwrap();
    // What would be reached, were it not refused.
    let plan = serve::Plan {
        listen: ["127.0.0.1:7000", "[::1]:7000", "127.0.0.1:9000"]
            .map(at)
            .into(),
        mode: Mode::Echo {
            tag: Some("local".parse().unwrap()),
        },
        threads: NonZeroUsize::MIN,
    };
    let edge = cluster.topology().edge();
    let local = edge.run(|| serve::start(&plan)).unwrap().unwrap();
    let fixed: String = FORBIDDEN
        .iter()
        .map(|(name, address, _)| format!("{address} {name}.internal\n"))
        .chain(["127.0.0.1 mixed.internal\n10.0.2.2 mixed.internal\n".to_owned()])
        .collect();
    let hosts = |rebind: &str| format!("{fixed}{rebind} rebind.internal\n");
    let dnsmasq = Dnsmasq::start(&cluster, &hosts("10.0.2.2"), &SRV);

    let app = |(port, name): (usize, &str)| {
        format!(
            "  - {{ name: {name}, protocol: tcp/{}, edge_ips: [198.51.100.10], origin_dns: \
             {{ name: {name}.internal, ttl: 1s }}, origin_port: 7000 }}\n",
            2000 + port
        )
    };
    let names = FORBIDDEN.iter().map(|(name, ..)| *name);
    let names = names.chain(["mixed", "rebind", "nothing"]);
    let apps: String = names.enumerate().map(app).collect();
    let manifest = format!(
        r#"{PREFIXES}
apps:
{apps}
  - {{ name: unasked,  protocol: tcp/3000, edge_ips: [198.51.100.10], origin_dns: {{ name: elsewhere.example }}, origin_port: 7000 }}
  - {{ name: itself,   protocol: tcp/3001, edge_ips: [198.51.100.10], origin_direct: ["tcp://127.0.0.1:7420"] }}
  - {{ name: control,  protocol: tcp/3002, edge_ips: [198.51.100.10], origin_direct: ["tcp://127.0.0.1:7400"] }}
  - {{ name: declared, protocol: tcp/3003, edge_ips: [198.51.100.10], origin_direct: ["tcp://127.0.0.1:9000"] }}
  - {{ name: next,     protocol: tcp/3004, edge_ips: [198.51.100.10], origin_direct: ["tcp://127.0.0.1:7421", "tcp://10.0.2.2:7000"] }}
"#
    );
    cluster.apply(&manifest).unwrap();
    let port = |index: usize| format!("198.51.100.10:{}", 2000 + index);

    for (index, (name, _, why)) in FORBIDDEN.iter().enumerate() {
        is_refused(&cluster, &port(index));
        eventually_closed(&cluster, name, "532", 1.0);
        let labels = [("app", *name), ("why", *why)];
        let blocked = metric(&cluster, "anyport_origins_blocked_total", &labels);
        assert_eq!(blocked, 1.0, "{name}: {why}");
    }
    // Of two addresses, the right one takes all.
    for _ in 0..10 {
        assert_eq!(answers(&cluster, &port(8)).unwrap(), "origin");
        assert_eq!(answers(&cluster, "198.51.100.10:3004").unwrap(), "origin");
    }
    for (target, app, status) in [
        (port(10).as_str(), "nothing", "531"),
        ("198.51.100.10:3000", "unasked", "533"),
        ("198.51.100.10:3001", "itself", "532"),
        ("198.51.100.10:3002", "control", "532"),
    ] {
        is_refused(&cluster, target);
        eventually_closed(&cluster, app, status, 1.0);
    }
    let labels = [("app", "control"), ("why", "control_plane")];
    assert_eq!(
        metric(&cluster, "anyport_origins_blocked_total", &labels),
        1.0
    );

    // A name that was right once and is changed to lead inside.
    let rebind = port(9);
    assert_eq!(answers(&cluster, &rebind).unwrap(), "origin");
    dnsmasq.change(&hosts("127.0.0.1"));
    eventually(PATIENCE, "the changed name is refused", || {
        let refused = cluster.who(at(&rebind)).is_err();
        refused.then_some(()).ok_or("it still answers")
    });
    eventually(PATIENCE, "it is counted", || {
        let count = cluster.closed("rebind", "532").unwrap();
        (count > 0.0).then_some(()).ok_or("it is not")
    });
    assert_eq!(
        local.accepted(),
        0,
        "nobody came to what must not be reached"
    );

    // Loopback that an operator wrote down is an origin like any other.
    assert_eq!(answers(&cluster, "198.51.100.10:3003").unwrap(), "local");
}

/// Who answers a client that has this address.
fn who_from(cluster: &Cluster, client: Ipv4Addr, target: SocketAddr) -> Who {
    let dial = || -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(client.into(), 0).into())?;
        socket.connect_timeout(&target.into(), PATIENCE)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    let mut stream = cluster.topology().client().run(dial).unwrap().unwrap();
    stream.write_all(b"who\n").unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    line.parse().unwrap()
}

fn clients() -> impl Iterator<Item = Ipv4Addr> {
    (100..160).map(|host| Ipv4Addr::new(10, 0, 1, host))
}

fn pool_of(policy: &str, origins: u8) -> String {
    let origins: String = (0..origins)
        .map(|index| {
            let host = index + 2;
            format!("      - {{ name: o{index}, address: \"10.0.2.{host}:7000\" }}\n")
        })
        .collect();
    format!(
        "{PREFIXES}
pools:
  - name: pool
    policy: {policy}
    origins:
{origins}
apps:
  - {{ name: app, protocol: tcp/443, edge_ips: [198.51.100.10], origin_pool: pool }}
"
    )
}

#[test]
fn hash_gives_a_client_one_origin_on_every_edge_and_while_others_die() {
    let mut cluster = cluster(3);
    let mut servers: Vec<_> = (0..3)
        .map(|index| Some(cluster.echo(index, &format!("o{index}"), [7000]).unwrap()))
        .collect();
    for client in clients() {
        let mut ip = cluster.topology().client().command("ip");
        let address = format!("{client}/24");
        let done = ip
            .args(["address", "add", &address, "dev", "edge"])
            .status();
        assert!(done.unwrap().success());
    }
    cluster.apply(&pool_of("hash", 3)).unwrap();
    let target = at("198.51.100.10:443");
    let origins = |cluster: &Cluster| -> BTreeMap<Ipv4Addr, String> {
        let ask = |client| (client, who_from(cluster, client, target).tag.to_string());
        clients().map(ask).collect()
    };
    let first = origins(&cluster);
    let has = |tag: &str| first.values().filter(|found| *found == tag).count();
    for tag in ["o0", "o1", "o2"] {
        assert!((8..=35).contains(&has(tag)), "{tag} has {} of 60", has(tag));
    }
    assert_eq!(origins(&cluster), first, "and always the same");

    // What the command says of a client is what the edge does.
    for (client, tag) in first.iter().take(3) {
        let from = format!("--from={client}");
        let said = cluster
            .anyport(&["explain", "tcp/198.51.100.10:443", &from])
            .unwrap();
        let line = format!("{client} goes to {tag}, on every edge");
        assert!(said.out.contains(&line), "{line}: {said}");
    }

    // An edge that knows nothing of the other one's choices.
    cluster.kill9(Service::EdgeAgent).unwrap();
    cluster.restart(Service::EdgeAgent).unwrap();
    assert_eq!(origins(&cluster), first);

    servers[1] = None;
    let without = origins(&cluster);
    for (client, tag) in &first {
        match tag.as_str() {
            "o1" => assert_ne!(without[client], "o1"),
            _ => assert_eq!(without[client], *tag, "{client} moved for nothing"),
        }
    }
    let moved: Vec<&String> = clients()
        .filter(|c| first[c] == "o1")
        .map(|c| &without[&c])
        .collect();
    for tag in ["o0", "o2"] {
        assert!(
            moved.iter().any(|found| *found == tag),
            "all moved to one: {moved:?}"
        );
    }
}

/// A server that takes its time to answer.
fn slow(listener: TcpListener, delay: Duration, accepted: Arc<AtomicU64>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        accepted.fetch_add(1, Ordering::Relaxed);
        thread::spawn(move || {
            let mut asked = [0; 4];
            let whole = stream.read_exact(&mut asked).is_ok();
            thread::sleep(delay);
            let who = Who {
                tag: "slow".parse().unwrap(),
                peer: stream.peer_addr().unwrap(),
                local: stream.local_addr().unwrap(),
            };
            if whole {
                // The client may be gone.
                let _ = writeln!(stream, "{who}");
            }
        });
    }
}

#[test]
fn latency_leaves_the_slow_origin_for_the_fast() {
    let cluster = cluster(2);
    let _fast = cluster.echo(0, "fast", [7000]).unwrap();
    let accepted = Arc::new(AtomicU64::new(0));
    let origin = &cluster.topology().origins()[1];
    let address = SocketAddr::new(IpAddr::V4(origin.v4), 7000);
    let listener = origin.namespace.run(|| TcpListener::bind(address)).unwrap();
    let (listener, count) = (listener.unwrap(), Arc::clone(&accepted));
    thread::spawn(move || slow(listener, Duration::from_millis(250), count));

    // Both are there, and without the policy both get their share.
    cluster.apply(&pool_of("weighted", 2)).unwrap();
    let target = "198.51.100.10:443";
    (0..40).for_each(|_| drop(answers(&cluster, target).unwrap()));
    assert!(accepted.swap(0, Ordering::Relaxed) > 5);

    cluster.apply(&pool_of("latency", 2)).unwrap();
    // While a machine stands still, the fast one looks slow. Without the policy, it is a hundred of
    // two hundred each time.
    let mut tried = 0;
    eventually(PATIENCE * 3, "few go to the slow one", || {
        (0..200).for_each(|_| drop(answers(&cluster, target).unwrap()));
        let slow = accepted.swap(0, Ordering::Relaxed);
        tried += slow;
        (slow < 30)
            .then_some(())
            .ok_or_else(|| format!("{slow} of 200"))
    });
    assert!(tried >= 1, "it was never tried");
}
