//! Whom an app lets in, and how much of it each may have: access rules, limits and deadlines, over
//! TCP and UDP, from several sources at once. Needs root.

#![allow(clippy::unwrap_used)]

#[path = "guards/access.rs"]
mod access;
#[path = "guards/deadlines.rs"]
mod deadlines;
#[path = "guards/pace.rs"]
mod pace;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::num::NonZeroUsize;
use std::sync::Barrier;
use std::time::Instant;

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, Store, eventually};
use anyport_lab::load::serve::datagram;
use anyport_model::limits::Source;
use anyport_netns::{link, route, topology};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

/// Clients of their own addresses, two of each source: over IPv4 one address, over IPv6 two of a
/// /64.
const CLIENTS: usize = 8;
const SOURCES: usize = CLIENTS / 2;

/// What each tries to open.
const ATTEMPTS: usize = 6;

const V4: &str = "198.51.100.10";
const V6: &str = "2001:db8:51::10";

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// The address of a client of the door's family.
fn address(client: usize, door: SocketAddr) -> IpAddr {
    let source = client / 2;
    match door {
        SocketAddr::V4(_) => IpAddr::from([10, 0, 1, 10 + source as u8]),
        SocketAddr::V6(_) => {
            let (source, host) = (source as u16 + 1, client as u16 % 2 + 2);
            Ipv6Addr::new(0xfd00, 1, 0, source, 0, 0, 0, host).into()
        }
    }
}

/// A cluster whose client has all of these addresses, and an echo at the origin.
fn cluster(store: Store) -> Cluster {
    let plan = Plan {
        workers: NonZeroUsize::new(4).unwrap(),
        ..Plan::on(store)
    };
    let cluster = Cluster::start(plan).unwrap();
    let (client, edge) = (cluster.topology().client(), cluster.topology().edge());
    for number in 0..CLIENTS {
        let v6 = address(number, at(V6, 1));
        link::add_address(client, "lo", v6.into()).unwrap();
        if number % 2 == 0 {
            let v4 = address(number, at(V4, 1));
            let net = ipnet::IpNet::new(v4, 24).unwrap();
            link::add_address(client, topology::EDGE_LINK, net).unwrap();
            let net = ipnet::IpNet::new(v6, 64).unwrap();
            let gateway = route::NextHop::Gateway(topology::CLIENT_V6.into());
            route::add(edge, net, gateway).unwrap();
        }
    }
    cluster
}

fn echo(cluster: &Cluster) -> anyport_lab::load::serve::Server {
    cluster.echo(0, "one", [7000]).unwrap()
}

fn datagram_echo(cluster: &Cluster) -> datagram::Server {
    cluster.echo_datagrams(0, "one", [7000]).unwrap()
}

/// A connection from an address of the client's.
fn dial(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One that was let in, as an echo shows; `None`: it was reset.
fn enter(from: IpAddr, to: SocketAddr) -> Option<TcpStream> {
    let talk = || {
        let mut stream = dial(from, to)?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        Ok(stream)
    };
    match talk() {
        Ok(stream) => Some(stream),
        Err::<_, io::Error>(error) => {
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                "{to} from {from}: {error}"
            );
            None
        }
    }
}

fn enter_in(cluster: &Cluster, from: &str, to: SocketAddr) -> Option<TcpStream> {
    let from = from.parse().unwrap();
    let client = cluster.topology().client();
    client.run(|| enter(from, to)).unwrap()
}

/// All clients at once, each from its own thread: what each got of `open`.
fn all_at_once<T: Send>(
    cluster: &Cluster,
    door: SocketAddr,
    open: impl Fn(IpAddr) -> Option<T> + Sync,
) -> BTreeMap<usize, Vec<T>> {
    let start = Barrier::new(CLIENTS);
    let one = |number: usize| {
        start.wait();
        let from = address(number, door);
        (0..ATTEMPTS).filter_map(|_| open(from)).collect::<Vec<T>>()
    };
    let mut by_source: BTreeMap<usize, Vec<T>> = BTreeMap::new();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let one = &one;
                let namespace = cluster.topology().client();
                scope.spawn(move || namespace.run(|| one(number)).unwrap())
            })
            .collect();
        for (number, client) in clients.into_iter().enumerate() {
            by_source
                .entry(number / 2)
                .or_default()
                .extend(client.join().unwrap());
        }
    });
    by_source
}

fn metric(cluster: &Cluster, name: &str, labels: &[(&str, &str)]) -> u64 {
    let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
    metrics.sum(name, labels) as u64
}

fn refused(cluster: &Cluster, app: &str, cause: &str) -> u64 {
    let labels = [("app", app), ("cause", cause)];
    metric(cluster, "anyport_connections_refused_total", &labels)
}

fn open(cluster: &Cluster, app: &str) -> u64 {
    metric(cluster, "anyport_connections_open", &[("app", app)])
}

fn all_are_gone(cluster: &Cluster, app: &str) {
    eventually(PATIENCE * 2, "all are gone", || match open(cluster, app) {
        0 => Ok(()),
        open => Err(format!("{open} open")),
    });
}

/// The events of an app of one kind.
fn events(cluster: &Cluster, app: &str, kind: &str) -> Vec<Value> {
    let said = cluster
        .anyport(&["events", "--app", app, "-o", "json"])
        .unwrap();
    assert_eq!(said.status, Some(0), "{said}");
    let events = said
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    events
        .filter(|event: &Value| event["event"] == kind)
        .collect()
}

/// Those that say who was turned away, once there are `count`: over TCP, one of each source in a
/// minute.
fn filtered(cluster: &Cluster, app: &str, count: usize) -> Vec<Value> {
    eventually(PATIENCE, "who was turned away is in the event log", || {
        let events = events(cluster, app, "clientFiltered");
        if events.len() == count {
            Ok(events)
        } else {
            Err(format!("{events:?}"))
        }
    })
}

const PREFIXES: &str = "
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 2001:db8:51::/64
";

/// Apps for a transport: one for each limit.
fn limited(transport: &str, connections: u32, of_source: u32) -> String {
    let app = |name: &str, port: u16, limit: &str, value: u32| {
        format!(
            "  - {{ name: {transport}-{name}, protocol: {transport}/{port}, edge_ips: [{V4}, \"{V6}\"], \
             origin_direct: [\"{transport}://10.0.2.2:7000\"], limits: {{ {limit}: {value} }}, \
             timeouts: {{ udp_idle: 10s }} }}\n"
        )
    };
    [
        app("all", 1001, "connections", connections),
        app("source", 1002, "connections_per_source", of_source),
        app("new", 1003, "new_connections_per_source", 2),
    ]
    .concat()
}

anyport_lab::on_both_stores![
    as_many_connections_are_let_in_as_each_limit_says,
    as_many_flows_are_let_in_as_each_limit_says,
];

fn as_many_connections_are_let_in_as_each_limit_says(store: Store) {
    let cluster = cluster(store);
    let _echo = echo(&cluster);
    let apply = |connections, of_source| {
        let apps = limited("tcp", connections, of_source);
        let manifest = format!("{PREFIXES}apps:\n{apps}");
        cluster.apply(&manifest).unwrap();
        manifest
    };
    apply(20, 3);
    let mut turned_away = BTreeMap::new();
    for door in [V4, V6] {
        let run = |port| {
            let to = at(door, port);
            all_at_once(&cluster, to, |from| enter(from, to))
        };
        let mut note = |app: &'static str, cause, inside: usize| {
            let known = turned_away.entry(app).or_insert((cause, 0));
            known.1 += CLIENTS * ATTEMPTS - inside;
        };

        let inside = run(1001);
        let count: usize = inside.values().map(Vec::len).sum();
        assert_eq!(count, 20, "{door}");
        note("tcp-all", "connections", 20);
        assert_eq!(open(&cluster, "tcp-all"), 20);
        drop(inside);
        all_are_gone(&cluster, "tcp-all");

        let inside = run(1002);
        let counts: Vec<usize> = inside.values().map(Vec::len).collect();
        assert_eq!(counts, [3; SOURCES], "{door}");
        note("tcp-source", "connections_per_source", 3 * SOURCES);
        drop(inside);
        all_are_gone(&cluster, "tcp-source");

        // Those that have ended count too; as time passes there may be one or two more.
        let start = Instant::now();
        let inside = run(1003);
        let more = start.elapsed().as_secs_f64() * 2.0;
        let counts: Vec<usize> = inside.values().map(Vec::len).collect();
        for count in &counts {
            let most = 2 + more.floor() as usize;
            assert!(
                (2..=most).contains(count),
                "{door}: {counts:?} in {more} halves"
            );
        }
        note("tcp-new", "new_connections_per_source", counts.iter().sum());
    }
    for (app, (cause, count)) in &turned_away {
        let told = events(&cluster, app, "clientFiltered");
        assert_said(&told, cause);
        let of = told.iter().map(source).collect::<BTreeSet<Source>>();
        assert_eq!(of.len(), told.len(), "{app}: one is told of twice");
        // Of what an app has in all, one source may have got as much as it wanted.
        let least = 2 * (SOURCES - usize::from(*cause == "connections"));
        assert!(
            (least..=2 * SOURCES).contains(&told.len()),
            "{app}: {told:?}"
        );
        assert_eq!(refused(&cluster, app, cause), *count as u64, "{app}");
        let status = [("app", *app), ("status", "403")];
        let closed = metric(&cluster, "anyport_connections_closed_total", &status);
        assert_eq!(closed, *count as u64, "{app}");
    }

    // What is open counts on over a change of the limits, and stays.
    let (all, source) = (at(V4, 1001), at(V4, 1002));
    let mut held: Vec<TcpStream> = all_at_once(&cluster, all, |from| enter(from, all))
        .into_values()
        .flatten()
        .collect();
    let of_source = all_at_once(&cluster, source, |from| enter(from, source));
    assert_eq!(held.len(), 20);
    apply(10, 4);
    let from = address(0, all).to_string();
    assert!(enter_in(&cluster, &from, all).is_none());
    for stream in &mut held {
        stream.write_all(b"y").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    let more = all_at_once(&cluster, source, |from| enter(from, source));
    let counts: Vec<usize> = more.values().map(Vec::len).collect();
    assert_eq!(
        counts, [1; SOURCES],
        "one each beside the three that were open before"
    );
    drop((of_source, more));
    held.truncate(7);
    eventually(PATIENCE, "thirteen are gone", || {
        match open(&cluster, "tcp-all") {
            7 => Ok(()),
            open => Err(format!("{open} open")),
        }
    });
    let more = all_at_once(&cluster, all, |from| enter(from, all));
    let mut more: Vec<TcpStream> = more.into_values().flatten().collect();
    assert_eq!(more.len(), 3);

    // As they do where the app is deleted, and declared again.
    let pruned = cluster
        .try_apply(
            PREFIXES,
            &["--prune", "--allow-mass-deletion", "--wait=60s"],
        )
        .unwrap();
    assert_eq!(pruned.status, Some(0), "{pruned}");
    let manifest = apply(12, 3);
    let entered = all_at_once(&cluster, all, |from| enter(from, all));
    more.extend(entered.into_values().flatten());
    assert_eq!(held.len() + more.len(), 12);

    // Those that the edge itself closes no longer count.
    let disabled = manifest.replace("limits:", "disable: { close: now }, limits:");
    cluster.apply(&disabled).unwrap();
    all_are_gone(&cluster, "tcp-all");
    apply(20, 3);
    let again = all_at_once(&cluster, all, |from| enter(from, all));
    assert_eq!(again.into_values().flatten().count(), 20);
    drop((held, more));
    assert!(
        !cluster.log(Service::EdgeAgent).contains("limits."),
        "the log is flooded"
    );
}

/// Where an event says that the client is.
fn source(event: &Value) -> Source {
    let client: IpAddr = event["client_ip"].as_str().unwrap().parse().unwrap();
    client.into()
}

/// Events of clients that were turned away say why.
fn assert_said(told: &[Value], cause: &str) {
    for event in told {
        let reason = event["reason"].as_str().unwrap();
        assert!(reason.starts_with(&format!("limits.{cause}: ")), "{event}");
        assert_eq!(
            (&event["status"], &event["ip_firewall"]),
            (&403.into(), &false.into())
        );
        assert_eq!(event["origin_ip"], "", "{event}");
    }
}

fn as_many_flows_are_let_in_as_each_limit_says(store: Store) {
    let cluster = cluster(store);
    let _echo = datagram_echo(&cluster);
    let apps = limited("udp", 20, 3);
    cluster.apply(&format!("{PREFIXES}apps:\n{apps}")).unwrap();
    let mut turned_away: BTreeMap<&str, usize> = BTreeMap::new();
    // Over IPv6 there is room again, since those of IPv4 have ended by then.
    for door in [V4, V6] {
        let mut inside = |app: &'static str, port: u16, cause: &str| {
            let before = turned_away.entry(app).or_default();
            let counts = flows(&cluster, app, at(door, port), *before);
            *before += CLIENTS * ATTEMPTS - counts.iter().sum::<usize>();
            assert_said(&filtered(&cluster, app, *before), cause);
            let count = *before as u64;
            eventually(PATIENCE, "all that was turned away is counted", || {
                let (reason, metrics) = (
                    format!("limit_{cause}"),
                    cluster.metrics(Service::EdgeAgent),
                );
                let of = |name, labels: &[(&str, &str)]| {
                    metrics.as_ref().unwrap().sum(name, labels) as u64
                };
                let counts = [
                    of("anyport_dropped_packets_total", &[("reason", &reason)]),
                    of(
                        "anyport_connections_refused_total",
                        &[("app", app), ("cause", cause)],
                    ),
                    of(
                        "anyport_connections_closed_total",
                        &[("app", app), ("status", "403")],
                    ),
                ];
                if counts == [count; 3] {
                    Ok(())
                } else {
                    Err(format!("{counts:?}"))
                }
            });
            counts
        };
        let counts = inside("udp-all", 1001, "connections");
        assert_eq!(counts.iter().sum::<usize>(), 20, "{door}");
        let counts = inside("udp-source", 1002, "connections_per_source");
        assert_eq!(counts, [3; SOURCES], "{door}");
        let start = Instant::now();
        let counts = inside("udp-new", 1003, "new_connections_per_source");
        let more = start.elapsed().as_secs_f64() * 2.0;
        let most = 2 + more.floor() as usize;
        let each = counts.iter().all(|count| (2..=most).contains(count));
        assert!(each, "{door}: {counts:?} in {more} halves");
        for app in ["udp-all", "udp-source", "udp-new"] {
            all_are_gone(&cluster, app);
        }
    }
}

/// Each client begins its flows, and those of each source are counted that get their answer. Of
/// the app's, so many were turned `away` before.
fn flows(cluster: &Cluster, app: &str, to: SocketAddr, away: usize) -> Vec<usize> {
    let before = events(cluster, app, "connect").len();
    let sockets = all_at_once(cluster, to, |from| {
        let socket = UdpSocket::bind(SocketAddr::new(from, 0)).unwrap();
        socket.connect(to).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.send(b"x").unwrap();
        Some(socket)
    });
    let inside = eventually(PATIENCE, "each is let in or turned away", || {
        let inside = events(cluster, app, "connect").len() - before;
        let away = events(cluster, app, "clientFiltered").len() - away;
        if inside + away == CLIENTS * ATTEMPTS {
            Ok(inside)
        } else {
            Err(format!("{inside} inside, {away} turned away"))
        }
    });
    let mut heard = vec![0; SOURCES];
    eventually(PATIENCE, "all answers are there", || {
        for (source, sockets) in &sockets {
            let answers = sockets
                .iter()
                .filter(|socket| socket.recv(&mut [0]).is_ok());
            heard[*source] += answers.count();
        }
        match heard.iter().sum::<usize>() {
            all if all == inside => Ok(()),
            all => Err(format!("{all} of {inside}")),
        }
    });
    heard
}
