//! One change is one trace, from the command to the kernel of the edge and back; one connection is
//! one trace, with its dial. Received over OTLP by a collector of the test's own. Needs root.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Store, eventually};
use anyport_netns::{Namespace, Topology};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, async_trait};

anyport_lab::on_both_stores![
    an_apply_is_one_trace_from_the_command_to_the_kernel_and_back,
    a_connection_is_a_trace_with_its_dial
];

const COLLECTOR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4317);

/// What the exporters sent, each span with the service that sent it.
#[derive(Clone, Default)]
struct Received {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
}

#[async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.spans.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let of = resource.resource.unwrap_or_default();
            let service = attribute(&of.attributes, "service.name").unwrap();
            for scope in resource.scope_spans {
                let named = scope.spans.into_iter().map(|span| (service.clone(), span));
                spans.extend(named);
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Received {
    fn all(&self) -> Vec<(String, Span)> {
        self.spans.lock().unwrap().clone()
    }
}

/// The collector; it ends when this is dropped.
struct Collector {
    received: Received,
    stop: CancellationToken,
    thread: Option<JoinHandle<anyport_netns::Result<()>>>,
}

impl Collector {
    fn start(namespace: &Namespace) -> Self {
        let received = Received::default();
        let stop = CancellationToken::new();
        let (service, stopped) = (TraceServiceServer::new(received.clone()), stop.clone());
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind(COLLECTOR).await.unwrap();
                tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming_shutdown(
                        TcpListenerStream::new(listener),
                        stopped.cancelled(),
                    )
                    .await
                    .unwrap();
            });
        };
        let thread = Some(namespace.spawn_thread(serve).unwrap());
        Self {
            received,
            stop,
            thread,
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by its own thread.
            let _ = thread.join();
        }
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

/// A cluster that exports to a collector.
fn traced(store: Store) -> (Cluster, Collector) {
    let topology = Topology::new(1).unwrap();
    let collector = Collector::start(topology.edge());
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{COLLECTOR}")),
        ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value));
    let plan = Plan {
        environment: environment.into(),
        ..Plan::on(store)
    };
    (Cluster::start_in(topology, plan).unwrap(), collector)
}

const MANIFEST: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
apps:
  - name: app
    protocol: tcp/443
    edge_ips: [198.51.100.10]
    origin_direct: ["tcp://10.0.2.2:7000"]
"#;

/// The spans as "service: name", without those of the same kind twice.
fn names(trace: &[(String, Span)]) -> BTreeSet<String> {
    let name = |(service, span): &(String, Span)| format!("{service}: {}", span.name);
    trace.iter().map(name).collect()
}

/// The spans of the one trace that has a span of this name without a parent, or why there is none
/// yet.
fn whole_trace(all: &[(String, Span)], root: &str) -> Result<Vec<(String, Span)>, String> {
    let roots = all
        .iter()
        .filter(|(_, span)| span.name == root && span.parent_span_id.is_empty());
    let ids: Vec<_> = roots.map(|(_, span)| &span.trace_id).collect();
    let [id] = ids[..] else {
        return Err(format!("{} traces of {root:?}", ids.len()));
    };
    let trace = all.iter().filter(|(_, span)| span.trace_id == *id);
    let trace: Vec<_> = trace.cloned().collect();
    let known: BTreeSet<_> = trace.iter().map(|(_, span)| &span.span_id).collect();
    let hanging = trace
        .iter()
        .find(|(_, span)| !span.parent_span_id.is_empty() && !known.contains(&span.parent_span_id));
    match hanging {
        None => Ok(trace),
        Some((service, span)) => Err(format!("{service}: {} hangs in the air", span.name)),
    }
}

/// Whether there is a span `name` in `trace` that has `ancestor` above it.
fn is_below(trace: &[(String, Span)], name: &str, ancestor: &str) -> bool {
    let is = |(service, span): &(String, Span), name| format!("{service}: {}", span.name) == name;
    let parent_of = |(_, span): &(String, Span)| {
        trace
            .iter()
            .find(|(_, other)| other.span_id == span.parent_span_id)
    };
    let mut named = trace.iter().filter(|span| is(span, name));
    named.any(|span| {
        let above = std::iter::successors(parent_of(span), |above| parent_of(above));
        // Bounded, should somebody be his own ancestor.
        above.take(trace.len()).any(|above| is(above, ancestor))
    })
}

fn an_apply_is_one_trace_from_the_command_to_the_kernel_and_back(store: Store) {
    const COMMAND: &str = "anyport: anyport apply";
    let (cluster, collector) = traced(store);
    cluster.apply(MANIFEST).unwrap();
    let trace = eventually(PATIENCE, "the whole trace is there", || {
        let trace = whole_trace(&collector.received.all(), "anyport apply")?;
        for (name, ancestor) in [
            ("config-service: admit", COMMAND),
            ("config-service: commit", COMMAND),
            ("edge-agent: apply_revision", "config-service: commit"),
            ("edge-agent: kernel", "edge-agent: apply_revision"),
            ("config-service: acknowledged", "edge-agent: apply_revision"),
        ] {
            if !is_below(&trace, name, ancestor) {
                let seen = names(&trace);
                return Err(format!("{name} is not below {ancestor} in {seen:?}"));
            }
        }
        Ok(trace)
    });
    let acknowledged = trace.iter().find(|(_, span)| {
        span.name == "acknowledged"
            && attribute(&span.attributes, "edge").as_deref() == Some("edge1")
    });
    let revision = attribute(&acknowledged.unwrap().1.attributes, "revision");
    assert_eq!(revision.as_deref(), Some("1"));
    let id = &trace[0].1.trace_id;
    let elsewhere = collector.received.all();
    let elsewhere = elsewhere
        .iter()
        .filter(|(_, span)| span.name == "commit" && span.trace_id != *id);
    assert_eq!(elsewhere.count(), 0, "one change, and more than one trace");
}

fn a_connection_is_a_trace_with_its_dial(store: Store) {
    let (cluster, collector) = traced(store);
    let _origin = cluster.echo(0, "origin", [7000]).unwrap();
    cluster.apply(MANIFEST).unwrap();
    cluster.who("198.51.100.10:443".parse().unwrap()).unwrap();
    let (connection, dial) = eventually(PATIENCE, "the connection's spans are there", || {
        let all = collector.received.all();
        let of_edge = |wanted: &str| {
            let mut spans = all.iter();
            let found =
                spans.find(|(service, span)| service == "edge-agent" && span.name == wanted);
            found.map(|(_, span)| span.clone())
        };
        let found = of_edge("connection").zip(of_edge("dial"));
        found.ok_or_else(|| format!("{:?}", names(&all)))
    });
    assert_eq!(dial.parent_span_id, connection.span_id);
    assert_eq!(dial.trace_id, connection.trace_id);
    assert!(connection.parent_span_id.is_empty());
    let has = |key: &str| attribute(&connection.attributes, key);
    for (key, value) in [
        ("app", "app"),
        ("server.address", "198.51.100.10"),
        ("server.port", "443"),
        ("client.address", "10.0.1.2"),
        ("config_revision", "1"),
        ("client_bytes", "4"),
        ("status", "200"),
    ] {
        assert_eq!(has(key).as_deref(), Some(value), "{key}");
    }
    let peer = attribute(&dial.attributes, "network.peer.address");
    assert_eq!(peer.as_deref(), Some("10.0.2.2:7000"));
    assert!(dial.end_time_unix_nano <= connection.end_time_unix_nano);
    let lasted = connection.end_time_unix_nano - connection.start_time_unix_nano;
    assert!(Duration::from_nanos(lasted) < PATIENCE);
}
