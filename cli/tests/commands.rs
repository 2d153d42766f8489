//! The real binary against a config service in memory: what it prints, and its
//! exit status.

#![allow(clippy::unwrap_used)]

mod fake;

use std::{
    net::SocketAddr,
    process::Stdio,
    time::{Duration, SystemTime},
};

use anyport_proto::v1;
use fake::{Fake, FakeEdge, nobody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

/// Far beyond what any of these takes.
const DEADLINE: Duration = Duration::from_secs(120);

const GAME: &str = "\
prefixes:
  - cidr: 198.51.100.0/24
monitors:
  - name: quick
    interval: 1s
pools:
  - name: game
    monitor: quick
    origins:
      - { name: a, address: \"10.0.2.2:7000\", weight: 3 }
      - { name: b, address: \"10.0.2.3:7000\" }
  - name: spare
    origins:
      - { name: c, address: \"10.0.3.2:7000\" }
apps:
  - name: minecraft
    protocol: tcp/25565
    edge_ips: [198.51.100.10]
    origin_pool: game
  - name: everything
    protocol: tcp/*
    edge_ips: [198.51.100.0/24]
    origin_direct: [\"tcp://10.0.2.9:1-65535\"]
";

struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs `anyport` to its end with nothing of this process's environment that it
/// would look at.
async fn anyport(server: SocketAddr, args: &[&str], input: &str) -> Ran {
    anyport_with(server, args, input, &[]).await
}

async fn anyport_with(
    server: SocketAddr,
    args: &[&str],
    input: &str,
    environment: &[(&str, String)],
) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_anyport"))
        .args(args)
        .env_clear()
        .env("USER", "alice")
        .env("ANYPORT_SERVER", format!("http://{server}"))
        .envs(environment.iter().cloned())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    match stdin.write_all(input.as_bytes()).await {
        // It has ended without reading it.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    }
    drop(stdin);
    let output = timeout(DEADLINE, child.wait_with_output());
    let output = output.await.expect("ends by itself").unwrap();
    Ran {
        code: output.status.code().expect("no signal"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    #[track_caller]
    fn is(self, code: i32, out: &str, err: &str) {
        assert_eq!(
            self.out, out,
            "standard output; on standard error:\n{}",
            self.err
        );
        assert_eq!(self.err, err, "standard error");
        assert_eq!(self.code, code, "exit status");
    }
}

async fn applied() -> (Fake, SocketAddr) {
    let (fake, server) = Fake::start().await;
    let ran = anyport(server, &["apply", "-f", "-"], GAME).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    (fake, server)
}

fn edge(name: &str, applied_revision: u64) -> v1::NodeStatus {
    v1::NodeStatus {
        role: v1::NodeRole::Edge.into(),
        name: name.to_owned(),
        region: "eu".to_owned(),
        version: "0.1.0".to_owned(),
        steering: "sk-lookup".to_owned(),
        applied_revision,
        ..Default::default()
    }
}

fn rejecting(name: &str, applied_revision: u64) -> v1::NodeStatus {
    v1::NodeStatus {
        rejections: vec![v1::Rejection {
            resource: Some(v1::ResourceRef {
                kind: v1::Kind::App.into(),
                name: "minecraft".to_owned(),
            }),
            reason: "nftables: no\u{1b}[2J such set".to_owned(),
        }],
        ..edge(name, applied_revision)
    }
}

fn balancer() -> v1::NodeStatus {
    let origin =
        |name: &str, address: &str, health: v1::HealthState, weight, share, reason: &str| {
            v1::OriginHealth {
                origin: name.to_owned(),
                address: address.to_owned(),
                health: health.into(),
                weight,
                share,
                reason: reason.to_owned(),
                since: None,
                probe_seconds: None,
                ..Default::default()
            }
        };
    v1::NodeStatus {
        role: v1::NodeRole::Balancer.into(),
        steering: String::new(),
        pools: vec![v1::PoolHealth {
            pool: "game".to_owned(),
            state: v1::PoolState::Degraded.into(),
            origins: vec![
                origin("a", "10.0.2.2:7000", v1::HealthState::Up, 3.0, 1.0, ""),
                origin(
                    "b",
                    "10.0.2.3:7000",
                    v1::HealthState::Down,
                    0.0,
                    0.0,
                    "connect: connection refused",
                ),
            ],
            panic: false,
        }],
        region: String::new(),
        ..edge("scales", 1)
    }
}

#[tokio::test]
async fn apply_says_what_became_of_each_resource() {
    let (fake, server) = Fake::start().await;
    let apply = ["apply", "-f", "-"];
    anyport(server, &apply, GAME).await.is(
        0,
        "\
created    prefix   198.51.100.0/24
created    monitor  quick
created    pool     game
created    pool     spare
created    app      everything
created    app      minecraft
revision 1
",
        "",
    );
    let changed = GAME.replace("weight: 3", "weight: 2");
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("game.yaml");
    std::fs::write(&file, changed).unwrap();
    let file = file.to_str().unwrap();
    anyport(server, &["apply", "--file", file], "").await.is(
        0,
        "\
unchanged  prefix   198.51.100.0/24
unchanged  monitor  quick
updated    pool     game
unchanged  pool     spare
unchanged  app      everything
unchanged  app      minecraft
revision 2
",
        "",
    );
    let ran = anyport(server, &apply, GAME).await;
    assert!(ran.out.ends_with("revision 3\n"), "{}", ran.out);
    assert_eq!(fake.state(|state| state.revision()), 3);
}

#[tokio::test]
async fn every_fault_is_named_in_one_go_and_nothing_is_stored() {
    let (fake, server) = Fake::start().await;
    let manifest = "\
prefixes:
  - cidr: 198.51.100.7/24
pools:
  - name: game
    monitor: slow
    origins:
      - { name: a, address: \"10.0.2.2\", weight: -1 }
apps:
  - name: minecraft
    protocol: tcp/70000
    edge_ips: [198.51.101.1, nowhere]
    orign_pool: game
    timeouts: { idle: 5 parsecs }
  - name: elsewhere
    protocol: tcp/22
    edge_ips: [203.0.113.1]
    origin_pool: none
";
    anyport(server, &["apply", "-f", "-"], manifest).await.is(
        1,
        "",
        "\
error: cannot apply: 9 faults, nothing was stored
  standard input:2: prefixes[0].cidr: 198.51.100.7/24 has host bits; the network is 198.51.100.0/24
  standard input:7: pools[0].origins[0].address: \"10.0.2.2\" is no address; right is 10.0.2.2:7000 or [2001:db8::1]:7000
  standard input:7: pools[0].origins[0].weight: -1 is no weight; a weight is a number from 0 to 1000
  standard input:10: apps[0].protocol: \"70000\" is not a port; a port is a number from 1 to 65535
  standard input:11: apps[0].edge_ips[1]: \"nowhere\" is no address; right is 198.51.100.10, 198.51.100.0/24 or 2001:db8:51::10
  standard input:12: apps[0].orign_pool: an app has no field \"orign_pool\" in this version of Anyport; did you mean origin_pool?
  standard input:13: apps[0].timeouts.idle: \"5 parsecs\" is no duration; right is 500ms, 2s, 5m, 1h or 30d
  standard input:16: apps[1].edge_ips[0]: 203.0.113.1/32 is in no declared prefix
  standard input:17: apps[1].origin_pool: there is no pool \"none\"
",
    );
    assert_eq!(fake.state(|state| state.revision()), 0);
}

#[tokio::test]
async fn a_fault_that_only_the_command_sees_stores_nothing_either() {
    let (fake, server) = Fake::start().await;
    let manifest = format!("{GAME}    tls: on\n");
    let ran = anyport(server, &["apply", "-f", "-"], &manifest).await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .starts_with("error: cannot apply: 1 fault, nothing was stored\n"),
        "{}",
        ran.err
    );
    assert_eq!(
        fake.state(|state| state.request_ids.len()),
        1,
        "it was asked"
    );
    assert_eq!(fake.state(|state| state.revision()), 0);
}

#[tokio::test]
async fn a_dry_run_shows_the_difference_and_stores_nothing() {
    let (fake, server) = applied().await;
    let changed = GAME
        .replace("weight: 3", "weight: 0.5")
        .replace("[198.51.100.10]", "[198.51.100.11, 198.51.100.12]")
        .replace(
            "  - name: spare\n    origins:\n      - { name: c, address: \"10.0.3.2:7000\" }\n",
            "",
        );
    let args = ["apply", "-f", "-", "--dry-run", "--prune"];
    anyport(server, &args, &changed).await.is(
        0,
        "\
unchanged  prefix   198.51.100.0/24
unchanged  monitor  quick
updated    pool     game
             origins[a].weight: 3.0 → 0.5
deleted    pool     spare
             minimum_origins: - 1
             name: - spare
             origins[c].address: - 10.0.3.2:7000
             origins[c].enabled: - true
             origins[c].name: - c
             origins[c].weight: - 1.0
             policy: - weighted
unchanged  app      everything
updated    app      minecraft
             edge_ips: - 198.51.100.10
             edge_ips: + 198.51.100.11
             edge_ips: + 198.51.100.12
dry run: nothing was stored, the latest revision is still 1
",
        "",
    );
    assert_eq!(fake.state(|state| state.revision()), 1);
}

#[tokio::test]
async fn pruning_by_an_empty_manifest_is_refused() {
    let (fake, server) = applied().await;
    let ran = anyport(server, &["apply", "-f", "-", "--prune"], "apps: []\n").await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("would delete everything"), "{}", ran.err);
    assert_eq!(fake.state(|state| state.resources.len()), 6);
}

#[tokio::test]
async fn everything_is_deleted_where_that_is_said() {
    let (fake, server) = applied().await;
    let args = ["apply", "-f", "-", "--prune", "--allow-mass-deletion"];
    let ran = anyport(server, &args, "apps: []\n").await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(fake.state(|state| state.resources.len()), 0);
    let without_prune = ["apply", "-f", "-", "--allow-mass-deletion"];
    assert_eq!(anyport(server, &without_prune, GAME).await.code, 2);
}

#[tokio::test]
async fn waiting_ends_when_the_last_edge_has_it() {
    let (fake, server) = Fake::start().await;
    fake.set_nodes(vec![edge("east", 0), edge("west", 0)]);
    let behind = {
        let fake = fake.clone();
        async move {
            fake.watched().await;
            fake.set_nodes(vec![edge("east", 1), edge("west", 0)]);
            tokio::task::yield_now().await;
            fake.set_nodes(vec![edge("east", 1), edge("west", 1)]);
        }
    };
    let args = ["apply", "-f", "-", "--wait"];
    let (ran, ()) = tokio::join!(anyport(server, &args, GAME), behind);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let told: Vec<&str> = ran.out.lines().skip(7).collect();
    assert_eq!(told.len(), 2, "{}", ran.out);
    for (line, name) in told.iter().zip(["east", "west"]) {
        let start = format!("{name}: applied 1 after ");
        assert!(line.starts_with(&start), "{line}");
    }
}

#[tokio::test]
async fn a_rejection_is_told_with_its_reason() {
    let (fake, server) = Fake::start().await;
    fake.set_nodes(vec![rejecting("east", 1)]);
    let ran = anyport(server, &["apply", "-f", "-", "--wait=60s"], GAME).await;
    assert_eq!(ran.code, 1);
    let last = ran.out.lines().last().unwrap();
    // What would clear the user's screen is shown, not obeyed.
    assert_eq!(
        last,
        "east: rejected app minecraft: nftables: no\u{fffd}[2J such set"
    );
    assert_eq!(
        ran.err,
        "\
error: revision 1 is stored, but not all of it could be applied by east
  what was rejected keeps its last good version there; see `anyport status`
"
    );
}

#[tokio::test]
async fn a_wait_that_runs_out_names_who_is_behind() {
    let (fake, server) = Fake::start().await;
    fake.set_nodes(vec![edge("east", 1), edge("west", 0)]);
    let ran = anyport(server, &["apply", "-f", "-", "--wait=3s"], GAME).await;
    assert_eq!(ran.code, 4);
    assert_eq!(
        ran.err,
        "\
error: revision 1 is stored, but not applied by every edge within 3s
  west still has revision 0
"
    );
}

#[tokio::test]
async fn an_edge_that_dies_during_the_wait_is_no_success() {
    let (fake, server) = Fake::start().await;
    fake.set_nodes(vec![edge("east", 1), edge("west", 0)]);
    let dies = async {
        fake.streamed(2).await;
        fake.set_nodes(vec![edge("east", 1)]);
    };
    let args = ["apply", "-f", "-", "--wait=5s"];
    let (ran, ()) = tokio::join!(anyport(server, &args, GAME), dies);
    assert_eq!(ran.code, 4, "{}", ran.out);
    let last = ran.out.lines().last().unwrap();
    assert_eq!(
        last,
        "west: left before it applied 1; waiting for its return"
    );
    let left = "\
error: revision 1 is stored, but not applied by every edge within 5s
  west left with revision 0 and has not come back
";
    assert_eq!(ran.err, left);
}

#[tokio::test]
async fn a_restart_of_the_config_service_does_not_end_the_wait() {
    let (fake, server) = Fake::start().await;
    fake.set_nodes(vec![edge("east", 1), edge("west", 0)]);
    let restarts = async {
        fake.streamed(2).await;
        fake.restart();
        fake.streamed(0).await;
        fake.set_nodes(vec![edge("west", 1), edge("east", 1)]);
    };
    let args = ["apply", "-f", "-", "--wait=60s"];
    let (ran, ()) = tokio::join!(anyport(server, &args, GAME), restarts);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let told: Vec<&str> = ran.out.lines().skip(7).collect();
    assert_eq!(told.len(), 2, "{}", ran.out);
    assert!(told[1].starts_with("west: applied 1 after "), "{}", ran.out);
}

#[tokio::test]
async fn with_no_edge_there_is_nothing_to_wait_for() {
    let (_fake, server) = Fake::start().await;
    let ran = anyport(server, &["apply", "-f", "-", "--wait"], GAME).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(
        ran.out
            .ends_with("no edge is connected, so none has applied it yet\n")
    );
}

#[tokio::test]
async fn a_write_is_tried_again_under_the_same_id() {
    let (fake, server) = Fake::start().await;
    fake.state(|state| state.unavailable = 2);
    let ran = anyport(server, &["apply", "-f", "-"], GAME).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let ids = fake.state(|state| state.request_ids.clone());
    assert_eq!(ids.len(), 3);
    assert!(
        ids.iter().all(|id| id.len() == 32 && *id == ids[0]),
        "{ids:?}"
    );
}

#[tokio::test]
async fn a_write_that_is_late_is_tried_again_under_the_same_id() {
    let (fake, server) = Fake::start().await;
    fake.state(|state| state.late = 1);
    let ran = anyport(server, &["apply", "-f", "-"], GAME).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let ids = fake.state(|state| state.request_ids.clone());
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_write_that_was_never_confirmed_may_have_been_stored() {
    let (fake, server) = applied().await;
    fake.state(|state| state.late = usize::MAX);
    anyport(server, &["rollback", "1"], "").await.is(
        3,
        "",
        &format!(
            "\
error: unknown whether this was done: go back to revision 1: the config service at http://{server} did not answer in time
  it may have been stored; see `anyport history`
"
        ),
    );
    // A dry run stores nothing in any case.
    let ran = anyport(server, &["apply", "-f", "-", "--dry-run"], GAME).await;
    assert_eq!(ran.code, 3);
    assert!(!ran.err.contains("may have been stored"), "{}", ran.err);
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_open_what_was_stored() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut some = [0; 256];
            connection.read_exact(&mut some).await.unwrap();
        }
    });
    let ran = anyport(server, &["delete", "app", "minecraft"], "").await;
    assert_eq!(ran.code, 3, "{}", ran.err);
    let end = "\n  it may have been stored; see `anyport history`\n";
    assert!(ran.err.ends_with(end), "{}", ran.err);
}

#[tokio::test]
async fn a_server_that_cannot_write_is_given_up() {
    let (fake, server) = Fake::start().await;
    fake.state(|state| state.unavailable = usize::MAX);
    let ran = anyport(server, &["apply", "-f", "-"], GAME).await;
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("the store is out of reach"), "{}", ran.err);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let server = nobody();
    anyport(server, &["get", "apps"], "").await.is(
        3,
        "",
        &format!(
            "\
error: cannot list apps: cannot reach the config service at http://{server}: Connection refused (os error 111)
  check that it runs and listens there; `anyport up` starts one on this machine, --server or ANYPORT_SERVER names another
"
        ),
    );
    // What could not be sent is not stored.
    let ran = anyport(server, &["apply", "-f", "-"], GAME).await;
    assert_eq!(ran.code, 3);
    let start = "error: cannot apply: cannot reach the config service";
    assert!(ran.err.starts_with(start), "{}", ran.err);
    // Local faults are told all the same.
    let ran = anyport(server, &["apply", "-f", "-"], "apps:\n  - tls: x\n").await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("apps[0].tls"), "{}", ran.err);
    assert!(ran.err.contains("cannot reach"), "{}", ran.err);
}

#[tokio::test]
async fn of_several_replicas_one_that_is_there_is_asked() {
    let (fake, server) = Fake::start().await;
    let (away, gone) = (nobody(), nobody());
    let run = async |servers: [SocketAddr; 2], args: &[&str], input: &str| {
        let servers = servers.map(|server| format!("http://{server}")).join(",");
        let args = [&["--server", &servers], args].concat();
        anyport(server, &args, input).await
    };
    let ran = run([away, server], &["apply", "-f", "-"], GAME).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let ran = run([away, server], &["status"], "").await;
    let start = format!("config service http://{server}, revision 1");
    assert!(ran.out.starts_with(&start), "{}", ran.err);
    // One that is there and cannot do its work is passed over too.
    let (cut_off, first) = Fake::start().await;
    cut_off.state(|state| state.unavailable = usize::MAX);
    let ran = run([first, server], &["delete", "app", "minecraft"], "").await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(fake.state(|state| state.revision()), 2);
    // What the next one does not even look at may have been stored by the first.
    let (late, busy) = (cut_off, fake);
    late.state(|state| (state.unavailable, state.late) = (0, usize::MAX));
    busy.state(|state| state.full = true);
    let ran = run([first, server], &["rollback", "1"], "").await;
    assert_eq!(ran.code, 3);
    let start = "error: unknown whether this was done: go back to revision 1";
    assert!(ran.err.starts_with(start), "{}", ran.err);
    // Where there is none, all are named.
    let ran = run([away, gone], &["get", "pools"], "").await;
    assert_eq!(ran.code, 3);
    for server in [away, gone] {
        let named = format!("at http://{server}: Connection refused");
        assert!(ran.err.contains(&named), "{}", ran.err);
    }
}

#[tokio::test]
async fn a_command_line_that_makes_no_sense_is_usage() {
    let (_fake, server) = Fake::start().await;
    for args in [
        &["aply"][..],
        &[],
        &["apply"],
        &["apply", "-f", "-", "--wait=soon"],
        &["apply", "-f", "-", "--wait", "--dry-run"],
        &["get", "secrets"],
        &["delete", "edges", "east"],
        &["explain", "198.51.100.10:1"],
        &["explain", "tcp/198.51.100.10:0"],
        &["--server", "nonsense", "status"],
        &["--server", "https://127.0.0.1:7400", "status"],
        &["--tls-cert", "only.pem", "status"],
        &["up", "--server", "http://127.0.0.1:7400"],
        &["demo", "--insecure"],
    ] {
        let ran = anyport(server, args, "").await;
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(!ran.err.is_empty(), "{args:?}");
    }
}

#[tokio::test]
async fn what_get_prints_can_be_applied_again() {
    let (fake, server) = applied().await;
    for format in ["yaml", "json"] {
        for kind in ["prefixes", "monitors", "pools", "apps"] {
            let got = anyport(server, &["get", kind, "-o", format], "").await;
            assert_eq!((got.code, got.err.as_str()), (0, ""));
            let again = anyport(server, &["apply", "-f", "-"], &got.out).await;
            assert_eq!((again.code, again.err.as_str()), (0, ""), "{}", got.out);
            assert!(again.out.ends_with("revision 1\n"), "{}", again.out);
        }
    }
    assert_eq!(fake.state(|state| state.revision()), 1);
    anyport(server, &["get", "app", "minecraft", "-o", "yaml"], "")
        .await
        .is(
            0,
            "\
apps:
- name: minecraft
  protocol: tcp/25565
  edge_ips:
  - \"198.51.100.10\"
  origin_pool: game
  tls: \"off\"
  timeouts:
    connect: 5s
    tls_handshake: 5s
    idle: 1h
    udp_idle: 1m
    drain: 30s
",
            "",
        );
}

#[tokio::test]
async fn tables_are_for_people() {
    let (fake, server) = applied().await;
    anyport(server, &["get", "apps"], "").await.is(
        0,
        "\
NAME        PROTOCOL   EDGE IPS         ORIGIN                  ORIGIN PORT  TLS
everything  tcp/*      198.51.100.0/24  tcp://10.0.2.9:1-65535  -            off
minecraft   tcp/25565  198.51.100.10    pool game               -            off
",
        "",
    );
    anyport(server, &["get", "pools"], "").await.is(
        0,
        "\
NAME   POLICY    MONITOR  FALLBACK  ORIGINS
game   weighted  quick    -         a 10.0.2.2:7000, b 10.0.2.3:7000
spare  weighted  -        -         c 10.0.3.2:7000
",
        "",
    );
    anyport(server, &["get", "monitor", "quick"], "").await.is(
        0,
        "\
NAME   TYPE  INTERVAL  TIMEOUT  UP  DOWN  PORT
quick  tcp   1s        2s       2   2     origin's
",
        "",
    );
    fake.set_nodes(vec![edge("west", 0), rejecting("east", 1), balancer()]);
    anyport(server, &["get", "edges"], "").await.is(
        0,
        "\
NAME  REGION  REVISION  HASH  STATE       CONNECTED  VERSION
east  eu      1         -     rejected 1  -          0.1.0, sk-lookup
west  eu      0         -     1 behind    -          0.1.0, sk-lookup
",
        "",
    );
    anyport(server, &["get", "apps", "gone"], "").await.is(
        1,
        "",
        "error: cannot get app \"gone\": there is no app \"gone\"\n",
    );
    anyport(server, &["get", "edge", "gone"], "").await.is(
        1,
        "",
        "error: there is no edge \"gone\" connected\n",
    );
}

#[tokio::test]
async fn an_edge_that_was_drained_is_shown_so() {
    let (fake, server) = applied().await;
    let drained = |name, revision, drain: v1::DrainState| v1::NodeStatus {
        drain: drain.into(),
        ..edge(name, revision)
    };
    fake.set_nodes(vec![
        drained("east", 1, v1::DrainState::Drained),
        drained("north", 0, v1::DrainState::Draining),
        drained("west", 1, v1::DrainState::Serving),
    ]);
    anyport(server, &["get", "edges"], "").await.is(
        0,
        "\
NAME   REGION  REVISION  HASH  STATE               CONNECTED  VERSION
east   eu      1         -     drained             -          0.1.0, sk-lookup
north  eu      0         -     draining, 1 behind  -          0.1.0, sk-lookup
west   eu      1         -     up to date          -          0.1.0, sk-lookup
",
        "",
    );
    let ran = anyport(server, &["get", "edges", "east", "-o", "yaml"], "").await;
    assert!(ran.out.contains("drain: drained"), "{}", ran.out);
}

#[tokio::test]
async fn an_origin_is_drained_by_its_declaration() {
    let (fake, server) = applied().await;
    let ran = anyport(server, &["drain", "origin", "game/a"], "").await;
    let line = "updated    pool     game\n             origins[a].enabled: true → false\n";
    assert!(ran.out.contains(line), "{}", ran.out);
    let message = fake.state(|state| state.revisions.last().unwrap().message.clone());
    assert_eq!(message, "drain origin game/a");
    let ran = anyport(server, &["drain", "origin", "game/a"], "").await;
    assert!(
        ran.out.contains("unchanged  pool     game\n"),
        "{}",
        ran.out
    );
    assert_eq!((ran.code, ran.out.contains("warning")), (0, false));
    let ran = anyport(
        server,
        &["drain", "origin", "spare/c", "-m", "new disks"],
        "",
    )
    .await;
    let warning = "warning    no origin of pool spare is left; new connections to it are refused\n";
    assert!(ran.out.contains(warning), "{}", ran.out);
    anyport(server, &["undrain", "origin", "game/z"], "")
        .await
        .is(
            1,
            "",
            "\
error: cannot undrain origin game/z: pool \"game\" has no origin \"z\"
  it has a, b
",
        );
    anyport(server, &["undrain", "origin", "gone/a"], "")
        .await
        .is(
            1,
            "",
            "error: cannot undrain origin gone/a: there is no pool \"gone\"\n",
        );
    let ran = anyport(server, &["drain", "origin", "game"], "").await;
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(
        ran.err.contains("right is the name of a pool, a slash"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn delete_history_and_rollback_tell_one_story() {
    let (fake, server) = applied().await;
    anyport(server, &["delete", "pools", "game"], "").await.is(
        1,
        "",
        "error: cannot delete pool \"game\": pool \"game\" is in use: app \"minecraft\": origin_pool: there is no pool \"game\"\n",
    );
    anyport(
        server,
        &["delete", "app", "minecraft", "-m", "season over"],
        "",
    )
    .await
    .is(0, "deleted    app      minecraft\nrevision 2\n", "");
    anyport(server, &["rollback", "7"], "").await.is(
        1,
        "",
        "error: cannot go back to revision 7: revision: is not there yet\n",
    );
    let ran = anyport(server, &["rollback", "1"], "").await;
    assert_eq!(ran.code, 0);
    assert!(
        ran.out.contains("created    app      minecraft\n"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.ends_with("revision 3, as revision 1 was\n"),
        "{}",
        ran.out
    );

    let ran = anyport(server, &["history", "-o", "json", "-n", "2"], "").await;
    let history: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(history.as_array().unwrap().len(), 2);
    assert_eq!(history[0]["rollback_of"], 1);
    assert_eq!(history[1]["message"], "season over");
    assert_eq!(history[1]["deleted"], 1);
    assert!(history[1]["author"].as_str().unwrap().starts_with("alice"));

    let ran = anyport(server, &["history"], "").await;
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].starts_with("REVISION  WHEN"), "{}", ran.out);
    assert!(lines[1].starts_with("3         2026-09-21T") && lines[1].ends_with("back to 1"));
    assert!(lines[2].ends_with("-1       season over"), "{}", ran.out);
    assert_eq!(lines.len(), 4);

    fake.state(|state| state.revisions.remove(0));
    let begins = "older than 2: not kept any more\n";
    let ran = anyport(server, &["history"], "").await;
    assert!(ran.out.ends_with(begins), "{}", ran.out);
    let ran = anyport(server, &["history", "-n", "1"], "").await;
    assert!(!ran.out.contains(begins), "there is more: {}", ran.out);
}

#[tokio::test]
async fn status_tells_of_a_store_that_went_back() {
    let (fake, server) = applied().await;
    fake.set_rewind(v1::StoreRewind {
        lost_revision: 1_040,
        latest_revision: 1_030,
        noticed_at: Some(prost_types::Timestamp {
            seconds: 1_800_000_000,
            nanos: 0,
        }),
    });
    let ran = anyport(server, &["status"], "").await;
    let lines: Vec<&str> = ran.out.lines().collect();
    let told = [
        "the store went back: revision 1040 is lost, the latest was then 1030;",
        "noticed at 2027-01-15T08:00:00Z",
    ];
    assert_eq!(lines[1..3], told, "{}", ran.out);
    let ran = anyport(server, &["status", "-o", "json"], "").await;
    let status: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(status["store_rewind"]["lost_revision"], 1_040);
}

#[tokio::test]
async fn status_shows_the_fleet_in_eighty_columns() {
    let (fake, server) = applied().await;
    let empty = anyport(server, &["status"], "").await;
    assert!(
        empty.out.contains("no edge is connected\n"),
        "{}",
        empty.out
    );
    fake.set_nodes(vec![rejecting("east", 1), edge("west", 0), balancer()]);
    let year = Duration::from_secs(360 * 86_400);
    fake.set_gone(vec![v1::GoneNode {
        last: Some(v1::NodeStatus {
            applied_hash: vec![0x3f, 0xa9, 0x1c, 0x02, 0x77],
            ..edge("fra1", 1)
        }),
        since: Some((SystemTime::now() - year).into()),
    }]);
    let ran = anyport(server, &["status"], "").await;
    assert!(
        ran.out.lines().all(|line| line.chars().count() <= 80),
        "{}",
        ran.out
    );
    ran.is(
        0,
        &format!(
            "\
config service http://{server}, revision 1 (3fa91c02)

edges
  NAME  REGION  REVISION  HASH      STATE          CONNECTED  VERSION
  east  eu      1         -         rejected 1     -          0.1.0, sk-lookup
  west  eu      0         -         1 behind       -          0.1.0, sk-lookup
  fra1  eu      1         3fa91c02  gone for 360d  -          0.1.0, sk-lookup
  rejected by east: app minecraft: nftables: no\u{fffd}[2J such set

balancers
  NAME    REGION  REVISION  HASH  STATE       CONNECTED  VERSION
  scales          1         -     up to date  -          0.1.0

pool game: degraded, 1 of 2 down
  ORIGIN  ADDRESS        HEALTH  WEIGHT  SHARE  WHY
  a       10.0.2.2:7000  up      3       100%
  b       10.0.2.3:7000  down    0       0%     connect: connection refused

pool spare: unknown
  ORIGIN  ADDRESS        HEALTH   WEIGHT  SHARE  WHY
  c       10.0.3.2:7000  unknown  1       100%   no balancer speaks of it
"
        ),
        "",
    );
    let ran = anyport(server, &["status", "-o", "json"], "").await;
    let status: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(status["edges"][1]["behind"], 1);
    assert_eq!(status["edges"][0]["rejections"][0]["name"], "minecraft");
    assert_eq!(status["pools"][0]["origins"][1]["health"], "down");
    assert_eq!(status["pools"][0]["balancer"], "scales");
}

#[tokio::test]
async fn answers_may_be_larger_than_four_mebibytes() {
    let (fake, server) = Fake::start().await;
    let mut east = rejecting("east", 1);
    east.rejections[0].reason = "x".repeat(5 << 20);
    fake.set_nodes(vec![east]);
    let ran = anyport(server, &["get", "edges", "-o", "json"], "").await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let ran = anyport(server, &["apply", "-f", "-", "--wait=60s"], GAME).await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("could be applied by east"), "{}", ran.err);
}

#[tokio::test]
async fn explain_names_the_claim_that_decided() {
    let (fake, server) = applied().await;
    fake.set_nodes(vec![balancer()]);
    anyport(server, &["explain", "tcp/198.51.100.10:25565"], "")
        .await
        .is(
            0,
            "\
tcp/198.51.100.10:25565: app minecraft
  because  it has tcp/25565 on 198.51.100.10/32
  beats    everything with tcp/* on 198.51.100.0/24: a shorter network
  goes to  pool game (degraded, 1 of 2 down), weighted
    ORIGIN  ADDRESS        HEALTH  SHARE  WHY
    a       10.0.2.2:7000  up      100%
    b       10.0.2.3:7000  down    0%     connect: connection refused
",
            "",
        );
    anyport(
        server,
        &["explain", "tcp/198.51.100.9:22", "--from", "203.0.113.7"],
        "",
    )
    .await
    .is(
        0,
        "\
tcp/198.51.100.9:22 from 203.0.113.7: app everything
  because  it has tcp/* on 198.51.100.0/24
  source   203.0.113.7 is let in: no access rule holds it, and the default is allow
  goes to  one of its own origins, all alike
    ADDRESS      SHARE
    10.0.2.9:22  100%
",
        "",
    );
    anyport(server, &["delete", "apps", "everything"], "").await;
    anyport(server, &["explain", "tcp/198.51.100.10:22"], "")
        .await
        .is(
            1,
            "\
tcp/198.51.100.10:22: refused
  198.51.100.10 is in the prefix 198.51.100.0/24, but no app has port 22 there,
  so the edge resets the connection, as a host does where nothing listens
  minecraft has tcp/25565 on 198.51.100.10/32
",
            "error: tcp/198.51.100.10:22 would be refused\n",
        );
    anyport(server, &["explain", "tcp/203.0.113.1:22"], "")
        .await
        .is(
            1,
            "\
tcp/203.0.113.1:22: refused
  203.0.113.1 is in no declared prefix, so the edges do not answer for it
",
            "error: tcp/203.0.113.1:22 would be refused\n",
        );
}

const GUARDED: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
apps:
  - name: guarded
    protocol: tcp/22
    edge_ips: [198.51.100.7]
    origin_direct: ["tcp://10.0.2.2:22"]
    access:
      default: deny
      rules:
        - { action: allow, source: 203.0.113.0/24 }
        - { action: deny, source: 203.0.113.66 }
    limits: { connections: 100, new_connections_per_source: 5 }
"#;

#[tokio::test]
async fn explain_names_the_access_rule_that_decided_and_the_limits() {
    let (_fake, server) = Fake::start().await;
    anyport(server, &["apply", "-f", "-"], GUARDED).await;
    let explain = |from: &'static str| {
        let mut words = vec!["explain", "tcp/198.51.100.7:22"];
        words.extend(if from.is_empty() {
            vec![]
        } else {
            vec!["--from", from]
        });
        async move { anyport(server, &words, "").await }
    };
    for (from, code, line) in [
        (
            "",
            0,
            "  access   deny by default, and by 2 rules; --from ADDR says which one decides",
        ),
        (
            "",
            0,
            "  limits   on each edge: 100 open at a time, 5 new a second from one source",
        ),
        (
            "203.0.113.7",
            0,
            "  source   203.0.113.7 is let in: the access rule for 203.0.113.0/24 says allow",
        ),
        (
            "203.0.113.66",
            1,
            "  source   203.0.113.66 is reset, status 403: the access rule for 203.0.113.66/32 says deny",
        ),
        (
            "2001:db8::1",
            1,
            "  source   2001:db8::1 is reset, status 403: no access rule holds it, and the default is deny",
        ),
    ] {
        let ran = explain(from).await;
        assert_eq!(ran.code, code, "{from}: {}{}", ran.out, ran.err);
        assert!(
            ran.out.lines().any(|found| found == line),
            "{from}: {}",
            ran.out
        );
        assert_eq!(
            ran.out.contains(": refused by app guarded\n"),
            code == 1,
            "{}",
            ran.out
        );
    }
}

#[tokio::test]
async fn explain_tells_a_trusted_sender_from_a_client() {
    let behind = GUARDED.replace(
        "    access:",
        "    accept_proxy_protocol: [10.0.1.0/24]\n    access:",
    );
    let (_fake, server) = Fake::start().await;
    anyport(server, &["apply", "-f", "-"], &behind).await;
    let rules = "  access   deny by default, and by 2 rules; which one decides is a matter of the PROXY header";
    for (from, code, lines) in [
        // Whom the rules allow is no trusted sender for that.
        (
            "203.0.113.7",
            1,
            &[
                "  client   203.0.113.7 is no trusted sender, so its connection is reset, status 403, \
                 with a PROXY header or without; trusted are 10.0.1.0/24",
            ][..],
        ),
        // Nor do the rules hold whom a trusted sender speaks for.
        (
            "10.0.1.2",
            0,
            &[
                "  client   10.0.1.2 is a trusted sender: its connection has to start with a PROXY \
                 header, or is reset; rules and limits are applied to the client that the header names",
                rules,
            ],
        ),
    ] {
        let words = ["explain", "tcp/198.51.100.7:22", "--from", from];
        let ran = anyport(server, &words, "").await;
        assert_eq!(ran.code, code, "{from}: {}{}", ran.out, ran.err);
        for line in lines {
            assert!(ran.out.lines().any(|found| found == *line), "{}", ran.out);
        }
        assert!(!ran.out.contains("  source"), "{}", ran.out);
    }
}

#[tokio::test]
async fn explain_goes_on_to_the_fallback_of_a_pool_that_is_down() {
    let (fake, server) = Fake::start().await;
    let manifest = GAME.replace(
        "    monitor: quick\n",
        "    monitor: quick\n    fallback_pool: spare\n",
    );
    anyport(server, &["apply", "-f", "-"], &manifest).await;
    let mut down = balancer();
    down.pools[0].state = v1::PoolState::Down.into();
    down.pools[0].origins[0].health = v1::HealthState::Down.into();
    fake.set_nodes(vec![down.clone()]);
    let explain = ["explain", "tcp/198.51.100.10:25565"];
    let ran = anyport(server, &explain, "").await;
    let lines: Vec<&str> = ran.out.lines().skip(3).collect();
    assert_eq!(
        lines,
        [
            "  passes   pool game: down, 2 of 2 down",
            "  goes to  pool spare (unknown), weighted",
            "    ORIGIN  ADDRESS        HEALTH   SHARE  WHY",
            "    c       10.0.3.2:7000  unknown  100%   no balancer speaks of it",
        ]
    );
    let spare = v1::PoolHealth {
        pool: "spare".to_owned(),
        ..down.pools[0].clone()
    };
    down.pools.push(spare);
    fake.set_nodes(vec![down]);
    let ran = anyport(server, &explain, "").await;
    let line = "  goes to  pool game (as a last resort: an origin held to be down is tried all the same), weighted";
    assert!(ran.out.contains(line), "{}", ran.out);
}

#[tokio::test]
async fn an_edge_that_cannot_be_asked_does_not_hide_the_others() {
    let (fake, server) = applied().await;
    let at = |name, address: String| v1::NodeStatus {
        address,
        ..edge(name, 1)
    };
    let west = FakeEdge::start("west").await;
    let gone = nobody();
    for (name, address, why, code) in [
        ("east", String::new(), "does not say where it listens", 1),
        ("north", "no URL".to_owned(), "that is no URL", 1),
        ("south", format!("http://{gone}"), "cannot reach edge", 3),
    ] {
        let nodes = [at(name, address), at("west", format!("http://{west}"))];
        fake.set_nodes(nodes.into());
        let ran = anyport(server, &["connections", "-o", "json"], "").await;
        let [line] = &ran.out.lines().collect::<Vec<_>>()[..] else {
            panic!("{}{}", ran.out, ran.err);
        };
        assert!(line.contains("\"edge\":\"west\""), "{line}");
        assert!(
            ran.err.contains(name) && ran.err.contains(why),
            "{}",
            ran.err
        );
        assert_eq!(ran.code, code, "{}", ran.err);
        let ran = anyport(server, &["events"], "").await;
        assert!(
            ran.err.contains(name) && ran.err.contains(why),
            "{}",
            ran.err
        );
        assert_eq!(ran.code, code, "{}", ran.err);
        // Asked for by its name, it is all that is wanted.
        let ran = anyport(server, &["connections", "--edge", name], "").await;
        assert_eq!(ran.code, code, "{}", ran.err);
    }
}

#[tokio::test]
async fn a_run_is_the_start_of_a_trace_and_no_collector_holds_it_up() {
    let (fake, server) = Fake::start().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = format!("http://{}", silent.local_addr().unwrap());
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector)];
    let ran = anyport_with(server, &["get", "apps"], "", &environment);
    let ran = timeout(Duration::from_secs(15), ran)
        .await
        .expect("bounded");
    assert_eq!(ran.code, 0, "{}", ran.err);
    let traces = fake.state(|state| state.traces.clone());
    let [Some(trace)] = &traces[..] else {
        panic!("one traced call: {traces:?}");
    };
    assert!(
        trace.starts_with("00-") && trace.ends_with("-01"),
        "{trace}"
    );
}
