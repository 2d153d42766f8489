//! `grpc`, against the health service that every server of tonic can have.

use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::*;

/// Its reporter says what the server says.
async fn server() -> (SocketAddr, HealthReporter) {
    let (reporter, service) = tonic_health::server::health_reporter();
    let (listener, address) = listen().await;
    let serve = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serve);
    (address, reporter)
}

fn grpc(address: SocketAddr, timeout: Duration, service: &str) -> Target {
    let service = service.to_owned();
    asking(address, timeout, Check::Grpc { service })
}

#[tokio::test]
async fn a_server_and_a_service_that_serve_pass() {
    let (address, reporter) = server().await;
    probe(&grpc(address, AMPLE, "")).await.unwrap();
    reporter
        .set_service_status("game.v1.Lobby", ServingStatus::Serving)
        .await;
    probe(&grpc(address, AMPLE, "game.v1.Lobby")).await.unwrap();
}

#[tokio::test]
async fn what_does_not_serve_or_is_not_known_fails_and_is_named() {
    let (address, reporter) = server().await;
    reporter
        .set_service_status("game.v1.Lobby", ServingStatus::NotServing)
        .await;
    let failed = failure(&grpc(address, AMPLE, "game.v1.Lobby")).await;
    assert_eq!(failed.to_string(), "grpc.health.v1 says NOT_SERVING");
    assert_eq!(failed.cause(), Cause::Reply);
    let failed = failure(&grpc(address, AMPLE, "nothing")).await;
    assert_eq!(
        failed.to_string(),
        r#"grpc: the server has no service "nothing" (NOT_FOUND)"#
    );
}

#[tokio::test]
async fn a_server_without_health_fails() {
    let (listener, address) = listen().await;
    let serve = tonic::transport::Server::builder()
        .add_routes(tonic::service::Routes::default())
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serve);
    let failed = failure(&grpc(address, AMPLE, "")).await;
    assert_eq!(
        failed.to_string(),
        "grpc: the server has no grpc.health.v1 (UNIMPLEMENTED)"
    );
}

#[tokio::test]
async fn what_speaks_no_http2_fails() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let failed = failure(&grpc(address, AMPLE, "")).await;
    assert!(
        failed.to_string().starts_with("http: the answer is none: "),
        "{failed}"
    );
    let (address, _) = origin(async |_, _| ()).await;
    let failed = failure(&grpc(address, AMPLE, "")).await;
    assert_eq!(failed.blame(), Blame::Origin, "{failed}");
}

#[tokio::test]
async fn a_server_that_says_nothing_times_out_and_keeps_no_task() {
    let (ended, end) = tokio::sync::oneshot::channel();
    let ended = std::sync::Mutex::new(Some(ended));
    let (address, _) = origin(move |_, mut stream: TcpStream| {
        let ended = ended.lock().unwrap().take();
        async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
            ended.map(|ended| ended.send(()));
        }
    })
    .await;
    let failed = failure(&grpc(address, SHORT, "")).await;
    assert_eq!(failed.to_string(), "no answer to the request within 150ms");
    // The connection is closed with the probe.
    tokio::time::timeout(AMPLE, end).await.unwrap().unwrap();
}
