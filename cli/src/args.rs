//! The command line.

use anyport_node::{identity::TlsArgs, rpc::Urls};
use clap::{
    ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind,
    parser::ValueSource,
};

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

/// An edge for any TCP or UDP service: every port of every address, balanced over your
/// servers, from one set of declared apps.
#[derive(Debug, Parser)]
#[command(name = "anyport", version, after_help = EXAMPLE)]
pub struct Cli {
    /// The config service to talk to; of several replicas, the next one is asked where one
    /// is away
    #[arg(
        long,
        env = "ANYPORT_SERVER",
        value_name = "URL[,URL…]",
        default_value = "http://127.0.0.1:7400"
    )]
    pub server: Urls,
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
    /// Give the revision that some edges try to all others
    Promote(commands::promote::Args),
    /// Edges, balancers, and the health of every pool
    Status(commands::status::Args),
    /// Which app would take a connection, why, and where it would go
    Explain(commands::explain::Args),
    /// The TCP connections that are open now
    Connections(commands::connections::Args),
    /// What happened to TCP connections
    Events(commands::events::Args),
    /// Take an edge or an origin out of service, without cutting anyone off
    Drain(commands::drain::DrainArgs),
    /// Take a drained edge or origin back into service
    Undrain(commands::drain::UndrainArgs),
    /// Run config service, balancer and edge agent in this process
    Up(commands::up::Args),
    /// What on this host will hurt an edge agent, and what to do about it
    Doctor(commands::doctor::Args),
    /// Certificates of a fleet: make an authority, issue, show
    Certs(commands::certs::Args),
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
            Command::Promote(_) => "promote",
            Command::Status(_) => "status",
            Command::Explain(_) => "explain",
            Command::Connections(_) => "connections",
            Command::Events(_) => "events",
            Command::Drain(_) => "drain",
            Command::Undrain(_) => "undrain",
            Command::Up(_) => "up",
            Command::Doctor(_) => "doctor",
            Command::Certs(_) => "certs",
            Command::Demo(_) => "demo",
        }
    }
}

impl Cli {
    /// Reads the command line of this process; on a fault, or for `--help`, says
    /// so and exits.
    pub fn from_command_line() -> Self {
        let matches = command().get_matches();
        check_used(&matches)
            .and_then(|()| Self::from_arg_matches(&matches))
            .unwrap_or_else(|error| error.exit())
    }
}

/// Commands that have no use for some of the options about the connection: the
/// word, the options, and why.
const UNUSED: [(&str, &[&str], &str); 3] = [
    ("up", &["server"], "it runs a config service of its own"),
    ("certs", &ALL, "it works on files only"),
    ("demo", &ALL, "all that it talks to is its own"),
];
const ALL: [&str; 5] = ["server", "tls_cert", "tls_key", "tls_ca", "insecure"];

/// `--server` and the like may stand before and after the command's word. A
/// command that does not use them does not show them.
fn command() -> clap::Command {
    let mut command = Cli::command().mut_args(|arg| arg.global(true).help_heading("Connection"));
    let connection: Vec<clap::Arg> = command.get_arguments().cloned().collect();
    for (word, unused, _) in UNUSED {
        let unused = connection
            .iter()
            .filter(|arg| unused.contains(&arg.get_id().as_str()));
        let hidden = unused.map(|arg| arg.clone().hide(true));
        command = command.mut_subcommand(word, |subcommand| subcommand.args(hidden));
    }
    command.build();
    // By itself, a usage line in an error has every option that was given, as if
    // it were required.
    command.mut_subcommands(|subcommand| {
        let usage = subcommand.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ").to_owned();
        subcommand.override_usage(usage)
    })
}

/// An option that is given and would be ignored is a fault. What is set in the
/// environment is meant for any command.
fn check_used(matches: &ArgMatches) -> Result<(), clap::Error> {
    let word = matches.subcommand_name();
    let Some((word, unused, why)) = UNUSED.iter().find(|unused| word == Some(unused.0)) else {
        return Ok(());
    };
    let given = |id: &&&str| matches.value_source(id) == Some(ValueSource::CommandLine);
    match unused.iter().find(given) {
        Some(id) => {
            let option = id.replace('_', "-");
            let what = format!("`anyport {word}` has no option --{option}: {why}");
            Err(command().error(ErrorKind::UnknownArgument, what))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_fits_itself() {
        command().debug_assert();
    }

    fn read(line: &str) -> Result<Cli, clap::Error> {
        let matches = command().try_get_matches_from(line.split(' '))?;
        check_used(&matches)?;
        Cli::from_arg_matches(&matches)
    }

    #[test]
    fn the_server_is_named_before_or_after_the_word() {
        for line in [
            "anyport --server http://127.0.0.1:9 status",
            "anyport status --server http://127.0.0.1:9",
        ] {
            let cli = read(line).expect(line);
            assert_eq!(cli.server.to_string(), "http://127.0.0.1:9");
        }
        let cli = read("anyport up --insecure").expect("up listens, so TLS is its matter");
        assert!(cli.tls.insecure);
    }

    #[test]
    fn an_option_that_would_be_ignored_is_a_fault() {
        for line in [
            "anyport up --server http://127.0.0.1:9",
            "anyport --server http://127.0.0.1:9 up",
            "anyport demo --server http://127.0.0.1:9",
            "anyport demo --tls-ca ca.pem",
            "anyport --tls-key key.pem demo",
            "anyport demo --insecure",
            "anyport certs show --tls-ca ca.pem x.pem",
        ] {
            let error = read(line).expect_err(line);
            assert_eq!(error.kind(), ErrorKind::UnknownArgument, "{line}");
            assert!(error.to_string().contains("has no option --"), "{error}");
        }
        for (word, options) in [("up", 4), ("demo", 0), ("certs", 0), ("status", 5)] {
            let mut command = command();
            let subcommand = command.find_subcommand_mut(word).expect("a command");
            let help = subcommand.render_help().to_string();
            let shown = [
                "--server",
                "--tls-cert",
                "--tls-key",
                "--tls-ca",
                "--insecure",
            ]
            .into_iter()
            .filter(|option| help.contains(&format!("      {option}")));
            assert_eq!(shown.count(), options, "{help}");
        }
    }

    #[test]
    fn the_usage_line_asks_for_nothing_that_is_not_required() {
        let error = read("anyport --server http://127.0.0.1:9 apply").expect_err("no file");
        let error = error.to_string();
        let usage = error.lines().find(|line| line.starts_with("Usage: "));
        let wanted = "Usage: anyport apply [OPTIONS] --file <FILE>";
        assert_eq!(usage, Some(wanted), "{error}");
    }
}
