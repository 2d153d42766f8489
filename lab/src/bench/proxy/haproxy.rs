//! HAProxy in TCP mode.

use anyport_netns::Topology;

use super::{Proxy, directory, write};
use crate::bench::error::Result;
use crate::bench::process::Process;
use crate::bench::programs::Programs;
use crate::bench::stage::{ECHO_PORT, SERVICE, SOURCE_PORT, WORKERS};

/// Starts it with this configuration.
pub(crate) fn start(
    programs: &Programs,
    topology: &Topology,
    configuration: &str,
) -> Result<Proxy> {
    let directory = directory()?;
    let file = directory.path().join("haproxy.cfg");
    write(&file, configuration)?;
    let mut command = topology.edge().command(&programs.haproxy);
    // In the foreground, so that it is the process that was started.
    command.arg("-db").arg("-f").arg(&file);
    Ok(Proxy {
        carrier: Process::spawn("haproxy", command, directory.path())?,
        beside: Vec::new(),
        directory,
    })
}

/// Splicing as HAProxy sees fit, the origin checked every second as Anyport's is, no logs.
pub(in crate::bench) fn configuration(origin: std::net::Ipv4Addr, sockets: usize) -> String {
    format!(
        "global
    nbthread {WORKERS}
    maxconn {sockets}

defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 1h
    timeout server 1h

listen echo
    bind {SERVICE}:{ECHO_PORT}
    server origin {origin}:{ECHO_PORT} check inter 1s

listen source
    bind {SERVICE}:{SOURCE_PORT}
    server origin {origin}:{SOURCE_PORT} check inter 1s
"
    )
}
