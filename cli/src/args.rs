//! The command line.

use anyport_node::{identity::TlsArgs, rpc::ServerUrl};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands;

const EXAMPLE: &str = "\
Example: every connection to 198.51.100.10:25565 goes to one of two servers.

  # game.yaml
  prefixes:
    - cidr: 198.51.100.0/24
  pools:
    - name: game
      origins:
        - { name: a, address: \"10.0.2.2:7000\" }
        - { name: b, address: \"10.0.2.3:7000\" }
  apps:
    - name: minecraft
      protocol: tcp/25565
      edge_ips: [198.51.100.10]
      origin_pool: game

  anyport up -f game.yaml                 # all of Anyport on this machine, or
  anyport apply -f game.yaml --wait       # declare it to a fleet, wait for it
  anyport status                          # is it healthy?
  anyport explain tcp/198.51.100.10:25565 # where would this connection go?

Exit status:
  0 done   1 refused   2 usage   3 server not reachable   4 --wait ran out";

/// An edge for any TCP service: every port of every address, balanced over your
/// servers, from one set of declared apps.
#[derive(Debug, Parser)]
#[command(name = "anyport", version, after_help = EXAMPLE)]
pub struct Cli {
    /// The config service to talk to
    #[arg(
        long,
        env = "ANYPORT_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:7400"
    )]
    pub server: ServerUrl,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Declare what a manifest says: all of it, or nothing if any of it is wrong
    Apply(commands::apply::Args),
    /// Show what is declared, or who is connected
    Get(commands::get::Args),
    /// Delete one declared thing
    Delete(commands::delete::Args),
    /// Who changed what and when
    History(commands::history::Args),
    /// Go back to the state of a revision, as a new revision
    Rollback(commands::rollback::Args),
    /// Edges, balancers, and the health of every pool
    Status(commands::status::Args),
    /// Which app would take a connection, why, and where it would go
    Explain(commands::explain::Args),
    /// Run config service, balancer and edge agent in this process
    Up(commands::up::Args),
    /// What on this host will hurt an edge agent, and what to do about it
    Doctor(commands::doctor::Args),
    /// The main job, end to end, on this machine, in network namespaces of its own
    Demo(commands::demo::Args),
}

impl Command {
    /// The word on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Apply(_) => "apply",
            Command::Get(_) => "get",
            Command::Delete(_) => "delete",
            Command::History(_) => "history",
            Command::Rollback(_) => "rollback",
            Command::Status(_) => "status",
            Command::Explain(_) => "explain",
            Command::Up(_) => "up",
            Command::Doctor(_) => "doctor",
            Command::Demo(_) => "demo",
        }
    }
}

impl Cli {
    /// Reads the command line of this process; on a fault, or for `--help`, says
    /// so and exits.
    pub fn from_command_line() -> Self {
        let matches = command().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// `--server` and the like may stand before and after the command's word.
fn command() -> clap::Command {
    Cli::command().mut_args(|arg| arg.global(true).help_heading("Connection"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_fits_itself() {
        command().debug_assert();
    }
}
