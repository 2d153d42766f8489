//! The admin server over real HTTP.

use std::net::SocketAddr;

use anyport_node::{
    admin::AdminServer,
    drain::Drain,
    identity::Identity,
    metrics::{Registry, prometheus::IntGauge, registered},
    ready::Readiness,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const ANY_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Status line and headers, then the body.
async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn readyz_says_what_the_service_waits_for_and_healthz_does_not_care() {
    let (readiness, drain) = (Readiness::new(), Drain::new());
    let config = readiness.condition("config", "no configuration received yet");
    let admin = AdminServer::bind("--admin", ANY_PORT, &Identity::none())
        .expect("a free port")
        .spawn(Registry::new(), readiness.clone(), drain.clone());

    let (head, body) = get(admin.address(), "/readyz").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(body, "not ready\nconfig: no configuration received yet\n");
    let (head, _) = get(admin.address(), "/healthz").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");

    config.set_ready();
    let (head, body) = get(admin.address(), "/readyz").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(body, "ready\n");

    drain.begin();
    let (head, body) = get(admin.address(), "/readyz").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(body.contains("drain: "), "{body}");
    let (head, _) = get(admin.address(), "/healthz").await;
    assert!(
        head.starts_with("HTTP/1.1 200 "),
        "a draining process is alive: {head}"
    );
}

#[tokio::test]
async fn metrics_are_those_of_the_registry_given() {
    let registry = Registry::new();
    let revision = registered(&registry, IntGauge::new("revision", "The revision."));
    revision.expect("well-formed").set(42);
    let admin = AdminServer::bind("--admin", ANY_PORT, &Identity::none())
        .expect("a free port")
        .spawn(registry, Readiness::new(), Drain::new());
    let (head, body) = get(admin.address(), "/metrics").await;
    assert!(
        head.to_lowercase()
            .contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(body.ends_with("\nrevision 42\n"), "{body}");
}

#[tokio::test]
async fn dropping_the_handle_closes_the_listener() {
    let admin = AdminServer::bind("--admin", ANY_PORT, &Identity::none())
        .expect("a free port")
        .spawn(Registry::new(), Readiness::new(), Drain::new());
    let address = admin.address();
    get(address, "/healthz").await;
    drop(admin);
    let closed = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), closed)
        .await
        .expect("the listener closes");
}

#[tokio::test]
async fn beyond_loopback_clear_text_is_refused_by_name() {
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let error = AdminServer::bind("--admin", everywhere, &Identity::none())
        .expect_err("not loopback")
        .to_string();
    assert!(
        error.starts_with("--admin 0.0.0.0:0: refusing clear text"),
        "{error}"
    );
    assert!(error.contains("--insecure"), "{error}");
}
