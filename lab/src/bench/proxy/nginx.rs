//! nginx with its stream module.

use std::net::Ipv4Addr;
use std::path::Path;

use anyport_netns::Topology;

use super::{Proxy, directory, write};
use crate::bench::error::Result;
use crate::bench::process::Process;
use crate::bench::programs::Programs;
use crate::bench::stage::{ECHO_PORT, SERVICE, SOURCE_PORT, WORKERS};

/// Starts it.
pub(in crate::bench) fn start(
    programs: &Programs,
    topology: &Topology,
    sockets: usize,
) -> Result<Proxy> {
    let directory = directory()?;
    let file = directory.path().join("nginx.conf");
    let origin = topology.origins()[0].v4;
    let module = programs.stream_module.as_deref();
    write(
        &file,
        &configuration(directory.path(), module, origin, sockets),
    )?;
    // nginx's workers outlive a master that is killed. As the first process of a process namespace
    // it takes them along.
    let mut command = topology.edge().command(&programs.unshare);
    command
        .args(["--pid", "--fork", "--kill-child", "--"])
        .arg(&programs.nginx)
        .arg("-p")
        .arg(directory.path())
        .arg("-c")
        .arg(&file);
    Ok(Proxy {
        carrier: Process::spawn("nginx", command, directory.path())?,
        beside: Vec::new(),
        directory,
    })
}

/// A listener for each worker; no logs but errors.
fn configuration(
    directory: &Path,
    stream_module: Option<&Path>,
    origin: Ipv4Addr,
    sockets: usize,
) -> String {
    let load_module = stream_module
        .map(|module| format!("load_module {};\n", module.display()))
        .unwrap_or_default();
    let directory = directory.display();
    // Two sockets for each, and all of them may happen to be one worker's.
    let worker_connections = 2 * sockets;
    format!(
        "{load_module}daemon off;
worker_processes {WORKERS};
worker_rlimit_nofile {worker_connections};
error_log stderr error;
pid {directory}/nginx.pid;

events {{
    worker_connections {worker_connections};
}}

stream {{
    proxy_connect_timeout 5s;
    proxy_timeout 1h;
    server {{
        listen {SERVICE}:{ECHO_PORT} reuseport;
        proxy_pass {origin}:{ECHO_PORT};
    }}
    server {{
        # Any number of answers to a request, as the others have it.
        listen {SERVICE}:{ECHO_PORT} udp reuseport;
        proxy_pass {origin}:{ECHO_PORT};
        proxy_timeout 60s;
    }}
    server {{
        listen {SERVICE}:{SOURCE_PORT} reuseport;
        proxy_pass {origin}:{SOURCE_PORT};
    }}
}}
"
    )
}
