//! What goes through an edge arrives as it was sent, and ends as it ended: half-closes, resets,
//! receivers that do not read, single bytes. Each stream is compared by its SHA-256, and each
//! connection has the status that it should have in the event log. Needs root.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, Store, eventually};
use anyport_lab::network::{LOST, nft};
use anyport_lab::tls::{Authority, Talker, Tls};
use anyport_netns::sysctl;
use aws_lc_rs::digest::{Context, Digest, SHA256};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};
use serde_json::Value;

anyport_lab::on_both_stores![streams_end_as_they_ended];

const EDGE: &str = "edge.example.com";

/// Every port of an address is the same port of the origin, so that each conversation has its own.
const MANIFEST: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 2001:db8:51::/64
apps:
  - { name: plain,    protocol: tcp/*, edge_ips: [198.51.100.10],      origin_direct: ["tcp://10.0.2.2:1-65535"] }
  - { name: plain6,   protocol: tcp/*, edge_ips: ["2001:db8:51::10"],  origin_direct: ["tcp://[fd00:2::2]:1-65535"] }
"#;

const TERMINATED: &str = r#"
  - { name: flexible, protocol: tcp/*, edge_ips: [198.51.100.20], tls: flexible, certificate: edge, origin_direct: ["tcp://10.0.2.2:1-65535"] }
  - { name: full,     protocol: tcp/*, edge_ips: [198.51.100.30], tls: full,     certificate: edge, origin_direct: ["tcp://10.0.2.2:1-65535"] }
"#;

/// Where an app is met, and where it goes.
#[derive(Clone, Copy, Debug)]
struct Door {
    app: &'static str,
    edge: &'static str,
    origin: &'static str,
}

const V4: Door = Door {
    app: "plain",
    edge: "198.51.100.10",
    origin: "10.0.2.2",
};
const V6: Door = Door {
    app: "plain6",
    edge: "2001:db8:51::10",
    origin: "fd00:2::2",
};
const FLEXIBLE: Door = Door {
    app: "flexible",
    edge: "198.51.100.20",
    origin: "10.0.2.2",
};
const FULL: Door = Door {
    app: "full",
    edge: "198.51.100.30",
    origin: "10.0.2.2",
};

const NAMED: Door = Door {
    app: "named",
    edge: "198.51.100.40",
    origin: "10.0.2.2",
};

struct Scene {
    cluster: Cluster,
    log: PathBuf,
    // Of the log, which is written in it.
    _directory: tempfile::TempDir,
}

impl Scene {
    fn new(plan: Plan) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("events.json");
        let variable = ("ANYPORT_EVENT_LOG".to_owned(), log.display().to_string());
        let cluster = Cluster::start(Plan {
            environment: vec![variable],
            ..plan
        })
        .unwrap();
        Self {
            cluster,
            log,
            _directory: directory,
        }
    }

    fn listen(&self, door: Door, port: u16) -> TcpListener {
        let origin = &self.cluster.topology().origins()[0].namespace;
        let listen = || TcpListener::bind(at(door.origin, port));
        origin.run(listen).unwrap().unwrap()
    }

    fn dial(&self, door: Door, port: u16) -> (TcpStream, Ended) {
        let client = self.cluster.dial(at(door.edge, port)).unwrap();
        patient(&client);
        let client_port = client.local_addr().unwrap().port();
        let ended = Ended {
            app: door.app,
            client_port,
            edge_port: port,
        };
        (client, ended)
    }

    /// A connection through a door, and both its ends.
    fn joined(&self, door: Door, port: u16) -> Joined {
        let listener = self.listen(door, port);
        let (client, ended) = self.dial(door, port);
        let (origin, _) = listener.accept().unwrap();
        patient(&origin);
        Joined {
            client,
            origin,
            ended,
        }
    }

    /// Waits for the last event of a connection.
    fn last_event(&self, of: Ended) -> Value {
        eventually(PATIENCE, "the connection's last event", || {
            let text = fs::read_to_string(&self.log).unwrap();
            let mut events = text.lines().filter_map(|line| {
                let event: Value = serde_json::from_str(line).ok()?;
                (of.is_of(&event) && event["event"] != "connect").then_some(event)
            });
            events.next_back().ok_or(format!("no end of {of:?}"))
        })
    }

    #[track_caller]
    fn ends_with(&self, of: Ended, status: u16) -> Value {
        let event = self.last_event(of);
        assert_eq!(event["status"], status, "{event}");
        event
    }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// A stall is longer than anything else may take.
fn patient(stream: &TcpStream) {
    let limit = Some(STALL + PATIENCE);
    stream.set_read_timeout(limit).unwrap();
    stream.set_write_timeout(limit).unwrap();
    stream.set_nodelay(true).unwrap();
}

struct Joined {
    client: TcpStream,
    origin: TcpStream,
    ended: Ended,
}

impl Joined {
    /// Its two ends, by who sends.
    fn by_sender(self, sender: Side) -> (TcpStream, TcpStream, Ended) {
        match sender {
            Side::Client => (self.client, self.origin, self.ended),
            Side::Origin => (self.origin, self.client, self.ended),
        }
    }
}

/// What the event log knows a connection by. A client may have one port for connections to two
/// places.
#[derive(Clone, Copy, Debug)]
struct Ended {
    app: &'static str,
    client_port: u16,
    edge_port: u16,
}

impl Ended {
    fn is_of(&self, event: &Value) -> bool {
        event["application"] == self.app
            && event["client_port"] == self.client_port
            && event["edge_port"] == self.edge_port
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Client,
    Origin,
}

const SIDES: [Side; 2] = [Side::Client, Side::Origin];

/// A stream as far as it was sent or received.
struct Sum {
    bytes: u64,
    digest: Context,
}

impl Sum {
    fn new() -> Self {
        Self {
            bytes: 0,
            digest: Context::new(&SHA256),
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.digest.update(bytes);
    }

    fn of(self) -> (u64, Whole) {
        (self.bytes, Whole(self.digest.finish()))
    }
}

struct Whole(Digest);

impl PartialEq for Whole {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_ref() == other.0.as_ref()
    }
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

const BLOCK: usize = 64 << 10;

/// Bytes that nothing else has at this place.
fn block(number: u64) -> Vec<u8> {
    let mut block: Vec<u8> = (0..BLOCK).map(|at| (at * 7 % 251) as u8).collect();
    block[..8].copy_from_slice(&number.to_le_bytes());
    block[BLOCK - 8..].copy_from_slice(&number.to_be_bytes());
    block
}

/// Sends a whole number of blocks.
fn send(to: &mut dyn Write, bytes: u64) -> (u64, Whole) {
    let mut sent = Sum::new();
    for number in 0..bytes / BLOCK as u64 {
        let block = block(number);
        to.write_all(&block).unwrap();
        sent.add(&block);
    }
    sent.of()
}

/// Receives until the end, which has to be one.
fn receive(from: &mut dyn Read) -> (u64, Whole) {
    let mut received = Sum::new();
    receive_into(from, &mut received).unwrap();
    received.of()
}

fn receive_into(from: &mut dyn Read, received: &mut Sum) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => received.add(&buffer[..count]),
        }
    }
}

const MIB: u64 = 1 << 20;

fn streams_end_as_they_ended(store: Store) {
    let scene = Scene::new(Plan::on(store));
    scene.cluster.apply(MANIFEST).unwrap();
    thread::scope(|scope| {
        let scene = &scene;
        for (door, from) in [(V4, 10_000), (V6, 20_000)] {
            for (side, from) in SIDES.into_iter().zip([from, from + 100]) {
                scope.spawn(move || a_half_close_is_one(scene, door, from, side));
                scope.spawn(move || a_reset_is_one(scene, door, from + 1, side));
                scope.spawn(move || {
                    who_resets_what_it_gets_resets_who_sends(scene, door, from + 2, side)
                });
                scope.spawn(move || a_closed_window_opens_again(scene, door, from + 3, side));
            }
            scope.spawn(move || single_bytes_arrive(scene, door, from + 4));
        }
    });
}

/// One side says all that it has to say and ends; the other one answers after that.
fn a_half_close_is_one(scene: &Scene, door: Door, port: u16, first: Side) {
    let (mut first_end, mut second_end, of) = scene.joined(door, port).by_sender(first);
    let question = thread::spawn(move || {
        let sent = send(&mut first_end, 3 * MIB);
        first_end.shutdown(Shutdown::Write).unwrap();
        (first_end, sent)
    });
    let heard = receive(&mut second_end);
    let (mut first_end, sent) = question.join().unwrap();
    assert_eq!(heard, sent, "{door:?} {first:?}");
    let answer = thread::spawn(move || {
        let sent = send(&mut second_end, 5 * MIB);
        second_end.shutdown(Shutdown::Write).unwrap();
        (second_end, sent)
    });
    let heard = receive(&mut first_end);
    assert_eq!(heard, answer.join().unwrap().1, "{door:?} {first:?}");
    let event = scene.ends_with(of, 200);
    let (client, origin) = match first {
        Side::Client => (3 * MIB, 5 * MIB),
        Side::Origin => (5 * MIB, 3 * MIB),
    };
    assert_eq!(event["client_bytes"], client, "{event}");
    assert_eq!(event["origin_bytes"], origin, "{event}");
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

fn status_of_reset(by: Side) -> u16 {
    match by {
        Side::Client => 499,
        Side::Origin => 444,
    }
}

/// In the middle of a stream its sender resets.
fn a_reset_is_one(scene: &Scene, door: Door, port: u16, by: Side) {
    let (mut sender, mut receiver, of) = scene.joined(door, port).by_sender(by);
    send(&mut sender, MIB);
    let mut got = vec![0; MIB as usize];
    receiver.read_exact(&mut got).unwrap();
    let mut expected = Sum::new();
    (0..MIB / BLOCK as u64).for_each(|number| expected.add(&block(number)));
    let mut received = Sum::new();
    received.add(&got);
    assert_eq!(received.of(), expected.of(), "{door:?} {by:?}");
    reset(sender);
    let end = receiver.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset, "{door:?} {by:?}");
    scene.ends_with(of, status_of_reset(by));
}

/// In the middle of a stream its receiver resets.
fn who_resets_what_it_gets_resets_who_sends(scene: &Scene, door: Door, port: u16, by: Side) {
    let sending = match by {
        Side::Client => Side::Origin,
        Side::Origin => Side::Client,
    };
    let (mut sender, mut receiver, of) = scene.joined(door, port).by_sender(sending);
    let sender = thread::spawn(move || {
        // Without end, but for the reset.
        let mut numbers = 0..;
        loop {
            if let Err(error) = sender.write_all(&block(numbers.next().unwrap())) {
                return error.kind();
            }
        }
    });
    receiver.read_exact(&mut vec![0; MIB as usize]).unwrap();
    reset(receiver);
    // The first write after it is told of the reset, later ones of a broken pipe.
    let told = sender.join().unwrap();
    assert_eq!(told, ErrorKind::ConnectionReset, "{door:?} {by:?}");
    scene.ends_with(of, status_of_reset(by));
}

/// A sender that a test can look at and stop.
#[derive(Clone, Default)]
struct Endless {
    sent: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
}

impl Endless {
    /// Sends until it is enough, and ends.
    fn send(&self, to: &mut dyn Talker) -> (u64, Whole) {
        let mut sent = Sum::new();
        for number in 0.. {
            if self.enough.load(Relaxed) {
                break;
            }
            let block = block(number);
            to.write_all(&block).unwrap();
            sent.add(&block);
            self.sent.store(sent.bytes, Relaxed);
        }
        to.end();
        sent.of()
    }
}

/// Nothing more goes through for two seconds; a machine that stands still does so for less.
fn await_stuck(senders: &[Endless]) {
    let sent = || -> Vec<u64> { senders.iter().map(|one| one.sent.load(Relaxed)).collect() };
    eventually(PATIENCE, "whoever is not read from stands still", || {
        let before = sent();
        let stuck = (0..4).all(|_| {
            thread::sleep(Duration::from_millis(500));
            before == sent() && !before.contains(&0)
        });
        stuck.then_some(()).ok_or("something moves")
    });
}

/// A receiver reads nothing until its sender can send no more, and then all of it.
fn a_closed_window_opens_again(scene: &Scene, door: Door, port: u16, sending: Side) {
    let (mut sender, mut receiver, of) = scene.joined(door, port).by_sender(sending);
    let endless = Endless::default();
    let sending = endless.clone();
    let sent = thread::spawn(move || (sending.send(&mut sender), sender));
    await_stuck(std::slice::from_ref(&endless));
    endless.enough.store(true, Relaxed);
    let received = receive(&mut receiver);
    let (sent, sender) = sent.join().unwrap();
    assert_eq!(received, sent, "{door:?}");
    drop((sender, receiver));
    scene.ends_with(of, 200);
}

/// Thousands of single bytes both ways at once.
fn single_bytes_arrive(scene: &Scene, door: Door, port: u16) {
    const BYTES: u64 = 5000;
    let Joined {
        client,
        origin,
        ended,
    } = scene.joined(door, port);
    let send = |to: &TcpStream| {
        let mut sent = Sum::new();
        for number in 0..BYTES {
            let byte = [(number * number % 251) as u8];
            (&mut &*to).write_all(&byte).unwrap();
            sent.add(&byte);
        }
        to.shutdown(Shutdown::Write).unwrap();
        sent.of()
    };
    thread::scope(|scope| {
        let both = [(&client, &origin), (&origin, &client)].map(|(from, to)| {
            (
                scope.spawn(move || send(from)),
                scope.spawn(move || receive(&mut &*to)),
            )
        });
        for (sent, received) in both {
            assert_eq!(received.join().unwrap(), sent.join().unwrap(), "{door:?}");
        }
    });
    drop((client, origin));
    let event = scene.ends_with(ended, 200);
    assert_eq!(event["client_bytes"], BYTES, "{event}");
    assert_eq!(event["origin_bytes"], BYTES, "{event}");
}

const INTERRUPTED: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
apps:
  - { name: plain,    protocol: tcp/*,   edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:1-65535"], timeouts: { drain: 1s, connect: 60s, tls_handshake: 60s } }
  - { name: flexible, protocol: tcp/*,   edge_ips: [198.51.100.20], origin_direct: ["tcp://10.0.2.2:1-65535"], timeouts: { drain: 1s, connect: 60s, tls_handshake: 60s }, tls: flexible, certificate: edge }
  - { name: named,    protocol: tcp/443, edge_ips: [198.51.100.40], origin_direct: ["tcp://10.0.2.2:7000"],    timeouts: { drain: 1s, connect: 60s, tls_handshake: 60s }, sni: [edge.example.com] }
  - { name: others,   protocol: tcp/443, edge_ips: [198.51.100.40], origin_direct: ["tcp://10.0.2.2:7000"],    timeouts: { drain: 1s, connect: 60s, tls_handshake: 60s }, sni: [b.example.com] }
"#;

/// Whoever waits for an origin, or has yet to say what it wants, gets a reset where its connection
/// is closed over that: an end would be an answer.
#[test]
fn who_is_cut_off_before_its_origin_is_there_is_reset() {
    let mut scene = Scene::new(Plan {
        // So that whoever is served came after those that wait.
        workers: NonZeroUsize::MIN,
        ..Plan::default()
    });
    let authority = Authority::new("test ca");
    let edge = authority.issue(EDGE).declared(&scene.cluster, "edge");
    let manifest = format!("{INTERRUPTED}certificates:\n{edge}");
    let disabled = manifest.replace(
        "tls_handshake: 60s }",
        "tls_handshake: 60s }, disable: { close: now }",
    );
    let _echo = scene.cluster.echo(0, "echo", [7000]).unwrap();
    let origin = &scene.cluster.topology().origins()[0].namespace;
    nft(origin, &format!("{LOST} dport 9000 drop"));
    let hello = || {
        let name = ServerName::try_from(EDGE).unwrap();
        ClientConnection::new(Arc::new(authority.client()), name).unwrap()
    };
    for drained in [false, true] {
        scene.cluster.apply(&manifest).unwrap();
        let dialling = scene.dial(V4, 9000);
        let (socket, of_terminated) = scene.dial(FLEXIBLE, 9000);
        let (terminated, _) = shaken(hello().into(), socket);
        let silent = scene.dial(FLEXIBLE, 9000);
        let (mut nameless, of_nameless) = scene.dial(NAMED, 443);
        scene.cluster.who(at(V4.edge, 7000)).unwrap();
        let why = if drained {
            let ended = scene.cluster.terminate(Service::EdgeAgent, PATIENCE);
            assert_eq!(ended.unwrap(), Some(0));
            "drained: the edge ends or was taken out of service"
        } else {
            scene.cluster.apply(&disabled).unwrap();
            // Only now it says what it wants.
            let mut words = Vec::new();
            hello().write_tls(&mut words).unwrap();
            nameless.write_all(&words).unwrap();
            "the app was disabled"
        };
        let waiting: [(Box<dyn Talker>, _); 4] = [
            (Box::new(dialling.0), dialling.1),
            (terminated, of_terminated),
            (Box::new(silent.0), silent.1),
            (Box::new(nameless), of_nameless),
        ];
        for (mut end, of) in waiting {
            let read = end.read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(read, Err(ErrorKind::ConnectionReset), "{of:?}, {why}");
            // Drained, nobody knows which app it would have been of.
            if !drained || of.app != "named" {
                assert_eq!(scene.ends_with(of, 200)["reason"], why);
            }
        }
    }
}

/// How long a receiver does not read.
const STALL: Duration = Duration::from_secs(30);

/// Connections of which one side does not read, beside those that are looked at one by one.
const STALLED: u16 = 200;

/// What the agent may hold for each direction in which nothing is taken: one read of its own, and
/// what the allocator makes of it.
const HELD: u64 = 300 << 10;

/// A receiver stops reading for long, on either side, in the clear and in TLS, while its sender
/// goes on as long as it can, and the other direction does not notice. Two hundred more do so to
/// see what it costs the agent.
#[test]
fn a_reader_that_stops_gets_everything_and_costs_the_agent_little() {
    let scene = Scene::new(Plan::default());
    let authority = Authority::new("test ca");
    let edge = authority.issue(EDGE).declared(&scene.cluster, "edge");
    let manifest = format!("{MANIFEST}{TERMINATED}certificates:\n{edge}");
    scene.cluster.apply(&manifest).unwrap();
    let topology = scene.cluster.topology();
    // Else two hundred connections fill gigabytes of the kernel's buffers.
    for namespace in [
        topology.client(),
        topology.edge(),
        &topology.origins()[0].namespace,
    ] {
        for (buffer, sizes) in [
            ("rmem", "4096 131072 524288"),
            ("wmem", "4096 16384 524288"),
        ] {
            sysctl::set(namespace, &format!("net/ipv4/tcp_{buffer}"), sizes).unwrap();
        }
    }
    let resident = || scene.cluster.resident(Service::EdgeAgent).unwrap();
    // What is made once is not what is measured.
    for side in SIDES {
        a_closed_window_opens_again(&scene, V4, 9000, side);
    }
    let before = resident();

    let some = |doors: [Door; 2]| {
        SIDES
            .into_iter()
            .flat_map(move |side| doors.map(|d| (d, side)))
    };
    let many = (0..STALLED).map(|n| (V4, SIDES[usize::from(n % 2)]));
    let all = many.chain(some([V4, V6])).chain(some([FLEXIBLE, FULL]));
    let stalls: Vec<Stall> = (10_000..)
        .zip(all)
        .map(|(port, (door, sending))| Stall::begin(&scene, &authority, door, port, sending))
        .collect();
    let senders: Vec<_> = stalls.iter().map(|stall| stall.sender.clone()).collect();
    let begun = Instant::now();
    await_stuck(&senders);
    let stalled = resident();
    let each = stalled.saturating_sub(before) / stalls.len() as u64;
    assert!(each < HELD, "{each} bytes for each stalled connection");
    let mut most = 0;
    while begun.elapsed() < STALL {
        for stall in &stalls {
            stall.says_back();
        }
        most = most.max(resident());
        thread::sleep(Duration::from_secs(1));
    }
    assert!(most < stalled + (2 << 20), "{stalled} bytes became {most}");
    for stall in &stalls {
        stall.sender.enough.store(true, Relaxed);
        stall.resume.wait();
    }
    for stall in stalls {
        stall.end(&scene);
    }
}

/// One end of a connection, and the same once more where it can be had.
type End = (Box<dyn Talker>, Option<TcpStream>);

fn plain(socket: TcpStream) -> End {
    let again = socket.try_clone().unwrap();
    (Box::new(socket), Some(again))
}

fn shaken(session: rustls::Connection, socket: TcpStream) -> End {
    let mut tls = Tls { session, socket };
    tls.shake().unwrap();
    (Box::new(tls), None)
}

/// A connection of which one side does not read.
struct Stall {
    door: Door,
    of: Ended,
    sender: Endless,
    /// The receiver reads on after this.
    resume: Arc<Barrier>,
    /// The receiver and the sender, for what goes the other way. Not in TLS, where an end is not
    /// to be had twice.
    back: Option<(TcpStream, TcpStream)>,
    sent: thread::JoinHandle<(u64, Whole)>,
    received: thread::JoinHandle<(u64, Whole)>,
}

impl Stall {
    fn begin(scene: &Scene, authority: &Authority, door: Door, port: u16, sending: Side) -> Self {
        let listener = scene.listen(door, port);
        let (client, of) = scene.dial(door, port);
        let client = match door.app {
            "flexible" | "full" => {
                let name = ServerName::try_from(EDGE).unwrap();
                let config = Arc::new(authority.client());
                let session = ClientConnection::new(config, name).unwrap();
                thread::spawn(|| shaken(session.into(), client))
            }
            _ => thread::spawn(|| plain(client)),
        };
        let (origin, _) = listener.accept().unwrap();
        patient(&origin);
        let origin = match door.app {
            "full" => {
                let config = Arc::new(authority.issue(EDGE).server());
                shaken(ServerConnection::new(config).unwrap().into(), origin)
            }
            _ => plain(origin),
        };
        let client = client.join().unwrap();
        let ((mut from, from_again), (mut to, to_again)) = match sending {
            Side::Client => (client, origin),
            Side::Origin => (origin, client),
        };
        let sender = Endless::default();
        let endless = sender.clone();
        let sent = thread::spawn(move || {
            let sent = endless.send(&mut *from);
            // The other side ends when it has everything.
            assert_eq!(from.read(&mut [0]).unwrap(), 0);
            sent
        });
        let resume = Arc::new(Barrier::new(2));
        let resumed = Arc::clone(&resume);
        let received = thread::spawn(move || {
            let mut received = Sum::new();
            let mut first = vec![0; BLOCK];
            to.read_exact(&mut first).unwrap();
            received.add(&first);
            resumed.wait();
            receive_into(&mut *to, &mut received).unwrap();
            to.end();
            received.of()
        });
        Self {
            door,
            of,
            sender,
            resume,
            back: to_again.zip(from_again),
            sent,
            received,
        }
    }

    fn says_back(&self) {
        if let Some((receiver, sender)) = &self.back {
            (&mut &*receiver).write_all(b"patience").unwrap();
            let mut heard = [0; 8];
            (&mut &*sender).read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"patience", "{:?}", self.door);
        }
    }

    fn end(self, scene: &Scene) {
        let received = self.received.join().unwrap();
        assert_eq!(received, self.sent.join().unwrap(), "{:?}", self.door);
        scene.ends_with(self.of, 200);
    }
}
