//! Flags, and what they come to.

use std::{fs, io, net::SocketAddr};

use anyport_model::names::{NameError, NodeName};
use anyport_node::{
    access::Role,
    identity::{Identity, IdentityError, TlsArgs},
    rpc::{ServerUrl, Urls},
};

const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// Probes the origins of every pool and tells the edges what to balance by
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "balancer", version)]
pub struct Args {
    /// Name of this balancer in the fleet [default: the host name]
    #[arg(long, env = "ANYPORT_NAME")]
    pub name: Option<NodeName>,
    /// Where edges and the CLI connect, gRPC
    #[arg(
        long,
        env = "ANYPORT_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7410"
    )]
    pub listen: SocketAddr,
    /// Where other balancers reach --listen
    /// [default: the address of --listen, unless that is every address]
    #[arg(long, env = "ANYPORT_ADVERTISE", value_name = "URL")]
    pub advertise: Option<ServerUrl>,
    /// Where /metrics, /healthz and /readyz are, HTTP
    #[arg(
        long,
        env = "ANYPORT_ADMIN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7411"
    )]
    pub admin: SocketAddr,
    /// Config service replicas
    #[arg(
        long,
        env = "ANYPORT_CONFIG_SERVICE",
        value_name = "URL[,URL…]",
        default_value = "http://127.0.0.1:7400"
    )]
    pub config_service: Urls,
    /// Who this process is.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// What the balancer runs with, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of this balancer in the fleet.
    pub name: NodeName,
    /// gRPC. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where other balancers reach it, if not at the address that it listens on.
    pub advertise: Option<ServerUrl>,
    /// Admin HTTP. Port 0 takes a free one.
    pub admin: SocketAddr,
    /// Config service replicas, all as good as each other.
    pub config_service: Urls,
    /// Certificates of both directions.
    pub identity: Identity,
}

/// The flags do not make a [`Config`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No `--name`, and the system has none to offer.
    #[error("--name is not given and {HOST_NAME} cannot be read; give --name")]
    NoHostName(#[source] io::Error),
    /// No `--name`, and the host is called something that is no name.
    #[error("--name is not given and the host name will not do: {0}; give --name")]
    HostName(#[source] NameError),
    /// A `--tls-*` flag is wrong.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl Args {
    /// Reads what the flags point to.
    ///
    /// # Errors
    /// [`ConfigError`], naming the flag.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let name = match self.name {
            Some(name) => name,
            None => node_name(&fs::read_to_string(HOST_NAME).map_err(ConfigError::NoHostName)?)?,
        };
        let identity = self.tls.load_as(Role::Balancer, Some(name.as_str()))?;
        Ok(Config {
            name,
            listen: self.listen,
            advertise: self.advertise,
            admin: self.admin,
            config_service: self.config_service,
            identity,
        })
    }
}

fn node_name(host_name: &str) -> Result<NodeName, ConfigError> {
    host_name.trim_end().parse().map_err(ConfigError::HostName)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn flags_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn several_replicas_of_the_config_service() {
        let args = Args::parse_from([
            "balancer",
            "--name=one",
            "--config-service=http://10.0.0.1:7400,http://10.0.0.2:7400",
        ]);
        let config = args.resolve().unwrap();
        assert_eq!(config.config_service.iter().count(), 2);
        assert_eq!(config.name.as_str(), "one");
    }

    #[test]
    fn a_host_name_that_is_no_name_asks_for_the_flag() {
        assert_eq!(node_name("edge-7\n").unwrap().as_str(), "edge-7");
        let error = node_name("(none)\n").unwrap_err().to_string();
        assert!(
            error.contains("\"(none)\" is no name") && error.ends_with("give --name"),
            "{error}"
        );
    }
}
