//! Monitors of every type against servers that people run: nginx, Redis, dnsmasq, the kernel's own
//! echo, and the health service of Anyport's processes. Each is made to fail in the ways that it
//! can, and `anyport status` says which it was. Needs root and those programs; without one of them
//! its test fails and says which.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, Store, eventually};
use anyport_lab::servers::{Running, program};
use anyport_lab::tls::Authority;
use anyport_netns::{Namespace, sysctl};
use nix::sys::signal::Signal;

anyport_lab::on_both_stores![
    nginx_is_asked_by_http_and_https,
    redis_is_asked_inside_of_its_own_protocol,
    dnsmasq_answers_a_query_and_hosts_answer_echoes,
    a_process_of_ours_says_whether_it_serves,
];

const ORIGIN: &str = "10.0.2.2";

/// A pool of one origin, and the monitor that asks it.
struct Asked {
    name: &'static str,
    address: String,
    monitor: &'static str,
}

fn asked(name: &'static str, port: u16, monitor: &'static str) -> Asked {
    Asked {
        name,
        address: format!("{ORIGIN}:{port}"),
        monitor,
    }
}

fn manifest(all: &[Asked]) -> String {
    let (mut monitors, mut pools) = (String::new(), String::new());
    let pace = "interval: 200ms, timeout: 1s, consecutive_up: 1, consecutive_down: 1";
    for Asked {
        name,
        address,
        monitor,
    } in all
    {
        writeln!(monitors, "  - {{ name: {name}, {pace}, {monitor} }}").unwrap();
        writeln!(
            pools,
            "  - {{ name: {name}, monitor: {name}, origins: [ {{ name: a, address: \"{address}\" }} ] }}"
        )
        .unwrap();
    }
    format!("monitors:\n{monitors}pools:\n{pools}")
}

/// Health and reason of each pool's origin, as `anyport status` has them.
fn health(cluster: &Cluster) -> BTreeMap<String, (String, String)> {
    let said = cluster.anyport(&["status", "-o", "json"]).unwrap();
    let status: serde_json::Value =
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said}"));
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let pools = status["pools"].as_array().into_iter().flatten();
    pools
        .map(|pool| {
            let origin = &pool["origins"][0];
            let seen = (text(&origin["health"]), text(&origin["reason"]));
            (text(&pool["name"]), seen)
        })
        .collect()
}

const UP: &str = "";

/// Waits until each of these pools is as wanted: up, or down for this reason. A reason that ends
/// with an ellipsis is the beginning of one.
fn become_so(cluster: &Cluster, what: &str, wanted: &[(&str, &str)]) {
    eventually(PATIENCE, what, || {
        let seen = health(cluster);
        let is_so = |(pool, reason): &&(&str, &str)| {
            let Some((health, why)) = seen.get(*pool) else {
                return false;
            };
            match (reason.is_empty(), reason.strip_suffix('…')) {
                (true, _) => health == "up",
                (false, Some(beginning)) => health == "down" && why.starts_with(beginning),
                (false, None) => health == "down" && why == reason,
            }
        };
        let missing: Vec<_> = wanted
            .iter()
            .filter(|wanted| !is_so(wanted))
            .map(|(pool, reason)| (pool, reason, seen.get(*pool)))
            .collect();
        missing
            .is_empty()
            .then_some(())
            .ok_or(format!("{missing:?}"))
    });
}

fn cluster(store: Store) -> Cluster {
    Cluster::start(Plan::on(store)).unwrap()
}

fn origin(cluster: &Cluster) -> &Namespace {
    &cluster.topology().origins()[0].namespace
}

fn serve(cluster: &Cluster, name: &str, command: Command, port: u16) -> Running {
    let ready: SocketAddr = format!("{ORIGIN}:{port}").parse().unwrap();
    let edge = cluster.topology().edge();
    Running::start(name, cluster, edge, command, ready)
}

fn run(namespace: &Namespace, program: &str, arguments: &str) {
    let mut command = namespace.command(program);
    let output = command.args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
}

/// Whatever comes to the origin is lost; given back by [`found_again`].
fn lost(cluster: &Cluster) {
    let origin = origin(cluster);
    run(origin, "nft", "add table inet lost");
    let chain = "add chain inet lost everything { type filter hook prerouting priority raw ; policy drop ; }";
    run(origin, "nft", chain);
}

fn found_again(cluster: &Cluster) {
    run(origin(cluster), "nft", "delete table inet lost");
}

fn nginx(cluster: &Cluster) -> Running {
    let directory = cluster.directory().display().to_string();
    let issued = Authority::new("nobody knows").issue("www.example.com");
    fs::write(format!("{directory}/www.pem"), &issued.chain).unwrap();
    fs::write(format!("{directory}/www.key"), &issued.key).unwrap();
    let configuration = format!(
        "daemon off; master_process off; user root; pid {directory}/nginx.pid;\n\
         error_log stderr;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off;\n\
           client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
           fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;\n\
           scgi_temp_path {directory}/scgi;\n\
           ssl_certificate {directory}/www.pem; ssl_certificate_key {directory}/www.key;\n\
           server {{ listen {ORIGIN}:8080; listen {ORIGIN}:8443 ssl;\n\
             location = /healthz {{ return 200 'All is well'; }}\n\
             location = /moved {{ return 302 /healthz; }}\n\
             location / {{ return 503 'no database'; }} }}\n\
           server {{ listen {ORIGIN}:8444 ssl; ssl_reject_handshake on; }} }}\n"
    );
    fs::write(format!("{directory}/nginx.conf"), configuration).unwrap();
    let mut command = origin(cluster).command(program("nginx", "nginx-light"));
    let file = format!("{directory}/nginx.conf");
    command.args(["-p", &directory, "-e", "stderr", "-c", &file]);
    serve(cluster, "nginx", command, 8080)
}

fn nginx_is_asked_by_http_and_https(store: Store) {
    let cluster = cluster(store);
    let server = nginx(&cluster);
    cluster
        .apply(&manifest(&[
            asked(
                "http",
                8080,
                "type: http, path: /healthz, expected_body: all is WELL",
            ),
            asked(
                "https",
                8443,
                "type: https, path: /healthz, expected_codes: 200",
            ),
            asked("tls", 8443, "type: tls"),
            asked(
                "head",
                8443,
                r#"type: tls, send: "HEAD /healthz HTTP/1.0\r\n\r\n", expect: " 200 OK\r\n""#,
            ),
            asked(
                "port",
                9,
                "type: http, path: /moved, expected_codes: \"2xx,302\", port: 8080",
            ),
            asked("code", 8080, "type: http"),
            asked("moved", 8443, "type: https, path: /moved"),
            asked(
                "body",
                8080,
                "type: http, expected_codes: 5xx, expected_body: ready",
            ),
            asked("plain", 8080, "type: https"),
            asked("alert", 8444, "type: tls"),
            asked("other", 8080, "type: grpc"),
            asked("refused", 8081, "type: https"),
        ]))
        .unwrap();
    let failing = [
        ("code", "status 503, which is not in 2xx"),
        ("moved", "status 302, which is not in 2xx"),
        ("body", r#"the body lacks "ready"; it begins "no database""#),
        ("plain", "tls handshake: what the server sent is no TLS"),
        (
            "alert",
            "tls handshake: the server sent the alert UnrecognisedName",
        ),
        ("other", "http: the answer is none: …"),
        ("refused", "connect: connection refused"),
    ];
    let passing = ["http", "https", "tls", "head", "port"].map(|pool| (pool, UP));
    let wanted = [&passing[..], &failing].concat();
    become_so(&cluster, "each is asked and judged", &wanted);

    // The kernel still accepts connections; nobody says anything.
    server.signal(Signal::SIGSTOP);
    let wanted = [
        ("http", "no answer to the request within 1s"),
        ("https", "tls handshake: not finished within 1s"),
        ("tls", "tls handshake: not finished within 1s"),
    ];
    become_so(&cluster, "a server that hangs", &wanted);
    server.signal(Signal::SIGCONT);
    become_so(&cluster, "it goes on", &passing);

    lost(&cluster);
    let wanted = passing.map(|(pool, _)| (pool, "connect: no answer within 1s"));
    become_so(&cluster, "packets are lost", &wanted);
    found_again(&cluster);
    become_so(&cluster, "and no more", &passing);

    drop(server);
    let wanted = passing.map(|(pool, _)| (pool, "connect: connection refused"));
    become_so(&cluster, "the server is gone", &wanted);
}

fn redis_is_asked_inside_of_its_own_protocol(store: Store) {
    const PORT: u16 = 6379;
    let cluster = cluster(store);
    let mut command = origin(&cluster).command(program("redis-server", "redis-server"));
    command.args([
        "--port",
        "6379",
        "--bind",
        ORIGIN,
        "--save",
        "",
        "--protected-mode",
        "no",
    ]);
    let server = serve(&cluster, "redis", command, PORT);
    cluster
        .apply(&manifest(&[
            asked("open", PORT, "type: tcp"),
            asked(
                "ping",
                PORT,
                r#"type: tcp, send: "PING\r\n", expect: "+PONG\r\n""#,
            ),
            asked(
                "bytes",
                PORT,
                r#"type: tcp, send: { hex: "50494e47 0d0a" }, expect: { hex: "2b504f4e47" }"#,
            ),
            asked(
                "wrong",
                PORT,
                r#"type: tcp, send: "PING\r\n", expect: "220 ""#,
            ),
            asked(
                "ends",
                PORT,
                r#"type: tcp, send: "QUIT\r\n", expect: "+PONG""#,
            ),
        ]))
        .unwrap();
    let wanted = [
        ("open", UP),
        ("ping", UP),
        ("bytes", UP),
        (
            "wrong",
            r#"no reply containing "220 " within 1s; heard "+PONG\r\n""#,
        ),
        (
            "ends",
            r#"closed after 5 bytes, no reply containing "+PONG"; heard "+OK\r\n""#,
        ),
    ];
    become_so(&cluster, "each is asked and judged", &wanted);

    let redis_cli = program("redis-cli", "redis-tools");
    let mut command = origin(&cluster).command(redis_cli);
    command.args(["-h", ORIGIN, "CONFIG", "SET", "requirepass", "secret"]);
    let output = command.output().unwrap();
    assert_eq!(output.stdout, b"OK\n", "{output:?}");
    let wanted = [
        ("open", UP),
        (
            "ping",
            r#"no reply containing "+PONG\r\n" within 1s; heard "-NOAUTH Authentication required.\r\n""#,
        ),
    ];
    become_so(&cluster, "it serves nobody without a password", &wanted);

    server.signal(Signal::SIGSTOP);
    let wanted = [
        ("open", UP),
        ("ping", r#"no reply containing "+PONG\r\n" within 1s"#),
    ];
    become_so(&cluster, "it hangs", &wanted);
    drop(server);
    let wanted = ["open", "ping", "bytes"].map(|pool| (pool, "connect: connection refused"));
    become_so(&cluster, "it is gone", &wanted);
}

fn dnsmasq_answers_a_query_and_hosts_answer_echoes(store: Store) {
    // `NS .`, and an answer to it.
    const QUERY: &str = r#"type: udp, send: { hex: "0001 0100 0001 0000 0000 0000 00 0002 0001" }, expect: { hex: "0001 81" }"#;
    let cluster = cluster(store);
    let mut command = origin(&cluster).command(program("dnsmasq", "dnsmasq-base"));
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--log-facility=-",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--port=53",
    ]);
    command.arg(format!("--listen-address={ORIGIN}"));
    let server = serve(&cluster, "dnsmasq", command, 53);
    // A host says once a second to whom that a port is closed.
    sysctl::set(origin(&cluster), "net/ipv4/icmp_ratelimit", "0").unwrap();
    let v6 = cluster.topology().origins()[0].addresses()[1];
    let mut all = vec![
        asked("query", 53, QUERY),
        asked(
            "wrong",
            53,
            r#"type: udp, send: "not a query", expect: "hello""#,
        ),
        asked("any", 53, "type: udp, send: { hex: 00 }"),
        asked("closed", 54, "type: udp"),
        asked("closed-expecting", 54, r#"type: udp, expect: "hello""#),
        asked("echo", 53, "type: icmp"),
    ];
    all.push(Asked {
        name: "echo-v6",
        address: format!("[{v6}]:53"),
        monitor: "type: icmp",
    });
    let manifest = manifest(&all);
    cluster.apply(&manifest).unwrap();
    let wanted = [
        ("query", UP),
        ("any", UP),
        ("wrong", r#"no reply containing "hello" within 1s"#),
        ("closed", "udp: the port is unreachable"),
        ("closed-expecting", "udp: the port is unreachable"),
        ("echo", UP),
        ("echo-v6", UP),
    ];
    become_so(&cluster, "each is asked and judged", &wanted);

    server.signal(Signal::SIGSTOP);
    let silent = r#"no reply containing "\x00\x01\x81" within 1s"#;
    let wanted = [("query", silent), ("any", UP), ("echo", UP)];
    become_so(&cluster, "it hangs", &wanted);

    lost(&cluster);
    let wanted = [
        ("query", silent),
        ("any", UP),
        // Silence is no refusal.
        ("closed", UP),
        ("echo", "no echo reply within 1s"),
        ("echo-v6", "no echo reply within 1s"),
    ];
    become_so(&cluster, "packets are lost", &wanted);
    found_again(&cluster);
    // By now without privilege, and in the one range for both families.
    let edge = cluster.topology().edge();
    sysctl::set(edge, "net/ipv4/ping_group_range", "0 0").unwrap();
    become_so(&cluster, "and no more", &[("echo", UP), ("echo-v6", UP)]);

    server.signal(Signal::SIGCONT);
    become_so(&cluster, "it goes on", &[("query", UP)]);
    drop(server);
    let wanted = ["query", "any"].map(|pool| (pool, "udp: the port is unreachable"));
    become_so(&cluster, "it is gone", &wanted);
    run(edge, "ip", &format!("route add unreachable {ORIGIN}/32"));
    let wanted = [("echo", "echo: no route to host")];
    become_so(&cluster, "there is no way", &wanted);
}

fn a_process_of_ours_says_whether_it_serves(store: Store) {
    let mut cluster = cluster(store);
    let at_edge = |name, monitor| Asked {
        name,
        address: "127.0.0.1:7420".to_owned(),
        monitor,
    };
    cluster
        .apply(&manifest(&[
            at_edge("server", "type: grpc"),
            at_edge("service", "type: grpc, service: anyport.v1.EdgeService"),
            at_edge("unknown", "type: grpc, service: nothing"),
        ]))
        .unwrap();
    let wanted = [
        ("server", UP),
        ("service", UP),
        (
            "unknown",
            r#"grpc: the server has no service "nothing" (NOT_FOUND)"#,
        ),
    ];
    become_so(&cluster, "each is asked and judged", &wanted);

    let said = cluster.anyport(&["drain", "edge", "edge1"]).unwrap();
    assert_eq!(said.status, Some(0), "{said}");
    let wanted = ["server", "service"].map(|pool| (pool, "grpc.health.v1 says NOT_SERVING"));
    become_so(&cluster, "it is drained", &wanted);
    cluster.kill9(Service::EdgeAgent).unwrap();
    let wanted = ["server", "service"].map(|pool| (pool, "connect: connection refused"));
    become_so(&cluster, "it is gone", &wanted);
}
