//! Nothing is lost between a client and an origin but what a full queue of the kernel loses, and no
//! client has two flows.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Steering};
use anyport_netns::Namespace;

use super::{at, client, echo, edge_metric, origin, steered_by};

const APPS: &str = r#"
apps:
  - { name: all, protocol: udp/*, edge_ips: [198.51.100.10, "2001:db8:51::10"], origin_direct: ["udp://10.0.2.2:7000"], timeouts: { udp_idle: 1s } }
"#;

/// Datagrams that a full queue of a socket has lost in this namespace, and those that found no socket.
pub(super) fn lost_in(namespace: &Namespace) -> [u64; 2] {
    let script = "cat /proc/net/snmp /proc/net/snmp6";
    let output = namespace
        .command("sh")
        .args(["-c", script])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut v4 = text.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let (names, values) = (v4.next().unwrap(), v4.next().unwrap());
    let v4 = names.split_whitespace().zip(values.split_whitespace());
    let v6 = text.lines().filter_map(|line| line.strip_prefix("Udp6"));
    let v6 = v6.filter_map(|line| line.split_once(char::is_whitespace));
    let all: Vec<(&str, &str)> = v4.chain(v6).collect();
    ["RcvbufErrors", "NoPorts"].map(|wanted| {
        let found = all.iter().filter(|(name, _)| *name == wanted);
        found
            .map(|(_, value)| value.trim().parse::<u64>().unwrap())
            .sum()
    })
}

pub(super) fn lost_anywhere(cluster: &Cluster) -> [[u64; 2]; 3] {
    let topology = cluster.topology();
    [topology.client(), topology.edge(), origin(cluster, 0)].map(lost_in)
}

anyport_lab::under_both_steerings![of_10_000_flows_all_are_answered_and_none_is_torn];

fn of_10_000_flows_all_are_answered_and_none_is_torn(steering: Steering) {
    const ROUNDS: usize = 20;
    const FLOWS: usize = 500;
    let cluster = steered_by(steering, 1, APPS);
    let _server = echo(&cluster, 0, "one", &[7000]);
    let before = lost_anywhere(&cluster);
    let mut unanswered = 0;
    for round in 0..ROUNDS {
        let start = Instant::now();
        let sockets: Vec<UdpSocket> = (0..FLOWS).map(|n| asking(&cluster, round, n)).collect();
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
        let end = Instant::now() + PATIENCE;
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
        // One source has so many flows at a time; those that are silent for a second make room.
        std::thread::sleep(Duration::from_secs(1).saturating_sub(start.elapsed()));
    }
    let after = lost_anywhere(&cluster);
    let of_queues: u64 = after.iter().zip(before).map(|(a, b)| a[0] - b[0]).sum();
    assert!(
        unanswered <= of_queues,
        "{unanswered} lost: {before:?}, {after:?}"
    );
    assert_eq!(
        edge_metric(&cluster, "anyport_dropped_packets_total", &[]),
        0
    );
    let opened = edge_metric(&cluster, "anyport_connections_opened_total", &[]);
    assert_eq!(opened, (ROUNDS * FLOWS) as u64, "one flow for each client");
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
