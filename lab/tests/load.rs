//! The load generator against its own servers, and against servers that misbehave. The tests in
//! namespaces need root, and fail without.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::{NonZeroU64, NonZeroUsize};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyport_lab::load::bulk::{self, Direction};
use anyport_lab::load::connect::{self, Close, Request};
use anyport_lab::load::paced::{self, Visit};
use anyport_lab::load::serve::{self, Mode, Server};
use anyport_lab::load::{Control, Failure, Load, Report, Tag, TargetSet, Targets, Who};
use anyport_lab::load::{idle, pingpong};
use anyport_netns::{Namespace, Topology, link};

const PATIENCE: Duration = Duration::from_secs(60);
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn number(value: u64) -> NonZeroU64 {
    NonZeroU64::new(value).unwrap()
}

fn size(value: usize) -> NonZeroUsize {
    NonZeroUsize::new(value).unwrap()
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn serve(mode: Mode) -> Server {
    let listen = vec![SocketAddr::new(LOCALHOST, 0)];
    let threads = size(2);
    serve::start(&serve::Plan {
        listen,
        mode,
        threads,
    })
    .unwrap()
}

fn echo() -> Server {
    serve(Mode::Echo { tag: None })
}

/// A load of `count` operations that would go on for long if it were not for the count.
fn counted(targets: impl Into<Targets>, count: u64) -> Load {
    Load {
        count: Some(number(count)),
        duration: Duration::from_secs(600),
        timeout: PATIENCE,
        ..Load::on(targets)
    }
}

fn connect(load: Load, request: Request) -> Report {
    let close = Close::Fin;
    connect::run(&connect::Plan {
        load,
        request,
        close,
    })
    .unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A server on one thread that does `misbehave` to each connection once it has the first byte.
fn misbehaving(misbehave: fn(TcpStream, u8)) -> SocketAddr {
    let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut first = [0];
            if stream.read_exact(&mut first).is_ok() {
                misbehave(stream, first[0]);
            }
        }
    });
    address
}

#[test]
fn connections_are_opened_asked_and_counted_to_the_last() {
    let server = echo();
    let load = Load {
        connections: size(7),
        threads: size(3),
        ..counted(server.addresses()[0], 500)
    };
    let control = load.control.clone();
    let report = connect(load, Request::Echo(number(10)));
    assert_eq!(report.operations(), 500, "{report}");
    assert_eq!((report.failed(), report.unfinished()), (0, 0), "{report}");
    assert_eq!(report.opened(), 500);
    assert_eq!((report.bytes_sent(), report.bytes_received()), (5000, 5000));
    assert_eq!(report.connect_latency().count(), 500);
    assert!(report.latency().max() >= report.connect_latency().percentile(50.0));
    assert_eq!(
        (control.opened(), control.operations(), control.failures()),
        (500, 500, 0)
    );
    assert_eq!(server.accepted(), 500);
    eventually("the server has closed all", || server.open() == 0);
}

#[test]
fn the_report_says_which_server_answered_how_often() {
    let servers = ["a", "b"].map(|name| {
        serve(Mode::Echo {
            tag: Some(tag(name)),
        })
    });
    let sets = servers.iter().map(|server| server.addresses()[0].into());
    let report = connect(
        counted(Targets::new(sets.collect()).unwrap(), 200),
        Request::Who,
    );
    assert_eq!(report.failures().len(), 0, "{report}");
    let counts: Vec<_> = report.answers().iter().collect();
    let accepted = servers.each_ref().map(Server::accepted);
    assert_eq!(
        counts,
        [(&tag("a"), &accepted[0]), (&tag("b"), &accepted[1])]
    );
    assert_eq!(accepted.iter().sum::<u64>(), 200);
    assert!(accepted.iter().all(|count| *count > 50), "{accepted:?}");
}

#[test]
fn a_tagged_echo_still_echoes_and_tells_both_ends() {
    let server = serve(Mode::Echo {
        tag: Some(tag("here")),
    });
    let mut stream = TcpStream::connect(server.addresses()[0]).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..2 {
        stream.write_all(b"wh").unwrap();
        let mut back = [0; 2];
        reader.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"wh");
        stream.write_all(b"who\n").unwrap();
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let expected = Who {
            tag: tag("here"),
            peer: stream.local_addr().unwrap(),
            local: server.addresses()[0],
        };
        assert_eq!(line.parse(), Ok(expected));
    }
}

#[test]
fn an_untagged_echo_says_nothing_of_itself() {
    let server = echo();
    let report = connect(counted(server.addresses()[0], 3), Request::Who);
    assert_eq!(report.failures()[&Failure::Mismatch], 3, "{report}");
    assert!(report.answers().is_empty());
}

#[test]
fn each_way_to_fail_is_told_apart() {
    let bound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    bound.bind(&SocketAddr::new(LOCALHOST, 0).into()).unwrap();
    let nobody = bound.local_addr().unwrap().as_socket().unwrap();
    let reset = misbehaving(|stream, _| {
        let socket = socket2::SockRef::from(&stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    });
    let eof = misbehaving(|stream, _| drop(stream));
    let mismatch = misbehaving(|mut stream, _| {
        let mut rest = [0; 7];
        stream.read_exact(&mut rest).unwrap();
        stream.write_all(b"not this").unwrap();
        // Until the client has seen it.
        let _ = stream.read(&mut rest);
    });
    let silent = serve(Mode::Connect);
    for (address, expected) in [
        (nobody, Failure::Refused),
        (reset, Failure::Reset),
        (eof, Failure::Eof),
        (mismatch, Failure::Mismatch),
        (silent.addresses()[0], Failure::Timeout),
    ] {
        let load = Load {
            timeout: match expected {
                Failure::Timeout => Duration::from_millis(50),
                _ => PATIENCE,
            },
            ..counted(address, 3)
        };
        // One byte for the server that closes: with more unread it would reset.
        let bytes = if expected == Failure::Eof { 1 } else { 8 };
        let report = connect(load, Request::Echo(number(bytes)));
        let failures: Vec<_> = report.failures().iter().collect();
        assert_eq!(failures, [(&expected, &3)], "{report}");
        assert_eq!(report.operations(), 0);
    }
}

#[test]
fn a_failure_of_another_kind_is_told_in_words() {
    let alone = Namespace::new("without that address").unwrap();
    let load = Load {
        sources: vec!["198.51.100.1".parse().unwrap()],
        ..counted(SocketAddr::new(LOCALHOST, 9), 1)
    };
    let report = alone.run(|| connect(load, Request::Nothing)).unwrap();
    let failures: Vec<_> = report.failures().keys().map(Failure::to_string).collect();
    assert_eq!(failures.len(), 1);
    assert!(
        failures[0].starts_with("other: Cannot assign requested address"),
        "{failures:?}"
    );
}

#[test]
fn answered_and_refused_connections_share_one_count() {
    let server = echo();
    let targets = [server.addresses()[0], SocketAddr::new(LOCALHOST, 1)];
    let targets = Targets::new(targets.map(TargetSet::from).to_vec()).unwrap();
    let load = Load {
        connections: size(4),
        ..counted(targets, 2000)
    };
    let report = connect(load, Request::Echo(number(1)));
    let failures: Vec<_> = report.failures().keys().collect();
    assert_eq!(failures, [&Failure::Refused], "{report}");
    assert!((800..1200).contains(&report.failed()), "{report}");
    assert_eq!(report.operations() + report.failed(), 2000, "{report}");
}

/// A byte there and back, a hundred times a second, for half a second.
fn by_the_clock(target: SocketAddr, timeout: Duration) -> (Report, Vec<Visit>) {
    let load = Load {
        duration: Duration::from_millis(500),
        timeout,
        ..Load::on(target)
    };
    let plan = paced::Plan {
        load,
        per_second: 100,
        request: Request::Echo(number(1)),
        close: Close::Fin,
    };
    paced::run(&plan).unwrap()
}

#[test]
fn who_comes_by_the_clock_waits_for_nobody() {
    let silent = serve(Mode::Connect);
    let timeout = Duration::from_millis(300);
    let (report, visits) = by_the_clock(silent.addresses()[0], timeout);
    assert_eq!(report.failures()[&Failure::Timeout], 50, "{report}");
    let slowest = visits.iter().map(|visit| visit.took).max().unwrap();
    // One after the other, the last would wait for fifty of them.
    assert!(slowest < timeout * 25, "{slowest:?}");
}

#[test]
fn the_time_of_who_comes_by_the_clock_counts_from_his_moment() {
    // Twice as long for each as there is between two.
    let slow = misbehaving(|mut stream, first| {
        thread::sleep(Duration::from_millis(20));
        stream.write_all(&[first]).unwrap();
    });
    let (report, visits) = by_the_clock(slow, PATIENCE);
    assert_eq!((report.operations(), report.failed()), (50, 0), "{report}");
    assert_eq!(visits.len(), 50);
    let moments = visits.windows(2).map(|pair| pair[1].due - pair[0].due);
    let moments: std::collections::BTreeSet<_> = moments.collect();
    assert_eq!(moments, [Duration::from_millis(10)].into());
    // Fifty take a second, and the last of them came after half of it.
    let (first, last) = (visits[0].took, visits[49].took);
    assert!(last > Duration::from_millis(450), "{first:?}, {last:?}");
}

#[test]
fn kept_connections_carry_every_round_trip() {
    let server = echo();
    for (bytes, count) in [(1, 2000), (300_000, 50)] {
        let before = server.accepted();
        let load = Load {
            connections: size(4),
            threads: size(2),
            ..counted(server.addresses()[0], count)
        };
        let (bytes, pause) = (number(bytes), Duration::ZERO);
        let report = pingpong::run(&pingpong::Plan { load, bytes, pause }).unwrap();
        assert_eq!(
            (report.operations(), report.failed()),
            (count, 0),
            "{report}"
        );
        assert_eq!(report.bytes_received(), count * bytes.get());
        assert!((1..=4).contains(&(server.accepted() - before)));
        assert_eq!(report.opened(), server.accepted() - before);
    }
}

#[test]
fn a_conversation_goes_on_with_a_new_connection_where_one_was_cut() {
    let one_round_trip = misbehaving(|mut stream, first| stream.write_all(&[first]).unwrap());
    let (load, bytes, pause) = (counted(one_round_trip, 20), number(1), Duration::ZERO);
    let report = pingpong::run(&pingpong::Plan { load, bytes, pause }).unwrap();
    assert_eq!(
        (report.operations(), report.failed(), report.opened()),
        (10, 10, 10),
        "{report}"
    );
}

#[test]
fn streams_arrive_whole_in_each_direction() {
    const BYTES: u64 = 3_000_001;
    for (mode, direction, sent, received) in [
        (Mode::Sink, Direction::Up, BYTES, 0),
        (Mode::Source, Direction::Down, 0, BYTES),
        (Mode::Echo { tag: None }, Direction::Both, BYTES, BYTES),
    ] {
        let server = serve(mode);
        let load = Load {
            connections: size(2),
            ..counted(server.addresses()[0], 4)
        };
        let bytes = number(BYTES);
        let report = bulk::run(&bulk::Plan {
            load,
            bytes,
            direction,
        })
        .unwrap();
        assert_eq!((report.operations(), report.failed()), (4, 0), "{report}");
        assert_eq!(
            (report.bytes_sent(), report.bytes_received()),
            (4 * sent, 4 * received)
        );
        eventually("the server has closed all", || server.open() == 0);
    }
}

#[test]
fn a_stream_that_does_not_arrive_whole_is_a_failure() {
    let swallowing = misbehaving(|mut stream, _| {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        // The byte before this is not in the count.
        write!(stream, "{}", rest.len()).unwrap();
    });
    let adding = misbehaving(|mut stream, first| {
        let mut all = [first; 1001];
        stream.read_exact(&mut all[1..1000]).unwrap();
        stream.write_all(&all).unwrap();
    });
    let stopping = misbehaving(|mut stream, _| {
        let mut rest = vec![0];
        stream.read_to_end(&mut rest).unwrap();
    });
    for (address, direction, expected) in [
        (swallowing, Direction::Up, Failure::Mismatch),
        (stopping, Direction::Up, Failure::Eof),
        (adding, Direction::Both, Failure::Mismatch),
    ] {
        let (load, bytes) = (counted(address, 1), number(1000));
        let report = bulk::run(&bulk::Plan {
            load,
            bytes,
            direction,
        })
        .unwrap();
        let failures: Vec<_> = report.failures().keys().collect();
        assert_eq!(failures, [&expected], "{report}");
    }
}

#[test]
fn idle_connections_are_held_until_the_run_is_stopped() {
    let server = serve(Mode::Connect);
    let control = Control::default();
    let load = Load {
        connections: size(600),
        threads: size(2),
        duration: Duration::from_secs(600),
        control: control.clone(),
        ..Load::on(server.addresses()[0])
    };
    let run = thread::spawn(move || idle::run(&idle::Plan { load }).unwrap());
    eventually("all are open", || {
        control.opened() == 600 && server.open() == 600
    });
    control.stop();
    let report = run.join().unwrap();
    assert_eq!((report.operations(), report.failed()), (600, 0), "{report}");
    eventually("all are closed", || server.open() == 0);
}

#[test]
fn an_idle_connection_that_is_lost_is_a_failure_and_opened_anew() {
    let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let control = Control::default();
    let load = Load {
        duration: Duration::from_secs(600),
        control: control.clone(),
        ..Load::on(listener.local_addr().unwrap())
    };
    let run = thread::spawn(move || idle::run(&idle::Plan { load }).unwrap());
    drop(listener.accept().unwrap());
    let (mut second, _) = listener.accept().unwrap();
    second.write_all(b"hello").unwrap();
    let third = listener.accept().unwrap();
    eventually("three were opened", || control.opened() == 3);
    control.stop();
    let report = run.join().unwrap();
    drop(third);
    assert_eq!(report.operations(), 1, "{report}");
    let failures: Vec<_> = report.failures().iter().collect();
    assert_eq!(failures, [(&Failure::Eof, &1), (&Failure::Mismatch, &1)]);
}

#[test]
fn the_duration_ends_a_run_that_waits_and_what_it_waits_for_is_not_a_failure() {
    let silent = serve(Mode::Connect);
    let load = Load {
        connections: size(3),
        // Long enough for three connections also on a machine that stalls.
        duration: Duration::from_secs(3),
        timeout: PATIENCE,
        ..Load::on(silent.addresses()[0])
    };
    let started = Instant::now();
    let report = connect(load, Request::Echo(number(1)));
    assert!(started.elapsed() < PATIENCE);
    assert!(report.elapsed() >= Duration::from_secs(3));
    assert_eq!((report.operations(), report.failed()), (0, 0), "{report}");
    assert_eq!((report.opened(), report.unfinished()), (3, 3), "{report}");
}

#[test]
fn stop_ends_a_busy_run_and_one_that_rests() {
    let server = echo();
    for pause in [Duration::ZERO, Duration::from_secs(600)] {
        let load = Load {
            duration: Duration::from_secs(600),
            ..Load::on(server.addresses()[0])
        };
        let control = load.control.clone();
        let bytes = number(1);
        let plan = pingpong::Plan { load, bytes, pause };
        let run = thread::spawn(move || pingpong::run(&plan).unwrap());
        eventually("it runs", || control.operations() > 0);
        let stopped = Instant::now();
        control.stop();
        let report = run.join().unwrap();
        assert!(stopped.elapsed() < PATIENCE);
        assert_eq!(report.failed(), 0, "{report}");
    }
}

#[test]
fn http_requests_are_answered_one_after_the_other_on_a_connection() {
    let server = serve(Mode::Http {
        tag: Some(tag("web")),
    });
    let address = server.addresses()[0];
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let who = format!(
        "tag=web peer={} local={address}\n",
        stream.local_addr().unwrap()
    );
    let requests = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.0\r\n\r\n";
    stream.write_all(requests.as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let answers: Vec<_> = answers.split_inclusive(&who).collect();
    assert_eq!(answers.len(), 2, "{answers:?}");
    for answer in answers {
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer.contains(&format!("Content-Length: {}\r\n", who.len())),
            "{answer}"
        );
        assert!(answer.ends_with(&format!("\r\n\r\n{who}")), "{answer}");
    }
}

#[test]
fn a_server_that_cannot_listen_says_where() {
    let taken = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let plan = serve::Plan {
        listen: vec![SocketAddr::new(LOCALHOST, 0), address],
        mode: Mode::Sink,
        threads: size(1),
    };
    let error = serve::start(&plan).unwrap_err();
    assert_eq!(error.to_string(), format!("listening on {address}"));
}

/// Connections of a namespace in the state TIME_WAIT.
fn time_waits(namespace: &Namespace) -> usize {
    let sockets = namespace
        .command("ss")
        .args(["-Htan", "state", "time-wait"])
        .output()
        .unwrap();
    assert!(sockets.status.success(), "{sockets:?}");
    String::from_utf8(sockets.stdout).unwrap().lines().count()
}

#[test]
fn closing_by_fin_leaves_time_wait_at_the_client_and_reset_leaves_none() {
    let topology = Topology::new(1).unwrap();
    let origin = &topology.origins()[0];
    let listen = vec![SocketAddr::new(origin.v4.into(), 0)];
    let (mode, threads) = (Mode::Echo { tag: None }, size(1));
    let plan = serve::Plan {
        listen,
        mode,
        threads,
    };
    let server = origin
        .namespace
        .run(|| serve::start(&plan))
        .unwrap()
        .unwrap();
    for (close, left) in [(Close::Reset, 0), (Close::Fin, 25)] {
        let plan = connect::Plan {
            load: counted(server.addresses()[0], 25),
            request: Request::Echo(number(1)),
            close,
        };
        let report = topology
            .edge()
            .run(|| connect::run(&plan))
            .unwrap()
            .unwrap();
        assert_eq!((report.operations(), report.failed()), (25, 0), "{report}");
        eventually("the server has closed all", || server.open() == 0);
        eventually("the last FIN is answered", || {
            time_waits(topology.edge()) == left
        });
        assert_eq!(time_waits(&origin.namespace), 0);
    }
}

#[test]
fn ranges_of_addresses_and_ports_are_loaded_from_several_sources_in_a_namespace() {
    let topology = Topology::new(0).unwrap();
    let (client, edge) = (topology.client(), topology.edge());
    for prefix in ["198.51.100.0/24", "2001:db8:51::/64"] {
        let mut route = edge.command("ip");
        route.args(["route", "add", "local", prefix, "dev", "lo"]);
        assert!(route.status().unwrap().success());
    }
    for address in ["10.0.1.3/24", "fd00:1::3/64"] {
        link::add_address(client, "edge", address.parse().unwrap()).unwrap();
    }
    let ports = 7000..=7003;
    let listen = ports
        .flat_map(|port| ["0.0.0.0", "::"].map(|any| SocketAddr::new(any.parse().unwrap(), port)));
    let plan = serve::Plan {
        listen: listen.collect(),
        mode: Mode::Echo {
            tag: Some(tag("edge")),
        },
        threads: size(2),
    };
    let server = edge.run(|| serve::start(&plan)).unwrap().unwrap();
    let sets = ["198.51.100.0/24:7000-7003", "[2001:db8:51::/64]:7000-7003"];
    let sets = sets.map(|text| text.parse::<TargetSet>().unwrap());
    let sources = ["10.0.1.2", "fd00:1::2", "10.0.1.3", "fd00:1::3"];
    let load = Load {
        sources: sources
            .iter()
            .map(|source| source.parse().unwrap())
            .collect(),
        connections: size(4),
        threads: size(2),
        ..counted(Targets::new(sets.to_vec()).unwrap(), 400)
    };
    let report = client.run(|| connect(load, Request::Who)).unwrap();
    assert_eq!(report.failures().len(), 0, "{report}");
    assert_eq!(report.answers()[&tag("edge")], 400);
    assert_eq!(server.accepted(), 400);
    let sockets = client
        .command("ss")
        .args(["-Htan", "state", "time-wait"])
        .output()
        .unwrap();
    let sockets = String::from_utf8(sockets.stdout).unwrap();
    for source in ["10.0.1.2:", "10.0.1.3:", "[fd00:1::2]:", "[fd00:1::3]:"] {
        assert!(
            sockets.matches(source).count() > 50,
            "{source} in {sockets}"
        );
    }
}

/// The command, with its server; killed when the test ends, however it does.
struct ServeCommand(std::process::Child);

impl Drop for ServeCommand {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_anyport-load"))
}

#[test]
fn the_command_serves_and_loads_and_reports() {
    let serve = command()
        .args(["serve", "--listen", "127.0.0.1:0", "--tag", "cli"])
        .stdout(Stdio::piped())
        .spawn();
    let mut serve = ServeCommand(serve.unwrap());
    let mut said = String::new();
    BufReader::new(serve.0.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    let address = said.trim_end().strip_prefix("listening on ").unwrap();
    let output = command()
        .args([
            "connect",
            address,
            "-n",
            "20",
            "-c",
            "2",
            "--request",
            "who",
            "--json",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["operations"], 20);
    assert_eq!(report["answers"]["cli"], 20);
    let output = command()
        .args(["pingpong", address, "-n", "5"])
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && table.contains("p99"), "{table}");
    drop(serve);
    let output = command()
        .args(["connect", address, "-n", "2"])
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{table}");
    assert!(table.contains("refused: 2"), "{table}");
}

#[test]
fn the_command_refuses_what_makes_no_sense_in_words() {
    for (arguments, status, words) in [
        (
            vec!["connect", "127.0.0.1:1", "--duration", "25h"],
            1,
            "duration",
        ),
        (vec!["connect", "localhost:1"], 2, "no address or CIDR"),
        (
            vec!["connect", "127.0.0.1:1", "--source", "::1"],
            1,
            "address family",
        ),
        (vec!["serve", "--listen", "127.0.0.0/8:9"], 2, "one address"),
        (
            vec![
                "serve",
                "--listen",
                "127.0.0.1:9",
                "--mode",
                "sink",
                "--tag",
                "a",
            ],
            1,
            "--tag",
        ),
    ] {
        let output = command().args(&arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
