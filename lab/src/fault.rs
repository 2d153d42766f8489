//! How a server dies. A command that fails is a panic.

use std::thread;
use std::time::{Duration, Instant};

use anyport_netns::Namespace;

use crate::cluster::{PATIENCE, eventually};
use crate::load::serve::Server;
use crate::network::nft;

/// How long nothing must come to a server until it is believed that nothing is under way.
const QUIET: Duration = Duration::from_millis(50);

/// What is left of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is gone: its host answers with a reset.
    Refuses,
    /// The host is gone: nothing answers.
    Silent,
}

/// A server that died.
#[derive(Debug)]
pub struct Dead {
    /// Since when it takes nothing new.
    pub since: Instant,
    /// Nobody hears of it, where the host is gone.
    _server: Option<Server>,
}

impl Fault {
    /// Ends a server for whoever comes from now on. What it had taken before it answers first: those
    /// no proxy can save.
    ///
    /// # Panics
    ///
    /// Where the host has no nftables, or the server does not come to rest.
    pub fn strike(self, host: &Namespace, server: Server) -> Dead {
        let fate = match self {
            Self::Refuses => "reject with tcp reset",
            Self::Silent => "drop",
        };
        nft(
            host,
            &format!(
                "add table inet dead; \
                 add chain inet dead in {{ type filter hook input priority 0; }}; \
                 add rule inet dead in tcp flags & (syn | ack) == syn {fate}"
            ),
        );
        let since = Instant::now();
        eventually(PATIENCE, "what was under way is answered", || {
            let before = server.accepted();
            thread::sleep(QUIET);
            let (after, open) = (server.accepted(), server.open());
            let quiet = before == after && open == 0;
            quiet
                .then_some(())
                .ok_or_else(|| format!("{open} open, {after} accepted, {before} before"))
        });
        let server = match self {
            Self::Refuses => {
                drop(server);
                nft(host, "delete table inet dead");
                None
            }
            Self::Silent => {
                nft(host, "add rule inet dead in drop");
                Some(server)
            }
        };
        Dead {
            since,
            _server: server,
        }
    }
}
