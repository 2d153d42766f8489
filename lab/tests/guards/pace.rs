//! How fast a connection may move bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Service, Store, eventually};
use anyport_lab::network::await_acknowledged;
use anyport_lab::tls;

use super::{PREFIXES, V4, V6, at, cluster, datagram_echo, metric};

/// Bytes a second.
const RATE: u64 = 400_000;

/// How long each is measured. The first second's worth is free.
const TIME: Duration = Duration::from_secs(4);

/// What may wait between a client and an origin.
const BUFFERS: u64 = 2 << 20;

/// An app at an origin's port, with as many bytes a second for each connection.
fn app(transport: &str, name: &str, port: u16, origin: u16, rate: u64) -> String {
    format!(
        "  - {{ name: {name}, protocol: {transport}/{port}, edge_ips: [{V4}, \"{V6}\"], \
         origin_direct: [\"{transport}://10.0.2.2:{origin}\"], \
         limits: {{ bytes_per_second_per_connection: {rate} }} }}\n"
    )
}

/// Of all that may pass, what passes. A machine that is busy elsewhere for some seconds makes
/// it less, nothing makes it more but what is counted as it begins.
const LEAST: f64 = 0.5;
const MOST: f64 = 1.05;

/// What part `bytes` are of all that may pass at a rate in this time.
fn part_of(rate: u64, bytes: u64, time: Duration) -> f64 {
    bytes as f64 / (rate as f64 * (time.as_secs_f64() + 1.0))
}

/// Reads what comes for `time`, and gives how much it was in each quarter of a second.
fn read_for(stream: &mut TcpStream, time: Duration) -> Vec<u64> {
    let start = Instant::now();
    stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let mut quarters = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while start.elapsed() < time {
        match stream.read(&mut buffer) {
            Ok(count) => {
                assert!(count > 0, "it has ended");
                let quarter = (start.elapsed().as_millis() / 250) as usize;
                quarters.resize(quarters.len().max(quarter + 1), 0);
                quarters[quarter] += count as u64;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
    }
    quarters
}

/// Sends for `time` whatever is taken, and gives how much that was.
fn write_for(stream: &mut TcpStream, time: Duration) -> u64 {
    let start = Instant::now();
    stream
        .set_write_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let (mut sent, buffer) = (0, vec![7; 1 << 16]);
    while start.elapsed() < time {
        match stream.write(&buffer) {
            Ok(count) => sent += count as u64,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
    }
    sent
}

/// What the agent's workers have done so far.
struct Work {
    /// Processor time.
    time: Duration,
    /// How often they had nothing to do.
    waits: u64,
}

fn work(cluster: &Cluster) -> Work {
    let pid = cluster.pid(Service::EdgeAgent).unwrap();
    let mut work = Work {
        time: Duration::ZERO,
        waits: 0,
    };
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let read = |file: &str| {
            std::fs::read_to_string(thread.as_ref().unwrap().path().join(file)).unwrap()
        };
        let (stat, status) = (read("stat"), read("status"));
        let (name, fields) = stat.rsplit_once(')').unwrap();
        if !name.contains("(worker-") {
            continue;
        }
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        work.time += Duration::from_millis(ticks * 10);
        let mut lines = status.lines();
        let waits = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        work.waits += waits.unwrap().trim().parse::<u64>().unwrap();
    }
    work
}

#[test]
fn a_connection_keeps_to_its_pace_and_others_to_theirs() {
    let cluster = cluster(Store::Embedded);
    // One that speaks without end, one that listens without end.
    let taken = Arc::new(AtomicU64::new(0));
    tls::serve(&cluster, 0, 7100, None, |client| {
        let buffer = vec![7; 1 << 16];
        while client.write_all(&buffer).is_ok() {}
    });
    let counted = Arc::clone(&taken);
    tls::serve(&cluster, 0, 7101, None, move |client| {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            counted.fetch_add(count as u64, Relaxed);
        }
    });
    tls::serve(&cluster, 0, 7102, None, tls::echo);
    let apps = [
        app("tcp", "down", 3001, 7100, RATE),
        app("tcp", "up", 3002, 7101, RATE),
        app("tcp", "free", 3003, 7102, 0),
        app("tcp", "free-down", 3004, 7100, 0),
    ];
    cluster
        .apply(&format!("{PREFIXES}apps:\n{}", apps.concat()))
        .unwrap();
    let dial = |to: SocketAddr| cluster.dial(to).unwrap();

    // What waits at the client is not the edge's matter.
    let sender = |to: SocketAddr| {
        let stream = dial(to);
        socket2::SockRef::from(&stream)
            .set_send_buffer_size(64 << 10)
            .unwrap();
        stream
    };

    // Nobody but them, so that what they cost the agent is seen: both wait nearly all the time.
    let (before, start) = (work(&cluster), Instant::now());
    let (mut slowed, mut other, mut up) =
        (dial(at(V4, 3001)), dial(at(V6, 3001)), sender(at(V4, 3002)));
    let reading = |stream: &mut TcpStream| {
        let quarters = read_for(stream, TIME);
        (quarters.iter().sum(), start.elapsed(), quarters)
    };
    let (down, other, sent) = std::thread::scope(|scope| {
        let down = scope.spawn(|| reading(&mut slowed));
        let other = scope.spawn(|| reading(&mut other));
        let sent = write_for(&mut up, TIME);
        (down.join().unwrap(), other.join().unwrap(), sent)
    });
    let (time, arrived) = (start.elapsed(), taken.load(Relaxed));
    let after = work(&cluster);
    for (which, bytes, time) in [
        ("down", down.0, down.1),
        ("its neighbour", other.0, other.1),
        ("up", arrived, time),
    ] {
        let part = part_of(RATE, bytes, time);
        assert!(
            (LEAST..=MOST).contains(&part),
            "{which}: {bytes} bytes in {time:?}, {part}"
        );
    }
    // A sender waits, and neither fills memory nor loses anything.
    assert!(sent <= arrived + BUFFERS, "{sent} sent, {arrived} arrived");
    // Smooth, once the first second's worth is through, unless the machine was busy elsewhere: then
    // it is looked at again, and what comes in lumps always does.
    let mut quarters = down.2;
    eventually(PATIENCE, "it is smooth", || {
        let seen = std::mem::take(&mut quarters);
        let inner = &seen[2..seen.len() - 1];
        let is_even = |quarter: &&u64| (RATE / 12..=RATE / 2).contains(quarter);
        let even = inner.iter().filter(is_even).count();
        if even * 4 >= inner.len() * 3 {
            return Ok(());
        }
        quarters = read_for(&mut slowed, TIME);
        Err(format!("{inner:?}"))
    });
    let (cost, waits) = (after.time - before.time, after.waits - before.waits);
    assert!(cost < time / 4, "{cost:?} of processor time in {time:?}");
    // Each is looked at twenty times a second.
    assert!(
        waits < 3 * 100 * time.as_secs(),
        "{waits} waits in {time:?}"
    );
    up.shutdown(std::net::Shutdown::Write).unwrap();

    // Beside one that is slowed down, others are as fast as ever.
    let start = Instant::now();
    let mut slow = dial(at(V4, 3001));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let mut bytes = 0;
            while !done.load(Relaxed) {
                bytes += read_for(&mut slow, Duration::from_millis(200))
                    .iter()
                    .sum::<u64>();
            }
            bytes
        });
        let mut talk = dial(at(V4, 3003));
        for _ in 0..500 {
            talk.write_all(b"x").unwrap();
            talk.read_exact(&mut [0]).unwrap();
        }
        let mut bulk = dial(at(V4, 3004));
        let mut left = 64 << 20;
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            left -= bulk.read(&mut buffer).unwrap().min(left);
        }
        let took = start.elapsed();
        done.store(true, Relaxed);
        let slowed = slow.join().unwrap();
        // At the slow one's pace this alone would take nearly three minutes.
        assert!(took < PATIENCE, "{took:?} for 64 MiB");
        let part = part_of(RATE, slowed, start.elapsed());
        assert!(part <= MOST, "{slowed} bytes, {part}");
    });

    // All that was sent arrives in the end.
    let left = sent.saturating_sub(taken.load(Relaxed));
    let patience = Duration::from_secs(left / RATE) + PATIENCE;
    eventually(patience, "all that was sent arrives", || {
        match taken.load(Relaxed) {
            taken if taken == sent => Ok(()),
            taken => Err(format!("{taken} of {sent}")),
        }
    });
}

/// One that answers and then resets, since it leaves unread what it is sent, or is killed. What it
/// had said has come to the edge by then, and waits there for its turn.
#[test]
fn what_an_origin_said_before_it_reset_arrives_at_the_pace() {
    const ANSWER: u64 = 3 * RATE;
    let cluster = cluster(Store::Embedded);
    let origin = &cluster.topology().origins()[0].namespace;
    let listener = origin.run(|| TcpListener::bind(("0.0.0.0", 7300)));
    let listener = listener.unwrap().unwrap();
    let apps = app("tcp", "resets", 3001, 7300, RATE);
    cluster.apply(&format!("{PREFIXES}apps:\n{apps}")).unwrap();
    let numbered = |from: u64, count: u64| (from..from + count).map(|n| (n % 251) as u8);
    std::thread::spawn(move || {
        let answer: Vec<u8> = numbered(0, ANSWER).collect();
        for mut client in listener.incoming().map_while(Result::ok) {
            client.write_all(&answer).unwrap();
            await_acknowledged(&client);
            let client = socket2::SockRef::from(&client);
            client.set_linger(Some(Duration::ZERO)).unwrap();
        }
    });
    // Somebody who only listens, and somebody who goes on talking to an origin that is gone.
    for (door, talks) in [(V4, false), (V6, true)] {
        let start = Instant::now();
        let mut client = cluster.dial(at(door, 3001)).unwrap();
        let (mut got, mut buffer) = (0, vec![0; 1 << 16]);
        let error = loop {
            match client.read(&mut buffer) {
                Ok(0) => panic!("{door}: it ended as if {got} bytes were all"),
                Ok(count) => {
                    let right = numbered(got, count as u64).eq(buffer[..count].iter().copied());
                    assert!(right, "{door}: other bytes after {got}");
                    got += count as u64;
                }
                Err(error) => break error,
            }
            if talks && got < ANSWER / 2 {
                client.write_all(b"more").unwrap();
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{door}");
        assert_eq!(got, ANSWER, "{door}");
        // At its pace it is there after two seconds; some more the machine may stand still.
        let part = part_of(RATE, got, start.elapsed());
        assert!((LEAST / 2.0..=MOST).contains(&part), "{door}: {part}");
    }
}

#[test]
fn datagrams_beyond_the_pace_are_dropped_and_counted() {
    let cluster = cluster(Store::Embedded);
    let echo = datagram_echo(&cluster);
    answer_thrice(&cluster, at("10.0.2.2", 7200));
    let apps = [
        app("udp", "paced", 3001, 7000, SLOW),
        app("udp", "thrice", 3002, 7200, SLOW),
        app("udp", "free", 3003, 7000, 0),
    ];
    cluster
        .apply(&format!("{PREFIXES}apps:\n{}", apps.concat()))
        .unwrap();
    for door in [V4, V6] {
        // Three times as fast as it may be, beside one that may be so: an answer for each.
        let answered = echo.answered();
        let (there, dropped) = talk(&cluster, [at(door, 3001), at(door, 3003)], 3 * SLOW);
        let [paced, free] = there;
        assert!(
            are_most(free.heard, free.sent),
            "{door}: one beside it is slowed down"
        );
        assert!(
            are_most(dropped, paced.sent - paced.heard),
            "{door}: {dropped} dropped"
        );
        let reached = echo.answered() - answered - free.heard;
        for (which, count) in [("there", reached), ("back", paced.heard)] {
            let part = part_of(SLOW, count * SIZE, paced.time);
            assert!(
                (LEAST..=MOST).contains(&part),
                "{door} {which}: {count} of {}, {part}",
                paced.sent
            );
        }
        // Slow enough, and answered three times as fast as may be.
        let ([thrice], dropped) = talk(&cluster, [at(door, 3002)], SLOW * 9 / 10);
        let part = part_of(SLOW, thrice.heard * SIZE, thrice.time);
        assert!(
            (LEAST..=MOST).contains(&part),
            "{door}: {} heard, {part}",
            thrice.heard
        );
        assert!(
            are_most(dropped, 3 * thrice.sent - thrice.heard),
            "{door}: {dropped} dropped"
        );
    }
}

/// A busy machine loses datagrams wherever they wait. Of one that is too fast, more than this is
/// dropped for it.
fn are_most(count: u64, of: u64) -> bool {
    count <= of && count * 10 >= of * 6
}

/// Bytes a second that are few enough for a busy machine.
const SLOW: u64 = 40_000;

/// Of each datagram.
const SIZE: u64 = 400;

fn answer_thrice(cluster: &Cluster, address: SocketAddr) {
    let origin = &cluster.topology().origins()[0].namespace;
    let server = origin.run(|| UdpSocket::bind(address)).unwrap().unwrap();
    server.set_read_timeout(Some(PATIENCE * 3)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2 * SIZE as usize];
        while let Ok((count, from)) = server.recv_from(&mut buffer) {
            (0..3).for_each(|_| {
                let _ = server.send_to(&buffer[..count], from);
            });
        }
    });
}

/// What came of one flow.
struct Talked {
    sent: u64,
    heard: u64,
    time: Duration,
}

/// Sends to each at `rate` bytes a second, and gives what came of it, and how many datagrams were
/// dropped for the pace of their flow.
fn talk<const FLOWS: usize>(
    cluster: &Cluster,
    doors: [SocketAddr; FLOWS],
    rate: u64,
) -> ([Talked; FLOWS], u64) {
    let before = dropped(cluster);
    let sockets = doors.map(|door| {
        let any = if door.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = cluster.topology().client().run(|| UdpSocket::bind(any));
        let socket = socket.unwrap().unwrap();
        socket.connect(door).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    });
    let mut heard = [0; FLOWS];
    let mut listen = || {
        let mut buffer = [0; 2 * SIZE as usize];
        for (socket, heard) in sockets.iter().zip(&mut heard) {
            while socket.recv(&mut buffer).is_ok() {
                *heard += 1;
            }
        }
        heard
    };
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        let due = start.elapsed().as_millis() as u64 * rate / 1000 / SIZE;
        while sent < due {
            for socket in &sockets {
                socket.send(&[7; SIZE as usize]).unwrap();
            }
            sent += 1;
        }
        listen();
        std::thread::sleep(Duration::from_millis(2));
    }
    let time = start.elapsed();
    // What is on its way arrives within a moment, or is lost.
    let (mut heard, mut quiet) = (listen(), Instant::now());
    while quiet.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(2));
        let now = listen();
        if now != heard {
            (heard, quiet) = (now, Instant::now());
        }
    }
    let talked = heard.map(|heard| Talked { sent, heard, time });
    (talked, dropped(cluster) - before)
}

fn dropped(cluster: &Cluster) -> u64 {
    let reason = [("reason", "limit_bytes_per_second")];
    metric(cluster, "anyport_dropped_packets_total", &reason)
}
