//! An agent is upgraded, drained, reconfigured and told to close, and nobody is cut off but who
//! should be. Needs root.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyport_lab::cluster::{self, Beside, Cluster, PATIENCE, Plan, Service, Steering, eventually};
use anyport_lab::load::connect::{self, Close, Request};
use anyport_lab::load::{Control, Load, Report, RunError, datagram as flows, pingpong};
use anyport_lab::network::lost_datagrams;
use nix::sys::signal::Signal;
use socket2::{Domain, SockAddr, Socket, Type};

const EDGE: Service = Service::EdgeAgent;

/// A port of the app `held`, one of the app `new`, and one of the app `flows`.
const HELD: &str = "198.51.100.10:443";
const NEW: &str = "198.51.100.10:80";
const FLOWS: &str = "198.51.100.10:53";

/// Starting an agent takes a moment, and a loaded machine several.
const LONG: Duration = Duration::from_secs(60);

fn at(target: &str) -> SocketAddr {
    target.parse().unwrap()
}

/// The apps `held` and `new`; `extra` is what else `held` says.
fn manifest(extra: &str) -> String {
    format!(
        r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 203.0.113.0/24
apps:
  - {{ name: held, protocol: tcp/443, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7000"], {extra} }}
  - {{ name: new, protocol: tcp/80, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7000"] }}
  - {{ name: flows, protocol: udp/53, edge_ips: [198.51.100.10], origin_direct: ["udp://10.0.2.2:7000"], timeouts: {{ drain: 10m, udp_idle: 20s }} }}
"#
    )
}

fn cluster() -> Cluster {
    Cluster::start(Plan::default()).unwrap()
}

type Run = JoinHandle<anyport_netns::Result<Result<Report, RunError>>>;

/// Conversations that last, and new connections without end.
struct Traffic {
    streams: Vec<(Control, Run)>,
    flows: Vec<(Control, Run)>,
    /// Datagrams that queues of the kernel had lost before it began.
    lost_before: u64,
}

impl Traffic {
    fn start(cluster: &Cluster, held: usize, pause: Duration) -> Self {
        let client = cluster.topology().client();
        let load = |target, count, control: &Control| Load {
            connections: NonZeroUsize::new(count).unwrap(),
            duration: Duration::from_secs(600),
            timeout: LONG,
            control: control.clone(),
            ..Load::on(at(target))
        };
        let conversations = Control::default();
        let plan = pingpong::Plan {
            load: load(HELD, held, &conversations),
            bytes: NonZeroU64::new(100).unwrap(),
            pause,
        };
        let run = client.spawn_thread(move || pingpong::run(&plan)).unwrap();
        let opened = conversations.clone();
        let mut runs = vec![(conversations, run)];
        eventually(LONG, "all conversations are open", || {
            let opened = opened.opened();
            (opened == held as u64).then_some(()).ok_or(opened)
        });
        let arrivals = Control::default();
        let plan = connect::Plan {
            load: load(NEW, 2, &arrivals),
            request: Request::Echo(NonZeroU64::new(100).unwrap()),
            close: Close::Reset,
        };
        let run = client.spawn_thread(move || connect::run(&plan)).unwrap();
        runs.push((arrivals, run));
        let traffic = Self {
            streams: runs,
            flows: Vec::new(),
            lost_before: lost_datagrams(cluster.topology()),
        };
        traffic.passes();
        traffic
    }

    /// Flows of UDP besides, of which every request has to be answered on its own flow, but for what
    /// a full queue of the kernel loses.
    /// They begin little by little: an edge bounds how many flows of one source may wait for a first
    /// reply.
    fn with_flows(mut self, cluster: &Cluster, count: usize) -> Self {
        const AT_ONCE: usize = 100;
        for _ in 0..count / AT_ONCE {
            let control = Control::default();
            let plan = flows::Plan {
                load: Load {
                    connections: NonZeroUsize::new(AT_ONCE).unwrap(),
                    duration: Duration::from_secs(600),
                    timeout: PATIENCE / 2,
                    control: control.clone(),
                    ..Load::on(at(FLOWS))
                },
                bytes: NonZeroU64::new(100).unwrap(),
                pause: Duration::from_secs(2),
            };
            let client = cluster.topology().client();
            let run = client.spawn_thread(move || flows::run(&plan)).unwrap();
            eventually(LONG, "all flows have had an answer", || {
                let done = control.operations();
                (done >= AT_ONCE as u64).then_some(()).ok_or(done)
            });
            self.flows.push((control, run));
        }
        self
    }

    /// A good deal more of each went through, and no connection ever failed.
    fn passes(&self) {
        for (control, _) in self.streams.iter().chain(&self.flows) {
            let from = control.operations();
            eventually(LONG, "the traffic goes on", || {
                let done = control.operations() - from;
                (done >= 100).then_some(()).ok_or(done)
            });
        }
        for (control, _) in &self.streams {
            assert_eq!(control.failures(), 0);
        }
    }

    /// Ends it: not one connection was lost, and no datagram but by a full queue.
    fn all_was_well(self, cluster: &Cluster) {
        let ended = |(control, run): (Control, Run)| {
            control.stop();
            run.join().unwrap().unwrap().unwrap()
        };
        for report in self.streams.into_iter().map(ended) {
            assert_eq!(report.failed(), 0, "{report}");
        }
        let flows = self.flows.into_iter().map(|flow| ended(flow).failed());
        let (unanswered, lost) = (flows.sum::<u64>(), lost_datagrams(cluster.topology()));
        let by_queues = lost - self.lost_before;
        assert!(
            unanswered <= by_queues,
            "{unanswered}, {by_queues} by queues"
        );
    }
}

fn log_says(cluster: &Cluster, text: &str, times: usize) {
    eventually(LONG, text, || {
        let log = cluster.log(EDGE);
        let found = log.matches(text).count();
        (found >= times).then_some(()).ok_or(found)
    });
}

/// Starts a new agent, which takes over; gives the one before.
fn upgrade(cluster: &mut Cluster) -> Beside {
    let before = cluster.log(EDGE).matches("has taken over").count();
    let successor = cluster.spawn_beside(EDGE).unwrap();
    log_says(cluster, "has taken over", before + 1);
    let old = cluster.succeed(successor).unwrap();
    cluster.wait_until_ready(EDGE).unwrap();
    old
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

/// Waits until the agent is connected to all that it connects to, and counts.
fn settled_descriptors(cluster: &Cluster) -> usize {
    eventually(LONG, "the edge is known", || {
        let said = cluster.anyport(&["get", "edges", "edge1"]).unwrap();
        (said.status == Some(0)).then_some(()).ok_or(said)
    });
    let pid = cluster.pid(EDGE).unwrap();
    let (mut last, mut since) = (0, Instant::now());
    eventually(LONG, "the number of descriptors settles", || {
        let now = descriptors(pid);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > Duration::from_secs(2))
            .then_some(now)
            .ok_or(now)
    })
}

/// The number of pins and of files that an agent leaves to the next one.
fn kept(cluster: &Cluster) -> (usize, usize) {
    let count = |directory: PathBuf| std::fs::read_dir(directory).unwrap().count();
    let state = cluster.directory().join("edge-agent");
    (count(cluster.pins().unwrap()), count(state))
}

fn echoes(stream: &mut TcpStream) {
    cluster::echoes(stream).unwrap();
}

fn is_refused(cluster: &Cluster, target: &str) {
    assert!(cluster.refuses(at(target)).unwrap(), "{target}");
}

#[test]
fn two_upgrades_under_load_lose_nothing_by_tproxy() {
    two_upgrades_under_load_lose_no_connection_and_no_descriptor(Steering::Tproxy);
}

#[test]
fn two_upgrades_under_load_lose_nothing_by_sk_lookup() {
    two_upgrades_under_load_lose_no_connection_and_no_descriptor(Steering::SkLookup);
}

fn two_upgrades_under_load_lose_no_connection_and_no_descriptor(steering: Steering) {
    const CONNECTIONS: usize = 5000;
    let mut cluster = Cluster::start(Plan {
        steering,
        ..Plan::default()
    })
    .unwrap();
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    cluster
        .apply(&manifest("timeouts: { drain: 10m }"))
        .unwrap();
    let fresh = settled_descriptors(&cluster);
    let _datagrams = cluster.echo_datagrams(0, "a", [7000]).unwrap();
    let traffic = Traffic::start(&cluster, CONNECTIONS, Duration::from_secs(5));
    let traffic = traffic.with_flows(&cluster, 1000);
    let mut first = upgrade(&mut cluster);
    traffic.passes();
    let mut second = upgrade(&mut cluster);
    traffic.passes();
    assert!(!first.has_ended(), "it holds connections");
    // The newest one is the edge: what is applied now it applies.
    cluster.apply(&manifest("timeouts: { drain: 9m }")).unwrap();
    traffic.passes();
    traffic.all_was_well(&cluster);
    for old in [&mut first, &mut second] {
        assert_eq!(old.end_within(LONG).unwrap(), Some(0));
    }
    assert_eq!(settled_descriptors(&cluster), fresh);
    cluster.who(at(NEW)).unwrap();
}

#[test]
fn workers_may_be_fewer_or_more_after_an_upgrade_and_four_earlier_ones_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let environment = ("NOTIFY_SOCKET".to_owned(), path.display().to_string());
    let mut cluster = Cluster::start(Plan {
        environment: vec![environment],
        steering: Steering::SkLookup,
        ..Plan::default()
    })
    .unwrap();
    // The service manager is told which process the service is.
    let heard = || {
        let mut text = [0; 100];
        let length = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let ready = |cluster: &Cluster| format!("READY=1\nMAINPID={}", cluster.pid(EDGE).unwrap());
    assert_eq!(heard(), ready(&cluster));
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    cluster
        .apply(&manifest("timeouts: { drain: 10m }"))
        .unwrap();
    let traffic = Traffic::start(&cluster, 50, Duration::from_millis(200));
    let (mut old, mut held) = (Vec::new(), Vec::new());
    for workers in [1, 3, 2, 2] {
        let mut one = cluster.dial(at(HELD)).unwrap();
        echoes(&mut one);
        held.push(one);
        cluster.set_workers(NonZeroUsize::new(workers).unwrap());
        old.push(upgrade(&mut cluster));
        assert_eq!(heard(), ready(&cluster));
        traffic.passes();
    }
    // Each of the four has a connection, and with that it is enough.
    let mut one_more = cluster.spawn_beside(EDGE).unwrap();
    assert_eq!(one_more.end_within(LONG).unwrap(), Some(1));
    let log = cluster.log(EDGE);
    assert!(log.contains("4 earlier agents still finish"), "{log}");
    traffic.passes();
    held.iter_mut().for_each(echoes);
    traffic.all_was_well(&cluster);
    drop(held);
    for agent in &mut old {
        assert_eq!(agent.end_within(LONG).unwrap(), Some(0));
    }
    let before = (settled_descriptors(&cluster), kept(&cluster));
    for _ in 0..5 {
        let mut old = upgrade(&mut cluster);
        assert_eq!(old.end_within(LONG).unwrap(), Some(0));
    }
    assert_eq!((settled_descriptors(&cluster), kept(&cluster)), before);
    cluster.who(at(NEW)).unwrap();
}

anyport_lab::under_both_steerings![workers_have_as_many_connections_as_each_other];

fn workers_have_as_many_connections_as_each_other(steering: Steering) {
    const EACH: usize = 60;
    let workers = |count| NonZeroUsize::new(count).unwrap();
    let mut cluster = Cluster::start(Plan {
        steering,
        workers: workers(3),
        ..Plan::default()
    })
    .unwrap();
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    cluster
        .apply(
            r#"
prefixes: [{ cidr: 198.51.100.0/24 }, { cidr: "2001:db8:51::/64" }]
apps: [{ name: held, protocol: tcp/443, edge_ips: [198.51.100.10, "2001:db8:51::10"], origin_direct: ["tcp://10.0.2.2:7000"], timeouts: { drain: 10m } }]
"#,
        )
        .unwrap();
    let (mut held, mut old) = (Vec::new(), Vec::new());
    // As it starts, and after upgrades to fewer workers and to more.
    for count in [3, 2, 4, 1, 2] {
        if !held.is_empty() {
            cluster.set_workers(workers(count));
            old.push(upgrade(&mut cluster));
        }
        for number in 0..EACH * count {
            let target = [HELD, "[2001:db8:51::10]:443"][number % 2];
            let mut one = cluster.dial(at(target)).unwrap();
            echoes(&mut one);
            held.push(one);
        }
        let metrics = cluster.metrics(EDGE).unwrap();
        let mut open: Vec<_> = (0..count)
            .map(|worker| {
                let worker = [("worker", &*worker.to_string())];
                metrics
                    .value("anyport_worker_connections", &worker)
                    .unwrap()
            })
            .collect();
        // An agent before may have been about to accept the first.
        let strays = (EACH * count) as f64 - open.iter().sum::<f64>();
        assert!((0.0..=4.0).contains(&strays), "{open:?}");
        open.sort_by(f64::total_cmp);
        // The kernel's hash would have some 7 more or less at each, and 20 not seldom.
        assert!(open[count - 1] - open[0] <= 8.0 + strays, "{open:?}");
    }
    held.iter_mut().for_each(echoes);
}

#[test]
fn the_lock_on_the_network_namespace_follows_an_upgrade() {
    let mut cluster = cluster();
    let namespace = cluster.topology().edge().path().to_owned();
    let inode = std::fs::metadata(namespace).unwrap().ino();
    let is_the_agents = |cluster: &Cluster| {
        let pid = cluster.pid(EDGE).unwrap().to_string();
        eventually(LONG, "the agent that serves has it", || {
            let locks = std::fs::read_to_string("/proc/locks").unwrap();
            let of_it = locks
                .lines()
                .find(|line| line.contains(&format!(":{inode} ")));
            let has = of_it.is_some_and(|line| line.split_whitespace().any(|word| word == pid));
            has.then_some(()).ok_or(format!("{of_it:?}"))
        });
    };
    is_the_agents(&cluster);
    // The one before lives on as long as it has a connection.
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    cluster
        .apply(&manifest("timeouts: { drain: 10m }"))
        .unwrap();
    let mut held = cluster.dial(at(HELD)).unwrap();
    echoes(&mut held);
    let mut old = upgrade(&mut cluster);
    is_the_agents(&cluster);
    echoes(&mut held);
    drop(held);
    assert_eq!(old.end_within(LONG).unwrap(), Some(0));
}

/// A successor that speaks as far as the test wants.
struct Impostor(Socket);

impl Impostor {
    fn connect(cluster: &Cluster) -> Self {
        let path: PathBuf = cluster.directory().join("edge-agent/handover.sock");
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        eventually(LONG, "the agent listens for a successor", || {
            socket.connect(&SockAddr::unix(&path).unwrap())
        });
        Self(socket)
    }

    fn say(&self, json: &str) {
        let length = u32::try_from(json.len()).unwrap().to_be_bytes();
        let message = [b"APHO\0\x01", &length[..], json.as_bytes()].concat();
        self.0.send(&message).unwrap();
    }

    fn hello(&self) {
        self.say(r#"{"say":"hello","name":"edge1","program_version":"9"}"#);
    }

    /// The next message; its descriptors are not wanted, so the kernel closes them.
    fn hear(&self) -> String {
        let mut buffer = vec![0; 1 << 16];
        let length = (&self.0).read(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}

#[test]
fn a_successor_that_dies_leaves_the_agent_as_it_was() {
    // One worker has all connections, unless the kernel gives some to a successor that
    // has more.
    let workers = |count| NonZeroUsize::new(count).unwrap();
    let mut cluster = Cluster::start(Plan {
        workers: workers(1),
        ..Plan::default()
    })
    .unwrap();
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    cluster
        .apply(&manifest("timeouts: { drain: 10m }"))
        .unwrap();
    let agent = cluster.pid(EDGE).unwrap();
    let fresh = settled_descriptors(&cluster);
    let traffic = Traffic::start(&cluster, 50, Duration::from_millis(200));
    let mut drain = 10;
    let mut goes_on = |cluster: &Cluster, what: &str| {
        traffic.passes();
        // Standing still for a successor has an end too.
        drain += 1;
        let applied = cluster.apply(&manifest(&format!("timeouts: {{ drain: {drain}m }}")));
        applied.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    };
    Impostor::connect(&cluster);
    goes_on(&cluster, "it said nothing");
    Impostor::connect(&cluster).say("nonsense");
    goes_on(&cluster, "it said nonsense");
    Impostor::connect(&cluster).hello();
    goes_on(&cluster, "it died asking");
    let stranger = Impostor::connect(&cluster);
    stranger.say(r#"{"say":"hello","name":"edge2","program_version":"9"}"#);
    assert!(stranger.hear().contains("named \\\"edge1\\\""));
    goes_on(&cluster, "it had another name");
    let holder = Impostor::connect(&cluster);
    holder.hello();
    assert!(holder.hear().contains(r#""say":"offer""#));
    assert!(holder.hear().contains("tcp/v4/0"));
    drop(holder);
    goes_on(&cluster, "it died with the sockets");
    // A real one, killed sooner or later on its way.
    let has_succeeded = |cluster: &Cluster| cluster.log(EDGE).contains("handed over; finishing");
    // How many the agent has answered, and of how many it has said how that ended.
    let attempts = |cluster: &Cluster| {
        let log = cluster.log(EDGE);
        let said = |text| log.matches(text).count();
        (said("a successor takes over"), said("was broken off"))
    };
    cluster.set_workers(workers(4));
    for after in [0, 30, 60, 120, 250, 400, 600, 900] {
        let before = attempts(&cluster);
        let mut successor = cluster.spawn_beside(EDGE).unwrap();
        std::thread::sleep(Duration::from_millis(after));
        successor.signal(Signal::SIGKILL).unwrap();
        successor.end_within(PATIENCE).unwrap();
        // Whether it had been told "yours", the agent says.
        eventually(LONG, "the agent knows how it ended", || {
            let now = attempts(&cluster);
            let ended = now.1 - before.1 >= now.0 - before.0 || has_succeeded(&cluster);
            ended.then_some(()).ok_or_else(|| format!("{now:?}"))
        });
        if has_succeeded(&cluster) {
            return;
        }
        goes_on(&cluster, "it was killed");
        assert_eq!(cluster.pid(EDGE).unwrap(), agent);
    }
    cluster.set_workers(workers(1));
    upgrade(&mut cluster);
    traffic.passes();
    traffic.all_was_well(&cluster);
    assert_eq!(settled_descriptors(&cluster), fresh);
}

/// Connections that say nothing, and when each is closed.
fn closings(streams: &mut Vec<TcpStream>, start: Instant, within: Duration) -> Vec<Duration> {
    let mut times = Vec::new();
    for stream in streams.iter() {
        stream.set_nonblocking(true).unwrap();
    }
    while !streams.is_empty() {
        assert!(start.elapsed() < within, "{} are still open", streams.len());
        streams.retain_mut(|stream| match stream.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                times.push(start.elapsed());
                false
            }
            other => panic!("neither open nor reset: {other:?}"),
        });
        std::thread::sleep(Duration::from_millis(5));
    }
    times
}

#[test]
fn a_drain_closes_evenly_over_the_second_half_of_its_window() {
    const CONNECTIONS: usize = 600;
    let window = Duration::from_secs(8);
    let mut cluster = cluster();
    let origin = cluster.echo(0, "a", [7000]).unwrap();
    cluster.apply(&manifest("timeouts: { drain: 8s }")).unwrap();
    let mut held: Vec<_> = (0..CONNECTIONS)
        .map(|_| cluster.dial(at(HELD)).unwrap())
        .collect();
    eventually(PATIENCE, "the origin has them", || {
        let open = origin.open();
        (open == CONNECTIONS as u64).then_some(()).ok_or(open)
    });
    let start = Instant::now();
    let mut agent = cluster.retire(EDGE).unwrap();
    agent.signal(Signal::SIGTERM).unwrap();
    eventually(PATIENCE, "nothing is accepted", || {
        match cluster.dial(at(NEW)) {
            Ok(_) => Err("accepted"),
            Err(_) => Ok(()),
        }
    });
    let mut last = held.pop().unwrap();
    last.set_nonblocking(false).unwrap();
    echoes(&mut last);
    held.push(last);
    let times = closings(&mut held, start, window + PATIENCE);
    let first = times.iter().min().unwrap();
    assert!(*first >= window / 2, "the first after {first:?}");
    // A machine that stands still closes what is due then at once, and nobody sooner.
    let due = |time: Duration| {
        let part = time.saturating_sub(window / 2).as_secs_f64() / (window / 2).as_secs_f64();
        part.min(1.0) * CONNECTIONS as f64
    };
    let (chance, late) = (CONNECTIONS as f64 * 0.12, Duration::from_secs(3));
    for quarter in 0..=4 * (window + late).as_secs() as u32 {
        let time = Duration::from_millis(250) * quarter;
        let closed = times.iter().filter(|closed| **closed <= time).count() as f64;
        let (least, most) = (due(time.saturating_sub(late)) - chance, due(time) + chance);
        assert!(
            (least..=most).contains(&closed),
            "{closed} by {time:?}, not {least} to {most}: {times:?}"
        );
    }
    assert_eq!(agent.end_within(PATIENCE).unwrap(), Some(0));
}

#[test]
fn a_second_sigterm_ends_the_drain_at_once() {
    let mut cluster = cluster();
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    cluster.apply(&manifest("timeouts: { drain: 1h }")).unwrap();
    let mut held = cluster.dial(at(HELD)).unwrap();
    echoes(&mut held);
    let mut agent = cluster.retire(EDGE).unwrap();
    agent.signal(Signal::SIGTERM).unwrap();
    log_says(&cluster, "draining", 1);
    echoes(&mut held);
    let start = Instant::now();
    agent.signal(Signal::SIGTERM).unwrap();
    assert_eq!(agent.end_within(PATIENCE).unwrap(), Some(128 + 15));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(matches!(held.read(&mut [0]), Ok(0) | Err(_)), "it is over");
}

#[test]
fn a_configuration_change_touches_no_open_connection() {
    let cluster = cluster();
    let _a = cluster.echo(0, "a", [7000, 7001]).unwrap();
    cluster.apply(&manifest("")).unwrap();
    let mut held = cluster.dial(at(HELD)).unwrap();
    echoes(&mut held);
    let other = manifest("").replace("10.0.2.2:7000", "10.0.2.2:7001");
    let without_app = r#"
prefixes:
  - cidr: 198.51.100.0/24
apps:
  - { name: new, protocol: tcp/80, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7000"] }
"#;
    let without_prefix = "prefixes:\n  - cidr: 203.0.113.0/24\n";
    for changed in [other.as_str(), without_app, without_prefix] {
        let said = cluster
            .try_apply(changed, &["--wait=60s", "--prune", "--allow-mass-deletion"])
            .unwrap();
        assert_eq!(said.status, Some(0), "{said}");
        echoes(&mut held);
    }
    is_refused(&cluster, HELD);
    // Also beyond the pass that looks at everything.
    std::thread::sleep(Duration::from_secs(6));
    echoes(&mut held);
    let drift = "anyport_kernel_drift_repaired_total";
    assert_eq!(cluster.metrics(EDGE).unwrap().sum(drift, &[]), 0.0);
    let edge = cluster.topology().edge();
    let routes = || {
        let mut ip = edge.command("ip");
        ip.args(["route", "show", "table", "local", "proto", "65"]);
        String::from_utf8(ip.output().unwrap().stdout).unwrap()
    };
    assert!(routes().contains("198.51.100.0/24"), "{}", routes());
    drop(held);
    eventually(LONG, "the prefix goes with its last connection", || {
        let routes = routes();
        let gone = !routes.contains("198.51.100.0/24");
        gone.then_some(()).ok_or(routes)
    });
}

#[test]
fn a_disabled_app_looks_closed_and_keeps_or_closes_what_is_open() {
    let cluster = cluster();
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    let with = |extra: &str| {
        let all = r#"  - { name: all, protocol: tcp/*, edge_ips: [198.51.100.0/24], origin_direct: ["tcp://10.0.2.2:7000"] }"#;
        format!("{}{all}\n", manifest(extra))
    };
    cluster.apply(&with("")).unwrap();
    let mut held = cluster.dial(at(HELD)).unwrap();
    echoes(&mut held);
    let mut other = cluster.dial(at(NEW)).unwrap();
    echoes(&mut other);

    cluster.apply(&with("disable: { close: keep }")).unwrap();
    // Not even the app around it takes them.
    is_refused(&cluster, HELD);
    cluster.who(at("198.51.100.10:442")).unwrap();
    cluster.who(at("198.51.100.11:443")).unwrap();
    echoes(&mut held);
    let explained = cluster
        .anyport(&["explain", &format!("tcp/{HELD}")])
        .unwrap();
    assert_eq!(explained.status, Some(1), "{explained}");
    assert!(
        explained.out.contains("app held has it and is disabled"),
        "{explained}"
    );
    let listed = cluster.anyport(&["get", "apps"]).unwrap();
    assert!(listed.out.contains("held (disabled)"), "{listed}");
    let status = cluster.anyport(&["status"]).unwrap();
    assert!(status.out.contains("disabled apps: held"), "{status}");

    cluster.apply(&with("disable: { close: now }")).unwrap();
    assert_eq!(
        held.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    let closed = || {
        let metrics = cluster.metrics(EDGE).unwrap();
        let labels = &[("app", "held"), ("status", "200")];
        metrics.value("anyport_connections_closed_total", labels)
    };
    eventually(PATIENCE, "it is counted", || {
        let closed = closed();
        (closed == Some(1.0))
            .then_some(())
            .ok_or(format!("{closed:?}"))
    });
    echoes(&mut other);
    is_refused(&cluster, HELD);

    cluster.apply(&with("")).unwrap();
    cluster.who(at(HELD)).unwrap();
    echoes(&mut other);
}

/// Who the listed connections belong to.
fn listed(cluster: &Cluster) -> Vec<String> {
    // One that has just taken over may not be known to the config service yet.
    let edge = format!("http://{}", EDGE.listen());
    let said = cluster.anyport(&["connections", "-o", "json", "--edge", &edge]);
    let said = said.unwrap();
    assert_eq!(said.status, Some(0), "{said}");
    let application = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["application"].as_str().unwrap().to_owned()
    };
    let mut apps: Vec<_> = said.out.lines().map(application).collect();
    apps.sort_unstable();
    apps
}

/// Waits until these are listed.
fn are_listed(cluster: &Cluster, wanted: &[&str]) {
    eventually(LONG, "the open connections are listed", || {
        let listed = listed(cluster);
        (listed == wanted)
            .then_some(())
            .ok_or(format!("{listed:?}"))
    });
}

/// A command that follows the events of an app.
struct Events {
    command: Child,
    lines: mpsc::Receiver<String>,
}

impl Events {
    fn follow(cluster: &Cluster, app: &str) -> Self {
        let mut command = cluster.anyport_command().unwrap();
        command.args(["events", "--follow", "-o", "json", "--app", app]);
        let mut command = command.stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(command.stdout.take().unwrap());
        let (line, lines) = mpsc::channel();
        // Ends with the command, or with the last who listens.
        std::thread::spawn(move || said.lines().try_for_each(|said| line.send(said.unwrap())));
        Self { command, lines }
    }

    /// Waits for the next one, and gives its kind.
    fn next(&mut self) -> String {
        let line = self.lines.recv_timeout(LONG).unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        event["event"].as_str().unwrap().to_owned()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.command.kill();
        let _ = self.command.wait();
    }
}

fn is_reset(stream: &mut TcpStream) {
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn what_earlier_agents_finish_is_listed_and_obeys_by_tproxy() {
    what_earlier_agents_finish_is_listed_and_obeys(Steering::Tproxy);
}

#[test]
fn what_earlier_agents_finish_is_listed_and_obeys_by_sk_lookup() {
    what_earlier_agents_finish_is_listed_and_obeys(Steering::SkLookup);
}

fn what_earlier_agents_finish_is_listed_and_obeys(steering: Steering) {
    let plan = Plan {
        steering,
        ..Plan::default()
    };
    let mut cluster = Cluster::start(plan).unwrap();
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    // Whatever ends within this test was told to.
    let all_with = |held: &str, drain: &str| {
        manifest(held).replace(
            r#"name: new, protocol: tcp/80"#,
            &format!("name: new, timeouts: {{ drain: {drain} }}, protocol: tcp/80"),
        )
    };
    let with = |held: &str| all_with(held, "1h");
    cluster.apply(&with("timeouts: { drain: 1h }")).unwrap();
    let (mut old, mut held, mut new) = (Vec::new(), Vec::new(), Vec::new());
    for generation in 0..3 {
        for (target, streams) in [(HELD, &mut held), (NEW, &mut new)] {
            let mut stream = cluster.dial(at(target)).unwrap();
            echoes(&mut stream);
            streams.push(stream);
        }
        if generation < 2 {
            old.push(upgrade(&mut cluster));
        }
    }
    are_listed(&cluster, &["held", "held", "held", "new", "new", "new"]);
    settled_descriptors(&cluster);
    let one = cluster.anyport(&["connections", "--app", "held"]).unwrap();
    assert_eq!(one.out.lines().count(), 1 + 3, "{one}");
    let mut events = Events::follow(&cluster, "held");
    (0..3).for_each(|_| assert_eq!(events.next(), "connect"));
    let closed = with("timeouts: { drain: 1h }, disable: { close: now }");
    cluster.apply(&closed).unwrap();
    held.iter_mut().for_each(is_reset);
    (0..3).for_each(|_| assert_eq!(events.next(), "disconnect"));
    drop(events);
    let remembered = cluster.anyport(&["events", "--app", "held"]).unwrap();
    assert_eq!(
        remembered.out.matches("the app was disabled").count(),
        3,
        "{remembered}"
    );
    are_listed(&cluster, &["new", "new", "new"]);
    new.iter_mut().for_each(echoes);
    // The next one tells them all that stands, and that closes nothing.
    old.push(upgrade(&mut cluster));
    settled_descriptors(&cluster);
    cluster.apply(&with("timeouts: { drain: 1h }")).unwrap();
    let mut again = cluster.dial(at(HELD)).unwrap();
    echoes(&mut again);
    new.iter_mut().for_each(echoes);

    // A drain of the edge goes by the windows as they are now, and is undone everywhere.
    let drain = |arguments: &[&str]| {
        let said = cluster.anyport(arguments).unwrap();
        assert_eq!(said.status, Some(0), "{said}");
        said.out
    };
    let said = drain(&["drain", "edge", "edge1", "--grace", "0s"]);
    assert!(said.contains("4 are open"), "{said}");
    drain(&["undrain", "edge", "edge1"]);
    cluster
        .apply(&all_with("timeouts: { drain: 1h }", "3s"))
        .unwrap();
    new.push(cluster.dial(at(NEW)).unwrap());
    drain(&["drain", "edge", "edge1", "--grace", "0s"]);
    new.iter_mut().for_each(is_reset);
    echoes(&mut again);
    eventually(LONG, "it is shown as draining", || {
        let shown = cluster.anyport(&["get", "edges"]).unwrap();
        let draining = shown.out.contains("draining");
        draining.then_some(()).ok_or(shown)
    });
    drop(again);
    drain(&["drain", "edge", "edge1", "--wait"]);
    for agent in &mut old {
        assert_eq!(agent.end_within(LONG).unwrap(), Some(0));
    }
    drain(&["undrain", "edge", "edge1"]);
    cluster.who(at(HELD)).unwrap();
    eventually(LONG, "nothing is left of the earlier ones", || {
        let left = std::fs::read_dir(cluster.directory().join("edge-agent")).unwrap();
        let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = left.filter(|name| name.starts_with("earlier-")).collect();
        left.is_empty()
            .then_some(())
            .ok_or_else(|| format!("{left:?}"))
    });
}

/// Two earlier agents, and a connection of `held` that each finishes.
fn two_earlier(cluster: &mut Cluster) -> (Vec<TcpStream>, Vec<Beside>) {
    cluster.apply(&manifest("timeouts: { drain: 1h }")).unwrap();
    let one = |_| {
        let mut stream = cluster.dial(at(HELD)).unwrap();
        echoes(&mut stream);
        (stream, upgrade(cluster))
    };
    let two = (0..2).map(one).unzip();
    are_listed(cluster, &["held", "held"]);
    two
}

#[test]
fn an_earlier_agent_that_dies_or_hangs_holds_up_nobody() {
    let mut cluster = cluster();
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    let (mut held, mut old) = two_earlier(&mut cluster);
    old[0].signal(Signal::SIGKILL).unwrap();
    old[0].end_within(PATIENCE).unwrap();
    are_listed(&cluster, &["held"]);
    old[1].signal(Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    assert_eq!(listed(&cluster).len(), 0);
    assert!(began.elapsed() < PATIENCE);
    // What is missing is said, and the rest is there.
    let mut own = cluster.dial(at(NEW)).unwrap();
    echoes(&mut own);
    let missing = |what| {
        format!(
            "the {what} of an earlier agent (process {}) are missing",
            old[1].pid()
        )
    };
    for what in ["connections", "events"] {
        let said = cluster.anyport(&[what]).unwrap();
        assert_eq!(said.status, Some(0), "{said}");
        assert!(said.err.contains(&missing(what)), "{said}");
        assert!(said.out.contains("new"), "{said}");
    }
    cluster
        .apply(&manifest(
            "timeouts: { drain: 1h }, disable: { close: now }",
        ))
        .unwrap();
    // What it could not hear it hears later.
    old[1].signal(Signal::SIGCONT).unwrap();
    is_reset(&mut held[1]);
    assert_eq!(old[1].end_within(LONG).unwrap(), Some(0));
}

#[test]
fn orders_reach_each_earlier_agent_whatever_another_does() {
    let window = Duration::from_secs(12);
    let mut cluster = cluster();
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    let (mut held, mut old) = two_earlier(&mut cluster);
    settled_descriptors(&cluster);
    cluster
        .apply(&manifest("timeouts: { drain: 12s }"))
        .unwrap();
    old[0].signal(Signal::SIGSTOP).unwrap();
    for line in [
        &["drain", "edge", "edge1", "--grace", "0s"][..],
        &["undrain", "edge", "edge1"],
    ] {
        let said = cluster.anyport(line).unwrap();
        assert_eq!(said.status, Some(0), "{said}");
    }
    std::thread::sleep(window + Duration::from_secs(1));
    echoes(&mut held[1]);
    // What it hears late it hears whole.
    old[0].signal(Signal::SIGCONT).unwrap();
    are_listed(&cluster, &["held", "held"]);
    std::thread::sleep(window + Duration::from_secs(1));
    held.iter_mut().for_each(echoes);
    drop(held);
    for agent in &mut old {
        assert_eq!(agent.end_within(LONG).unwrap(), Some(0));
    }
}

#[test]
fn an_earlier_agent_is_found_whenever_it_listens() {
    let mut cluster = cluster();
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    cluster.apply(&manifest("timeouts: { drain: 1h }")).unwrap();
    let mut held = cluster.dial(at(HELD)).unwrap();
    echoes(&mut held);
    let mut old = upgrade(&mut cluster);
    are_listed(&cluster, &["held"]);
    let state = cluster.directory().join("edge-agent");
    let socket = state.join(format!("earlier-{}.sock", old.pid()));
    let aside = state.join("aside.sock");
    std::fs::rename(&socket, &aside).unwrap();
    // The next one knows of it by its socket alone.
    cluster.kill9(EDGE).unwrap();
    cluster.restart(EDGE).unwrap();
    assert_eq!(listed(&cluster).len(), 0);
    std::fs::rename(&aside, &socket).unwrap();
    are_listed(&cluster, &["held"]);
    let closed = manifest("timeouts: { drain: 1h }, disable: { close: now }");
    cluster.apply(&closed).unwrap();
    is_reset(&mut held);
    assert_eq!(old.end_within(LONG).unwrap(), Some(0));
}

#[test]
fn the_way_back_stays_as_long_as_an_earlier_agent_needs_it() {
    let mut cluster = cluster();
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    let transparent = manifest("client_ip: transparent, timeouts: { drain: 1h }");
    cluster.apply(&transparent).unwrap();
    let who = cluster.who(at(HELD)).unwrap();
    assert_eq!(who.peer.ip().to_string(), "10.0.1.2", "{who:?}");
    let mut held = cluster.dial(at(HELD)).unwrap();
    echoes(&mut held);
    cluster.apply(&manifest("timeouts: { drain: 1h }")).unwrap();
    let mut old = vec![upgrade(&mut cluster), upgrade(&mut cluster)];
    // Also beyond the pass that looks at everything.
    for _ in 0..8 {
        std::thread::sleep(Duration::from_secs(1));
        echoes(&mut held);
    }
    assert_ne!(cluster.return_path().unwrap(), "");
    drop(held);
    eventually(PATIENCE, "it goes with the last of them", || {
        let left = cluster.return_path().unwrap();
        left.is_empty().then_some(()).ok_or(left)
    });
    for agent in &mut old {
        assert_eq!(agent.end_within(LONG).unwrap(), Some(0));
    }
}
