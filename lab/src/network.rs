//! What a test does to the network around the edge. A command that fails is a panic.

#![allow(clippy::unwrap_used)]

use anyport_netns::Namespace;

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
