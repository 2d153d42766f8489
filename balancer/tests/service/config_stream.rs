//! The balancer as a subscriber of the configuration.

use anyport_node::telemetry::{Collector, LogFormat, Settings};
use anyport_proto::v1::{HealthState, NodeRole};

use crate::support::*;

#[tokio::test]
async fn it_subscribes_as_a_balancer_and_acknowledges_what_is_in_use() {
    let mut config = ConfigService::start();
    let balancer = Running::start(config.address);
    let subscribe = config.subscription().await;
    assert_eq!(subscribe.role(), NodeRole::Balancer);
    assert_eq!(subscribe.name, "balancer-1");
    assert_eq!((subscribe.revision, subscribe.state_hash), (0, vec![]));
    assert_eq!(subscribe.address, format!("http://{}", balancer.address));

    let a = Origin::start().await;
    let game = pool("game", "quick", &[("a", a.address)]);
    config.say(full(7, resources(monitor(INTERVAL), vec![game])));
    let ack = config.ack(7).await;
    assert_eq!(ack.state_hash, [7]);
    assert_eq!(ack.rejections, []);
    assert!(ack.applied_at.is_some());
    // Acknowledged means in use: no waiting here.
    assert_eq!(balancer.health("game").await.pool, "game");
}

#[tokio::test]
async fn what_cannot_be_read_is_rejected_alone_with_what_hangs_on_it() {
    let mut config = ConfigService::start();
    let balancer = Running::start(config.address);
    let a = Origin::start().await;
    let mut bad = monitor(INTERVAL);
    bad.consecutive_down = 1_000_000;
    let orphan = pool("game", "quick", &[("a", a.address)]);
    let sound = pool("mail", "", &[("a", a.address)]);
    config.say(full(1, resources(bad, vec![orphan, sound])));
    let ack = config.ack(1).await;
    let rejected: Vec<_> = ack
        .rejections
        .iter()
        .map(|rejection| rejection.resource.as_ref().unwrap().name.as_str())
        .collect();
    assert_eq!(rejected, ["quick", "game"], "{ack:?}");
    assert!(ack.rejections[0].reason.contains("consecutive_down"));
    assert!(ack.rejections[1].reason.contains("\"quick\" is not known"));

    let mut watch = balancer.watch().await;
    watch.next().await;
    let health = |pool| watch.origin(pool, "a").unwrap().health();
    assert_eq!(health("mail"), HealthState::Unmonitored);
    assert_eq!(health("game"), HealthState::Unknown);
    assert_eq!(watch.origin("game", "a").unwrap().weight, 1.0);
}

#[tokio::test]
async fn without_the_config_service_probing_goes_on_and_it_resumes_afterwards() {
    let mut config = ConfigService::start();
    let balancer = Running::start(config.address);
    let (a, b) = (Origin::start().await, Origin::start().await);
    let game = pool("game", "quick", &[("a", a.address), ("b", b.address)]);
    config.say(full(1, resources(monitor(INTERVAL), vec![game])));
    let mut watch = balancer.watch().await;
    watch.until("game", "a", HealthState::Up).await;

    config.kill();
    a.kill().await;
    watch.until("game", "a", HealthState::Down).await;
    let (status, page) = balancer.get("/readyz").await;
    assert_eq!(status, 200, "{page}");

    let mut config = ConfigService::start_at(config.address);
    let mail = pool("mail", "", &[("a", b.address)]);
    let mail = resource(anyport_proto::v1::resource::Kind::Pool(mail));
    config.say(delta(1, vec![mail]));
    let subscribe = config.subscription().await;
    assert_eq!((subscribe.revision, subscribe.state_hash), (1, vec![1]));
    config.ack(2).await;
    config.report("game", "a", HealthState::Down).await;
    assert_eq!(watch.next().await.revision, 2);
    assert_eq!(watch.pools.len(), 2);
}

#[tokio::test]
async fn the_acknowledgement_carries_the_trace_of_the_write() {
    Settings {
        service_name: "balancer".into(),
        log_level: tracing::level_filters::LevelFilter::INFO,
        log_filter: Some("off".into()),
        log_format: LogFormat::Json,
        // Nothing listens there; what matters is that spans are made.
        collector: Collector::At("http://127.0.0.1:9".into()),
    }
    .install()
    .map(std::mem::forget)
    .unwrap();
    let mut config = ConfigService::start();
    let _balancer = Running::start(config.address);
    let write = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    config.say(anyport_proto::v1::Update {
        traceparent: write.into(),
        ..full(1, vec![])
    });
    let ack = config.ack(1).await;
    let parts: Vec<&str> = ack.traceparent.split('-').collect();
    assert_eq!(parts[1], "0af7651916cd43dd8448eb211c80319c", "{ack:?}");
    assert_ne!(parts[2], "b7ad6b7169203331", "a span of its own");
}
