//! The OTLP exporter, and what it says when the collector is away.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};

/// Spans in batches to `endpoint`. Sampler, limits, batch sizes, headers and
/// resource attributes are read from the standard variables by the SDK itself.
///
/// Errors are in words, for the log.
pub(super) fn provider(service_name: &str, endpoint: &str) -> Result<SdkTracerProvider, String> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| error.to_string())?;
    Ok(SdkTracerProvider::builder()
        .with_resource(resource(service_name))
        .with_batch_exporter(Outages {
            exporter,
            endpoint: endpoint.to_owned(),
            failing: AtomicBool::new(false),
        })
        .build())
}

/// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win over our own name.
fn resource(service_name: &str) -> Resource {
    let named = Resource::builder().build();
    let given = named
        .get(&"service.name".into())
        .map(|name| name.to_string())
        .filter(|name| !name.starts_with("unknown_service"));
    let builder = Resource::builder().with_attribute(opentelemetry::KeyValue::new(
        "service.version",
        env!("CARGO_PKG_VERSION"),
    ));
    match given {
        Some(_) => builder.build(),
        None => builder.with_service_name(service_name.to_owned()).build(),
    }
}

/// Says once that the collector is away and once that it is back, where the SDK
/// would say nothing at all.
#[derive(Debug)]
struct Outages<E> {
    exporter: E,
    endpoint: String,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Outages<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let outcome = self.exporter.export(batch).await;
        let was_failing = self.failing.swap(outcome.is_err(), Ordering::Relaxed);
        let endpoint = &self.endpoint;
        match &outcome {
            Err(error) if !was_failing => {
                tracing::warn!(%error, endpoint, "traces are lost: the collector does not take them");
            }
            Ok(()) if was_failing => tracing::info!(endpoint, "the collector takes traces again"),
            _ => {}
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
