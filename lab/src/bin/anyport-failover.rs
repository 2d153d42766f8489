//! The comparison where origins fail, as a command.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use anyport_lab::bench::{self, Programs, Setting};
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
    /// One short round: shows that all of it works, and says nothing about failures
    #[arg(long)]
    quick: bool,
    /// Write everything that was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where Anyport's programs are [default: beside this one]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let directory = match cli.bin_dir {
        Some(directory) => directory,
        None => bench::own_directory().context("finding Anyport's programs; say --bin-dir")?,
    };
    let programs = Programs::find(&directory)?;
    // Before the run, so that a path that cannot be written does not cost minutes.
    let json = cli.json.map(|path| {
        let file = File::create(&path);
        file.with_context(|| format!("--json {}", path.display()))
    });
    let json = json.transpose()?;
    let plan = if cli.quick { Plan::QUICK } else { Plan::FULL };
    let setting = Setting::of(&programs, &directory);
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
    if cli.quick {
        writeln!(out, "A quick run: the figures mean nothing.")?;
    }
    Ok(match results.failed_with_anyport() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
