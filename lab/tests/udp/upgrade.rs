//! Flows that begin while an agent takes over from another.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Service, Steering, eventually};
use anyport_lab::load::Who;
use anyport_lab::network::lost_datagrams;

use super::{ANSWERED, client, echo, steered_by};

const APPS: &str = r#"
apps:
  - { name: all, protocol: udp/*, edge_ips: [198.51.100.10, "2001:db8:51::10"], origin_direct: ["udp://10.0.2.2:7000"], timeouts: { udp_idle: 1s, drain: 10m } }
"#;

/// The app's idle time.
const IDLE: Duration = Duration::from_secs(1);

const EDGE: Service = Service::EdgeAgent;

/// Datagrams that each flow begins with, at once.
const BURST: usize = 8;

/// What became of the flows.
#[derive(Default, Debug)]
struct Fates {
    whole: AtomicU64,
    /// Answers that did not come.
    lost: AtomicU64,
    /// Flows that their origin saw as two.
    torn: AtomicU64,
    /// The same of which the first may have been idle before the second began.
    idle: AtomicU64,
}

fn begin_flows(cluster: &Cluster, over: &AtomicBool, fates: &Fates) {
    let mut number = 0u16;
    while !over.load(Relaxed) {
        number = number % 60_000 + 1;
        let v6 = number % 2 == 1;
        let door = if v6 {
            "2001:db8:51::10"
        } else {
            "198.51.100.10"
        };
        let socket = client(cluster, v6);
        socket
            .connect(SocketAddr::new(door.parse().unwrap(), number))
            .unwrap();
        socket.set_read_timeout(Some(ANSWERED)).unwrap();
        let begun = Instant::now();
        (0..BURST).for_each(|_| assert!(socket.send(b"who\n").is_ok()));
        let peers: Vec<SocketAddr> = (0..BURST).filter_map(|_| answered(&socket)).collect();
        fates.lost.fetch_add((BURST - peers.len()) as u64, Relaxed);
        match peers.into_iter().collect::<BTreeSet<_>>().len() {
            0 | 1 => fates.whole.fetch_add(1, Relaxed),
            _ if begun.elapsed() >= IDLE => fates.idle.fetch_add(1, Relaxed),
            _ => fates.torn.fetch_add(1, Relaxed),
        };
    }
}

/// Who the origin takes the client for.
fn answered(socket: &UdpSocket) -> Option<SocketAddr> {
    let mut answer = [0; 256];
    let count = socket.recv(&mut answer).ok()?;
    let who: Who = std::str::from_utf8(&answer[..count])
        .unwrap()
        .parse()
        .unwrap();
    Some(who.peer)
}

anyport_lab::under_both_steerings![flows_that_begin_in_an_upgrade_are_whole];

fn flows_that_begin_in_an_upgrade_are_whole(steering: Steering) {
    let mut cluster = steered_by(steering, 1, APPS);
    let _server = echo(&cluster, 0, "one", &[7000]);
    let before = lost_datagrams(cluster.topology());
    let (over, fates) = (AtomicBool::new(false), Fates::default());
    for nth in 1..=5 {
        let begun = |more: u64| {
            let from = fates.whole.load(Relaxed);
            eventually(PATIENCE * 3, "flows begin", || {
                let now = fates.whole.load(Relaxed) - from;
                (now >= more).then_some(()).ok_or(now)
            });
        };
        let successor = std::thread::scope(|scope| {
            over.store(false, Relaxed);
            for _ in 0..4 {
                scope.spawn(|| begin_flows(&cluster, &over, &fates));
            }
            begun(500);
            let successor = cluster.spawn_beside(EDGE).unwrap();
            eventually(PATIENCE * 3, "it takes over", || {
                let taken = cluster.log(EDGE).matches("has taken over").count();
                (taken >= nth).then_some(()).ok_or(taken)
            });
            begun(500);
            over.store(true, Relaxed);
            successor
        });
        let mut old = cluster.succeed(successor).unwrap();
        cluster.wait_until_ready(EDGE).unwrap();
        assert_eq!(old.end_within(PATIENCE * 3).unwrap(), Some(0));
    }
    let of_queues = lost_datagrams(cluster.topology()) - before;
    let (lost, torn) = (fates.lost.load(Relaxed), fates.torn.load(Relaxed));
    assert!(lost <= of_queues, "{fates:?}, {of_queues} by queues");
    assert_eq!(torn, 0, "{fates:?}");
}
