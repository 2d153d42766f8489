//! Clients that take their time. That half a PROXY header, silence and single bytes end at the
//! header's deadline is in `identity`, that half a ClientHello and silence end at the handshake's
//! in `tls`.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, eventually};
use anyport_lab::tls::{self, Authority};

use super::{PREFIXES, V4, at, echo, metric};

/// Sends a byte every tenth of a second until it is reset, and gives after how long.
fn dribble(mut stream: TcpStream, bytes: &[u8]) -> Duration {
    let start = Instant::now();
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let mut bytes = bytes.iter().cycle();
    while start.elapsed() < PATIENCE {
        // One that is reset is found by the read.
        let _ = stream.write(&[*bytes.next().unwrap()]);
        match stream.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                return start.elapsed();
            }
            Ok(count) => panic!("{count} bytes for nothing"),
        }
    }
    panic!("it is still there");
}

#[test]
fn a_hello_that_dribbles_gains_no_time() {
    let cluster = Cluster::start(Plan::default()).unwrap();
    let _echo = echo(&cluster);
    let authority = Authority::new("everybody");
    let app = |name: &str, port: u16, more: &str| {
        format!(
            "  - {{ name: {name}, protocol: tcp/{port}, edge_ips: [{V4}], \
             origin_direct: [\"tcp://10.0.2.2:7000\"], timeouts: {{ tls_handshake: 1s }}, {more} }}\n"
        )
    };
    let manifest = [
        PREFIXES,
        "certificates:\n",
        &authority.issue("edge").declared(&cluster, "edge"),
        "apps:\n",
        &app("named", 443, "sni: [a.example.com]"),
        &app("ends", 444, "tls: flexible, certificate: edge"),
    ]
    .concat();
    cluster.apply(&manifest).unwrap();
    // A record of the type of a ClientHello that is 4 KiB long.
    let hello = b"\x16\x03\x01\x10\x00\x01\x00\x0f\xfc\x03\x03";
    for (app, port) in [("named", 443), ("ends", 444)] {
        let slow = cluster.dial(at(V4, port)).unwrap();
        let took = std::thread::scope(|scope| {
            let slow = scope.spawn(|| dribble(slow, hello));
            // Others do not notice.
            let to = at(V4, 444).to_string();
            let mut other = tls::shaken(&cluster, &to, authority.client(), "edge").unwrap();
            other.write_all(b"x").unwrap();
            other.read_exact(&mut [0]).unwrap();
            slow.join().unwrap()
        });
        assert!(took >= Duration::from_millis(900), "{app}: {took:?}");
        // Were each byte a reason to wait longer, it would be there for good.
        assert!(took < Duration::from_secs(10), "{app}: {took:?}");
        eventually(PATIENCE, "it is counted", || {
            let labels = [("app", app), ("status", "443")];
            match metric(&cluster, "anyport_connections_closed_total", &labels) {
                1 => Ok(()),
                other => Err(other),
            }
        });
    }
}
