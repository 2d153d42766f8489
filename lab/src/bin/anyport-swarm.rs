//! A fleet of simulated edges as a command.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Context;
use anyport_lab::swarm::{self, Document, Point};
use clap::Parser;

/// Measures the control plane with a fleet of simulated edges on two replicas and a real etcd.
///
/// Builds what it needs, in the profile that it was built in itself. Needs root.
#[derive(Parser)]
#[command(name = "anyport-swarm", version)]
struct Cli {
    /// Edges and apps; can be given several times [default: 1000x10000, and what grows from there]
    #[arg(long = "size", value_name = "EDGESxAPPS", value_parser = size)]
    sizes: Vec<Point>,
    /// Changes of one app each, for every size
    #[arg(long, default_value_t = 30)]
    changes: usize,
    /// Write everything that was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw how it grows into this file, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

const GROWING: [(usize, usize); 7] = [
    (100, 10_000),
    (250, 10_000),
    (500, 10_000),
    (1_000, 1_000),
    (1_000, 10_000),
    (1_000, 30_000),
    (1_000, 100_000),
];

fn size(text: &str) -> Result<Point, String> {
    let right = || format!("{text:?} is no size; right is for example 1000x10000");
    let (edges, apps) = text.split_once('x').ok_or_else(right)?;
    let read = |part: &str| match part.parse::<usize>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(right()),
    };
    Ok(Point {
        edges: read(edges)?,
        apps: read(apps)?,
    })
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut sizes = cli.sizes;
    if sizes.is_empty() {
        sizes.extend(GROWING.map(|(edges, apps)| Point { edges, apps }));
    }
    let terminal = io::stderr().is_terminal();
    let mut measured = Vec::new();
    for point in sizes {
        let Point { edges, apps } = point;
        let mut progress = |what: &str| {
            let line = format!("{edges} edges, {apps} apps: {what}");
            match terminal {
                // Over what was there.
                true => eprint!("\r\x1b[2K{line}"),
                false if what.starts_with("change ") && !what.starts_with("change 1 ") => {}
                false => eprintln!("{line}"),
            }
        };
        measured.push(swarm::measure(point, cli.changes, &mut progress)?);
    }
    if terminal {
        eprint!("\r\x1b[2K");
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{}", swarm::table(&measured).trim_fmt())?;
    writeln!(
        out,
        "A change is of one app. Memory is of both replicas together, but for a subscriber's."
    )?;
    if let Some(path) = cli.json {
        let text = serde_json::to_string_pretty(&Document { sizes: &measured })?;
        fs::write(&path, text + "\n").with_context(|| format!("--json {}", path.display()))?;
    }
    if let Some(path) = cli.plot {
        let image = swarm::plot(&measured);
        fs::write(&path, image).with_context(|| format!("--plot {}", path.display()))?;
    }
    Ok(())
}
