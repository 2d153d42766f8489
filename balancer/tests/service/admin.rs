//! Readiness and metrics.

use crate::support::*;

#[tokio::test]
async fn ready_once_it_has_a_configuration() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let (status, page) = balancer.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(
        page.contains("config: no configuration received yet"),
        "{page}"
    );
    assert_eq!(balancer.get("/healthz").await.0, 200);
    config.say(full(1, vec![]));
    balancer.page("/readyz", |status, _| status == 200).await;
}

#[tokio::test]
async fn metrics_tell_of_origins_as_long_as_they_are_there() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let a = Origin::start().await;
    let game = pool("game", "quick", &[("a", a.address)]);
    config.say(full(3, resources(monitor(INTERVAL), vec![game])));
    let healthy = r#"anyport_origin_healthy{origin="a",pool="game"}"#;
    let up = format!("{healthy} 1\n");
    let page = balancer
        .page("/metrics", |_, page| page.contains(&up))
        .await;
    let revision = "anyport_config_revision{service=\"balancer\"} 3\n";
    assert!(page.contains(revision), "{page}");
    assert!(page.contains(r#"anyport_origin_weight{origin="a",pool="game"} 1"#));
    assert!(page.contains(r#"anyport_probe_seconds_count{result="passed"}"#));

    a.kill().await;
    let down = format!("{healthy} 0\n");
    let page = balancer
        .page("/metrics", |_, page| page.contains(&down))
        .await;
    assert!(page.contains(r#"anyport_probe_seconds_count{result="refused"}"#));

    config.say(full(4, vec![]));
    balancer
        .page("/metrics", |_, page| !page.contains("anyport_origin_"))
        .await;
}
