//! How fast a connection may move bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Service, Store, eventually};
use anyport_lab::tls;

use super::{PREFIXES, V4, V6, at, cluster, datagram_echo, metric};

/// Bytes a second.
const RATE: u64 = 400_000;

/// How long each is measured. The first second's worth is free.
const TIME: Duration = Duration::from_secs(4);

/// What the system between the ends may hold, in each direction.
const BUFFERS: u64 = 8 << 20;

fn at_rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / (RATE as f64 * (time.as_secs_f64() + 1.0))
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

/// Processor time of the agent so far.
fn processor_time(cluster: &Cluster) -> Duration {
    let pid = cluster.pid(Service::EdgeAgent).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
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
    let app = |name: &str, port: u16, origin: u16, rate: u64| {
        format!(
            "  - {{ name: {name}, protocol: tcp/{port}, edge_ips: [{V4}, \"{V6}\"], \
             origin_direct: [\"tcp://10.0.2.2:{origin}\"], limits: {{ bytes_per_second_per_connection: {rate} }} }}\n"
        )
    };
    let apps = [
        app("down", 3001, 7100, RATE),
        app("up", 3002, 7101, RATE),
        app("free", 3003, 7102, 0),
        app("free-down", 3004, 7100, 0),
    ];
    cluster
        .apply(&format!("{PREFIXES}apps:\n{}", apps.concat()))
        .unwrap();
    let dial = |to: SocketAddr| cluster.dial(to).unwrap();

    // Nobody but them, so that what they cost the agent is seen: both wait nearly all the time.
    let (mut down, mut other, mut up) =
        (dial(at(V4, 3001)), dial(at(V6, 3001)), dial(at(V4, 3002)));
    let (before, start) = (processor_time(&cluster), Instant::now());
    let (quarters, others, sent) = std::thread::scope(|scope| {
        let down = scope.spawn(|| read_for(&mut down, TIME));
        let other = scope.spawn(|| read_for(&mut other, TIME));
        let sent = write_for(&mut up, TIME);
        (down.join().unwrap(), other.join().unwrap(), sent)
    });
    let (time, arrived) = (start.elapsed(), taken.load(Relaxed));
    let cost = processor_time(&cluster) - before;
    for (which, bytes) in [
        ("down", quarters.iter().sum()),
        ("its neighbour", others.iter().sum()),
        ("up", arrived),
    ] {
        let part = at_rate(bytes, time);
        assert!(
            (0.8..=1.05).contains(&part),
            "{which}: {bytes} bytes in {time:?}, {part}"
        );
    }
    // A sender waits, and neither fills memory nor loses anything.
    assert!(sent <= arrived + BUFFERS, "{sent} sent, {arrived} arrived");
    // Smooth, once the first second's worth is through.
    let whole = RATE / 4;
    for quarter in &quarters[2..quarters.len() - 1] {
        assert!(
            (whole / 3..=whole * 2).contains(quarter),
            "{quarters:?} is not smooth"
        );
    }
    assert!(cost < time / 4, "{cost:?} of processor time in {time:?}");
    up.shutdown(std::net::Shutdown::Write).unwrap();
    drop((down, other));

    // Beside one that is slowed down, others are as fast as ever.
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
        let start = Instant::now();
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
        assert!(at_rate(slowed, start.elapsed()) <= 1.05, "{slowed} bytes");
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

#[test]
fn datagrams_beyond_the_pace_are_dropped_and_counted() {
    const SIZE: usize = 1000;
    let cluster = cluster(Store::Embedded);
    let _echo = datagram_echo(&cluster);
    let app = |name: &str, port: u16, rate: u64| {
        format!(
            "  - {{ name: {name}, protocol: udp/{port}, edge_ips: [{V4}, \"{V6}\"], \
             origin_direct: [\"udp://10.0.2.2:7000\"], limits: {{ bytes_per_second_per_connection: {rate} }} }}\n"
        )
    };
    let apps = [app("paced", 3001, RATE), app("free", 3002, 0)];
    cluster
        .apply(&format!("{PREFIXES}apps:\n{}", apps.concat()))
        .unwrap();
    let client = cluster.topology().client();
    for door in [V4, V6] {
        let before = dropped(&cluster);
        let socket = |port| {
            let any = if door == V4 { "0.0.0.0:0" } else { "[::]:0" };
            let socket = client.run(|| UdpSocket::bind(any)).unwrap().unwrap();
            socket.connect(at(door, port)).unwrap();
            socket
        };
        let (paced, free) = (socket(3001), socket(3002));
        // Each is three times as fast as one of them may be. Echoes come one for one.
        let start = Instant::now();
        let mut sent = 0;
        let mut heard = [0, 0];
        let mut buffer = [0; 2 * SIZE];
        paced.set_nonblocking(true).unwrap();
        free.set_nonblocking(true).unwrap();
        let mut listen = |heard: &mut [u64; 2]| {
            for (socket, heard) in [&paced, &free].into_iter().zip(heard) {
                while socket.recv(&mut buffer).is_ok() {
                    *heard += 1;
                }
            }
        };
        while start.elapsed() < TIME {
            let due = start.elapsed().as_millis() as u64 * 3 * RATE / 1000 / SIZE as u64;
            while sent < due {
                paced.send(&[7; SIZE]).unwrap();
                free.send(&[7; SIZE]).unwrap();
                sent += 1;
            }
            listen(&mut heard);
            std::thread::sleep(Duration::from_millis(2));
        }
        let time = start.elapsed();
        let lost = eventually(PATIENCE, "every datagram is heard or dropped", || {
            listen(&mut heard);
            let lost = dropped(&cluster) - before;
            let all = heard[0] + lost == sent && heard[1] == sent;
            if all {
                Ok(lost)
            } else {
                Err(format!("{sent} sent, {heard:?} heard, {lost} dropped"))
            }
        });
        let part = at_rate(heard[0] * SIZE as u64, time);
        assert!(
            (0.8..=1.05).contains(&part),
            "{door}: {heard:?} of {sent}, {lost} dropped, {part}"
        );
    }
}

fn dropped(cluster: &Cluster) -> u64 {
    let reason = [("reason", "limit_bytes_per_second")];
    metric(cluster, "anyport_dropped_packets_total", &reason)
}
