//! One trace through a client and a server, seen by a real OTLP receiver.
//!
//! One test only: a process has one trace exporter.

use std::net::SocketAddr;

use anyport_node::{
    access::Role,
    drain::Drain,
    identity::Identity,
    ready::Readiness,
    rpc::{Channel, Server, ServerUrl},
    telemetry::{
        Collector, LogFormat, Settings, TRACE_ONLY, current_trace_id, current_traceparent,
        set_parent,
    },
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_client::TraceServiceClient,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use tracing::{Instrument, level_filters::LevelFilter};

/// Keeps what it receives.
struct Receiver(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        // Nobody listens any more once the test has what it wants.
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// The service under test; any generated one would do.
struct Service;

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        _: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        // What a config service puts into the envelope of a stream, and an edge
        // takes out of it in another task.
        let traceparent = current_traceparent().expect("sampled");
        tokio::spawn(async move {
            let span = tracing::debug_span!(target: TRACE_ONLY, "apply");
            set_parent(&span, &traceparent);
            async {}.instrument(span).await;
        })
        .await
        .map_err(|error| Status::internal(error.to_string()))?;
        Err(Status::invalid_argument("apps[0].protocol: \"tpc/1\""))
    }
}

async fn receiver() -> (
    SocketAddr,
    mpsc::UnboundedReceiver<ExportTraceServiceRequest>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (sender, received) = mpsc::unbounded_channel();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Receiver(sender)))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (address, received)
}

fn attribute(span: &Span, key: &str) -> Option<Value> {
    let found = span
        .attributes
        .iter()
        .find(|attribute| attribute.key == key);
    found?.value.clone()?.value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_spans_client_server_and_the_message_in_a_stream() {
    let (collector, mut received) = receiver().await;
    let settings = Settings {
        service_name: "test-service".to_owned(),
        log_level: LevelFilter::OFF,
        log_filter: None,
        log_format: LogFormat::Json,
        collector: Collector::At(format!("http://{collector}")),
    };
    let telemetry = settings.install().expect("first in this process");
    assert_eq!(current_traceparent(), None, "no span, no parent");

    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::bind("--listen", any_port, &Identity::none())
        .expect("a free port")
        .service(TraceServiceServer::new(Service));
    let url: ServerUrl = format!("http://{}", server.address())
        .parse()
        .expect("a URL");
    let drain = Drain::new();
    let serving = tokio::spawn({
        let drain = drain.clone();
        async move { server.serve(&Readiness::new(), &drain).await }
    });

    let command = tracing::info_span!("command");
    let trace_id = command.in_scope(|| current_trace_id().expect("sampled"));
    async {
        let channel =
            Channel::lazy(&url, &Identity::none(), Role::Edge).expect("clear text on loopback");
        let request = ExportTraceServiceRequest::default();
        let refused = TraceServiceClient::new(channel).export(request).await;
        assert_eq!(
            refused.expect_err("refused").code(),
            tonic::Code::InvalidArgument
        );
    }
    .instrument(command)
    .await;
    drain.begin();
    serving.await.expect("no panic").expect("served well");
    telemetry.shutdown().await;

    let mut spans: Vec<Span> = Vec::new();
    // Everything is there when the shutdown returns: nothing is waited for.
    while let Ok(request) = received.try_recv() {
        for resource in request.resource_spans {
            let attributes = resource.resource.clone().expect("a resource").attributes;
            let name = attributes.iter().find(|a| a.key == "service.name");
            let name = name.and_then(|a| a.value.clone()?.value);
            assert_eq!(name, Some(Value::StringValue("test-service".to_owned())));
            spans.extend(
                resource
                    .scope_spans
                    .into_iter()
                    .flat_map(|scope| scope.spans),
            );
        }
    }
    let find = |name: &str, kind: SpanKind| {
        let found = spans
            .iter()
            .find(|span| span.name == name && span.kind() == kind);
        found.unwrap_or_else(|| panic!("{name} {kind:?} in {spans:#?}"))
    };
    let rpc = "opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let command = find("command", SpanKind::Internal);
    let client = find(rpc, SpanKind::Client);
    let server = find(rpc, SpanKind::Server);
    let apply = find("apply", SpanKind::Internal);
    for span in [command, client, server, apply] {
        let hex: String = span
            .trace_id
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, trace_id, "{}", span.name);
    }
    assert_eq!(client.parent_span_id, command.span_id);
    assert_eq!(server.parent_span_id, client.span_id);
    assert_eq!(apply.parent_span_id, server.span_id);

    for span in [client, server] {
        let text = |text: &str| Some(Value::StringValue(text.to_owned()));
        assert_eq!(attribute(span, "rpc.system"), text("grpc"));
        assert_eq!(
            attribute(span, "rpc.service"),
            text("opentelemetry.proto.collector.trace.v1.TraceService")
        );
        assert_eq!(attribute(span, "rpc.method"), text("Export"));
        assert_eq!(
            attribute(span, "rpc.grpc.status_code"),
            Some(Value::IntValue(3))
        );
    }
    let status = |span: &Span| span.status.clone().unwrap_or_default().code();
    assert_eq!(status(client), StatusCode::Error);
    assert_eq!(
        status(server),
        StatusCode::Unset,
        "refusing well is no fault of the server"
    );
}
