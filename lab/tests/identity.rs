//! Who the client is, end to end: HAProxy and nginx that take no connection without a PROXY header
//! as origins, HAProxy in front of the edge, and origins that see the client's own address. Needs root and those programs; without one of them
//! its test fails and says which.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, Store, eventually};
use anyport_lab::servers::{Running, program};
use anyport_netns::{Namespace, link};

const V4: &str = "198.51.100.10";
const V6: &str = "2001:db8:51::10";

/// Ports of the origin's servers.
const HAPROXY: u16 = 7001;
const NGINX: u16 = 7002;
const RAW: u16 = 7003;

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// HAProxy in the foreground, with one process.
fn haproxy(
    name: &str,
    cluster: &Cluster,
    namespace: &Namespace,
    sections: &str,
    ready: SocketAddr,
) -> Running {
    let configuration = format!(
        "defaults\n  timeout connect 60s\n  timeout client 60s\n  timeout server 60s\n{sections}"
    );
    let file = cluster.directory().join(format!("{name}.cfg"));
    fs::write(&file, configuration).unwrap();
    let mut command = namespace.command(program("haproxy", "haproxy"));
    command.arg("-db").arg("-f").arg(file);
    Running::start(name, cluster, namespace, command, ready)
}

fn nginx(cluster: &Cluster, namespace: &Namespace, ready: SocketAddr) -> Running {
    let directory = cluster.directory().display().to_string();
    let configuration = format!(
        "daemon off; master_process off; user root; pid {directory}/nginx.pid;\n\
         error_log stderr;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n\
           client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
           fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;\n\
           scgi_temp_path {directory}/scgi;\n\
           log_format who '$proxy_protocol_addr $proxy_protocol_port';\n\
           access_log {directory}/access.log who;\n\
           server {{ listen {NGINX} proxy_protocol; listen [::]:{NGINX} proxy_protocol;\n\
             return 200 '$proxy_protocol_addr $proxy_protocol_port \
                $proxy_protocol_server_addr $proxy_protocol_server_port'; }} }}\n"
    );
    let file = cluster.directory().join("nginx.conf");
    fs::write(&file, configuration).unwrap();
    let mut command = namespace.command(program("nginx", "nginx-light"));
    command
        .args(["-p", &directory, "-e", "stderr", "-c"])
        .arg(file);
    Running::start("nginx", cluster, namespace, command, ready)
}

/// Answers every request with who it takes the client to be.
fn answering_haproxy(cluster: &Cluster, namespace: &Namespace) -> Running {
    let sections = format!(
        "frontend who\n  mode http\n  bind :::{HAPROXY} v4v6 accept-proxy\n  \
         http-request return status 200 content-type text/plain \
         lf-string \"%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_unique_id]\"\n"
    );
    haproxy(
        "who",
        cluster,
        namespace,
        &sections,
        at("10.0.2.2", HAPROXY),
    )
}

/// What an HTTP/1.0 request is answered with.
fn get(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    if head.contains(" 200 ") {
        Ok(body.to_owned())
    } else {
        Err(io::Error::other(format!("answered {answer:?}")))
    }
}

/// `203.0.113.5 40000`, as the servers write ends.
fn words(end: SocketAddr) -> String {
    format!("{} {}", end.ip(), end.port())
}

fn refused(cluster: &Cluster, reason: &str) -> f64 {
    let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
    metrics.sum("anyport_proxy_header_refused_total", &[("reason", reason)])
}

/// Apps for an origin that is told in each version.
const TOLD: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 2001:db8:51::/64
apps:
  - name: v1
    protocol: tcp/*
    edge_ips: [198.51.100.10, "2001:db8:51::10"]
    origin_direct: ["tcp://10.0.2.2:1-65535"]
    proxy_protocol: v1
  - name: v2
    protocol: tcp/*
    edge_ips: [198.51.100.20, "2001:db8:51::20"]
    origin_direct: ["tcp://10.0.2.2:1-65535"]
    proxy_protocol: v2
"#;

#[test]
fn origins_that_require_a_header_learn_the_client() {
    let cluster = Cluster::start(Plan::default()).unwrap();
    cluster.apply(TOLD).unwrap();
    let origin = &cluster.topology().origins()[0].namespace;
    let _haproxy = answering_haproxy(&cluster, origin);
    let _nginx = nginx(&cluster, origin, at("10.0.2.2", NGINX));

    let doors = [V4, V6, "198.51.100.20", "2001:db8:51::20"];
    let mut clients = Vec::new();
    for (door, server) in doors
        .iter()
        .flat_map(|door| [(door, HAPROXY), (door, NGINX)])
    {
        let to = at(door, server);
        let mut stream = cluster.dial(to).unwrap();
        let client = stream.local_addr().unwrap();
        let answer = get(&mut stream).unwrap();
        let wanted = format!("{} {}", words(client), words(to));
        assert!(
            answer.starts_with(&wanted),
            "{to}: {answer} is not {wanted}"
        );
        let id = answer.strip_prefix(&wanted).unwrap().trim();
        if door.ends_with("20") && server == HAPROXY {
            assert!(
                id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
                "{id:?}"
            );
        }
        if server == NGINX {
            clients.push(words(client));
        }
    }
    eventually(PATIENCE, "nginx has logged them", || {
        let log = fs::read_to_string(cluster.directory().join("access.log")).unwrap();
        let logged: Vec<_> = log.lines().map(str::to_owned).collect();
        if logged == clients { Ok(()) } else { Err(log) }
    });

    // An origin that waits for nothing but the header, as one that speaks first does, gets it.
    let listener = origin
        .run(|| TcpListener::bind(("10.0.2.2", RAW)))
        .unwrap()
        .unwrap();
    let mut client = cluster.dial(at(V4, RAW)).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    served.set_read_timeout(Some(PATIENCE)).unwrap();
    let header = format!(
        "PROXY TCP4 {} {V4} {} {RAW}\r\n",
        client.local_addr().unwrap().ip(),
        client.local_addr().unwrap().port()
    );
    let mut got = vec![0; header.len()];
    served.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), header);
    served.write_all(b"220 hello\r\n").unwrap();
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
    client.write_all(b"QUIT").unwrap();
    let mut rest = [0; 4];
    served.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"QUIT");
}

/// Apps behind proxies: HAProxy in the client's namespace, and nobody who is there.
const BEHIND: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 2001:db8:51::/64
apps:
  - name: behind
    protocol: tcp/80
    edge_ips: [198.51.100.10, "2001:db8:51::10"]
    origin_direct: ["tcp://10.0.2.2:7001"]
    proxy_protocol: v2
    accept_proxy_protocol: [10.0.1.0/24, "fd00:1::/64"]
  - name: closed
    protocol: tcp/81
    edge_ips: [198.51.100.10]
    origin_direct: ["tcp://10.0.2.2:7001"]
    proxy_protocol: v1
    accept_proxy_protocol: [10.99.0.0/16]
"#;

/// Addresses of the client of the proxy in front.
const INNER_V4: &str = "10.9.9.1";
const INNER_V6: &str = "fd00:9::1";

/// How long an edge waits for a header.
const HEADER: Duration = Duration::from_millis(4900);

#[test]
fn a_proxy_in_front_says_who_the_client_is_and_nobody_else_may() {
    let cluster = Cluster::start(Plan::default()).unwrap();
    cluster.apply(BEHIND).unwrap();
    let origin = &cluster.topology().origins()[0].namespace;
    let _who = answering_haproxy(&cluster, origin);
    let client = cluster.topology().client();
    for inner in [INNER_V4, INNER_V6] {
        let inner: IpAddr = inner.parse().unwrap();
        link::add_address(client, "lo", inner.into()).unwrap();
    }

    let front = |port: u16, edge: &str, how: &str| {
        format!(
            "listen front{port}\n  mode tcp\n  bind :::{port} v4v6\n  server edge {edge}:80 {how}\n"
        )
    };
    let sections = [
        front(9001, V4, "send-proxy"),
        front(9002, V4, "send-proxy-v2"),
        front(9003, V6, "send-proxy"),
        front(9004, V6, "send-proxy-v2 proxy-v2-options unique-id,crc32c"),
    ];
    let _front = haproxy(
        "front",
        &cluster,
        client,
        &sections.concat(),
        at(INNER_V4, 9001),
    );

    // From first to last: silent after half a header, until its deadline.
    let since = Instant::now();
    let mut half = cluster.dial(at(V4, 80)).unwrap();
    half.write_all(b"PROXY TCP4 203.0.113.").unwrap();
    let mut dribbling = cluster.dial(at(V6, 80)).unwrap();
    let mut silent = cluster.dial(at(V4, 80)).unwrap();
    let mut header = b"PROXY TCP6 2001:db8::5".iter().copied();

    for (inner, port) in [INNER_V4, INNER_V6]
        .into_iter()
        .flat_map(|inner| (9001..=9004).map(move |port| (inner, port)))
    {
        let to = at(inner, port);
        let mut stream = cluster.dial(to).unwrap();
        let client = stream.local_addr().unwrap();
        assert_eq!(client.ip().to_string(), inner);
        let answer = get(&mut stream).unwrap();
        // The origin learns what the proxy in front said, both ends of it.
        let wanted = format!("{} {}", words(client), words(to));
        assert!(
            answer.starts_with(&wanted),
            "{to}: {answer} is not {wanted}"
        );
        // A byte now and then gains a sender no time. Who has none left is reset.
        let byte = [header.next().unwrap()];
        let reset = dribbling.write_all(&byte).is_err();
        assert!(!reset || since.elapsed() >= HEADER, "before its deadline");
    }

    // Whom the sender names decides nothing about where it goes, and LOCAL is the sender itself.
    for header in [
        &b"PROXY TCP4 203.0.113.5 203.0.113.77 40000 1\r\n"[..],
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    ] {
        let mut stream = cluster.dial(at(V4, 80)).unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in header {
            stream.write_all(&[*byte]).unwrap();
        }
        let client = stream.local_addr().unwrap();
        let answer = get(&mut stream).unwrap();
        let wanted = if header.starts_with(b"PROXY TCP4") {
            "203.0.113.5 40000 203.0.113.77 1".to_owned()
        } else {
            format!("{} {V4} 80", words(client))
        };
        assert!(answer.starts_with(&wanted), "{answer} is not {wanted}");
    }

    // Without a header, with half of one and an end, or with bytes that are none.
    let gone = |stream: &mut TcpStream| {
        let mut bytes = Vec::new();
        let end = stream.read_to_end(&mut bytes).map_err(|error| error.kind());
        assert_eq!(bytes, b"");
        end
    };
    let malformed = [
        &b"GET / HTTP/1.0\r\n\r\n"[..],
        b"PROXY TCP4 203.0.113.5 198.51.100.10 40000 80 \r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"PROXY TCP4 203.0.113.5 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\
          aaaaaaaaaaaaaaaaaaaa",
    ];
    for bytes in malformed {
        let mut stream = cluster.dial(at(V4, 80)).unwrap();
        stream.write_all(bytes).unwrap();
        assert_eq!(
            gone(&mut stream),
            Err(io::ErrorKind::ConnectionReset),
            "{bytes:?}"
        );
    }
    let mut cut = cluster.dial(at(V4, 80)).unwrap();
    cut.write_all(b"PROXY TCP4 203").unwrap();
    cut.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(gone(&mut cut), Err(io::ErrorKind::ConnectionReset));
    // Whoever is not trusted is refused whatever it would send.
    match cluster.dial(at(V4, 81)) {
        Ok(mut stream) => assert_eq!(gone(&mut stream), Err(io::ErrorKind::ConnectionReset)),
        Err(error) => assert!(format!("{error:?}").contains("reset by peer"), "{error:?}"),
    }

    eventually(PATIENCE, "refusals are counted", || {
        let counts = (
            refused(&cluster, "malformed"),
            refused(&cluster, "untrusted"),
            cluster.closed("closed", "403").unwrap(),
        );
        let all = counts == (4.0, 1.0, 1.0);
        all.then_some(()).ok_or_else(|| format!("{counts:?}"))
    });

    // Those that keep silent are gone at the deadline, and not before.
    for stream in [&mut half, &mut silent] {
        assert_eq!(gone(stream), Err(io::ErrorKind::ConnectionReset));
    }
    // The one that writes may have heard of it by that.
    let _ = gone(&mut dribbling);
    let took = since.elapsed();
    assert!(took >= HEADER, "{took:?}");
    // The client hears of it a moment before it is counted.
    eventually(PATIENCE, "those who were late are counted", || {
        let counts = (
            refused(&cluster, "late"),
            cluster.closed("behind", "497").unwrap(),
        );
        let all = counts.0 >= 3.0 && counts.1 >= 3.0;
        all.then_some(()).ok_or_else(|| format!("{counts:?}"))
    });

    let said = cluster
        .anyport(&["explain", "tcp/198.51.100.10:80"])
        .unwrap();
    let text = said.to_string();
    assert!(
        text.contains("10.0.1.0/24, fd00:1::/64") && text.contains("PROXY protocol v2"),
        "{text}"
    );
}

/// Origins that see the client as their peer, and the same ones that do not.
const TRANSPARENT: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 2001:db8:51::/64
apps:
  - name: shown
    protocol: tcp/80
    edge_ips: [198.51.100.10, "2001:db8:51::10"]
    origin_direct: ["tcp://10.0.2.2:7003", "tcp://[fd00:2::2]:7003"]
    client_ip: transparent
  - name: plain
    protocol: tcp/81
    edge_ips: [198.51.100.10, "2001:db8:51::10"]
    origin_direct: ["tcp://10.0.2.2:7003", "tcp://[fd00:2::2]:7003"]
  - name: nginx
    protocol: tcp/82
    edge_ips: [198.51.100.10]
    origin_direct: ["tcp://10.0.2.2:7004"]
    client_ip: transparent
"#;

/// A server that tells each client which peer it sees, then echoes.
fn peer_server(namespace: &Namespace) {
    for ip in ["10.0.2.2", "fd00:2::2"] {
        let listener = namespace
            .run(|| TcpListener::bind(at(ip, RAW)))
            .unwrap()
            .unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let peer = stream.peer_addr().unwrap();
                    let _ = writeln!(stream, "{peer}");
                    let _ = io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                });
            }
        });
    }
}

fn line(stream: &mut TcpStream) -> String {
    let mut line = String::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(char::from(byte[0]));
    }
    line
}

fn is_edge(peer: &str) -> bool {
    peer.starts_with("10.0.2.1:") || peer.starts_with("[fd00:2::1]:")
}

anyport_lab::on_both_stores![origins_see_the_address_and_the_port_of_the_client_itself];

fn origins_see_the_address_and_the_port_of_the_client_itself(store: Store) {
    let cluster = Cluster::start(Plan::on(store)).unwrap();
    assert_eq!(cluster.return_path().unwrap(), "");
    cluster.apply(TRANSPARENT).unwrap();
    let origin = &cluster.topology().origins()[0].namespace;
    peer_server(origin);

    // One after the other, and others beside them that are not shown.
    for number in 0..2000 {
        let door = if number % 2 == 0 { V4 } else { V6 };
        let mut stream = cluster.dial(at(door, 80)).unwrap();
        let client = stream.local_addr().unwrap();
        assert_eq!(line(&mut stream), client.to_string(), "the {number}th");
        if number % 100 < 2 {
            let mut plain = cluster.dial(at(door, 81)).unwrap();
            let seen = line(&mut plain);
            assert!(is_edge(&seen), "{seen}");
        }
    }

    // Many at once, which all carry bytes.
    let mut streams: Vec<_> = (0..200)
        .map(|number| {
            let door = if number % 2 == 0 { V4 } else { V6 };
            cluster.dial(at(door, 80)).unwrap()
        })
        .collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        assert_eq!(line(stream), stream.local_addr().unwrap().to_string());
        writeln!(stream, "{number}").unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        assert_eq!(line(stream), number.to_string());
    }
    eventually(PATIENCE, "those that ended are no longer open", || {
        let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
        let open = metrics.value("anyport_connections_transparent_open", &[]);
        (open == Some(200.0))
            .then_some(())
            .ok_or_else(|| format!("{open:?}"))
    });

    // A real server logs it so.
    let directory = cluster.directory().display().to_string();
    let configuration = format!(
        "daemon off; master_process off; user root; pid {directory}/nginx.pid; error_log stderr;\n\
         events {{ worker_connections 256; }}\n\
         http {{ log_format peer '$remote_addr $remote_port';\n\
           access_log {directory}/access.log peer;\n\
           client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
           fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;\n\
           scgi_temp_path {directory}/scgi;\n\
           server {{ listen 7004; return 200 ''; }} }}\n"
    );
    let file = cluster.directory().join("nginx.conf");
    fs::write(&file, configuration).unwrap();
    let mut command = origin.command(program("nginx", "nginx-light"));
    command
        .args(["-p", &directory, "-e", "stderr", "-c"])
        .arg(file);
    let _nginx = Running::start("nginx", &cluster, origin, command, at("10.0.2.2", 7004));
    let mut stream = cluster.dial(at(V4, 82)).unwrap();
    let client = words(stream.local_addr().unwrap());
    get(&mut stream).unwrap();
    drop(stream);
    eventually(PATIENCE, "nginx has logged it", || {
        let log = fs::read_to_string(cluster.directory().join("access.log")).unwrap();
        log.lines()
            .any(|line| line == client)
            .then_some(())
            .ok_or(log)
    });

    // A port that a program of the edge's host listens on cannot come along; the address does.
    let taken = cluster
        .topology()
        .edge()
        .run(|| TcpListener::bind("0.0.0.0:7777"));
    let _taken = taken.unwrap().unwrap();
    let mut stream = cluster
        .topology()
        .client()
        .run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&at("10.0.1.2", 7777).into())?;
            socket.connect(&at(V4, 80).into())?;
            io::Result::Ok(TcpStream::from(socket))
        })
        .unwrap()
        .unwrap();
    let seen: SocketAddr = line(&mut stream).parse().unwrap();
    assert_eq!(seen.ip().to_string(), "10.0.1.2");
    assert_ne!(seen.port(), 7777);

    // What is taken back leaves open connections alone, and nothing of it when they are gone.
    cluster
        .apply(&TRANSPARENT.replace("client_ip: transparent", "client_ip: edge"))
        .unwrap();
    let mut plain = cluster.dial(at(V4, 80)).unwrap();
    let seen = line(&mut plain);
    assert!(is_edge(&seen), "{seen}");
    for (number, stream) in streams.iter_mut().enumerate() {
        writeln!(stream, "again {number}").unwrap();
        assert_eq!(line(stream), format!("again {number}"));
    }
    assert_ne!(cluster.return_path().unwrap(), "");
    drop((streams, stream));
    eventually(PATIENCE, "nothing is left of the way back", || {
        let left = cluster.return_path().unwrap();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
    let failed = metrics.sum("anyport_connections_closed_total", &[("status", "524")]);
    assert_eq!(failed, 0.0, "connections for which there was no port");
    assert_eq!(
        metrics.sum(
            "anyport_kernel_drift_repaired_total",
            &[("what", "return_path")]
        ),
        0.0
    );
}

#[test]
fn an_origin_of_another_family_than_its_clients_is_refused_when_it_is_declared() {
    let cluster = Cluster::start(Plan::default()).unwrap();
    let manifest = TRANSPARENT.replace(", \"tcp://[fd00:2::2]:7003\"", "");
    let said = cluster.try_apply(&manifest, &[]).unwrap();
    assert_eq!(said.status, Some(1));
    let text = said.to_string();
    assert!(
        text.contains("client_ip") && text.contains("IPv6"),
        "{text}"
    );
}
