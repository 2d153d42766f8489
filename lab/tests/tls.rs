//! TLS through the edge: routed by name untouched, and ended at the edge in all its modes, with
//! rustls, `openssl s_client` and `curl` as clients.
//! Needs root, openssl and curl.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, eventually};
use anyport_lab::servers::Dnsmasq;
use anyport_lab::tls::{Authority, Talker, Tls, echo, serve, shaken};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConnection};

/// The edge's own, on most ports.
const EDGE: &str = "edge.example.com";

fn says(talker: &mut dyn Talker, what: &[u8]) {
    talker.write_all(what).unwrap();
    let mut heard = vec![0; what.len()];
    talker.read_exact(&mut heard).unwrap();
    assert_eq!(heard, what);
}

fn run(cluster: &Cluster, program: &str, arguments: &[&str], input: &str) -> Output {
    let mut command: Command = cluster.topology().client().command("timeout");
    command.arg("60").arg(program).args(arguments);
    let path = cluster.directory().join("input");
    fs::write(&path, input).unwrap();
    let output = command
        .stdin(fs::File::open(&path).unwrap())
        .output()
        .unwrap();
    let code = output.status.code();
    assert!(
        code != Some(127),
        "{program} is not installed; on Debian: apt install {program}"
    );
    output
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// What `openssl s_client` says of a handshake.
fn s_client(cluster: &Cluster, to: &str, name: &str, more: &[&str]) -> String {
    let ca = cluster.directory().join("ca.pem").display().to_string();
    let mut arguments = vec!["s_client", "-connect", to, "-CAfile", &ca];
    if name.is_empty() {
        arguments.push("-noservername");
    } else {
        arguments.extend(["-servername", name, "-verify_hostname", name]);
    }
    arguments.extend(more);
    text(&run(cluster, "openssl", &arguments, ""))
}

fn closed(cluster: &Cluster, app: &str, status: &str) -> f64 {
    cluster.closed(app, status).unwrap()
}

/// Waits until what the app had has ended, and is counted.
fn await_none_open(cluster: &Cluster, app: &str) {
    eventually(PATIENCE, "nothing of it is open", || {
        let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
        let [opened, closed] = ["opened", "closed"].map(|what| {
            metrics.sum(
                &format!("anyport_connections_{what}_total"),
                &[("app", app)],
            )
        });
        (opened == closed)
            .then_some(())
            .ok_or(format!("{closed} of {opened} have ended"))
    });
}

/// Waits until an app has that many connections closed with a status.
fn await_closed(cluster: &Cluster, app: &str, status: &str, count: f64) {
    eventually(PATIENCE, "the connections are counted", || {
        match closed(cluster, app, status) {
            found if found == count => Ok(()),
            found => {
                let metrics = cluster.get(Service::EdgeAgent, "/metrics").unwrap();
                let lines = metrics
                    .lines()
                    .filter(|line| line.contains("closed_total{"));
                let lines: Vec<_> = lines.collect();
                Err(format!(
                    "{app} has {found} with {status}, not {count}: {lines:#?}"
                ))
            }
        }
    });
}

fn cluster(origins: usize, authority: &Authority) -> Cluster {
    let cluster = Cluster::start(Plan {
        origins,
        ..Plan::default()
    })
    .unwrap();
    fs::write(cluster.directory().join("ca.pem"), &authority.pem).unwrap();
    cluster
}

const PREFIX: &str = "prefixes:\n  - cidr: 198.51.100.0/24\n";

#[test]
fn connections_are_routed_by_name_and_pass_untouched() {
    let authority = Authority::new("test ca");
    let cluster = cluster(2, &authority);
    serve(
        &cluster,
        0,
        8443,
        Some(authority.issue("a.example.com").server()),
        echo,
    );
    serve(
        &cluster,
        1,
        8443,
        Some(authority.issue("www.b.example.com").server()),
        echo,
    );
    let _plain = cluster.echo(0, "plain", [7000]).unwrap();
    let manifest = format!(
        r#"{PREFIX}
apps:
  - {{ name: a, protocol: tcp/443, edge_ips: [198.51.100.10], sni: [A.example.com], origin_direct: ["tcp://10.0.2.2:8443"], timeouts: {{ tls_handshake: 5s }} }}
  - {{ name: b, protocol: tcp/443, edge_ips: [198.51.100.10], sni: ["*.b.example.com"], origin_direct: ["tcp://10.0.2.3:8443"], timeouts: {{ tls_handshake: 5s }} }}
  - {{ name: other, protocol: tcp/443, edge_ips: [198.51.100.10], origin_direct: ["tcp://10.0.2.2:7000"], timeouts: {{ tls_handshake: 5s }} }}
  - {{ name: strict-names, protocol: tcp/444, edge_ips: [198.51.100.10], sni: [a.example.com], origin_direct: ["tcp://10.0.2.2:8443"] }}
"#
    );
    cluster.apply(&manifest).unwrap();
    const DOOR: &str = "198.51.100.10:443";
    const NARROW: &str = "198.51.100.10:444";

    for version in ["-tls1_2", "-tls1_3"] {
        for name in ["a.example.com", "www.b.example.com"] {
            let said = s_client(&cluster, DOOR, name, &[version, "-verify_return_error"]);
            assert!(
                said.contains("Verify return code: 0 (ok)"),
                "{name}: {said}"
            );
            assert!(said.contains(&format!("CN = {name}")), "{name}: {said}");
        }
    }
    // Nobody's name, where there is no other app, is told in TLS.
    for name in ["c.example.com", ""] {
        let said = s_client(&cluster, NARROW, name, &[]);
        assert!(said.contains("unrecognized name"), "{said}");
    }
    await_closed(&cluster, "strict-names", "400", 2.0);
    // And where there is one, it takes it, TLS or not.
    let who = cluster.who(DOOR.parse().unwrap()).unwrap();
    assert_eq!(who.local, "10.0.2.2:7000".parse().unwrap());
    let mut plain = cluster.dial(NARROW.parse().unwrap()).unwrap();
    plain.write_all(b"who\n").unwrap();
    let error = plain.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    await_closed(&cluster, "strict-names", "443", 1.0);

    a_hello_in_single_bytes(&cluster, &authority, DOOR);
    half_a_hello_ends_at_its_deadline(&cluster, DOOR);

    for (name, app) in [
        ("a.example.com", "app a"),
        ("x.y.b.example.com", "app b"),
        ("c.example.com", "app other"),
    ] {
        let told = cluster
            .anyport(&["explain", "tcp/198.51.100.10:443", "--sni", name])
            .unwrap();
        assert!(told.out.contains(app), "{told}");
    }
    let told = cluster
        .anyport(&["explain", "tcp/198.51.100.10:444"])
        .unwrap();
    assert_eq!(told.status, Some(1), "{told}");
    assert!(
        told.out.contains("strict-names has a.example.com"),
        "{told}"
    );
    let taken = r#"
apps:
  - { name: thief, protocol: tcp/443, edge_ips: [198.51.100.10], sni: [x.org, a.example.com], origin_direct: ["tcp://10.0.2.3:8443"] }
"#;
    let refused = cluster.try_apply(taken, &[]).unwrap();
    assert_eq!(refused.status, Some(1), "{refused}");
    let named =
        r#"apps[0].sni[1]: a.example.com at tcp/443 on 198.51.100.10/32 is also a name of app "a""#;
    assert!(refused.err.contains(named), "{refused}");
}

fn a_hello_in_single_bytes(cluster: &Cluster, authority: &Authority, door: &str) {
    let name = ServerName::try_from("a.example.com").unwrap();
    let mut client = ClientConnection::new(Arc::new(authority.client()), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut socket = cluster.dial(door.parse().unwrap()).unwrap();
    socket.set_nodelay(true).unwrap();
    for byte in hello {
        socket.write_all(&[byte]).unwrap();
    }
    let mut tls = Tls {
        session: client.into(),
        socket,
    };
    says(&mut tls, b"after a slow start");
}

fn half_a_hello_ends_at_its_deadline(cluster: &Cluster, door: &str) {
    let before = closed(cluster, "a", "443");
    let begin = |bytes: &[u8]| {
        let mut socket = cluster.dial(door.parse().unwrap()).unwrap();
        socket.write_all(bytes).unwrap();
        socket
    };
    let start = Instant::now();
    let mut waiting = [begin(b"\x16\x03\x01\x02\x00\x01"), begin(b"")];
    // Others do not notice.
    let who = cluster.who(door.parse().unwrap()).unwrap();
    assert_eq!(who.local.port(), 7000);
    for socket in &mut waiting {
        let error = socket.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    assert!(
        start.elapsed() >= Duration::from_millis(4900),
        "{:?}",
        start.elapsed()
    );
    await_closed(cluster, "a", "443", before + 2.0);
}

/// The doors of the apps below, which differ by what they do at the origin.
const FLEXIBLE: &str = "198.51.100.20:1001";
const FULL: &str = "198.51.100.20:1002";
const STRICT: &str = "198.51.100.20:1003";

fn modes(cluster: &Cluster, authority: &Authority) -> String {
    let edge = authority.issue(EDGE).declared(cluster, "edge");
    format!(
        r#"{PREFIX}
certificates:
{edge}
apps:
  - {{ name: flexible, protocol: tcp/1001, edge_ips: [198.51.100.20], tls: flexible, certificate: edge, origin_direct: ["tcp://10.0.2.2:7001"], timeouts: {{ tls_handshake: 5s }} }}
  - {{ name: full,     protocol: tcp/1002, edge_ips: [198.51.100.20], tls: full, certificate: edge, origin_direct: ["tcp://10.0.2.2:7002"] }}
  - {{ name: strict,   protocol: tcp/1003, edge_ips: [198.51.100.20], tls: strict, certificate: edge, origin_ca_file: ca.pem, origin_direct: ["tcp://10.0.2.2:7002"] }}
"#
    )
}

/// The origins of [`modes`], which say back what they hear.
fn echoes(cluster: &Cluster, authority: &Authority) {
    serve(cluster, 0, 7001, None, echo);
    let config = authority.issue(EDGE).server();
    serve(cluster, 0, 7002, Some(config), echo);
}

#[test]
fn tls_ends_at_the_edge_and_goes_on_as_the_app_says() {
    let authority = Authority::new("test ca");
    let cluster = cluster(1, &authority);
    serve(&cluster, 0, 7001, None, echo);
    let mut origin = authority.issue(EDGE).server();
    origin.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    serve(&cluster, 0, 7002, Some(origin), echo);
    cluster.apply(&modes(&cluster, &authority)).unwrap();

    for door in [FLEXIBLE, FULL, STRICT] {
        for version in ["-tls1_2", "-tls1_3"] {
            let said = s_client(&cluster, door, EDGE, &[version, "-verify_return_error"]);
            assert!(
                said.contains("Verify return code: 0 (ok)"),
                "{door}: {said}"
            );
        }
        let mut tls = shaken(&cluster, door, authority.client(), EDGE).unwrap();
        says(&mut tls, b"hello, origin");
        // The end of one direction, and what comes after it in the other.
        tls.write_all(b"last words").unwrap();
        tls.end();
        let mut heard = String::new();
        tls.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "last words", "{door}");
    }
    for (app, count) in [("flexible", 3.0), ("full", 3.0), ("strict", 3.0)] {
        await_closed(&cluster, app, "200", count);
    }

    // The origin chooses the protocol; nobody does where it has no TLS.
    for (offered, chosen) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        for door in [FLEXIBLE, FULL, STRICT] {
            let mut config = authority.client();
            config.alpn_protocols = offered.iter().map(|p| p.as_bytes().to_vec()).collect();
            let tls = shaken(&cluster, door, config, EDGE).unwrap();
            let wanted = if door == FLEXIBLE { None } else { chosen };
            assert_eq!(tls.protocol().as_deref(), wanted, "{door} {offered:?}");
        }
    }

    sessions_are_resumed(&cluster);
    a_client_that_does_not_shake_hands_is_gone(&cluster, &authority);
    what_is_cut_short_is_not_taken_for_whole(&cluster, &authority);
}

fn sessions_are_resumed(cluster: &Cluster) {
    for version in ["-tls1_2", "-tls1_3"] {
        // It says so in TLS 1.2 by itself; in 1.3 a session comes after the handshake.
        let session = cluster.directory().join("session").display().to_string();
        let ca = cluster.directory().join("ca.pem").display().to_string();
        // As long as the session is not there, it goes on.
        let waits = "while ! test -s \"$0\"; do sleep 0.1; done";
        let run = |option: &str| {
            let command = format!(
                "({waits}; echo Q) | openssl s_client -connect {FLEXIBLE} -CAfile {ca} \
                 -servername {EDGE} {version} {option} \"$0\""
            );
            text(&run(cluster, "sh", &["-c", &command, &session], ""))
        };
        let _ = fs::remove_file(&session);
        let first = run("-sess_out");
        assert!(first.contains("New, TLSv1"), "{first}");
        let second = run("-sess_in");
        assert!(second.contains("Reused, TLSv1"), "{version}: {second}");
    }
}

fn a_client_that_does_not_shake_hands_is_gone(cluster: &Cluster, authority: &Authority) {
    let before = closed(cluster, "flexible", "443");
    // One that trusts somebody else says so.
    let stranger = Authority::new("somebody else").client();
    assert!(shaken(cluster, FLEXIBLE, stranger, EDGE).is_err());
    // One that says nothing, half a hello, something else, or a hello and no more.
    let hello = hello(&Arc::new(authority.client()));
    let start = Instant::now();
    let mut sockets = Vec::new();
    for bytes in [&b""[..], &hello[..100], b"EHLO mail\r\n", &hello] {
        let mut socket = cluster.dial(FLEXIBLE.parse().unwrap()).unwrap();
        socket.write_all(bytes).unwrap();
        sockets.push(socket);
    }
    // Others do not notice.
    let mut other = shaken(cluster, FLEXIBLE, authority.client(), EDGE).unwrap();
    says(&mut other, b"hello");
    for mut socket in sockets {
        // With the answer to its hello, or without.
        let error = socket.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    // The deadline, and time for a machine that has other things to do; one after the other they
    // would take 20 s.
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    await_closed(cluster, "flexible", "443", before + 5.0);
}

fn what_is_cut_short_is_not_taken_for_whole(cluster: &Cluster, authority: &Authority) {
    await_none_open(cluster, "flexible");
    let before = closed(cluster, "flexible", "490");
    let mut tls = shaken(cluster, FLEXIBLE, authority.client(), EDGE).unwrap();
    says(&mut tls, b"some of it");
    // A FIN without close_notify: anybody on the way could have sent it.
    tls.socket.shutdown(Shutdown::Write).unwrap();
    await_closed(cluster, "flexible", "490", before + 1.0);
    // No TLS at all in the middle of it.
    let mut tls = shaken(cluster, FLEXIBLE, authority.client(), EDGE).unwrap();
    says(&mut tls, b"some of it");
    tls.socket.write_all(b"this is no record").unwrap();
    assert!(tls.read_to_end(&mut Vec::new()).is_err());
    await_closed(cluster, "flexible", "490", before + 2.0);
    // Resets of TLS stay resets.
    let reset = closed(cluster, "full", "499");
    let mut tls = shaken(cluster, FULL, authority.client(), EDGE).unwrap();
    says(&mut tls, b"some of it");
    socket2::SockRef::from(&tls.socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(tls);
    await_closed(cluster, "full", "499", reset + 1.0);
}

/// An origin's answer that ends without close_notify may be one that somebody has cut short: the
/// client gets what there is, and nobody vouches for its being all. So it is also where the client
/// has ended its own stream before, and this is the last that either says.
#[test]
fn an_answer_that_is_cut_short_is_not_vouched_for() {
    let authority = Authority::new("test ca");
    let cluster = cluster(1, &authority);
    let origin = &cluster.topology().origins()[0].namespace;
    let listen = || TcpListener::bind(("10.0.2.2", 7002));
    let listener = origin.run(listen).unwrap().unwrap();
    let config = Arc::new(authority.issue(EDGE).server());
    cluster.apply(&modes(&cluster, &authority)).unwrap();
    for half_closed in [true, false] {
        let config = Arc::clone(&config);
        let accepting = listener.try_clone().unwrap();
        let answered = thread::spawn(move || {
            let (socket, _) = accepting.accept().unwrap();
            let session = ServerConnection::new(config).unwrap().into();
            let mut tls = Tls { session, socket };
            tls.shake().unwrap();
            let mut question = vec![0; 8];
            tls.read_exact(&mut question).unwrap();
            if half_closed {
                assert_eq!(tls.read(&mut [0]).unwrap(), 0);
            }
            tls.write_all(b"half of it").unwrap();
            // A FIN, which anybody on the way can send.
            tls.socket.shutdown(Shutdown::Write).unwrap();
            tls
        });
        let mut tls = shaken(&cluster, FULL, authority.client(), EDGE).unwrap();
        tls.write_all(b"question").unwrap();
        if half_closed {
            tls.end();
        }
        let mut heard = Vec::new();
        let end = tls.read_to_end(&mut heard).unwrap_err();
        assert_eq!(heard, b"half of it");
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof, "{half_closed}");
        drop((tls, answered.join().unwrap()));
        await_closed(&cluster, "full", "444", if half_closed { 1.0 } else { 2.0 });
    }
}

#[test]
fn an_origin_is_checked_where_the_app_is_strict() {
    let authority = Authority::new("test ca");
    let stranger = Authority::new("somebody else");
    let cluster = cluster(1, &authority);
    let origins = [
        ("good", authority.issue(EDGE)),
        ("name", authority.issue("other.example.com")),
        ("expired", authority.issue_expired(EDGE)),
        ("unknown", stranger.issue(EDGE)),
        // For a client that asks for no name.
        ("address", authority.issue("10.0.2.2")),
    ];
    let edge = authority.issue(EDGE).declared(&cluster, "edge");
    let mut manifest = format!("{PREFIX}\ncertificates:\n{edge}\napps:\n");
    for (index, (name, issued)) in origins.iter().enumerate() {
        let port = 7100 + index as u16;
        serve(&cluster, 0, port, Some(issued.server()), echo);
        for (mode, ca, door) in [
            ("full", "", 1000),
            ("strict", "origin_ca_file: ca.pem,", 2000),
        ] {
            let door = door + index;
            manifest += &format!(
                "  - {{ name: {mode}-{name}, protocol: tcp/{door}, edge_ips: [198.51.100.20], \
                 tls: {mode}, {ca} certificate: edge, origin_direct: [\"tcp://10.0.2.2:{port}\"] }}\n"
            );
        }
    }
    // No TLS there at all.
    let _plain = cluster.echo(0, "plain", [7200]).unwrap();
    // Trusted by the host: not our authority.
    for (mode, door, port) in [("full", 1200, 7200), ("strict", 2200, 7100)] {
        manifest += &format!(
            "  - {{ name: {mode}-other, protocol: tcp/{door}, edge_ips: [198.51.100.20], \
             tls: {mode}, certificate: edge, origin_direct: [\"tcp://10.0.2.2:{port}\"] }}\n"
        );
    }
    cluster.apply(&manifest).unwrap();

    let tried = |door: usize, name: &str| {
        let door = format!("198.51.100.20:{door}");
        let mut tls = shaken(&cluster, &door, authority.client(), name)?;
        says(&mut tls, b"hello");
        Ok::<_, io::Error>(())
    };
    for (index, (name, _)) in origins.iter().enumerate() {
        tried(1000 + index, EDGE).unwrap_or_else(|error| panic!("full-{name}: {error}"));
        let strict = tried(2000 + index, EDGE);
        assert_eq!(strict.is_ok(), *name == "good", "strict-{name}: {strict:?}");
        if *name != "good" {
            await_closed(&cluster, &format!("strict-{name}"), "540", 1.0);
        }
    }
    assert!(tried(1200, EDGE).is_err() && tried(2200, EDGE).is_err());
    await_closed(&cluster, "full-other", "540", 1.0);
    await_closed(&cluster, "strict-other", "540", 1.0);
    let said = s_client(&cluster, "198.51.100.20:2004", "", &[]);
    assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
    await_closed(&cluster, "strict-address", "200", 1.0);
}

/// A listener of an origin's port, and how many connections it has had.
fn bad_origin(
    cluster: &Cluster,
    port: u16,
    talk: impl Fn(TcpStream) + Send + 'static,
) -> Arc<AtomicUsize> {
    let origin = &cluster.topology().origins()[0].namespace;
    let listen = || TcpListener::bind(("10.0.2.2", port));
    let listener = origin.run(listen).unwrap().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Relaxed);
            talk(socket);
        }
    });
    count
}

#[test]
fn an_origin_that_does_not_shake_hands_gives_way_to_the_next() {
    const CLIENTS: usize = 16;
    let authority = Authority::new("test ca");
    let cluster = cluster(2, &authority);
    let held = Mutex::new(Vec::new());
    let expired = Arc::new(authority.issue_expired(EDGE).server());
    let bad = [
        ("closes", bad_origin(&cluster, 7101, drop)),
        (
            "speaks",
            bad_origin(&cluster, 7102, |mut socket| {
                // Whoever does not want to hear it is gone.
                let _ = socket.write_all(b"220 mail.example.com\r\n");
                thread::spawn(move || socket.read_to_end(&mut Vec::new()));
            }),
        ),
        (
            "silent",
            bad_origin(&cluster, 7103, move |socket| {
                held.lock().unwrap().push(socket)
            }),
        ),
        (
            "expired",
            bad_origin(&cluster, 7104, move |socket| {
                let session = ServerConnection::new(Arc::clone(&expired)).unwrap().into();
                let _ = Tls { session, socket }.shake();
            }),
        ),
    ];
    let edge = authority.issue(EDGE).declared(&cluster, "edge");
    let (mut pools, mut apps) = (String::new(), String::new());
    for (port, (name, _)) in (7101..).zip(&bad) {
        serve(
            &cluster,
            1,
            port,
            Some(authority.issue(EDGE).server()),
            echo,
        );
        pools += &format!(
            "  - name: {name}\n    policy: round_robin\n    origins:\n      \
             - {{ name: bad, address: \"10.0.2.2:{port}\" }}\n      \
             - {{ name: good, address: \"10.0.2.3:{port}\" }}\n"
        );
        apps += &format!(
            "  - {{ name: {name}, protocol: tcp/{port}, edge_ips: [198.51.100.20], tls: strict, \
             certificate: edge, origin_ca_file: ca.pem, origin_pool: {name}, \
             timeouts: {{ tls_handshake: 3s }} }}\n"
        );
    }
    let manifest = format!("{PREFIX}certificates:\n{edge}pools:\n{pools}apps:\n{apps}");
    cluster.apply(&manifest).unwrap();
    for (port, (name, count)) in (7101..).zip(&bad) {
        let door = format!("198.51.100.20:{port}");
        let since = Instant::now();
        for number in 0..CLIENTS {
            let tls = shaken(&cluster, &door, authority.client(), EDGE);
            let mut tls = tls.unwrap_or_else(|error| panic!("{name}, the {number}th: {error}"));
            says(&mut tls, b"hello");
            tls.end();
            tls.read_to_end(&mut Vec::new()).unwrap();
        }
        await_closed(&cluster, name, "200", CLIENTS as f64);
        // It was tried, and is left alone for a while after that, and longer each time.
        let (tried, most) = (count.load(Relaxed), tries_in(since.elapsed()));
        assert!((1..=most).contains(&tried), "{name}: {tried} of {most}");
    }
}

/// How often an origin is tried that always fails: first at once, then after half a second, and after
/// each time twice as long, up to 15 s.
fn tries_in(time: Duration) -> usize {
    let mut pause = Duration::from_millis(500);
    let (mut tries, mut next) = (1, pause);
    while next <= time {
        pause = Duration::from_secs(15).min(pause * 2);
        (tries, next) = (tries + 1, next + pause);
    }
    tries
}

/// By a real name server: an origin that was found by its name has to show that name, whatever the
/// client asks for; one that SRV records lead to, the client's.
#[test]
fn an_origin_that_was_found_by_its_name_has_to_show_it() {
    const SRV: [&str; 1] = ["--srv-host=_mail._tcp.internal,second.internal,7302,10,0"];
    let hosts = |moving: &str| {
        format!("10.0.2.2 first.internal\n10.0.2.3 second.internal\n{moving} moving.internal\n")
    };
    let authority = Authority::new("test ca");
    let cluster = Cluster::start(Plan {
        origins: 2,
        environment: Dnsmasq::environment(),
        ..Plan::default()
    })
    .unwrap();
    fs::write(cluster.directory().join("ca.pem"), &authority.pem).unwrap();
    let dnsmasq = Dnsmasq::start(&cluster, &hosts("10.0.2.2"), &SRV);
    let shows = |origin: usize, port: u16, name: &str, tag: &'static [u8]| {
        let config = authority.issue(name).server();
        serve(&cluster, origin, port, Some(config), move |talker| {
            talker.write_all(tag).unwrap();
            talker.end();
            let _ = talker.read_to_end(&mut Vec::new());
        });
    };
    shows(0, 7300, "first.internal", b"first");
    shows(0, 7301, "moving.internal", b"moving, first");
    shows(1, 7301, "moving.internal", b"moving, second");
    shows(1, 7302, EDGE, b"by the client's name");
    let edge = authority.issue(EDGE).declared(&cluster, "edge");
    let app = |(port, (name, origin)): (u16, (&str, &str))| {
        format!(
            "  - {{ name: {name}, protocol: tcp/{port}, edge_ips: [198.51.100.20], tls: strict, \
             certificate: edge, origin_ca_file: ca.pem, {origin} }}\n"
        )
    };
    let apps: String = (7300..)
        .zip([
            (
                "first",
                "origin_dns: { name: first.internal, ttl: 1s }, origin_port: 7300",
            ),
            (
                "moving",
                "origin_dns: { name: moving.internal, ttl: 1s }, origin_port: 7301",
            ),
            (
                "srv",
                "origin_dns: { name: _mail._tcp.internal, type: SRV, ttl: 1s }",
            ),
            (
                "another",
                "origin_dns: { name: second.internal, ttl: 1s }, origin_port: 7302",
            ),
        ])
        .map(app)
        .collect();
    let manifest = format!("{PREFIX}certificates:\n{edge}apps:\n{apps}");
    cluster.apply(&manifest).unwrap();
    let hears = |port: u16| -> io::Result<String> {
        let door = format!("198.51.100.20:{port}");
        let mut tls = shaken(&cluster, &door, authority.client(), EDGE)?;
        let mut heard = String::new();
        tls.read_to_string(&mut heard)?;
        Ok(heard)
    };
    assert_eq!(hears(7300).unwrap(), "first");
    assert_eq!(hears(7301).unwrap(), "moving, first");
    assert_eq!(hears(7302).unwrap(), "by the client's name");
    // It shows the client's name there, which is not what it was found by.
    assert!(hears(7303).is_err());
    await_closed(&cluster, "another", "540", 1.0);
    // A name that moves is asked for where it is.
    dnsmasq.change(&hosts("10.0.2.3"));
    eventually(PATIENCE, "the name is followed", || match hears(7301) {
        Ok(heard) if heard == "moving, second" => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn a_new_certificate_is_shown_to_new_connections_only() {
    let authority = Authority::new("test ca");
    let cluster = cluster(1, &authority);
    serve(&cluster, 0, 7001, None, echo);
    let manifest = modes(&cluster, &authority);
    cluster.apply(&manifest).unwrap();
    let mut old = shaken(&cluster, FLEXIBLE, authority.client(), EDGE).unwrap();
    says(&mut old, b"before");
    // The files that the manifest names are others now.
    authority.issue(EDGE).declared(&cluster, "edge");
    let said = cluster.apply(&manifest).unwrap();
    assert!(said.out.contains("updated    certificate  edge"), "{said}");
    let mut new = shaken(&cluster, FLEXIBLE, authority.client(), EDGE).unwrap();
    says(&mut new, b"after");
    assert_ne!(old.certificate(), new.certificate());
    says(&mut old, b"after");
    assert_eq!(closed(&cluster, "flexible", "200"), 0.0);

    // Keys are shown to nobody.
    let key = fs::read_to_string(cluster.directory().join("edge.key")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    for arguments in [
        &["get", "certificates", "-o", "yaml"][..],
        &["get", "certificates", "edge", "-o", "json"],
        &["get", "certificates"],
    ] {
        let said = cluster.anyport(arguments).unwrap();
        assert_eq!(said.status, Some(0), "{said}");
        assert!(
            said.out.contains("edge") && !said.out.contains(secret),
            "{said}"
        );
    }
    let shown = cluster
        .anyport(&["get", "certificates", "-o", "yaml"])
        .unwrap()
        .out;
    assert!(shown.contains("key: redacted"), "{shown}");
    let refused = cluster.try_apply(&shown, &[]).unwrap();
    assert_eq!(refused.status, Some(1), "{refused}");
    assert!(
        refused.err.contains("certificates[0].key: is redacted"),
        "{refused}"
    );
    for service in [Service::EdgeAgent, Service::Balancer] {
        assert!(!cluster.log(service).contains(secret), "{service}");
    }
    for entry in walk(cluster.directory()) {
        let bytes = fs::read(&entry).unwrap_or_default();
        let held = bytes
            .windows(secret.len())
            .any(|part| part == secret.as_bytes());
        let mode = fs::metadata(&entry).unwrap().permissions().mode();
        let name = entry.display().to_string();
        if held && !name.ends_with("edge.key") && name.contains("last-known-good") {
            assert_eq!(mode & 0o077, 0, "{name}");
        }
    }

    // A certificate that is in use stays; one that does not fit its key is refused.
    let said = cluster.anyport(&["delete", "certificate", "edge"]).unwrap();
    assert_eq!(said.status, Some(1), "{said}");
    assert!(said.err.contains("is in use"), "{said}");
    fs::write(
        cluster.directory().join("edge.key"),
        authority.issue(EDGE).key,
    )
    .unwrap();
    let refused = cluster.try_apply(&manifest, &[]).unwrap();
    assert!(
        refused
            .err
            .contains("certificates[0].key_file: is not the key of the certificate"),
        "{refused}"
    );
    // One that has expired is taken, and said to have.
    authority.issue_expired(EDGE).declared(&cluster, "edge");
    let warned = cluster.try_apply(&manifest, &["--wait"]).unwrap();
    assert_eq!(warned.status, Some(0), "{warned}");
    assert!(
        warned.out.contains("certificate \"edge\" expired"),
        "{warned}"
    );
    let listed = cluster.anyport(&["get", "certificates"]).unwrap();
    assert!(listed.out.contains(" ago"), "{listed}");
    assert!(shaken(&cluster, FLEXIBLE, authority.client(), EDGE).is_err());
    says(&mut old, b"still");
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let (directories, mut files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    files.extend(directories.iter().flat_map(|path| walk(path)));
    files
}

/// Reads to the end, and answers how much it was and what it adds up to.
fn sum(talker: &mut dyn Talker) {
    let (count, sum) = added_up(talker).unwrap();
    talker
        .write_all(format!("{count} {sum}").as_bytes())
        .unwrap();
    talker.end();
}

/// FNV-1a over words of eight bytes.
fn added_up(from: &mut dyn Talker) -> io::Result<(u64, u64)> {
    let (mut count, mut sum) = (0u64, Fnv::default());
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok((count, sum.done())),
            read => {
                count += read as u64;
                sum.add(&buffer[..read]);
            }
        }
    }
}

/// Takes bytes in pieces of any length.
struct Fnv {
    hash: u64,
    rest: Vec<u8>,
}

impl Default for Fnv {
    fn default() -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            rest: Vec::new(),
        }
    }
}

impl Fnv {
    fn word(&mut self, word: &[u8]) {
        let mut eight = [0; 8];
        eight[..word.len()].copy_from_slice(word);
        self.hash = (self.hash ^ u64::from_le_bytes(eight)).wrapping_mul(0x0100_0000_01b3);
    }

    fn add(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if !self.rest.is_empty() {
            let missing = (8 - self.rest.len()).min(bytes.len());
            self.rest.extend(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.rest.len() < 8 {
                return;
            }
            let word = std::mem::take(&mut self.rest);
            self.word(&word);
        }
        let words = bytes.chunks_exact(8);
        self.rest = words.remainder().to_vec();
        words.for_each(|word| self.word(word));
    }

    fn done(mut self) -> u64 {
        let rest = std::mem::take(&mut self.rest);
        self.word(&rest);
        self.hash
    }
}

#[test]
fn a_hundred_mebibytes_arrive_as_they_were_in_each_mode() {
    const BULK: u64 = 100 << 20;
    let authority = Authority::new("test ca");
    let cluster = cluster(1, &authority);
    serve(&cluster, 0, 7001, None, sum);
    serve(&cluster, 0, 7002, Some(authority.issue(EDGE).server()), sum);
    let manifest = modes(&cluster, &authority)
        + r#"  - { name: passed, protocol: tcp/1000, edge_ips: [198.51.100.20], sni: [edge.example.com], origin_direct: ["tcp://10.0.2.2:7002"] }
"#;
    cluster.apply(&manifest).unwrap();
    for (door, app) in [
        ("198.51.100.20:1000", "passed"),
        (FLEXIBLE, "flexible"),
        (FULL, "full"),
        (STRICT, "strict"),
    ] {
        let mut tls = shaken(&cluster, door, authority.client(), EDGE).unwrap();
        let mut block: Vec<u8> = (0..64 << 10).map(|i: u32| (i * 7 % 251) as u8).collect();
        let mut sent = Fnv::default();
        for number in 0..BULK / block.len() as u64 {
            block[..8].copy_from_slice(&number.to_le_bytes());
            sent.add(&block);
            tls.write_all(&block).unwrap();
        }
        tls.end();
        let mut answer = String::new();
        tls.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("{BULK} {}", sent.done()), "{app}");
        await_closed(&cluster, app, "200", 1.0);
    }
}

#[test]
fn an_origin_that_speaks_first_is_heard_through_tls() {
    let authority = Authority::new("test ca");
    let cluster = cluster(1, &authority);
    // As SMTP begins (RFC 5321) and as MySQL does (a packet with a header of four bytes).
    const SMTP: &[u8] = b"220 mail.example.com ESMTP\r\n";
    const MYSQL: &[u8] = b"\x0a\x00\x00\x00\x0a8.0.36\x00\x01\x00";
    let (told, heard): (_, Receiver<Vec<u8>>) = channel();
    serve(&cluster, 0, 7001, None, move |talker| {
        talker.write_all(SMTP).unwrap();
        let mut line = [0; 11];
        talker.read_exact(&mut line).unwrap();
        told.send(line.to_vec()).unwrap();
        talker.write_all(b"250 mail.example.com\r\n").unwrap();
        talker.end();
        let _ = talker.read_to_end(&mut Vec::new());
    });
    serve(
        &cluster,
        0,
        7002,
        Some(authority.issue(EDGE).server()),
        |talker| {
            talker.write_all(MYSQL).unwrap();
            echo(talker);
        },
    );
    cluster.apply(&modes(&cluster, &authority)).unwrap();
    let mut tls = shaken(&cluster, FLEXIBLE, authority.client(), EDGE).unwrap();
    let mut greeting = vec![0; SMTP.len()];
    tls.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, SMTP);
    tls.write_all(b"EHLO a.org\n").unwrap();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), b"EHLO a.org\n");
    // The origin ends first, and the client is told so in TLS.
    let mut answer = String::new();
    tls.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "250 mail.example.com\r\n");
    // It has nothing more to say and leaves it at a FIN, as many do.
    drop(tls);
    await_closed(&cluster, "flexible", "200", 1.0);

    for door in [FULL, STRICT] {
        let mut tls = shaken(&cluster, door, authority.client(), EDGE).unwrap();
        let mut greeting = vec![0; MYSQL.len()];
        tls.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, MYSQL);
        says(&mut tls, b"login");
    }
}

#[test]
fn an_idle_connection_in_tls_is_small() {
    const OPEN: usize = 500;
    let authority = Authority::new("test ca");
    let cluster = cluster(1, &authority);
    echoes(&cluster, &authority);
    cluster.apply(&modes(&cluster, &authority)).unwrap();
    let resident = || cluster.resident(Service::EdgeAgent).unwrap() as f64;
    let mut kept = Vec::new();
    for (door, most) in [(FLEXIBLE, 9.0), (STRICT, 15.0)] {
        let open = |count: usize| -> Vec<Tls> {
            let config = authority.client();
            let connections = (0..count).map(|_| {
                let mut tls = shaken(&cluster, door, config.clone(), EDGE).unwrap();
                says(&mut tls, &[7; 3000]);
                tls
            });
            connections.collect()
        };
        // What is made once is not what is measured.
        kept.push(open(50));
        let before = resident();
        let connections = open(OPEN);
        let after = resident();
        let each = (after - before) / OPEN as f64 / 1024.0;
        assert!(each < most, "{each:.1} KiB for each connection");
        // What they had would make the next ones look smaller.
        kept.push(connections);
    }
}

/// So many that send their ClientHello, get an answer and say no more.
fn stalled(cluster: &Cluster, authority: &Authority, count: usize) -> Vec<TcpStream> {
    let config = Arc::new(authority.client());
    let begun = (0..count).map(|_| {
        let mut socket = cluster.dial(FLEXIBLE.parse().unwrap()).unwrap();
        socket.write_all(&hello(&config)).unwrap();
        socket
    });
    let begun: Vec<TcpStream> = begun.collect();
    for mut socket in &begun {
        socket.read_exact(&mut [0; 5]).unwrap();
    }
    begun
}

fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from(EDGE).unwrap();
    let mut client = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// Thousands that send their ClientHello, get an answer and say no more, on one worker: whoever is
/// new shakes hands as ever.
#[test]
fn those_who_stop_in_the_middle_of_a_handshake_hold_up_nobody() {
    const STALLED: usize = 2500;
    let authority = Authority::new("test ca");
    let cluster = Cluster::start(Plan {
        workers: NonZeroUsize::MIN,
        ..Plan::default()
    })
    .unwrap();
    fs::write(cluster.directory().join("ca.pem"), &authority.pem).unwrap();
    echoes(&cluster, &authority);
    // Longer than anything here takes.
    let patient = "timeouts: { tls_handshake: 60s }";
    let manifest = modes(&cluster, &authority).replace("timeouts: { tls_handshake: 5s }", patient);
    cluster.apply(&manifest).unwrap();
    let resident = || cluster.resident(Service::EdgeAgent).unwrap() as f64;
    // What is made once is not what is measured.
    let mut tls = shaken(&cluster, FLEXIBLE, authority.client(), EDGE).unwrap();
    says(&mut tls, b"before");
    let before = resident();
    let _stalled = stalled(&cluster, &authority, STALLED);
    let each = (resident() - before) / STALLED as f64 / 1024.0;
    assert!(each < 20.0, "{each:.1} KiB for each that has stalled");
    for door in [FLEXIBLE, FULL, STRICT] {
        let since = Instant::now();
        let mut tls = shaken(&cluster, door, authority.client(), EDGE).unwrap();
        says(&mut tls, b"hello");
        let took = since.elapsed();
        assert!(took < Duration::from_secs(10), "{door}: after {took:?}");
    }
    says(&mut tls, b"after");
}

/// Those that stall are reset at their deadline, all of them and nobody else, and leave nothing.
#[test]
fn those_who_stop_in_the_middle_of_a_handshake_are_reset_at_its_deadline() {
    const STALLED: usize = 200;
    let deadline = Duration::from_secs(8);
    let authority = Authority::new("test ca");
    let cluster = cluster(1, &authority);
    echoes(&cluster, &authority);
    let manifest = modes(&cluster, &authority).replace("tls_handshake: 5s", "tls_handshake: 8s");
    cluster.apply(&manifest).unwrap();
    let mut open = shaken(&cluster, FLEXIBLE, authority.client(), EDGE).unwrap();
    says(&mut open, b"before");
    let descriptors = || {
        fs::read_dir(format!(
            "/proc/{}/fd",
            cluster.pid(Service::EdgeAgent).unwrap()
        ))
        .unwrap()
        .count()
    };
    let (before, fresh) = (cluster.resident(Service::EdgeAgent).unwrap(), descriptors());
    let refused = closed(&cluster, "flexible", "443");
    let start = Instant::now();
    let stalled = stalled(&cluster, &authority, STALLED);
    let each = (cluster.resident(Service::EdgeAgent).unwrap() as f64 - before as f64)
        / STALLED as f64
        / 1024.0;
    assert!(each < 20.0, "{each:.1} KiB for each that has stalled");
    // Others are served to their end meanwhile.
    while start.elapsed() < deadline / 2 {
        says(&mut open, b"meanwhile");
        let mut other = shaken(&cluster, FLEXIBLE, authority.client(), EDGE).unwrap();
        says(&mut other, b"all of it");
        other.end();
    }
    for mut socket in stalled {
        let error = socket.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(start.elapsed() >= deadline, "{:?}", start.elapsed());
    }
    await_closed(&cluster, "flexible", "443", refused + STALLED as f64);
    eventually(PATIENCE, "nothing of them is left", || {
        let now = descriptors();
        (now <= fresh).then_some(()).ok_or(now)
    });
    says(&mut open, b"after");
}

#[test]
fn proxy_headers_come_before_tls() {
    let authority = Authority::new("test ca");
    let cluster = cluster(1, &authority);
    let (told, heard): (_, Receiver<String>) = channel();
    serve(&cluster, 0, 7001, None, move |talker| {
        let mut header = Vec::new();
        let mut byte = [0];
        while !header.ends_with(b"\r\n") {
            talker.read_exact(&mut byte).unwrap();
            header.extend(byte);
        }
        told.send(String::from_utf8(header).unwrap()).unwrap();
        echo(talker);
    });
    serve(
        &cluster,
        0,
        7002,
        Some(authority.issue(EDGE).server()),
        echo,
    );
    let edge = authority.issue(EDGE).declared(&cluster, "edge");
    let manifest = format!(
        r#"{PREFIX}
certificates:
{edge}
apps:
  - {{ name: told, protocol: tcp/1001, edge_ips: [198.51.100.20], tls: flexible, certificate: edge, proxy_protocol: v1, origin_direct: ["tcp://10.0.2.2:7001"] }}
  - {{ name: a, protocol: tcp/443, edge_ips: [198.51.100.20], sni: [{EDGE}], accept_proxy_protocol: [10.0.0.0/8], origin_direct: ["tcp://10.0.2.2:7002"] }}
  - {{ name: b, protocol: tcp/443, edge_ips: [198.51.100.20], sni: [b.example.com], accept_proxy_protocol: [10.0.0.0/8], origin_direct: ["tcp://10.0.2.2:7001"] }}
"#
    );
    cluster.apply(&manifest).unwrap();
    // The origin hears of the client before anything else, also where it speaks first.
    let mut tls = shaken(&cluster, FLEXIBLE, authority.client(), EDGE).unwrap();
    let header = heard.recv_timeout(PATIENCE).unwrap();
    let port = tls.socket.local_addr().unwrap().port();
    assert!(header.starts_with("PROXY TCP4 10."), "{header}");
    assert!(
        header.contains(&format!(" 198.51.100.20 {port} 1001")),
        "{header}"
    );
    says(&mut tls, b"hello");
    // A sender in front says who the client is, and then comes the name.
    let mut socket = cluster.dial("198.51.100.20:443".parse().unwrap()).unwrap();
    let front = b"PROXY TCP4 203.0.113.7 198.51.100.20 4711 443\r\n";
    socket.write_all(front).unwrap();
    let name = ServerName::try_from(EDGE).unwrap();
    let client = ClientConnection::new(Arc::new(authority.client()), name).unwrap();
    let mut tls = Tls {
        session: client.into(),
        socket,
    };
    tls.shake().unwrap();
    says(&mut tls, b"hello");
}

#[test]
fn curl_gets_a_page_through_each_mode() {
    let authority = Authority::new("test ca");
    let cluster = cluster(1, &authority);
    let page = |talker: &mut dyn Talker| {
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            talker.read_exact(&mut byte).unwrap();
            request.extend(byte);
        }
        let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nanyone";
        talker.write_all(answer).unwrap();
        talker.end();
        let _ = talker.read_to_end(&mut Vec::new());
    };
    serve(&cluster, 0, 7001, None, page);
    serve(
        &cluster,
        0,
        7002,
        Some(authority.issue(EDGE).server()),
        page,
    );
    cluster.apply(&modes(&cluster, &authority)).unwrap();
    let ca = cluster.directory().join("ca.pem").display().to_string();
    for door in [FLEXIBLE, FULL, STRICT] {
        let address: SocketAddr = door.parse().unwrap();
        let port = address.port();
        let resolve = format!("{EDGE}:{port}:{}", address.ip());
        let url = format!("https://{EDGE}:{port}/");
        for version in ["1.2", "1.3"] {
            let arguments = [
                "-sS",
                "--fail",
                "--cacert",
                &ca,
                "--resolve",
                &resolve,
                "--tls-max",
                version,
                &url,
            ];
            let got = run(&cluster, "curl", &arguments, "");
            assert!(
                got.status.success() && got.stdout == b"anyone",
                "{door}: {}",
                text(&got)
            );
        }
    }
}
