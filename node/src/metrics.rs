//! Metrics that cost the data path one atomic addition.
//!
//! A service owns a [`Registry`] value and hands it down; there is no default
//! registry, because one process may run several services. The `prometheus` crate
//! is used as it is: its handles can be looked up once per label set and kept,
//! which an API that takes the labels with every addition cannot offer.

use prometheus::core::Collector;
pub use prometheus::{self, Registry};

/// The `Content-Type` of [`encode`].
pub const TEXT_FORMAT: &str = prometheus::TEXT_FORMAT;

/// Registers a metric and hands it back:
/// `registered(&registry, IntCounterVec::new(opts, &["app"]))?`.
///
/// # Errors
/// When the metric is malformed, or its name is already registered.
pub fn registered<C>(registry: &Registry, metric: prometheus::Result<C>) -> prometheus::Result<C>
where
    C: Collector + Clone + 'static,
{
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// All metrics in the Prometheus text format.
///
/// # Errors
/// When a collector hands out a malformed family.
pub fn encode(registry: &Registry) -> prometheus::Result<String> {
    prometheus::TextEncoder::new().encode_to_string(&registry.gather())
}

#[cfg(test)]
mod tests {
    use prometheus::IntCounter;

    use super::*;

    #[test]
    fn a_registered_metric_is_encoded_with_its_value() {
        let registry = Registry::new();
        let applied = registered(&registry, IntCounter::new("applied_total", "Applied."))
            .expect("a well-formed metric");
        applied.inc_by(3);
        let text = encode(&registry).expect("well-formed families");
        assert!(text.contains("\napplied_total 3\n"), "{text}");
    }

    #[test]
    fn a_name_can_be_registered_once_only() {
        let registry = Registry::new();
        let metric = || IntCounter::new("applied_total", "Applied.");
        registered(&registry, metric()).expect("first");
        registered(&registry, metric()).expect_err("second");
    }
}
