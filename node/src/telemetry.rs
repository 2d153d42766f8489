//! Logs and traces of the process.
//!
//! Logs go to standard error: for people on a terminal, one JSON object a line
//! otherwise. Traces go to an OTLP collector over gRPC where the standard `OTEL_*`
//! variables name one. A missing, misspelt or unreachable collector is never a
//! reason for a service not to run: at most it is a line in the log.

mod context;
mod export;
mod json;
mod settings;

use std::{io, time::Duration};

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::Targets,
    fmt::{self, format::JsonFields},
    layer::SubscriberExt,
};

pub use context::{current_trace_id, current_traceparent, set_parent};
pub(crate) use context::{extract, inject};
pub use settings::{Collector, LogFormat, Settings};

/// The last spans get this long to leave; longer would turn a dead collector into
/// a service that does not stop.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Libraries that would fill the log, or, in the export path itself, feed on their
/// own traces.
const QUIET: [&str; 7] = [
    "h2",
    "hyper",
    "hyper_util",
    "tonic",
    "tower",
    "nlink",
    "rustls",
];

/// Keeps the exporter; [`shutdown`](Self::shutdown) sends what it still holds.
#[derive(Debug)]
#[must_use = "spans of the last seconds are lost without a shutdown"]
pub struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
}

/// Telemetry cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `RUST_LOG` is no filter.
    #[error("RUST_LOG={value:?}: {source}; such as `info` or `warn,anyport_node=debug`")]
    Filter {
        /// What it holds.
        value: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// A process has one log, and it already has it.
    #[error("telemetry was already started in this process")]
    AlreadyStarted(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Starts logs and traces as the environment says. Once per process, inside a
/// tokio runtime.
///
/// `service_name` is what traces call this process where `OTEL_SERVICE_NAME` is not
/// set; `level` is the log level where `RUST_LOG` is not set.
///
/// # Errors
/// See [`TelemetryError`].
pub fn init(service_name: &str, level: LevelFilter) -> Result<TelemetryGuard, TelemetryError> {
    Settings::from_env(service_name, level, |name| std::env::var(name).ok()).install()
}

impl Settings {
    /// Starts logs and traces as these settings say. Once per process, inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// See [`TelemetryError`].
    pub fn install(self) -> Result<TelemetryGuard, TelemetryError> {
        let filter = self.log_filter()?;
        let collector = match &self.collector {
            Collector::At(endpoint) => export::provider(&self.service_name, endpoint).map(Some),
            Collector::None => Ok(None),
            Collector::Unusable(reason) => Err(reason.clone()),
        };
        let (provider, fault) = match collector {
            Ok(provider) => (provider, None),
            Err(fault) => (None, Some(fault)),
        };
        let traces = provider.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("anyport"))
                .with_threads(false)
                .with_location(false)
                .with_tracked_inactivity(false)
                .with_filter(trace_filter())
        });
        let subscriber = Registry::default()
            .with(log_layer(self.log_format).with_filter(filter))
            .with(traces);
        tracing::subscriber::set_global_default(subscriber)?;
        if let Some(fault) = fault {
            tracing::warn!("no traces are exported: {fault}");
        }
        Ok(TelemetryGuard { provider })
    }

    fn log_filter(&self) -> Result<EnvFilter, TelemetryError> {
        if let Some(value) = &self.log_filter {
            return EnvFilter::try_new(value).map_err(|source| TelemetryError::Filter {
                value: value.clone(),
                source,
            });
        }
        let quiet = QUIET.map(|target| format!("{target}=warn")).join(",");
        let level = self.log_level;
        EnvFilter::try_new(format!("{level},{quiet}")).map_err(|source| TelemetryError::Filter {
            value: level.to_string(),
            source,
        })
    }
}

/// Target of spans that are for traces alone. At level DEBUG they cost next to
/// nothing where no traces are exported, because the log does not ask for them.
pub const TRACE_ONLY: &str = "anyport::trace";

/// What is traced does not depend on what is logged: `RUST_LOG=error` keeps its
/// traces.
fn trace_filter() -> Targets {
    let everything = Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target(TRACE_ONLY, LevelFilter::DEBUG);
    QUIET.iter().fold(everything, |targets, target| {
        targets.with_target(*target, LevelFilter::OFF)
    })
}

fn log_layer<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    match format {
        LogFormat::Human { colours } => fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(colours)
            .boxed(),
        LogFormat::Json => fmt::layer()
            .fmt_fields(JsonFields::new())
            .event_format(json::JsonLine::new())
            .with_writer(io::stderr)
            .boxed(),
    }
}

impl TelemetryGuard {
    /// Sends the spans that are still held, within two seconds, and stops.
    pub async fn shutdown(self) {
        let Some(provider) = self.provider else {
            return;
        };
        // The SDK blocks its thread until the exporter, which needs this runtime,
        // has answered.
        let flushed =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_LIMIT));
        match flushed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not exported"),
            Err(error) => tracing::warn!(%error, "the exporter panicked"),
        }
    }
}
