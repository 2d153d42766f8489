//! A span per call, on both sides of it.
//!
//! A span lasts from the request to the *headers* of the answer. For a unary call
//! that is the whole work of the handler; for a stream it is its set-up. A span over
//! the whole of a stream that lives for weeks would only reach the collector when
//! the stream ends, and hide until then that it ever began; what happens inside a
//! stream is traced message by message, with a `traceparent` in each.

use http::{HeaderMap, Request};
use opentelemetry::trace::Status;
use tonic::{Code, body::Body};
use tracing::{Instrument, Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    layer::{Answer, Answers, Around},
    telemetry,
};

/// Puts a span around every call that is served, child of the caller's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spanned;

impl Around for Spanned {
    fn call(&self, inner: &mut impl Answers, request: Request<Body>) -> Answer {
        let span = span(Side::Server, request.uri().path());
        telemetry::extract(&span, request.headers());
        let answer = span.in_scope(|| inner.call(request));
        let answer = answer.instrument(span.clone());
        Box::pin(async move {
            let answer = answer.await?;
            finish(&span, Side::Server, answer.headers());
            Ok(answer)
        })
    }
}

/// Which end of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// A span for the call of `path`, or a disabled one for what only asks whether the
/// service is there: health probes come every second, from everyone, and would bury
/// the rest.
pub(super) fn span(side: Side, path: &str) -> Span {
    let name = path.strip_prefix('/').unwrap_or(path);
    let (service, method) = name.split_once('/').unwrap_or((name, ""));
    if service.starts_with("grpc.health.") || service.starts_with("grpc.reflection.") {
        return Span::none();
    }
    let kind = match side {
        Side::Client => "client",
        Side::Server => "server",
    };
    let span = tracing::info_span!(
        "rpc",
        otel.name = name,
        otel.kind = kind,
        code = field::Empty
    );
    span.set_attribute("rpc.system", "grpc");
    span.set_attribute("rpc.service", service.to_owned());
    span.set_attribute("rpc.method", method.to_owned());
    span
}

/// Notes how the call ended. An answer without a status in its headers has begun
/// well: only failed calls carry it there.
pub(super) fn finish(span: &Span, side: Side, headers: &HeaderMap) {
    let code = headers
        .get("grpc-status")
        .map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()));
    finish_with(span, side, code, headers);
}

/// The call ended without an answer.
pub(super) fn broken(span: &Span, side: Side) {
    finish_with(span, side, Code::Unavailable, &HeaderMap::new());
}

fn finish_with(span: &Span, side: Side, code: Code, headers: &HeaderMap) {
    span.record("code", field::debug(code));
    span.set_attribute("rpc.grpc.status_code", code as i64);
    if is_error(side, code) {
        let message = headers
            .get("grpc-message")
            .and_then(|message| message.to_str().ok())
            .unwrap_or(code.description());
        span.set_status(Status::error(message.to_owned()));
    }
    tracing::debug!(parent: span, ?code, ?side, "call ended");
}

/// For a client every failure is one. For a server, refusing a bad request is good
/// work. <https://opentelemetry.io/docs/specs/semconv/rpc/grpc/#grpc-status>
fn is_error(side: Side, code: Code) -> bool {
    match side {
        Side::Client => code != Code::Ok,
        Side::Server => matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ),
    }
}
