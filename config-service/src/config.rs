//! The flags of the service.

use std::net::SocketAddr;

use anyport_node::identity::TlsArgs;

use crate::{
    state::{Retention, StoreKeyArgs},
    store::StoreUrl,
};

/// How one config service runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Where to serve gRPC; port 0 lets the system choose
    #[arg(
        long,
        env = "ANYPORT_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7400"
    )]
    pub listen: SocketAddr,
    /// Where to serve /metrics, /healthz and /readyz over HTTP
    #[arg(
        long,
        env = "ANYPORT_ADMIN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7401"
    )]
    pub admin: SocketAddr,
    /// Where to keep the configuration: embedded:DIR for one process, or
    /// etcd://HOST:PORT[,HOST:PORT…][/PREFIX] for several
    #[arg(
        long,
        env = "ANYPORT_STORE",
        value_name = "STORE",
        default_value = "embedded:/var/lib/anyport"
    )]
    pub store: StoreUrl,
    #[command(flatten)]
    pub store_key: StoreKeyArgs,
    #[command(flatten)]
    pub retention: Retention,
    #[command(flatten)]
    pub tls: TlsArgs,
}
