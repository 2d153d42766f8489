//! The bare relay of the lab.

use anyport_netns::Topology;

use super::{Proxy, directory};
use crate::bench::error::Result;
use crate::bench::process::Process;
use crate::bench::programs::Programs;
use crate::bench::stage::{ECHO_PORT, SERVICE, SOURCE_PORT, WORKERS};

/// Starts it.
pub(in crate::bench) fn start(programs: &Programs, topology: &Topology) -> Result<Proxy> {
    let directory = directory()?;
    let origin = topology.origins()[0].v4;
    let mut command = topology.edge().command(&programs.load);
    command.arg("relay").arg(format!("--threads={WORKERS}"));
    for port in [ECHO_PORT, SOURCE_PORT] {
        command.arg(format!("{SERVICE}:{port}={origin}:{port}"));
    }
    Ok(Proxy {
        carrier: Process::spawn("relay", command, directory.path())?,
        beside: Vec::new(),
        directory,
    })
}
