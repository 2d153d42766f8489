//! One trace from a write, over another replica's push, to the acknowledgement.
//!
//! One test only: a process has one trace exporter.

#![allow(clippy::unwrap_used)]

mod support;

use anyport_node::telemetry::{Collector, LogFormat, Settings};
use anyport_proto::v1::{self, sync_request::Message};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use support::{
    etcd::EtcdServer,
    eventually,
    resources::many,
    service::Service,
    subscriber::{Subscriber, edge},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use tracing::level_filters::LevelFilter;

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

async fn receiver() -> (String, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, received) = mpsc::unbounded_channel();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Receiver(sender)))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (format!("http://{address}"), received)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_spans_the_write_and_what_an_edge_of_another_replica_made_of_it() {
    let (collector, mut received) = receiver().await;
    let settings = Settings {
        service_name: "config-service".to_owned(),
        log_level: LevelFilter::OFF,
        log_filter: None,
        log_format: LogFormat::Json,
        collector: Collector::At(collector),
    };
    let telemetry = settings.install().unwrap();
    let server = EtcdServer::start().await;
    let one = Service::ready(server.url("fleet")).await;
    let other = Service::ready(server.url("fleet")).await;
    let mut subscriber = Subscriber::connect(&other, edge("far")).await;
    subscriber.take().await;

    // As the command line begins it.
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let mut request = Request::new(v1::ApplyRequest {
        resources: many(1),
        ..Default::default()
    });
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    request
        .metadata_mut()
        .insert("traceparent", parent.parse().unwrap());
    one.client().apply(request).await.unwrap();

    let update = subscriber.next().await.unwrap();
    let parts: Vec<&str> = update.traceparent.split('-').collect();
    assert_eq!(
        (parts.len(), parts[1]),
        (4, trace),
        "{}",
        update.traceparent
    );
    let commit = parts[2].to_owned();
    // As the edge goes on with it.
    subscriber
        .say(Message::Ack(v1::Ack {
            revision: update.revision,
            state_hash: update.state_hash.clone(),
            traceparent: format!("00-{trace}-00f067aa0ba902b7-01"),
            ..Default::default()
        }))
        .await;
    eventually("the acknowledgement", || async {
        let nodes = other.nodes().await;
        nodes
            .iter()
            .any(|node| node.applied_revision == 1)
            .then_some(())
    })
    .await;
    drop(subscriber);
    one.stop().await;
    other.stop().await;
    telemetry.shutdown().await;

    let mut spans: Vec<Span> = Vec::new();
    while let Ok(request) = received.try_recv() {
        let resources = request.resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        spans.extend(scopes.flat_map(|scope| scope.spans));
    }
    let find = |name: &str| {
        let of_trace = |span: &&Span| span.name == name && hex(&span.trace_id) == trace;
        spans
            .iter()
            .find(of_trace)
            .unwrap_or_else(|| panic!("no {name} in {spans:#?}"))
    };
    let rpc = find("anyport.v1.ConfigService/Apply");
    assert_eq!(hex(&rpc.parent_span_id), "b7ad6b7169203331");
    assert_eq!(find("admit").parent_span_id, rpc.span_id);
    assert_eq!(find("commit").parent_span_id, rpc.span_id);
    assert_eq!(
        hex(&find("commit").span_id),
        commit,
        "the update names the commit"
    );
    let acknowledged = find("acknowledged");
    assert_eq!(hex(&acknowledged.parent_span_id), "00f067aa0ba902b7");
    let attribute = |key: &str| {
        let found = acknowledged.attributes.iter().find(|a| a.key == key);
        found.and_then(|a| a.value.clone()?.value)
    };
    assert_eq!(
        attribute("edge"),
        Some(Value::StringValue("far".to_owned()))
    );
    assert_eq!(attribute("revision"), Some(Value::IntValue(1)));
    assert_eq!(attribute("rejections"), Some(Value::IntValue(0)));
}
