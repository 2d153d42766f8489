//! JSON log lines that name their trace, so that one can be found from the other.

use std::fmt;

use opentelemetry::{Context, trace::TraceContextExt};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    fmt::{
        FmtContext,
        format::{Format, FormatEvent, FormatFields, Json, JsonFields, Writer},
    },
    registry::LookupSpan,
};

/// The subscriber's own JSON with a `trace_id` put before it, where the current
/// span is sampled.
#[derive(Debug)]
pub(super) struct JsonLine(Format<Json>);

impl JsonLine {
    pub(super) fn new() -> Self {
        let json = Format::default().json();
        Self(json.flatten_event(true).with_span_list(false))
    }
}

impl<S> FormatEvent<S, JsonFields> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    JsonFields: for<'a> FormatFields<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // Asked of OpenTelemetry and not of the tracing span: the subscriber must not
        // be entered again from inside itself.
        let trace_id = Context::map_current(|current| {
            let span = current.span();
            let span = span.span_context();
            span.is_sampled().then(|| span.trace_id())
        });
        let Some(trace_id) = trace_id else {
            return self.0.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        match line.strip_prefix('{') {
            Some(rest) => write!(writer, "{{\"trace_id\":\"{trace_id}\",{rest}"),
            None => writer.write_str(&line),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::{fmt, layer::SubscriberExt};

    use super::*;
    use crate::telemetry::current_trace_id;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_inside_a_sampled_span_names_its_trace_and_others_do_not() {
        let buffer = Buffer::default();
        let tracer = SdkTracerProvider::builder().build().tracer("test");
        let subscriber = tracing_subscriber::registry()
            .with(
                fmt::layer()
                    .fmt_fields(JsonFields::new())
                    .event_format(JsonLine::new())
                    .with_writer({
                        let buffer = buffer.clone();
                        move || buffer.clone()
                    }),
            )
            .with(tracing_opentelemetry::layer().with_tracer(tracer));
        let trace_id = tracing::subscriber::with_default(subscriber, || {
            tracing::info!("outside");
            let span = tracing::info_span!("work", app = "mail");
            span.in_scope(|| {
                tracing::info!(port = 25, "inside");
                current_trace_id().expect("sampled")
            })
        });
        let text = String::from_utf8(buffer.0.lock().expect("not poisoned").clone())
            .expect("JSON is UTF-8");
        let (outside, inside) = text.trim_end().split_once('\n').expect("two lines");
        assert!(!outside.contains("trace_id"), "{outside}");
        let start = format!(r#"{{"trace_id":"{trace_id}","timestamp":""#);
        assert!(inside.starts_with(&start), "{inside}");
        assert!(
            inside.contains(r#""message":"inside","port":25"#),
            "{inside}"
        );
        assert!(
            inside.contains(r#""span":{"app":"mail","name":"work"}}"#),
            "{inside}"
        );
    }
}
