//! How connections are spread over the origins of a pool, counted on real ones: by weight, in turn,
//! by what is open, and by the client. Needs root.
//!
//! Where the agent draws at random, counts are held to be right unless chance brings them about
//! less than once in ten million runs, with enough of them that a weight of 3 in place of 4 is
//! found. Where it does not, the same clients give the same counts each time, and a thousandth is
//! asked for.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use anyport_lab::chance::p_value;
use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, eventually};
use anyport_lab::load::Who;
use anyport_lab::load::serve::Server;
use anyport_netns::Namespace;
use socket2::{Domain, Socket, Type};

/// Of counts that a random choice brings about.
const BY_CHANCE: f64 = 1e-7;
/// Of counts that are the same each time.
const THE_SAME_EACH_TIME: f64 = 1e-3;

const TARGET: &str = "198.51.100.10:443";
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// An app that goes to a pool of origins with these weights; `None`: it is not in the pool. Who is
/// down refuses at once; who is late, on a busy machine, is not down.
fn manifest(policy: &str, weights: &[Option<f64>], monitor: &str) -> String {
    let origins = weights.iter().enumerate().filter_map(|(at, weight)| {
        let (name, host) = (NAMES[at], at + 2);
        let weight = weight.as_ref()?;
        Some(format!(
            "      - {{ name: {name}, address: \"10.0.2.{host}:7000\", weight: {weight} }}\n"
        ))
    });
    let origins: String = origins.collect();
    format!(
        r#"
prefixes:
  - cidr: 198.51.100.0/24
monitors:
  - {{ name: quick, type: tcp, interval: 200ms, timeout: 5s, consecutive_up: 1, consecutive_down: 1 }}
pools:
  - name: game
    policy: {policy}
{monitor}    origins:
{origins}apps:
  - {{ name: stream, protocol: tcp/443, edge_ips: [198.51.100.10], origin_pool: game }}
"#
    )
}

fn servers(cluster: &Cluster, origins: usize) -> Vec<Server> {
    let echo = |at: usize| cluster.echo(at, NAMES[at], [7000]).unwrap();
    (0..origins).map(echo).collect()
}

/// Three origins with weights of 1, 2 and 4, and a policy.
fn three(policy: &str) -> (Cluster, Vec<Server>) {
    let plan = Plan {
        origins: 3,
        ..Plan::default()
    };
    let cluster = Cluster::start(plan).unwrap();
    let servers = servers(&cluster, 3);
    let weights = WEIGHTS.map(Some);
    cluster.apply(&manifest(policy, &weights, "")).unwrap();
    (cluster, servers)
}

const WEIGHTS: [f64; 3] = [1.0, 2.0, 4.0];

/// Connects from an address, where that matters, and asks who answers.
fn visit(from: Option<Ipv4Addr>) -> (TcpStream, String) {
    let to: SocketAddr = TARGET.parse().unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    if let Some(from) = from {
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    }
    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (&stream).write_all(b"who\n").unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    let who: Who = line.parse().unwrap();
    (stream, who.tag.to_string())
}

/// So many connections from the client, which stay open.
fn open(cluster: &Cluster, count: usize) -> Vec<(TcpStream, String)> {
    let visits = || (0..count).map(|_| visit(None)).collect();
    cluster.topology().client().run(visits).unwrap()
}

/// Who has answered so many, one after the other.
fn answered(cluster: &Cluster, count: usize) -> Vec<u64> {
    let visits = || (0..count).map(|_| visit(None).1).collect::<Vec<_>>();
    let tags = cluster.topology().client().run(visits).unwrap();
    counts(&tags, 3)
}

fn counts<'a>(tags: impl IntoIterator<Item = &'a String>, origins: usize) -> Vec<u64> {
    let mut counts = vec![0; origins];
    for tag in tags {
        counts[NAMES.iter().position(|name| name == tag).unwrap()] += 1;
    }
    counts
}

#[test]
fn connections_are_drawn_by_weight() {
    let (cluster, _servers) = three("weighted");
    let counts = answered(&cluster, 3000);
    let p = p_value(&counts, &WEIGHTS);
    assert!(p > BY_CHANCE, "{counts:?}: {p:e}");
    let p = p_value(&counts, &[1.0; 3]);
    assert!(p < BY_CHANCE, "{counts:?}: {p:e}, and so few tell nothing");
}

#[test]
fn turns_are_exact_whichever_worker_takes_the_connection() {
    let (cluster, _servers) = three("round_robin");
    for rounds in [1, 100, 3] {
        let counts = answered(&cluster, 7 * rounds);
        let due = WEIGHTS.map(|weight| weight as u64 * rounds as u64);
        assert_eq!(counts, due);
    }
}

#[test]
fn connections_that_stay_end_up_as_the_weights_are_also_after_some_have_left() {
    let (cluster, _servers) = three("least_connections");
    let tags = |open: &[(TcpStream, String)]| counts(open.iter().map(|(_, tag)| tag), 3);
    let mut all = open(&cluster, 350);
    assert_eq!(tags(&all), [50, 100, 200]);
    // The heaviest loses all of its own, and gets them back with those that come.
    all.retain(|(_, tag)| tag != "c");
    eventually(PATIENCE, "the agent knows that they are gone", || {
        let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
        let open = metrics.value("anyport_connections_open", &[("app", "stream")]);
        (open == Some(150.0))
            .then_some(())
            .ok_or(format!("{open:?}"))
    });
    all.extend(open(&cluster, 550));
    assert_eq!(tags(&all), [100, 200, 400]);
}

/// Clients of many addresses, which are behind both edges.
const CLIENTS: u32 = 2000;

fn client(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a4d_0000 + number * 13)
}

fn ip(namespace: &Namespace, arguments: &[&str]) {
    let done = namespace.command("ip").args(arguments).status();
    assert!(done.unwrap().success(), "ip {arguments:?}");
}

/// Who answers each of the clients behind an edge.
fn by_client(cluster: &Cluster, edge: Service) -> Vec<String> {
    let visits = || {
        (0..CLIENTS)
            .map(|number| visit(Some(client(number))).1)
            .collect()
    };
    cluster.client_of(edge).run(visits).unwrap()
}

/// How many have another origin than before, by the one that they had.
fn moved(before: &[String], after: &[String]) -> BTreeMap<String, u64> {
    let mut moved = BTreeMap::new();
    for (before, after) in before.iter().zip(after) {
        if before != after {
            *moved.entry(before.clone()).or_default() += 1;
        }
    }
    moved
}

fn eventually_weighs(cluster: &Cluster, wanted: &[f64]) {
    eventually(PATIENCE, "the weights are as wanted", || {
        let metrics = cluster.metrics(Service::BalancerApart(0)).unwrap();
        let weight = |name: &&str| {
            metrics.value(
                "anyport_origin_weight",
                &[("pool", "game"), ("origin", name)],
            )
        };
        let names = NAMES[..wanted.len()].iter();
        let seen: Option<Vec<f64>> = names.map(weight).collect();
        (seen.as_deref() == Some(wanted))
            .then_some(())
            .ok_or(format!("{seen:?}"))
    });
}

#[test]
fn a_client_has_one_origin_at_every_edge_and_few_move_when_one_leaves() {
    let plan = Plan {
        origins: 4,
        balancers: 1,
        more_edges: 1,
        ..Plan::default()
    };
    let cluster = Cluster::start(plan).unwrap();
    let mut servers = servers(&cluster, 4);
    let edges = [Service::EdgeAgent, Service::EdgeApart(0)];
    for edge in edges {
        let there = ["route", "add", "local", "10.77.0.0/16", "dev", "lo"];
        ip(cluster.client_of(edge), &there);
        let back = ["route", "add", "10.77.0.0/16", "via", "10.0.1.2"];
        ip(cluster.namespace(edge), &back);
    }
    let weights = [1.0, 2.0, 3.0, 2.0];
    let declared = weights.map(Some);
    let monitored = "    monitor: quick\n";
    cluster
        .apply(&manifest("hash", &declared, monitored))
        .unwrap();
    eventually_weighs(&cluster, &weights);
    let [first, second] = edges.map(|edge| by_client(&cluster, edge));
    assert_eq!(first, second, "a client has two origins");
    let spread = counts(&first, 4);
    let p = p_value(&spread, &weights);
    assert!(p > THE_SAME_EACH_TIME, "{spread:?}: {p:e}");

    // One is down: its own clients are spread over the others, by their weights, and nobody else
    // moves.
    drop(servers.remove(1));
    eventually_weighs(&cluster, &[1.0, 0.0, 3.0, 2.0]);
    let down = by_client(&cluster, edges[0]);
    let gone = moved(&first, &down);
    assert_eq!(gone, [("b".to_owned(), spread[1])].into());
    let theirs = first.iter().zip(&down).filter(|(before, _)| *before == "b");
    let taken = counts(theirs.map(|(_, after)| after), 4);
    let p = p_value(&taken, &[1.0, 0.0, 3.0, 2.0]);
    assert!(p > THE_SAME_EACH_TIME, "{taken:?}: {p:e}");

    // It is taken out of the pool: the table is another one, and of the other clients Maglev moves
    // a few.
    let without = [Some(1.0), None, Some(3.0), Some(2.0)];
    cluster
        .apply(&manifest("hash", &without, monitored))
        .unwrap();
    let left = by_client(&cluster, edges[0]);
    let gone = moved(&first, &left);
    let others: u64 = gone
        .iter()
        .filter(|(name, _)| *name != "b")
        .map(|(_, count)| count)
        .sum();
    assert_eq!(gone.get("b"), Some(&spread[1]));
    assert!(others <= u64::from(CLIENTS) / 100, "{gone:?}");

    // Back in the pool, everybody has what they had.
    servers.push(cluster.echo(1, "b", [7000]).unwrap());
    cluster
        .apply(&manifest("hash", &declared, monitored))
        .unwrap();
    eventually_weighs(&cluster, &weights);
    for edge in edges {
        eventually(PATIENCE, "all are back", || {
            let back = moved(&first, &by_client(&cluster, edge));
            back.is_empty().then_some(()).ok_or(format!("{back:?}"))
        });
    }
}
