//! Flags and environment of the edge agent.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use anyport_model::names::{NameError, NodeName};
use anyport_node::{
    identity::TlsArgs,
    rpc::{ServerUrl, Urls},
};
use clap::{Args, ValueEnum};

use crate::{kernel, origin::NameServers};

/// Accepts connections on any port of whole prefixes and carries them to
/// origins, as the config service says.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// This edge's name, unique in the fleet [default: the host's name]
    #[arg(long, env = "ANYPORT_NAME")]
    pub name: Option<NodeName>,

    /// Where this edge is, as `status` shows it
    #[arg(long, env = "ANYPORT_REGION", default_value = "")]
    pub region: String,

    /// gRPC address
    #[arg(long, env = "ANYPORT_LISTEN", default_value = "127.0.0.1:7420")]
    pub listen: SocketAddr,

    /// Where commands reach --listen from elsewhere, as `anyport events` does
    /// [default: the address of --listen, unless that is every address]
    #[arg(long, env = "ANYPORT_ADVERTISE", value_name = "URL")]
    pub advertise: Option<ServerUrl>,

    /// Address of /metrics, /healthz and /readyz
    #[arg(long, env = "ANYPORT_ADMIN", default_value = "127.0.0.1:7421")]
    pub admin: SocketAddr,

    /// The config service's replicas
    #[arg(
        long,
        env = "ANYPORT_CONFIG_SERVICE",
        value_name = "URL[,URL…]",
        default_value = "http://127.0.0.1:7400"
    )]
    pub config_service: Urls,

    /// The balancers, tried in turn
    #[arg(
        long,
        env = "ANYPORT_BALANCER",
        value_name = "URL[,URL…]",
        default_value = "http://127.0.0.1:7410"
    )]
    pub balancer: Urls,

    /// Name servers for origin_dns [default: the system's, from /etc/resolv.conf and /etc/hosts]
    #[arg(
        long,
        env = "ANYPORT_RESOLVER",
        value_name = "ADDR[,ADDR…]",
        default_value = "",
        hide_default_value = true
    )]
    pub resolver: NameServers,

    /// Where the last known good configuration is kept
    #[arg(
        long,
        env = "ANYPORT_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/anyport/edge"
    )]
    pub state_dir: PathBuf,

    /// How the kernel hands connections over
    #[arg(long, env = "ANYPORT_STEERING", value_enum, default_value_t = Steering::Auto)]
    pub steering: Steering,

    /// Threads that carry connections [default: one per core]
    #[arg(long, env = "ANYPORT_WORKERS", value_name = "N")]
    pub workers: Option<NonZeroUsize>,

    /// How long open connections may go on at most after SIGTERM or a
    /// hand-over, in seconds [default: each app's own timeouts.drain]
    #[arg(
        long,
        env = "ANYPORT_DRAIN_TIMEOUT",
        value_name = "SECONDS",
        value_parser = seconds
    )]
    pub drain_timeout: Option<Duration>,

    /// Hands over to the next agent that starts on the same state directory
    #[arg(skip = true)]
    pub hand_over: bool,

    /// A file that gets every event of every connection, as a line of JSON each;
    /// it may be renamed at any time
    #[arg(long, env = "ANYPORT_EVENT_LOG", value_name = "FILE")]
    pub event_log: Option<PathBuf>,

    #[command(flatten)]
    pub tls: TlsArgs,
}

/// How the kernel hands connections over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Steering {
    /// sk-lookup where the kernel lets us, else tproxy
    Auto,
    /// nftables with TPROXY
    Tproxy,
    /// a BPF program on the network namespace (Linux 5.9)
    SkLookup,
}

impl Steering {
    pub fn asked(self) -> Option<kernel::Steering> {
        match self {
            Steering::Auto => None,
            Steering::Tproxy => Some(kernel::Steering::Tproxy),
            Steering::SkLookup => Some(kernel::Steering::SkLookup),
        }
    }
}

impl Config {
    /// The name given, or the host's.
    pub fn node_name(&self) -> Result<NodeName, HostNameError> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let host = nix::unistd::gethostname().unwrap_or_default();
        let host = host.to_string_lossy().into_owned();
        host.parse()
            .map_err(|source| HostNameError { host, source })
    }

    /// Worker threads to start.
    pub fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.workers.unwrap_or_else(cores).get()
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse()
        .map_err(|_| format!("{text:?} is no number of seconds"))?;
    Ok(Duration::from_secs(seconds))
}

/// The host's name is no name for a node, so one has to be given.
#[derive(Debug, thiserror::Error)]
#[error("--name: the host's name {host:?} cannot be used: {source}; give one")]
pub struct HostNameError {
    host: String,
    source: NameError,
}
