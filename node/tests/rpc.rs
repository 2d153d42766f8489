//! A whole gRPC server: health, reflection, and an end that is bounded.

use std::{net::SocketAddr, time::Duration};

use anyport_node::{
    access::Role,
    drain::Drain,
    identity::Identity,
    ready::Readiness,
    rpc::{Channel, Endpoint, ServeError, Server, ServerUrl},
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, trace_service_client::TraceServiceClient,
};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

const SOON: Duration = Duration::from_secs(60);

struct Running {
    address: SocketAddr,
    drain: Drain,
    readiness: Readiness,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    fn start(drain_limit: Duration) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind("--listen", any_port, &Identity::none())
            .expect("a free port")
            .drain_limit(drain_limit);
        let address = server.address();
        let (drain, readiness) = (Drain::new(), Readiness::new());
        let task = tokio::spawn({
            let (drain, readiness) = (drain.clone(), readiness.clone());
            async move { server.serve(&readiness, &drain).await }
        });
        Self {
            address,
            drain,
            readiness,
            task,
        }
    }

    fn channel(&self) -> Channel {
        let url: ServerUrl = format!("http://{}", self.address).parse().expect("a URL");
        Channel::lazy(&url, &Identity::none(), Role::Edge).expect("clear text on loopback")
    }

    async fn ended(self) {
        timeout(SOON, self.task)
            .await
            .expect("the server ends")
            .expect("no panic")
            .expect("served well");
    }
}

#[tokio::test]
async fn health_follows_readiness_and_drain() {
    let running = Running::start(SOON);
    let config = running.readiness.condition("config", "not yet");
    let mut client = HealthClient::new(running.channel());
    let watch = client.watch(HealthCheckRequest::default()).await;
    let mut statuses = watch.expect("watched").into_inner();
    let mut next = async || {
        let next = timeout(SOON, statuses.next()).await.expect("in time");
        next.expect("the stream goes on")
            .expect("a status")
            .status()
    };
    assert_eq!(next().await, ServingStatus::NotServing);
    config.set_ready();
    assert_eq!(next().await, ServingStatus::Serving);
    config.set_not_ready("lost it");
    assert_eq!(next().await, ServingStatus::NotServing);
    config.set_ready();
    assert_eq!(next().await, ServingStatus::Serving);
    running.drain.begin();
    assert_eq!(next().await, ServingStatus::NotServing);
    drop((statuses, client));
    running.ended().await;
}

#[tokio::test]
async fn reflection_lists_what_is_served_in_both_versions() {
    let running = Running::start(SOON);
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(running.channel());
    let ask = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .expect("answered")
        .into_inner();
    let answer = answers.next().await.expect("one").expect("well");
    let text = format!("{answer:?}");
    assert!(text.contains("grpc.health.v1.Health"), "{text}");

    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::new(running.channel());
    let ask = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .expect("answered")
        .into_inner();
    let answer = answers.next().await.expect("one").expect("well");
    assert!(format!("{answer:?}").contains("grpc.health.v1.Health"));
}

#[tokio::test]
async fn an_endless_stream_is_cut_when_the_drain_limit_is_reached() {
    let limit = Duration::from_millis(300);
    let running = Running::start(limit);
    let mut client = HealthClient::new(running.channel());
    let watch = client.watch(HealthCheckRequest::default()).await;
    let mut statuses = watch.expect("watched").into_inner();
    statuses.next().await.expect("one").expect("well");
    let begun = std::time::Instant::now();
    running.drain.begin();
    let ended = async { while let Some(Ok(_)) = statuses.next().await {} };
    timeout(SOON, ended).await.expect("the stream is cut");
    assert!(begun.elapsed() >= limit, "it had its time");
    running.ended().await;
}

#[tokio::test]
async fn the_drain_closes_the_listener_at_once_and_keeps_what_is_open() {
    let running = Running::start(SOON);
    let mut client = HealthClient::new(running.channel());
    let watch = client.watch(HealthCheckRequest::default()).await;
    let mut statuses = watch.expect("watched").into_inner();
    statuses.next().await.expect("one").expect("well");
    running.drain.begin();
    let refused = async {
        while TcpStream::connect(running.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, refused)
        .await
        .expect("new connections are refused");
    assert!(!running.task.is_finished(), "the stream is still served");
    drop((statuses, client));
    running.ended().await;
}

#[tokio::test]
async fn a_method_that_is_not_served_is_unimplemented() {
    let running = Running::start(SOON);
    let status = TraceServiceClient::new(running.channel())
        .export(ExportTraceServiceRequest::default())
        .await
        .expect_err("never added");
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_dead_server_is_reported_with_its_url() {
    // No port that the kernel gives to other tests.
    let url: ServerUrl = "http://127.0.0.1:1".parse().expect("a URL");
    let endpoint = Endpoint::new(&url, &Identity::none(), Role::Edge).expect("a URL");
    let error = endpoint.connect().await.expect_err("nobody listens");
    assert_eq!(error.code(), Code::Unavailable);
}
