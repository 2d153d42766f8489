//! The command `anyport`: what users declare, ask and see.
//!
//! A command is a file in [`commands`]. It gets its arguments, a [`Context`] with
//! the connection and the console, and returns a [`failure::Failure`] with the
//! exit status that scripts go by: 1 refused, 2 usage, 3 server not reachable,
//! 4 `--wait` ran out. Results go to standard output and nothing else does.
//!
//! Each run is the start of a trace, which goes on through the config service to
//! the edges.

#![forbid(unsafe_code)]

mod ages;
pub mod args;
pub mod commands;
pub mod connection;
pub mod console;
pub mod failure;
pub mod manifest;

use std::{process::ExitCode, time::Duration};

use anyport_node::telemetry;
use tracing::{Instrument, Span, level_filters::LevelFilter};

use crate::{
    args::{Cli, Command},
    failure::{Exit, Failure},
};

/// The whole life of the process, from its arguments to its exit status.
pub fn main() -> ExitCode {
    if let Some(role) = commands::demo::Role::requested() {
        return role.run();
    }
    let cli = Cli::from_command_line();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = match &runtime {
        Ok(runtime) => runtime.block_on(traced(cli)),
        Err(error) => Err(Failure::refused(format_args!(
            "cannot start the runtime: {error}"
        ))),
    };
    if let Ok(runtime) = runtime {
        runtime.shutdown_timeout(Duration::from_millis(100));
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let label = if console::colours_on_stderr() {
                "\u{1b}[31merror:\u{1b}[0m"
            } else {
                "error:"
            };
            eprintln!("{label} {failure}");
            failure.exit.into()
        }
    }
}

/// Runs the command with its log and its trace.
async fn traced(cli: Cli) -> Result<(), Failure> {
    let level = match cli.command {
        Command::Up(_) => LevelFilter::INFO,
        _ => LevelFilter::WARN,
    };
    let telemetry =
        telemetry::init("anyport", level).map_err(|error| Failure::new(Exit::Usage, error))?;
    let span = match cli.command {
        // Services run for weeks, which is no span.
        Command::Up(_) => Span::none(),
        _ => {
            let name = format!("anyport {}", cli.command.name());
            tracing::info_span!("command", otel.name = name)
        }
    };
    let outcome = commands::run(cli).instrument(span).await;
    telemetry.shutdown().await;
    outcome
}
