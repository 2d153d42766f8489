//! W3C trace context, into and out of spans.
//!
//! <https://www.w3.org/TR/trace-context/>. RPCs carry it in their metadata (see
//! [`crate::rpc`]); messages inside a long stream carry a `traceparent` each, taken
//! from [`current_traceparent`] and given back to [`set_parent`].

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: &str = "traceparent";

/// The `traceparent` of the current span. `None` where it is not sampled, or where
/// nothing is exported.
pub fn current_traceparent() -> Option<String> {
    let context = sampled(&Span::current())?;
    let mut carrier = Traceparent(None);
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.0
}

/// The trace id of the current span, as 32 hexadecimal digits. `None` as for
/// [`current_traceparent`].
pub fn current_trace_id() -> Option<String> {
    let context = sampled(&Span::current())?;
    Some(context.span().span_context().trace_id().to_string())
}

/// Makes `span` a child of the remote span that `traceparent` names. Must come
/// before the span is entered. A malformed one is ignored, as the standard asks:
/// the span then starts a trace of its own.
pub fn set_parent(span: &Span, traceparent: &str) {
    let carrier = Traceparent(Some(traceparent.to_owned()));
    adopt(
        span,
        TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier),
    );
}

/// As [`set_parent`], from the headers of a request.
pub(crate) fn extract(span: &Span, headers: &HeaderMap) {
    let context =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    adopt(span, context);
}

/// Writes the context of `span` into the headers of a request, sampled or not: the
/// next service then decides as this one did.
pub(crate) fn inject(span: &Span, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(&span.context(), &mut HeadersMut(headers));
}

fn sampled(span: &Span) -> Option<Context> {
    let context = span.context();
    let sampled = {
        let span = context.span();
        span.span_context().is_valid() && span.span_context().is_sampled()
    };
    sampled.then_some(context)
}

fn adopt(span: &Span, parent: Context) {
    if parent.span().span_context().is_valid() {
        // Fails where nothing is traced, or too late; neither is worth a fault.
        let _ = span.set_parent(parent);
    }
}

struct Traceparent(Option<String>);

impl Extractor for Traceparent {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.as_deref().filter(|_| key == TRACEPARENT)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|_| TRACEPARENT).collect()
    }
}

impl Injector for Traceparent {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = Some(value);
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        // An empty tracestate says nothing and costs a header.
        if value.is_empty() {
            return;
        }
        if let (Ok(name), Ok(value)) = (key.parse::<HeaderName>(), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
