//! Anyport: the edge agent, with a config service and a balancer beside it, configured by its own
//! command like any other.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyport_netns::Topology;

use super::{Proxy, directory, write};
use crate::bench::contender::Contender;
use crate::bench::error::{Error, Result};
use crate::bench::process::{Process, clear_environment};
use crate::bench::programs::Programs;
use crate::bench::stage::{ECHO_PORT, SERVICE, SOURCE_PORT, WORKERS};

/// How long the config service may take to be there.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// The exit status of a command that does not reach its server.
const NOT_REACHABLE: i32 = 3;

/// Starts it, and returns when this manifest is applied. Each is on its usual port, in the edge's
/// namespace.
pub(crate) fn start(programs: &Programs, topology: &Topology, manifest: &str) -> Result<Proxy> {
    let directory = directory()?;
    let below = |name: &str| directory.path().join(name).display().to_string();
    let start = |program: &'static str, file: &Path, arguments: &[String]| {
        let mut command = topology.edge().command(file);
        command.args(arguments);
        Process::spawn(program, command, directory.path())
    };
    let store = format!("--store=embedded:{}", below("store"));
    let state = format!("--state-dir={}", below("state"));
    let workers = format!("--workers={WORKERS}");
    let name = |name: &str| format!("--name={name}");
    let mut proxy = Proxy {
        beside: vec![
            start("config-service", &programs.config_service, &[store])?,
            start("balancer", &programs.balancer, &[name("balancer")])?,
        ],
        carrier: start(
            "edge-agent",
            &programs.edge_agent,
            &[name("edge"), state, workers],
        )?,
        directory,
    };
    let file = proxy.directory.path().join("manifest.yaml");
    write(&file, manifest)?;
    let started = Instant::now();
    loop {
        proxy.check()?;
        let mut command = topology.edge().command(&programs.anyport);
        command.arg("apply").arg("-f").arg(&file).arg("--wait=20s");
        let said = apply(command)?;
        match said {
            Ok(()) => return Ok(proxy),
            Err((Some(NOT_REACHABLE), _)) if started.elapsed() < PATIENCE => thread::sleep(PAUSE),
            Err((_, last)) => {
                return Err(Error::NotInTime {
                    contender: Contender::Anyport.name(),
                    what: "its configuration applied",
                    seconds: PATIENCE.as_secs(),
                    last,
                    log: proxy.log_tails(),
                });
            }
        }
    }
}

/// Runs it to its end; where that is no success, its exit status and what it said.
fn apply(mut command: Command) -> Result<std::result::Result<(), (Option<i32>, String)>> {
    clear_environment(&mut command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(Error::system("running anyport apply"))?;
    let said = String::from_utf8_lossy(&output.stderr)
        .trim_end()
        .to_owned();
    Ok(match output.status.success() {
        true => Ok(()),
        false => Err((output.status.code(), said)),
    })
}

pub(in crate::bench) fn manifest(origin: Ipv4Addr) -> String {
    format!(
        "prefixes:
  - cidr: 198.51.100.0/24
monitors:
  - {{ name: quick, type: tcp, interval: 1s, timeout: 500ms }}
pools:
  - name: origin
    monitor: quick
    origins:
      - {{ name: origin, address: \"{origin}:{ECHO_PORT}\" }}
apps:
  - name: bench
    protocol: tcp/{ECHO_PORT}-{SOURCE_PORT}
    edge_ips: [{SERVICE}]
    origin_pool: origin
    origin_port: {ECHO_PORT}-{SOURCE_PORT}
  - name: datagrams
    protocol: udp/{ECHO_PORT}
    edge_ips: [{SERVICE}]
    origin_pool: origin
    timeouts: {{ udp_idle: 60s }}
"
    )
}
