//! What a test does to the network around the edge. A command that fails is a panic.

#![allow(clippy::unwrap_used)]

use std::net::TcpStream;
use std::os::fd::AsRawFd;

use anyport_netns::{Namespace, Topology};

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

/// Datagrams that full queues of sockets have lost, at the client, the edge and the origins.
pub fn lost_datagrams(topology: &Topology) -> u64 {
    let origins = topology.origins().iter().map(|origin| &origin.namespace);
    let all = [topology.client(), topology.edge()].into_iter();
    all.chain(origins).map(lost_in).sum()
}

/// `RcvbufErrors` of both families.
fn lost_in(namespace: &Namespace) -> u64 {
    const LOST: &str = "RcvbufErrors";
    let script = "cat /proc/net/snmp /proc/net/snmp6";
    let mut command = namespace.command("sh");
    let output = command.args(["-c", script]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut v4 = text.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let (names, values) = (v4.next().unwrap(), v4.next().unwrap());
    let v4 = names.split_whitespace().zip(values.split_whitespace());
    let v6 = text.lines().filter_map(|line| line.strip_prefix("Udp6"));
    let v6 = v6.filter_map(|line| line.split_once(char::is_whitespace));
    let lost = v4.chain(v6).filter(|(name, _)| *name == LOST);
    lost.map(|(_, count)| count.trim().parse::<u64>().unwrap())
        .sum()
}
