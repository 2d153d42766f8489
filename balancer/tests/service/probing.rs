//! From what origins do to what edges and the config service are told.

use std::time::{Duration, Instant};

use anyport_proto::v1::{HealthState, OriginReport, PoolState, ReportOriginsRequest};

use crate::support::*;

#[tokio::test]
async fn a_pool_that_appears_is_probed_weighed_and_reported() {
    let mut config = ConfigService::start();
    let balancer = Running::start(config.address);
    let (a, b) = (Origin::start().await, Origin::start().await);
    let mut game = pool("game", "quick", &[("a", a.address), ("b", b.address)]);
    game.origins[1].weight = Some(0.5);
    config.say(full(1, resources(monitor(INTERVAL), vec![game])));

    let mut watch = balancer.watch().await;
    let first = watch.next().await;
    assert!(first.full);
    assert_eq!((first.revision, first.balancer.as_str()), (1, "balancer-1"));
    assert_eq!(watch.pools["game"].state(), PoolState::Healthy);
    assert_eq!(watch.origin("game", "a").unwrap().weight, 1.0);
    assert_eq!(watch.origin("game", "b").unwrap().weight, 0.5);

    let reported = config.report("game", "b", HealthState::Up).await;
    assert_eq!(reported.address, b.address.to_string());
    assert!((reported.share - 1.0 / 3.0).abs() < 1e-9, "{reported:?}");
    assert!(reported.probe_seconds.is_some());
}

#[tokio::test]
async fn an_origin_that_dies_is_down_after_its_threshold_and_up_again_after_the_other() {
    let mut config = ConfigService::start();
    let balancer = Running::start(config.address);
    let (a, b) = (Origin::start().await, Origin::start().await);
    let game = pool("game", "quick", &[("a", a.address), ("b", b.address)]);
    config.say(full(1, resources(monitor(INTERVAL), vec![game])));
    let mut watch = balancer.watch().await;
    watch.until("game", "a", HealthState::Up).await;

    let died = Instant::now();
    let address = a.kill().await;
    watch.until("game", "a", HealthState::Down).await;
    assert!(
        died.elapsed() >= 2 * INTERVAL,
        "three failures in a row take two intervals"
    );
    assert_eq!(watch.origin("game", "a").unwrap().weight, 0.0);
    assert_eq!(watch.pools["game"].state(), PoolState::Degraded);
    let reported = config.report("game", "a", HealthState::Down).await;
    assert_eq!(reported.reason, "connect: connection refused");
    let held = balancer.health("game").await;
    assert_eq!(held.origins[0].reason, "connect: connection refused");
    assert_eq!((held.origins[0].share, held.origins[1].share), (0.0, 1.0));

    let back = Instant::now();
    let _a = Origin::start_at(address).await;
    watch.until("game", "a", HealthState::Up).await;
    assert!(
        back.elapsed() >= INTERVAL,
        "two passes in a row take an interval"
    );
    assert_eq!(watch.pools["game"].state(), PoolState::Healthy);
    config.report("game", "a", HealthState::Up).await;
}

#[tokio::test]
async fn too_few_healthy_origins_and_the_pool_is_down() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let a = Origin::start().await;
    let game = pool("game", "quick", &[("a", a.address)]);
    config.say(full(1, resources(monitor(INTERVAL), vec![game])));
    let mut watch = balancer.watch().await;
    watch.until("game", "a", HealthState::Up).await;
    a.kill().await;
    watch.until("game", "a", HealthState::Down).await;
    assert_eq!(watch.pools["game"].state(), PoolState::Down);
}

fn report(pool: &str, origin: &str) -> ReportOriginsRequest {
    ReportOriginsRequest {
        edge: "edge-1".into(),
        origins: vec![OriginReport {
            pool: pool.into(),
            origin: origin.into(),
            dials: 10,
            failures: 10,
            last_failure: "connect: connection refused".into(),
            ..Default::default()
        }],
    }
}

/// Probes come hourly, so that every one that is made was called for.
async fn hourly(config: &ConfigService, origin: &Origin) -> Running {
    let balancer = Running::start(config.address);
    let mut monitor = monitor(Duration::from_secs(3600));
    monitor.consecutive_down = 1;
    let game = pool("game", "quick", &[("a", origin.address)]);
    config.say(full(1, resources(monitor, vec![game])));
    let mut watch = balancer.watch().await;
    watch.until("game", "a", HealthState::Up).await;
    balancer
}

#[tokio::test]
async fn dials_that_fail_at_an_edge_bring_the_probe_forward() {
    let config = ConfigService::start();
    let a = Origin::start().await;
    let balancer = hourly(&config, &a).await;
    let mut watch = balancer.watch().await;
    a.kill().await;
    let mut client = balancer.client().await;
    let answer = client.report_origins(report("game", "a")).await.unwrap();
    let next = answer.into_inner().next_report.unwrap();
    assert_eq!((next.seconds, next.nanos), (1, 0));
    watch.until("game", "a", HealthState::Down).await;
}

#[tokio::test]
async fn an_edge_alone_cannot_take_an_origin_down() {
    let config = ConfigService::start();
    let mut a = Origin::start().await;
    let balancer = hourly(&config, &a).await;
    let mut client = balancer.client().await;
    for probes in 2..4 {
        client.report_origins(report("game", "a")).await.unwrap();
        a.accepted(probes).await;
    }
    let held = balancer.health("game").await;
    assert_eq!(held.origins[0].health(), HealthState::Up);
}

#[tokio::test]
async fn a_report_of_what_is_no_name_is_refused_by_path() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let mut client = balancer.client().await;
    let refused = client.report_origins(report("no name", "a")).await;
    let refused = refused.expect_err("a name has no space");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(
        refused.message().starts_with("origins[0].pool: "),
        "{refused}"
    );
}

#[tokio::test]
async fn the_health_of_an_unknown_pool_is_not_found() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let request = anyport_proto::v1::GetHealthRequest {
        pool: "nowhere".into(),
    };
    let refused = balancer.client().await.get_health(request).await;
    let refused = refused.expect_err("there is no such pool");
    assert_eq!(refused.code(), tonic::Code::NotFound);
}
