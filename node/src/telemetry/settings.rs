//! What the environment says about logs and traces.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;

/// How this process logs and traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `service.name` of the traces, where `OTEL_SERVICE_NAME` is not set.
    pub service_name: String,
    /// Log level where there is no [`log_filter`](field@Self::log_filter).
    pub log_level: LevelFilter,
    /// `RUST_LOG`.
    pub log_filter: Option<String>,
    /// For whom the log is written.
    pub log_format: LogFormat,
    /// Where traces go.
    pub collector: Collector,
}

/// For whom the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person at a terminal.
    Human {
        /// With ANSI colours.
        colours: bool,
    },
    /// One JSON object a line.
    Json,
}

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collector {
    /// Nowhere: none is named.
    None,
    /// To this OTLP endpoint, over gRPC.
    At(String),
    /// One is named in a way that cannot be used; why.
    Unusable(String),
}

impl Settings {
    /// Reads the standard variables through `variable`. An empty one counts as
    /// unset, as OpenTelemetry has it.
    pub fn from_env(
        service_name: &str,
        log_level: LevelFilter,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let log_format = if io::stderr().is_terminal() {
            LogFormat::Human {
                // https://no-color.org
                colours: variable("NO_COLOR").is_none(),
            }
        } else {
            LogFormat::Json
        };
        Self {
            service_name: service_name.to_owned(),
            log_level,
            log_filter: variable("RUST_LOG"),
            log_format,
            collector: Collector::from_env(variable),
        }
    }
}

impl Collector {
    fn from_env(variable: impl Fn(&str) -> Option<String>) -> Self {
        let is = |name: &str, wanted: &str| {
            variable(name).is_some_and(|value| value.eq_ignore_ascii_case(wanted))
        };
        if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Self::None;
        }
        let first_of = |names: [&str; 2]| names.iter().find_map(|name| variable(name));
        let Some(endpoint) = first_of([
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ]) else {
            return Self::None;
        };
        match first_of([
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ]) {
            Some(protocol) if protocol != "grpc" => Self::Unusable(format!(
                "OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: only grpc is spoken"
            )),
            _ => Self::At(endpoint),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collector(variables: &[(&str, &str)]) -> Collector {
        let settings = Settings::from_env("edge-agent", LevelFilter::INFO, |name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        settings.collector
    }

    #[test]
    fn without_an_endpoint_nothing_is_exported() {
        assert_eq!(collector(&[]), Collector::None);
        assert_eq!(
            collector(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]),
            Collector::None
        );
    }

    #[test]
    fn the_endpoint_for_traces_comes_first() {
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:4317");
        assert_eq!(collector(&[general]), Collector::At("http://a:4317".into()));
        assert_eq!(
            collector(&[general, traces]),
            Collector::At("http://b:4317".into())
        );
    }

    #[test]
    fn the_standard_switches_turn_traces_off() {
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317");
        for switch in [
            ("OTEL_SDK_DISABLED", "true"),
            ("OTEL_TRACES_EXPORTER", "none"),
        ] {
            assert_eq!(collector(&[general, switch]), Collector::None);
        }
    }

    #[test]
    fn a_protocol_that_is_not_spoken_is_named() {
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318");
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        let Collector::Unusable(reason) = collector(&[general, http]) else {
            panic!("http/protobuf is not spoken");
        };
        assert!(reason.contains("http/protobuf"), "{reason}");
    }
}
