//! What a test does to the network around the edge. A command that fails is a panic.

#![allow(clippy::unwrap_used)]

use std::net::TcpStream;
use std::os::fd::AsRawFd;

use anyport_netns::Namespace;

use crate::cluster::{PATIENCE, eventually};

/// For what to do with packets of a TCP port: `delete table ip lost` ends it.
pub const LOST: &str = "add table ip lost; \
    add chain ip lost in { type filter hook input priority 0; }; add rule ip lost in tcp";

/// Runs `ip` with these arguments, parted by blanks.
pub fn ip(namespace: &Namespace, arguments: &str) {
    let mut command = namespace.command("ip");
    let done = command.args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {done:?}");
}

/// Runs these commands of nftables.
pub fn nft(namespace: &Namespace, commands: &str) {
    let done = namespace.command("nft").arg(commands).output().unwrap();
    assert!(done.status.success(), "nft {commands}: {done:?}");
}

/// Waits until the kernel at the other end has all that was sent.
pub fn await_acknowledged(stream: &TcpStream) {
    eventually(PATIENCE, "all is acknowledged", || {
        match unacknowledged(stream) {
            0 => Ok(()),
            some => Err(format!("{some} bytes are not")),
        }
    });
}

/// Bytes that were sent and not acknowledged yet (`SIOCOUTQ` of tcp(7)).
fn unacknowledged(stream: &TcpStream) -> libc::c_int {
    let mut bytes = 0;
    // SAFETY: the kernel writes an int to `bytes`, which is alive during the call.
    let failed = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(failed, 0);
    bytes
}
