use std::process::ExitCode;

use anyport_edge_agent::{Config, run};
use clap::Parser;

#[derive(Parser)]
#[command(name = "edge-agent", version, about)]
struct Arguments {
    #[command(flatten)]
    config: Config,
}

fn main() -> ExitCode {
    let Arguments { config } = Arguments::parse();
    anyport_node::boot::run("edge-agent", |drain| run(config, drain))
}
