//! The comparison where origins fail, as a command.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use anyport_lab::bench::{self, Options, Prepared};
use anyport_lab::failover::{self, Plan};
use clap::Parser;

/// Compares Anyport with HAProxy where an origin refuses, is silent or becomes slow, in network
/// namespaces of its own.
///
/// Needs root. Exit status: 0 when Anyport's clients were all answered, 1 when one was not or there
/// is no comparison, 2 for a wrong command line.
#[derive(Parser)]
#[command(name = "anyport-failover", version)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn main() -> anyhow::Result<ExitCode> {
    let Cli { options } = Cli::parse();
    let quick = options.quick;
    let plan = if quick { Plan::QUICK } else { Plan::FULL };
    let Prepared {
        programs,
        setting,
        json,
    } = options.prepare()?;
    let stop = bench::interrupted().context("waiting for Ctrl-C")?;
    let results = failover::run(&plan, &programs, &stop, &mut |step| eprintln!("{step}"))?;
    if let Some(mut file) = json {
        serde_json::to_writer_pretty(&file, &results)?;
        writeln!(&mut file)?;
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{setting}")?;
    writeln!(out, "{}", failover::outages(&results.outages).trim_fmt())?;
    writeln!(
        out,
        "{}",
        failover::distances(&results.distances).trim_fmt()
    )?;
    if quick {
        writeln!(out, "A quick run: the figures mean nothing.")?;
    }
    Ok(match results.failed_with_anyport() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
