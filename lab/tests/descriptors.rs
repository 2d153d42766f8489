//! An agent that runs out of descriptors turns away who is new, quickly, and nothing else suffers.
//! Needs root.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::DirEntry;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroUsize;
use std::process::Command;
use std::time::{Duration, Instant};

use anyport_lab::cluster::{
    Cluster, Metrics, PATIENCE, Plan, Service, Steering, echoes, eventually,
};
use anyport_lab::load::serve::{self, Mode, Server};

const EDGE: Service = Service::EdgeAgent;

/// Ports of three apps: origins echo, send without end, and read nothing. The last is of UDP.
const ECHO: &str = "198.51.100.10:443";
const SOURCE: &str = "198.51.100.10:444";
const DEAF: &str = "198.51.100.10:445";
const FLOWS: &str = "198.51.100.10:53";

const MANIFEST: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
apps:
  - { name: echo,   protocol: tcp/443, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7000"] }
  - { name: source, protocol: tcp/444, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7001"] }
  - { name: deaf,   protocol: tcp/445, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7002"] }
  - { name: flows,  protocol: udp/53,  edge_ips: [198.51.100.10], origin_direct: ["udp://10.0.2.2:7000"] }
"#;

const BEGINS: &str = "out of descriptors";
const ENDS: &str = "new connections are taken again";

/// Who is turned away learns it in this time, also on a busy machine.
const QUICKLY: Duration = Duration::from_secs(10);

fn at(target: &str) -> SocketAddr {
    target.parse().unwrap()
}

/// A new connection that works, or none where it is reset.
fn open(cluster: &Cluster) -> Option<TcpStream> {
    let started = Instant::now();
    let dialled = cluster
        .topology()
        .client()
        .run(|| TcpStream::connect_timeout(&at(ECHO), PATIENCE));
    let opened = dialled.unwrap().and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        echoes(&mut stream)?;
        Ok(stream)
    });
    match opened {
        Ok(stream) => Some(stream),
        Err(error) => {
            let reset = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
            assert!(reset.contains(&error.kind()), "{error}");
            let after = started.elapsed();
            assert!(after < QUICKLY, "reset after {after:?}");
            None
        }
    }
}

/// Opens connections until one is reset.
fn fill(cluster: &Cluster) -> Vec<TcpStream> {
    std::iter::from_fn(|| open(cluster)).collect()
}

fn metrics(cluster: &Cluster) -> Metrics {
    cluster.metrics(EDGE).unwrap()
}

fn shed(cluster: &Cluster, reason: &str) -> f64 {
    let name = "anyport_connections_shed_total";
    metrics(cluster).value(name, &[("reason", reason)]).unwrap()
}

fn used(cluster: &Cluster) -> f64 {
    metrics(cluster)
        .value("anyport_descriptors_used", &[])
        .unwrap()
}

/// Connections that there are descriptors for. What an agent had open at its
/// start is not among them, and may be one more or less.
fn room(cluster: &Cluster) -> usize {
    let limit = metrics(cluster).value("anyport_descriptors_limit", &[]);
    limit.unwrap() as usize / 2
}

fn says(cluster: &Cluster, text: &str) -> usize {
    cluster.log(EDGE).matches(text).count()
}

struct Stage {
    cluster: Cluster,
    deaf: TcpListener,
    _servers: [Server; 2],
}

impl Stage {
    fn start(open_files: u64, steering: Steering) -> Self {
        let cluster = Cluster::start(Plan {
            open_files: Some(open_files),
            steering,
            ..Plan::default()
        })
        .unwrap();
        let origin = &cluster.topology().origins()[0].namespace;
        let serve = |port, mode| {
            let plan = serve::Plan {
                listen: vec![SocketAddr::new("10.0.2.2".parse().unwrap(), port)],
                mode,
                threads: NonZeroUsize::MIN,
            };
            origin.run(|| serve::start(&plan)).unwrap().unwrap()
        };
        let servers = [
            serve(7000, Mode::Echo { tag: None }),
            serve(7001, Mode::Source),
        ];
        let deaf = origin
            .run(|| TcpListener::bind("10.0.2.2:7002"))
            .unwrap()
            .unwrap();
        cluster.apply(MANIFEST).unwrap();
        Self {
            cluster,
            deaf,
            _servers: servers,
        }
    }
}

/// A client that is sent more than it reads, and an origin that is sent more than it reads, with
/// the number of bytes that were.
struct SlowReaders {
    client: TcpStream,
    sender: TcpStream,
    origin: TcpStream,
    sent: usize,
}

impl SlowReaders {
    fn start(stage: &Stage) -> Self {
        let client = stage.cluster.dial(at(SOURCE)).unwrap();
        let mut sender = stage.cluster.dial(at(DEAF)).unwrap();
        let (origin, _) = stage.deaf.accept().unwrap();
        origin.set_read_timeout(Some(PATIENCE)).unwrap();
        sender.set_nonblocking(true).unwrap();
        let (mut sent, mut since) = (0, Instant::now());
        while since.elapsed() < Duration::from_secs(1) {
            match sender.write(&[7; 1 << 16]) {
                Ok(count) => (sent, since) = (sent + count, Instant::now()),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Self {
            client,
            sender,
            origin,
            sent,
        }
    }

    /// What was kept back is all there.
    fn read_on(mut self) {
        let mut some = vec![0; 4 << 20];
        self.client.read_exact(&mut some).unwrap();
        drop(self.sender);
        let mut rest = Vec::new();
        self.origin.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), self.sent);
    }
}

/// Everything by which an operator keeps the edge in hand.
fn is_in_hand(cluster: &Cluster, open: usize) {
    let app = format!("tcp/{ECHO}");
    let commands = [&["status"][..], &["explain", &app], &["connections"]];
    for command in commands {
        let said = cluster.anyport(command).unwrap();
        assert_eq!(said.status, Some(0), "{command:?}: {said}");
        if command == ["connections"] {
            assert!(said.out.lines().count() > open, "{said}");
        }
    }
    cluster.apply(MANIFEST).unwrap();
    let another = MANIFEST.replace("tcp/445", "tcp/446");
    cluster.apply(&another).unwrap();
    cluster.apply(MANIFEST).unwrap();
}

fn answered(socket: &UdpSocket) -> bool {
    socket.send(b"x").unwrap();
    socket.recv(&mut [0; 8]).is_ok()
}

fn who_is_new_is_reset_and_nothing_else_suffers(limit: u64, steering: Steering) {
    let stage = Stage::start(limit, steering);
    let cluster = &stage.cluster;
    let slow = SlowReaders::start(&stage);
    let mut held = fill(cluster);
    // To the last of them: two are of the slow ones.
    let room = room(cluster);
    assert_eq!(held.len() + 2, room);
    assert_eq!(used(cluster), (2 * room) as f64);
    for _ in 0..20 {
        assert!(open(cluster).is_none());
    }
    eventually(PATIENCE, "all of them are counted", || {
        let shed = shed(cluster, "descriptors");
        (shed == 21.0).then_some(()).ok_or(shed)
    });
    held.iter_mut().for_each(|stream| echoes(stream).unwrap());
    let datagrams = cluster.topology().client().run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(FLOWS).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        socket
    });
    let datagrams = datagrams.unwrap();
    assert!(!answered(&datagrams));
    let dropped = "anyport_dropped_packets_total";
    eventually(PATIENCE, "the datagram is counted", || {
        let dropped = metrics(cluster).value(dropped, &[("reason", "descriptors")]);
        (dropped == Some(1.0))
            .then_some(())
            .ok_or_else(|| format!("{dropped:?}"))
    });
    is_in_hand(cluster, held.len());
    let ready = cluster.get(EDGE, "/readyz").unwrap();
    assert!(
        ready.starts_with("ready\ndescriptors: new connections are reset"),
        "{ready}"
    );
    assert_eq!((says(cluster, BEGINS), says(cluster, ENDS)), (1, 0));

    // One at a time, whoever leaves makes room for the next.
    for _ in 0..10 {
        drop(held.pop());
        eventually(PATIENCE, "there is room", || {
            open(cluster).map(|stream| held.push(stream)).ok_or("")
        });
    }
    slow.read_on();
    held.iter_mut().for_each(|stream| echoes(stream).unwrap());
    held.clear();
    eventually(PATIENCE, "all is given back", || {
        let used = used(cluster);
        (used == 0.0).then_some(()).ok_or(used)
    });
    assert!(open(cluster).is_some());
    eventually(PATIENCE, "it is said that it is over", || {
        let said = (says(cluster, BEGINS), says(cluster, ENDS));
        // While one after the other left, it may have been over once for a moment.
        let over = said.0 == said.1 && (1..=2).contains(&said.0);
        over.then_some(()).ok_or(format!("{said:?}"))
    });
    eventually(PATIENCE, "there is nothing to remark", || {
        let ready = cluster.get(EDGE, "/readyz").unwrap();
        (ready.trim() == "ready").then_some(()).ok_or(ready)
    });
}

#[test]
fn who_is_new_is_reset_where_descriptors_are_few_by_tproxy() {
    who_is_new_is_reset_and_nothing_else_suffers(400, Steering::Tproxy);
}

#[test]
fn who_is_new_is_reset_where_descriptors_are_few_by_sk_lookup() {
    who_is_new_is_reset_and_nothing_else_suffers(400, Steering::SkLookup);
}

/// With flows of UDP, connections that are opened and closed by many at once, and every way to be
/// turned away: what is counted is what is open.
#[test]
fn the_count_is_exact_whatever_happens() {
    let stage = Stage::start(400, Steering::Tproxy);
    let cluster = &stage.cluster;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..15 {
                    let held: Vec<_> = (0..40).filter_map(|_| open(cluster)).collect();
                    let _silent = cluster.dial(at(SOURCE));
                    let refused = cluster.dial(at(FLOWS));
                    assert!(refused.is_err(), "no TCP there");
                    if round % 2 == 0 {
                        held.iter().for_each(|stream| {
                            socket2::SockRef::from(stream)
                                .set_linger(Some(Duration::ZERO))
                                .unwrap();
                        });
                    }
                }
            });
        }
    });
    eventually(PATIENCE, "all is given back", || {
        let used = used(cluster);
        (used == 0.0).then_some(()).ok_or(used)
    });
    assert_eq!(fill(cluster).len(), room(cluster));
}

/// What a hand-over needs is in the reserve, and the next agent has descriptors of its own.
#[test]
fn an_agent_that_is_full_can_be_upgraded() {
    let mut stage = Stage::start(400, Steering::SkLookup);
    let mut held = fill(&stage.cluster);
    let successor = stage.cluster.spawn_beside(EDGE).unwrap();
    eventually(PATIENCE, "it takes over", || {
        let taken = says(&stage.cluster, "has taken over");
        (taken == 1).then_some(()).ok_or(taken)
    });
    let mut full = stage.cluster.succeed(successor).unwrap();
    let mut more = fill(&stage.cluster);
    assert_eq!(more.len(), room(&stage.cluster));
    let all = held.iter_mut().chain(&mut more);
    all.for_each(|stream| echoes(stream).unwrap());
    drop(held);
    assert_eq!(full.end_within(PATIENCE).unwrap(), Some(0));
}

/// Processor time of a process, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The limit is lowered under the agent, which cannot know: the system refuses what its own count
/// would have.
#[test]
fn who_is_new_is_reset_although_there_is_no_descriptor_to_accept_with() {
    let stage = Stage::start(1000, Steering::Tproxy);
    let cluster = &stage.cluster;
    let pid = cluster.pid(EDGE).unwrap();
    let mut held: Vec<_> = (0..20).map(|_| open(cluster).unwrap()).collect();
    let numbers = || -> BTreeSet<u64> {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let name = |entry: std::io::Result<DirEntry>| entry.unwrap().file_name();
        descriptors
            .map(|entry| name(entry).to_str().unwrap().parse().unwrap())
            .collect()
    };
    // None from this number on.
    let limit_to = |limit: u64| {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &pid.to_string(), &format!("--nofile={limit}:1000")]);
        assert!(prlimit.status().unwrap().success());
    };
    limit_to(numbers().last().unwrap() + 1);
    held.extend(fill(cluster));
    for _ in 0..20 {
        assert!(open(cluster).is_none());
    }
    eventually(
        PATIENCE,
        "connections are accepted with the spare descriptor",
        || {
            // With one left, it would be the dial that fails.
            let taken = numbers();
            limit_to((0..).find(|number| !taken.contains(number)).unwrap());
            assert!(open(cluster).is_none());
            let said = says(cluster, BEGINS);
            (said > 0).then_some(()).ok_or(said)
        },
    );
    let before = ticks(pid);
    std::thread::sleep(Duration::from_secs(2));
    let spent = ticks(pid) - before;
    assert!(spent < 60, "{spent} ticks of 200 while nothing happens");
    held.iter_mut().for_each(|stream| echoes(stream).unwrap());
    held.clear();
    eventually(PATIENCE, "new connections are taken", || {
        open(cluster).map(drop).ok_or("")
    });
    assert!(shed(cluster, "system") > 0.0);
    eventually(PATIENCE, "it is said that it is over", || {
        let said = (says(cluster, BEGINS), says(cluster, ENDS));
        (said.0 == said.1).then_some(()).ok_or(format!("{said:?}"))
    });
}

/// As many as this machine lets a process have.
#[test]
fn who_is_new_is_reset_where_descriptors_are_many() {
    // This process holds both other ends of what the agent holds, and a little.
    let (limit, _) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    who_is_new_is_reset_and_nothing_else_suffers(limit.min(20_000), Steering::SkLookup);
}
