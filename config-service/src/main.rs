//! The `config-service` command.

use std::process::ExitCode;

use anyport_config_service::{Config, run};
use anyport_node::boot;
use clap::Parser;

/// Keeps the declared apps of an Anyport fleet, and pushes them to its edges and
/// balancers.
#[derive(Debug, Parser)]
#[command(name = "config-service", version)]
struct Command {
    #[command(flatten)]
    config: Config,
}

fn main() -> ExitCode {
    let Command { config } = Command::parse();
    boot::run("config-service", async |drain| {
        boot::log_config(&config);
        Ok(run(config, drain).await?)
    })
}
