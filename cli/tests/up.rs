//! `anyport up` as a user runs it, in a network namespace: from a manifest to a
//! connection that is carried. Needs root.

#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyport_netns::{Mounts, Namespace, link};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const GAME: &str = "\
prefixes:
  - cidr: 198.51.100.0/24
pools:
  - name: game
    origins:
      - { name: a, address: \"10.0.2.2:7000\" }
apps:
  - name: minecraft
    protocol: tcp/25565
    edge_ips: [198.51.100.10]
    origin_pool: game
";

/// Far beyond what any step takes; a read that waits for longer fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host with an origin that greets everyone.
fn host() -> Namespace {
    let host = Namespace::new("up").expect("needs root, to make a network namespace");
    let host = host.with_mounts(&Mounts::new().unwrap()).unwrap();
    link::add_address(&host, "lo", "10.0.2.2/32".parse().unwrap()).unwrap();
    let origin = host.run(|| TcpListener::bind("10.0.2.2:7000")).unwrap();
    let origin = origin.unwrap();
    thread::spawn(move || {
        for connection in origin.incoming() {
            connection.unwrap().write_all(b"hello from a\n").unwrap();
        }
    });
    host
}

fn up(host: &Namespace, directory: &Path, manifest: &str) -> Child {
    up_with(host, directory, manifest, &[])
}

fn anyport(host: &Namespace) -> Command {
    let mut command = host.command(env!("CARGO_BIN_EXE_anyport"));
    command.env_clear();
    command
}

fn up_with(host: &Namespace, directory: &Path, manifest: &str, flags: &[String]) -> Child {
    let file = directory.join("game.yaml");
    std::fs::write(&file, manifest).unwrap();
    anyport(host)
        .arg("up")
        .arg("--name=one")
        .arg("--data-dir")
        .arg(directory.join("data"))
        .arg("-f")
        .arg(file)
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What is on standard output up to the line that starts with `end`.
fn lines_until(child: &mut Child, end: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut out = BufReader::new(child.stdout.as_mut().unwrap());
    loop {
        let mut line = String::new();
        if out.read_line(&mut line).unwrap() == 0 {
            let mut log = String::new();
            let errors = child.stderr.as_mut().unwrap();
            errors.read_to_string(&mut log).unwrap();
            panic!("ended before {end:?}: {lines:?}\n{log}");
        }
        lines.push(line.trim_end().to_owned());
        if line.starts_with(end) {
            return lines;
        }
    }
}

fn greeting(host: &Namespace) -> String {
    greeting_at(host, 25565)
}

fn greeting_at(host: &Namespace, port: u16) -> String {
    let connected = host
        .run(|| TcpStream::connect(("198.51.100.10", port)))
        .unwrap();
    let mut connection = connected.expect("the edge carries the app");
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}

fn end(child: Child, signal: Signal) -> (i32, String) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    (output.status.code().expect("ends by itself"), log)
}

#[test]
fn one_command_takes_a_manifest_to_a_carried_connection() {
    let (host, directory) = (host(), tempfile::tempdir().unwrap());
    let mut child = up(&host, directory.path(), GAME);
    let lines = lines_until(&mut child, "one: applied 1 after ");
    let wanted = [
        "SERVICE         GRPC                   ADMIN",
        "config service  http://127.0.0.1:7400  http://127.0.0.1:7401",
        "balancer        http://127.0.0.1:7410  http://127.0.0.1:7411",
        "edge agent      http://127.0.0.1:7420  http://127.0.0.1:7421",
    ];
    assert_eq!(lines[..4], wanted);
    assert_eq!(lines[7..9], ["created    app      minecraft", "revision 1"]);
    assert_eq!(greeting(&host), "hello from a\n");
    let (status, log) = end(child, Signal::SIGTERM);
    assert_eq!(status, 0, "{log}");

    // The configuration outlives the process.
    let mut child = up(&host, directory.path(), GAME);
    let lines = lines_until(&mut child, "one: applied 1 after ");
    assert_eq!(lines[7..9], ["unchanged  app      minecraft", "revision 1"]);
    assert_eq!(greeting(&host), "hello from a\n");
    let (status, log) = end(child, Signal::SIGINT);
    assert_eq!(status, 0, "{log}");
}

#[test]
fn while_it_drains_who_is_there_stays_and_who_comes_is_refused() {
    let (host, directory) = (host(), tempfile::tempdir().unwrap());
    let mut child = up(&host, directory.path(), GAME);
    lines_until(&mut child, "one: applied 1 after ");
    let connect = || host.run(|| TcpStream::connect("198.51.100.10:25565"));
    let mut open = connect().unwrap().unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    // The origin says no more, and it stays open, since this end may.
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello from a\n");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let mut accepted = 0;
    while connect().unwrap().is_ok() {
        accepted += 1;
        thread::sleep(Duration::from_millis(10));
    }
    // It waits 10 s for who is there.
    assert!(accepted < 300, "{accepted} seemed to be accepted");
    assert_eq!(child.try_wait().unwrap(), None, "who is there is cut off");
    drop(open);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// Certificates of `anyport certs` in a directory.
struct Certificates<'a>(&'a Path);

impl Certificates<'_> {
    fn make(&self, arguments: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anyport"));
        command
            .arg("certs")
            .args(arguments)
            .arg("--dir")
            .arg(self.0);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn flags(&self, name: &str) -> Vec<String> {
        let below =
            |flag: &str, file: &str| format!("--tls-{flag}={}", self.0.join(file).display());
        vec![
            below("cert", &format!("{name}.pem")),
            below("key", &format!("{name}.key")),
            below("ca", "ca.pem"),
        ]
    }
}

#[test]
fn in_tls_all_show_certificates_and_who_has_none_is_told_what_to_give() {
    let (host, directory) = (host(), tempfile::tempdir().unwrap());
    let certificates = directory.path().join("fleet");
    let certificates = Certificates(&certificates);
    certificates.make(&["init"]);
    certificates.make(&["issue", "config-service+balancer+edge+operator", "one"]);
    certificates.make(&["issue", "operator", "ana"]);
    let flags = certificates.flags("one");
    let mut child = up_with(&host, directory.path(), GAME, &flags);
    let lines = lines_until(&mut child, "one: applied 1 after ");
    let wanted = [
        "SERVICE         GRPC                    ADMIN",
        "config service  https://127.0.0.1:7400  http://127.0.0.1:7401",
        "balancer        https://127.0.0.1:7410  http://127.0.0.1:7411",
        "edge agent      https://127.0.0.1:7420  http://127.0.0.1:7421",
    ];
    assert_eq!(lines[..4], wanted);
    assert_eq!(greeting(&host), "hello from a\n");

    let file = directory.path().join("more.yaml");
    std::fs::write(
        &file,
        GAME.replace("minecraft", "more").replace("25565", "25566"),
    )
    .unwrap();
    let apply = ["apply", "--wait", "-f", file.to_str().unwrap()];
    let ana = certificates.flags("ana");
    let said = |server: &str, flags: &[String]| {
        let mut command = anyport(&host);
        command.args(["--server", server]).args(apply).args(flags);
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (status, out, errors) = said("https://127.0.0.1:7400", &ana);
    assert_eq!(status, 0, "{errors}");
    assert!(out.contains("one: applied 2 after "), "{out}");
    assert_eq!(greeting_at(&host, 25566), "hello from a\n");

    for (server, wanted, words) in [
        (
            "https://127.0.0.1:7400",
            2,
            "https needs --tls-cert, --tls-key and --tls-ca",
        ),
        (
            "http://127.0.0.1:7400",
            3,
            "where it is in TLS, give --server https://…, --tls-cert, --tls-key and --tls-ca",
        ),
    ] {
        let (status, _, errors) = said(server, &[]);
        assert_eq!(status, wanted, "{errors}");
        assert!(errors.contains(words), "{server}: {errors}");
    }
    let (status, log) = end(child, Signal::SIGTERM);
    assert_eq!(status, 0, "{log}");
}

/// Is this in any file below?
fn lies_below(directory: &Path, secret: &[u8]) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return lies_below(&path, secret);
        }
        let bytes = std::fs::read(&path).unwrap();
        bytes.windows(secret.len()).any(|window| window == secret)
    })
}

#[test]
fn with_a_store_key_private_keys_lie_sealed_in_the_store() {
    let (host, directory) = (host(), tempfile::tempdir().unwrap());
    let issued = directory.path().join("fleet");
    let certificates = Certificates(&issued);
    certificates.make(&["init"]);
    certificates.make(&["issue", "edge", "mail"]);
    let at = |file: &str| issued.join(file).display().to_string();
    let (chain, key) = (at("mail.pem"), at("mail.key"));
    let declared = format!(
        "{GAME}certificates:\n  - {{ name: mail, cert_file: \"{chain}\", key_file: \"{key}\" }}\n"
    );
    let private = std::fs::read_to_string(&key).unwrap();
    let secret = private.lines().nth(1).unwrap().as_bytes();
    let store_key = directory.path().join("store.key");
    let flags = [format!("--store-key={}", store_key.display())];

    std::fs::write(&store_key, "1".repeat(64)).unwrap();
    for _ in ["it is stored", "it is read again"] {
        let mut child = up_with(&host, directory.path(), &declared, &flags);
        lines_until(&mut child, "one: applied 1 after ");
        let (status, log) = end(child, Signal::SIGTERM);
        assert_eq!(status, 0, "{log}");
        let data = directory.path().join("data");
        assert!(!lies_below(&data.join("config"), secret), "in the store");
        assert!(lies_below(&data.join("edge"), secret), "the edge has it");
    }

    std::fs::write(&store_key, "no key").unwrap();
    let child = up_with(&host, directory.path(), &declared, &flags);
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("error: config service: --store-key "), "{log}");
}

#[test]
fn a_manifest_that_is_refused_ends_it() {
    let (host, directory) = (host(), tempfile::tempdir().unwrap());
    let manifest = GAME.replace("198.51.100.10", "203.0.113.10");
    let child = up(&host, directory.path(), &manifest);
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    let last: Vec<&str> = log.lines().rev().take(2).collect();
    assert_eq!(last[1], "error: cannot apply: 1 fault, nothing was stored");
    let fault = "game.yaml:10: apps[0].edge_ips[0]: 203.0.113.10/32 is in no declared prefix";
    assert!(last[0].ends_with(fault), "{log}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    for (port, service) in [
        (7400, "config service"),
        (7410, "balancer"),
        (7420, "edge agent"),
        (7421, "edge agent"),
    ] {
        taken_port_is_named(port, service);
    }
}

fn taken_port_is_named(port: u16, service: &str) {
    let (host, directory) = (host(), tempfile::tempdir().unwrap());
    let address = format!("127.0.0.1:{port}");
    let taken = host.run(|| TcpListener::bind(&address)).unwrap();
    let taken = taken.unwrap();
    let child = up(&host, directory.path(), GAME);
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    let error: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(error.len(), 1, "{log}");
    let wanted = format!("error: {service}: cannot listen on {address}: ");
    assert!(error[0].starts_with(&wanted), "{log}");
    // It is not the service's flags that the user has.
    assert!(log.contains("elsewhere with --port\n"), "{log}");
    assert!(
        !log.contains("--listen") && !log.contains("--admin"),
        "{log}"
    );
    drop(taken);
}

#[test]
fn a_second_one_in_a_network_namespace_is_refused_and_the_first_goes_on() {
    let (host, directory) = (host(), tempfile::tempdir().unwrap());
    let mut first = up(&host, directory.path(), GAME);
    lines_until(&mut first, "one: applied 1 after ");
    // It has ports and a directory of its own.
    let other = tempfile::tempdir().unwrap();
    let mut second = up_with(&host, other.path(), GAME, &["--port=8400".to_owned()]);
    let start = Instant::now();
    while second.try_wait().unwrap().is_none() && start.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(20));
    }
    // Where it is not refused, it would go on.
    second.kill().unwrap();
    let output = second.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let why = format!("another process ({}) sets up the kernel", first.id());
    assert!(errors.contains(&why), "{errors}");
    assert_eq!(greeting(&host), "hello from a\n");
    let (status, log) = end(first, Signal::SIGTERM);
    assert_eq!(status, 0, "{log}");
    let mut next = up_with(&host, other.path(), GAME, &["--port=8400".to_owned()]);
    lines_until(&mut next, "one: applied 1 after ");
    assert_eq!(greeting(&host), "hello from a\n");
    // Who is killed leaves nothing that keeps the next one out.
    next.kill().unwrap();
    next.wait().unwrap();
    let mut last = up(&host, directory.path(), GAME);
    lines_until(&mut last, "one: applied 1 after ");
    end(last, Signal::SIGTERM);
}
