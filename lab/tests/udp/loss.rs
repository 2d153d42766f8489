//! Nothing is lost between a client and an origin but what a full queue of the kernel loses, and no
//! client has two flows.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, Steering};
use anyport_lab::network::lost_datagrams;

use super::{ANSWERED, at, client, echo, edge_metric, steered_by};

const APPS: &str = r#"
apps:
  - { name: all, protocol: udp/*, edge_ips: [198.51.100.10, "2001:db8:51::10"], origin_direct: ["udp://10.0.2.2:7000"], timeouts: { udp_idle: 1s } }
"#;

/// The app's idle time: who is silent for so long begins another flow.
const IDLE: Duration = Duration::from_secs(1);

anyport_lab::under_both_steerings![of_10_000_flows_all_are_answered_and_none_is_torn];

fn of_10_000_flows_all_are_answered_and_none_is_torn(steering: Steering) {
    const ROUNDS: usize = 20;
    const FLOWS: usize = 500;
    let cluster = steered_by(steering, 1, APPS);
    let _server = echo(&cluster, 0, "one", &[7000]);
    let before = lost_datagrams(cluster.topology());
    let (mut unanswered, mut slow) = (0, 0);
    for round in 0..ROUNDS {
        let start = Instant::now();
        let sockets: Vec<UdpSocket> = (0..FLOWS).map(|n| asking(&cluster, round, n)).collect();
        let sent = Instant::now();
        // Several at once, each twice and no more: while the first opens the flow, the second comes.
        std::thread::scope(|scope| {
            for share in sockets.chunks(FLOWS / 4) {
                scope.spawn(move || {
                    for socket in share {
                        (0..2).for_each(|_| assert!(socket.send(&name_of(socket)).is_ok()));
                    }
                });
            }
        });
        let end = Instant::now() + ANSWERED;
        for socket in sockets.iter().flat_map(|socket| [socket; 2]) {
            let left = end.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1));
            socket.set_read_timeout(Some(left)).unwrap();
            let mut answer = [0; 8];
            match socket.recv(&mut answer) {
                Ok(_) => assert_eq!(answer[..2], name_of(socket), "the answer of another"),
                Err(_) => unanswered += 1,
            }
        }
        slow += u64::from(sent.elapsed() >= IDLE);
        // One source has so many flows at a time; those that are silent for a second make room.
        std::thread::sleep(Duration::from_secs(1).saturating_sub(start.elapsed()));
    }
    let lost = lost_datagrams(cluster.topology()) - before;
    assert!(unanswered <= lost, "{unanswered} lost, {lost} by queues");
    assert_eq!(
        edge_metric(&cluster, "anyport_dropped_packets_total", &[]),
        0
    );
    // One flow for each client, unless both of its datagrams were lost, or it was idle between them.
    let opened = edge_metric(&cluster, "anyport_connections_opened_total", &[]);
    let (flows, more) = ((ROUNDS * FLOWS) as u64, slow * FLOWS as u64);
    assert!(
        (flows - lost..=flows + more).contains(&opened),
        "{opened} flows of {flows} clients, {lost} datagrams lost, {slow} rounds were slow"
    );
}

/// To a place of its own, or in every other round, all to one.
fn asking(cluster: &Cluster, round: usize, number: usize) -> UdpSocket {
    let v6 = number % 2 == 1;
    let door = if v6 {
        "[2001:db8:51::10]"
    } else {
        "198.51.100.10"
    };
    let port = if round.is_multiple_of(2) {
        53
    } else {
        1000 + number
    };
    let socket = client(cluster, v6);
    socket.connect(at(&format!("{door}:{port}"))).unwrap();
    socket
}

fn name_of(socket: &UdpSocket) -> [u8; 2] {
    socket.local_addr().unwrap().port().to_be_bytes()
}
