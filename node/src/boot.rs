//! From `main` to a running service, and back to an exit status.

use std::{
    any::Any, backtrace, fmt::Debug, future::Future, panic, process::ExitCode, time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::level_filters::LevelFilter;

use crate::{
    drain::{self, Drain},
    telemetry,
};

/// Tasks that are still running when the service has returned get this long.
const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(1);

/// The whole life of a service process: telemetry, panic hook, file limit, signals,
/// then `service` on a runtime of its own, then the last spans.
///
/// Returns 0 when the service returns well, else logs the error with its causes and
/// returns 1.
pub fn run<F, S>(service_name: &str, service: S) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
    S: FnOnce(Drain) -> F,
{
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .thread_name("control")
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return refuse("cannot start the runtime", &error),
    };
    let status = runtime.block_on(async {
        let telemetry = match telemetry::init(service_name, LevelFilter::INFO) {
            Ok(telemetry) => telemetry,
            Err(error) => return refuse("cannot start telemetry", &error),
        };
        install_panic_hook();
        raise_nofile();
        let outcome = match drain::signalled() {
            Ok(drain) => service(drain).await,
            Err(error) => Err(anyhow::Error::new(error).context("cannot handle signals")),
        };
        let status = match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{error:#}");
                ExitCode::FAILURE
            }
        };
        telemetry.shutdown().await;
        status
    });
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
    status
}

/// For what goes wrong before there is a log.
fn refuse(what: &str, error: &dyn std::error::Error) -> ExitCode {
    eprintln!("{what}: {error}");
    ExitCode::FAILURE
}

/// Logs what the service runs with, once, so that a log alone answers how it was
/// started. `config` must not hold secrets in its `Debug`.
pub fn log_config(config: &impl Debug) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        ?config,
        "effective configuration"
    );
}

/// Panics go to the log like every other fault: one event, with thread, place and,
/// where `RUST_BACKTRACE` asks for it, the stack.
pub fn install_panic_hook() {
    panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string);
        let stack = backtrace::Backtrace::capture();
        let stack = (stack.status() == backtrace::BacktraceStatus::Captured).then_some(stack);
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            place,
            stack = stack.map(tracing::field::display),
            "panicked: {}",
            message_of(panic.payload()),
        );
    }));
}

fn message_of(payload: &dyn Any) -> &str {
    if let Some(text) = payload.downcast_ref::<&str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "a value that is no text"
    }
}

/// Raises the soft limit of open files to the hard one: every proxied connection
/// takes two, and the usual soft limit of 1,024 is there only for `select(2)`.
///
/// A refusal is logged and not fatal; the service then runs with fewer.
pub fn raise_nofile() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok((soft, hard))
    });
    match raised {
        Ok((from, to)) => tracing::debug!(from, to, "limit of open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_open_files_becomes_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("readable");
        let lowered = hard.min(512) - 1;
        setrlimit(Resource::RLIMIT_NOFILE, lowered, hard).expect("lowering is allowed");
        raise_nofile();
        let now = getrlimit(Resource::RLIMIT_NOFILE).expect("readable");
        assert_eq!(now, (hard, hard));
    }
}
