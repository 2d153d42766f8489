//! The `balancer` command.

use std::process::ExitCode;

use anyport_balancer::Args;
use anyport_node::boot;
use clap::Parser;

fn main() -> ExitCode {
    let args = Args::parse();
    boot::run("balancer", |drain| async move {
        let config = args.resolve()?;
        boot::log_config(&config);
        anyport_balancer::run(config, drain).await?;
        Ok(())
    })
}
