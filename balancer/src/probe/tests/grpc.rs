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
    assert_eq!(failed.to_string(), "no answer to the request within 500ms");
    // The connection is closed with the probe.
    tokio::time::timeout(AMPLE, end).await.unwrap().unwrap();
}

/// The payload of the SETTINGS that a client begins with (RFC 9113, 3.4 and 6.5).
async fn settings(stream: &mut TcpStream) -> Vec<u8> {
    let mut begin = [0; 24 + 9];
    stream.read_exact(&mut begin).await.unwrap();
    let len = u32::from_be_bytes([0, begin[24], begin[25], begin[26]]);
    let mut payload = vec![0; len as usize];
    stream.read_exact(&mut payload).await.unwrap();
    payload
}

#[tokio::test]
async fn a_server_may_send_no_more_unread_than_an_answer_may_be_long() {
    let (tell, told) = tokio::sync::watch::channel(Vec::new());
    let (address, _) = origin(move |_, mut stream: TcpStream| {
        let tell = tell.clone();
        async move {
            tell.send_replace(settings(&mut stream).await);
        }
    })
    .await;
    failure(&grpc(address, AMPLE, "")).await;
    let told = told.borrow().clone();
    let window = told.chunks_exact(6).find(|entry| entry[..2] == [0, 4]);
    let window = window.map(|entry| u32::from_be_bytes(entry[2..].try_into().unwrap()));
    assert_eq!(window, Some(64 << 10));
}
