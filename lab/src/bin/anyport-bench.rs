//! The comparison as a command.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use anyport_lab::bench::{self, Document, Options, Part, Plan, Prepared, Step};
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Compares Anyport with HAProxy, nginx and plain routing, in network namespaces of its own.
///
/// Needs root. Exit status: 0 when every operation of every load was done, 1 when one failed or there
/// is no comparison, 2 for a wrong command line.
#[derive(Parser)]
#[command(name = "anyport-bench", version)]
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
    bench::allow_descriptors(&plan)?;

    let progress = Progress::new();
    let stop = bench::interrupted().context("waiting for Ctrl-C")?;
    let results = bench::run(&plan, &programs, &stop, &mut |step| progress.show(step));
    progress.end();
    let results = results?;

    if let Some(file) = json {
        serde_json::to_writer_pretty(&file, &Document::new(&results, &setting))?;
        writeln!(&file)?;
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{setting}")?;
    writeln!(out, "{}", bench::table(&results).trim_fmt())?;
    let rounds = match results.rounds() {
        1 => "One round".to_owned(),
        many => format!("Medians of {many} rounds, in brackets the worst and the best of them"),
    };
    writeln!(out, "{rounds}.")?;
    if quick {
        writeln!(out, "A quick run: the figures mean nothing.")?;
    }
    let failures = results.failures();
    for failure in &failures {
        writeln!(out, "failed: {failure}")?;
    }
    Ok(match failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// What is going on, on standard error: a bar on a terminal, else a line for each round.
struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{wide_bar} {elapsed} {msg:44}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar }
    }

    fn show(&self, step: Step) {
        let Step {
            done,
            of,
            round,
            contender,
            part,
        } = step;
        let part = match part {
            Part::Start => "starting",
            Part::Idle => "idle connections",
            Part::Connect => "connect, ask, close",
            Part::RoundTrips => "round trips",
            Part::Bulk => "streams",
            Part::Datagrams => "datagrams",
        };
        match &self.bar {
            Some(bar) => {
                bar.set_length(of as u64);
                bar.set_position(done as u64);
                bar.set_message(format!("round {round}, {contender}: {part}"));
            }
            None => eprintln!("{done} of {of}: round {round}, {contender}: {part}"),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
