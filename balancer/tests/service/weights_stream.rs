//! What an edge is told.

use anyport_proto::v1::HealthState;

use crate::support::*;

#[tokio::test]
async fn the_whole_table_first_then_only_what_changed() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let (a, b) = (Origin::start().await, Origin::start().await);
    let game = pool("game", "quick", &[("a", a.address)]);
    let mail = pool("mail", "quick", &[("b", b.address)]);
    let both = resources(monitor(INTERVAL), vec![game.clone(), mail]);
    config.say(full(1, both));
    let mut watch = balancer.watch().await;
    let first = watch.next().await;
    assert!(first.full && first.pools.len() == 2, "{first:?}");

    b.kill().await;
    let second = watch.next().await;
    assert!(!second.full);
    assert_eq!(second.epoch, first.epoch);
    assert_eq!(second.pools.len(), 1, "{second:?}");
    assert_eq!(second.pools[0].pool, "mail");

    config.say(full(2, resources(monitor(INTERVAL), vec![game])));
    let third = watch.next().await;
    assert_eq!(third.revision, 2);
    assert_eq!(third.removed_pools, ["mail"]);
    assert_eq!(third.pools, []);

    let mut late = balancer.watch().await;
    let whole = late.next().await;
    assert!(whole.full);
    assert_eq!(late.pools, watch.pools);
}

#[tokio::test]
async fn a_revision_that_changes_no_weight_is_told_all_the_same() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    config.say(full(1, vec![]));
    let mut watch = balancer.watch().await;
    assert_eq!(watch.next().await.revision, 1);
    config.say(full(2, vec![]));
    let update = watch.next().await;
    assert_eq!(
        (update.revision, update.full, update.pools.len()),
        (2, false, 0)
    );
}

#[tokio::test]
async fn a_restarted_balancer_does_not_bring_back_what_is_down() {
    let config = ConfigService::start();
    let (a, b) = (Origin::start().await, Origin::start().await);
    let game = pool("game", "quick", &[("a", a.address), ("b", b.address)]);
    config.say(full(1, resources(monitor(INTERVAL), vec![game])));
    let before = Running::start(config.address);
    let mut watch = before.watch().await;
    a.kill().await;
    watch.until("game", "a", HealthState::Down).await;
    drop(before);

    let after = Running::start(config.address);
    let mut watch = after.watch().await;
    let first = watch.next().await;
    assert!(first.full);
    assert_eq!(
        watch.origin("game", "a").unwrap().health(),
        HealthState::Down,
        "the first table must wait for the verdicts"
    );
    assert_eq!(watch.origin("game", "b").unwrap().health(), HealthState::Up);
}

#[tokio::test]
async fn a_balancer_without_a_configuration_sends_edges_on() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let refused = balancer.try_watch().await.err().expect("nothing to tell");
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    // A configuration is enough to stay, even while its verdicts are waited for.
    config.say(full(1, vec![]));
    balancer.watch().await;
}

#[tokio::test]
async fn the_stream_ends_well_when_the_balancer_drains() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    config.say(full(1, vec![]));
    let mut watch = balancer.watch().await;
    watch.next().await;
    balancer.begin_drain();
    watch.end().await.expect("an end, not an error");
    balancer.ended().await.expect("a good end");
}

#[tokio::test]
async fn who_watches_has_a_name() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let request = anyport_proto::v1::WatchWeightsRequest::default();
    let refused = balancer.client().await.watch_weights(request).await;
    let refused = refused.expect_err("an edge has a name");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().starts_with("edge: "), "{refused}");
}
