//! Programs that people run, through the edge: PostgreSQL, Redis, OpenSSH and nginx, each with its
//! own client. One app maps every port of an address to the same port of the origin, another a
//! range to a range by equal offset, so each server is met on two addresses and two ports.
//! Needs root and those programs; without one of them its test fails and says which.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, Store, eventually};
use anyport_lab::servers::{Running, program};
use anyport_netns::Namespace;

anyport_lab::on_both_stores![
    postgresql_is_queried,
    redis_keeps_what_it_is_given,
    openssh_speaks_first_and_carries_a_session,
    nginx_serves_a_gibibyte_with_the_right_checksum
];

const MANIFEST: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 203.0.113.0/24
  - cidr: 2001:db8:51::/64
apps:
  - name: identity
    protocol: tcp/*
    edge_ips: [198.51.100.10, "2001:db8:51::10"]
    origin_direct: ["tcp://10.0.2.2:1-65535"]
  - name: range
    protocol: tcp/15000-16000
    edge_ips: [203.0.113.7]
    origin_direct: ["tcp://10.0.2.2:5000-6000"]
"#;

const ORIGIN: &str = "10.0.2.2";

/// Where an origin's port from 5000 to 6000 is met.
fn doors(port: u16) -> [(&'static str, u16); 3] {
    [
        ("198.51.100.10", port),
        ("2001:db8:51::10", port),
        ("203.0.113.7", port + 10_000),
    ]
}

/// Starts a server, and waits until it accepts connections of the edge's host.
fn serve(cluster: &Cluster, command: Command, port: u16) -> Running {
    let (name, ready) = (format!("server-{port}"), format!("{ORIGIN}:{port}"));
    let edge = cluster.topology().edge();
    Running::start(&name, cluster, edge, command, ready.parse().unwrap())
}

fn cluster(store: Store) -> Cluster {
    let plan = Plan { ..Plan::on(store) };
    let cluster = Cluster::start(plan).unwrap();
    cluster.apply(MANIFEST).unwrap();
    // Servers that give up root have to get at their files in it.
    let readable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(cluster.directory(), readable).unwrap();
    cluster
}

fn origin(cluster: &Cluster) -> &Namespace {
    &cluster.topology().origins()[0].namespace
}

/// Runs a client to its end, at most for five minutes; it has to succeed.
fn client(cluster: &Cluster, program: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = cluster.topology().client().command("timeout");
    command.arg("300").arg(program).args(arguments);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    file.rewind().unwrap();
    let output = command.stdin(file).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    assert!(
        status.success(),
        "{program:?} {arguments:?}: {status}: {errors}"
    );
    output.stdout
}

fn text(output: Vec<u8>) -> String {
    String::from_utf8(output).unwrap().trim_end().to_owned()
}

fn postgresql_is_queried(store: Store) {
    const PORT: u16 = 5432;
    let cluster = cluster(store);
    let data = cluster.directory().join("postgresql");
    fs::create_dir(&data).unwrap();
    let id = |of: &str| {
        text(
            Command::new("id")
                .args([of, "postgres"])
                .output()
                .unwrap()
                .stdout,
        )
    };
    let user = id("-u").parse().expect("there is no user postgres");
    let group = id("-g").parse().unwrap();
    chown(&data, Some(user), Some(group)).unwrap();
    let data = data.display().to_string();
    // The server refuses to be root. The signal at the parent's end is lost with root's rights.
    let as_postgres = |program: PathBuf| {
        let mut command = origin(&cluster).command("setpriv");
        command
            .current_dir("/")
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
            .args(["--pdeathsig=KILL", "--"])
            .arg(program);
        command
    };
    let output = as_postgres(program("initdb", "postgresql"))
        .args(["--pgdata", &data, "--auth=trust", "--no-sync", "--locale=C"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let access = OpenOptions::new()
        .append(true)
        .open(format!("{data}/pg_hba.conf"));
    writeln!(access.unwrap(), "host all all 10.0.2.1/32 trust").unwrap();
    let mut command = as_postgres(program("postgres", "postgresql"));
    command
        .args(["-D", &data, "-p", &PORT.to_string(), "-k", &data])
        .args(["-c", "listen_addresses=10.0.2.2", "-c", "fsync=off"]);
    let _server = serve(&cluster, command, PORT);
    // It listens before it serves.
    eventually(PATIENCE, "the server serves", || {
        let mut ready = as_postgres(program("pg_isready", "postgresql-client"));
        let output = ready.args(["-h", &data, "-p", &PORT.to_string()]).output();
        let output = output.unwrap();
        let serves = output.status.success();
        serves.then_some(()).ok_or_else(|| format!("{output:?}"))
    });

    let psql = program("psql", "postgresql-client");
    for (number, (host, port)) in doors(PORT).into_iter().enumerate() {
        let target =
            format!("host={host} port={port} user=postgres dbname=postgres connect_timeout=60");
        let ask = |sql: &str| {
            let arguments = [
                "-X",
                "-At",
                "-v",
                "ON_ERROR_STOP=1",
                "-d",
                &target,
                "-f",
                "-",
            ];
            text(client(&cluster, &psql, &arguments, sql.as_bytes()))
        };
        let rows: String = (1..=20_000)
            .map(|row| format!("{row}\tvalue {row}\n"))
            .collect();
        let sql = format!(
            "create table rows_{number} (id int primary key, value text);\n\
             copy rows_{number} from stdin;\n{rows}\\.\n\
             select count(*), sum(id), max(length(value)) from rows_{number};\n"
        );
        assert!(ask(&sql).ends_with("20000|200010000|11"), "{host}");
        let answer = ask("select repeat('x', 1000) from generate_series(1, 5000);\n");
        assert_eq!(answer.len(), 5000 * 1001 - 1, "{host}");
        let seen =
            ask("select host(inet_server_addr()), inet_server_port(), host(inet_client_addr());\n");
        assert_eq!(seen, format!("{ORIGIN}|{PORT}|10.0.2.1"));
    }
}

fn redis_keeps_what_it_is_given(store: Store) {
    const PORT: u16 = 5379;
    let cluster = cluster(store);
    let mut command = origin(&cluster).command(program("redis-server", "redis-server"));
    command
        .current_dir(cluster.directory())
        .args(["--bind", ORIGIN, "--port", &PORT.to_string()])
        .args(["--save", "", "--appendonly", "no", "--protected-mode", "no"]);
    let _server = serve(&cluster, command, PORT);

    let redis_cli = program("redis-cli", "redis-tools");
    let large = "0123456789abcdef".repeat(64 * 1024);
    for (number, (host, port)) in doors(PORT).into_iter().enumerate() {
        let port = port.to_string();
        let ask = |arguments: &[&str], input: &str| {
            let target = [&["-h", host, "-p", &port][..], arguments].concat();
            text(client(&cluster, &redis_cli, &target, input.as_bytes()))
        };
        assert_eq!(ask(&["ping"], ""), "PONG", "{host}");
        let key = format!("large-{number}");
        assert_eq!(ask(&["-x", "set", &key], &large), "OK", "{host}");
        assert!(
            ask(&["get", &key], "") == large,
            "{host}: not what was kept"
        );
        // 10,000 commands without a wait for an answer.
        let commands = format!("incr count-{number}\r\n").repeat(10_000);
        let said = ask(&["--pipe"], &commands);
        assert!(said.contains("errors: 0, replies: 10000"), "{host}: {said}");
        assert_eq!(
            ask(&["get", &format!("count-{number}")], ""),
            "10000",
            "{host}"
        );
    }
}

fn openssh_speaks_first_and_carries_a_session(store: Store) {
    const PORT: u16 = 5022;
    let cluster = cluster(store);
    let file = |name: &str| cluster.directory().join(name).display().to_string();
    for key in ["host_key", "user_key"] {
        let output = Command::new(program("ssh-keygen", "openssh-client"))
            .args(["-q", "-t", "ed25519", "-N", "", "-f", &file(key)])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let configuration = format!(
        "Port {PORT}\nListenAddress {ORIGIN}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
         UsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n",
        file("host_key"),
        file("user_key.pub"),
    );
    fs::write(file("sshd_config"), configuration).unwrap();
    // It insists on a directory in /run, which is made where nobody else sees it.
    let script = format!(
        "mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec {} -D -e -f {}",
        program("sshd", "openssh-server").display(),
        file("sshd_config"),
    );
    let mut command = origin(&cluster).command(program("unshare", "util-linux"));
    command.args(["--mount", "sh", "-c", &script]);
    let _server = serve(&cluster, command, PORT);

    let ssh = program("ssh", "openssh-client");
    let host_key = fs::read_to_string(file("host_key.pub")).unwrap();
    let payload: Vec<u8> = (0..5_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for (host, port) in doors(PORT) {
        let mut greeted = cluster
            .dial((host.parse::<std::net::IpAddr>().unwrap(), port).into())
            .unwrap();
        let mut greeting = [0; 8];
        greeted.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"SSH-2.0-", "{host}");
        drop(greeted);
        // Only the very key of the server will do.
        fs::write(file("known_hosts"), format!("[{host}]:{port} {host_key}")).unwrap();
        let known_hosts = format!("UserKnownHostsFile={}", file("known_hosts"));
        let (port, key, login) = (port.to_string(), file("user_key"), format!("root@{host}"));
        let run = |remote: &str, input: &[u8]| {
            let arguments = [
                "-F",
                "none",
                "-p",
                &port,
                "-i",
                &key,
                "-o",
                &known_hosts,
                "-o",
                "StrictHostKeyChecking=yes",
                "-o",
                "BatchMode=yes",
                "-o",
                "ConnectTimeout=60",
                &login,
                remote,
            ];
            client(&cluster, &ssh, &arguments, input)
        };
        let seen = text(run("echo $SSH_CONNECTION", b""));
        assert!(
            seen.ends_with(&format!("{ORIGIN} {PORT}")),
            "{host}: {seen}"
        );
        assert!(run("cat", &payload) == payload, "{host}: not what was sent");
    }
}

const GIBIBYTE: u64 = 1 << 30;

/// A GiB in which no two MiB are alike, and which takes little room on the disk.
fn large_file(path: &Path) {
    const STEP: u64 = 1 << 20;
    let mut file = File::create(path).unwrap();
    file.set_len(GIBIBYTE).unwrap();
    for place in (0..GIBIBYTE).step_by(1 << 20) {
        // Not at the same place of each MiB either.
        file.seek(SeekFrom::Start(place + place / STEP * 1000 % STEP))
            .unwrap();
        writeln!(file, "the {}th", place / STEP).unwrap();
    }
    file.set_len(GIBIBYTE).unwrap();
}

fn nginx_serves_a_gibibyte_with_the_right_checksum(store: Store) {
    const PORT: u16 = 5080;
    let cluster = cluster(store);
    let directory = cluster.directory().display().to_string();
    large_file(&cluster.directory().join("large"));
    let configuration = format!(
        "daemon off; master_process off; user root; pid {directory}/nginx.pid;\n\
         error_log stderr;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; sendfile on;\n\
           client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
           fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;\n\
           scgi_temp_path {directory}/scgi;\n\
           server {{ listen {ORIGIN}:{PORT}; root {directory}; }} }}\n"
    );
    fs::write(cluster.directory().join("nginx.conf"), configuration).unwrap();
    let mut command = origin(&cluster).command(program("nginx", "nginx-light"));
    command.args([
        "-p",
        &directory,
        "-e",
        "stderr",
        "-c",
        &format!("{directory}/nginx.conf"),
    ]);
    let _server = serve(&cluster, command, PORT);

    let sha256sum = program("sha256sum", "coreutils");
    let curl = program("curl", "curl");
    let sum = Command::new(&sha256sum)
        .arg(format!("{directory}/large"))
        .output()
        .unwrap();
    let sum = text(sum.stdout).split(' ').next().unwrap().to_owned();
    assert_eq!(sum.len(), 64, "{sum:?}");
    for (host, port) in doors(PORT) {
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let script = format!(
            "set -o pipefail; {} --silent --show-error --fail --globoff --max-time 300 \
             http://{host}:{port}/large | {}",
            curl.display(),
            sha256sum.display(),
        );
        let got = text(client(
            &cluster,
            &program("bash", "bash"),
            &["-c", &script],
            b"",
        ));
        assert_eq!(got.split(' ').next(), Some(&*sum), "{host}");
        // And a part of it, as a player or a resumed download asks for.
        let url = format!("http://{host}:{port}/large");
        let arguments = ["-sSfg", "--max-time", "300", "-r", "1048576-2097151", &url];
        let part = client(&cluster, &curl, &arguments, b"");
        assert_eq!(part.len(), 1 << 20, "{host}");
        assert!(part.windows(7).any(|window| window == b"the 1th"), "{host}");
    }
    eventually(PATIENCE, "all bytes are counted", || {
        let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
        let moved = metrics.sum("anyport_bytes_total", &[("direction", "out")]);
        let all = moved > 3.0 * GIBIBYTE as f64;
        all.then_some(()).ok_or(moved)
    });
}
