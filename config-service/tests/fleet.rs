//! Several replicas on one real etcd.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Instant;

use anyport_config_service::{
    nodes::{NodeKey, Role},
    store::{
        OBJECT_MAX,
        etcd::{
            connect,
            presence::{LEASE_TTL, Presence, Publication},
        },
    },
};
use anyport_model::{
    names::Revision,
    replica::{Gap, Update},
};
use anyport_node::identity::Identity;
use anyport_proto::{
    sync::{self, Applied, Origin},
    v1,
};
use prost::Message;
use support::{
    etcd::{EtcdServer, etcd_url, url},
    eventually,
    link::Link,
    resources::{app, many, prefix},
    service::Service,
    soon,
    subscriber::{Subscriber, edge},
};
use tokio::sync::watch;
use tonic::{Code, Status};
use tonic_types::StatusExt;

#[tokio::test]
async fn a_change_at_one_replica_reaches_an_edge_of_the_other_and_its_word_comes_back() {
    let server = EtcdServer::start().await;
    let one = Service::ready(server.url("fleet")).await;
    let other = Service::ready(server.url("fleet")).await;
    let mut subscriber = Subscriber::connect(&other, edge("far")).await;
    let first = subscriber.take().await;
    assert_eq!((first.revision, first.full), (0, true));

    let applied = one.apply(many(2)).await.unwrap();
    let update = subscriber.take().await;
    assert_eq!(update.revision, applied.revision);
    assert_eq!(update.state_hash, applied.state_hash);
    assert_eq!(update.upserts.len(), 3);
    let seen = eventually("the far edge in the near list", || async {
        let nodes = one.nodes().await;
        nodes
            .into_iter()
            .find(|node| node.applied_revision == applied.revision)
    })
    .await;
    assert_eq!(seen.name, "far");
    assert!(
        seen.replica
            .ends_with(&format!(":{}", other.address.port()))
    );

    // A replica that stops takes its nodes along.
    drop(subscriber);
    other.stop().await;
    eventually("its end", || async {
        one.nodes().await.is_empty().then_some(())
    })
    .await;
    one.stop().await;
}

#[tokio::test]
async fn the_nodes_of_a_replica_that_died_vanish_and_come_back_elsewhere() {
    let server = EtcdServer::start().await;
    let one = Service::ready(server.url("fleet")).await;
    let other = Service::ready(server.url("fleet")).await;
    let mut subscriber = Subscriber::connect(&other, edge("far")).await;
    subscriber.take().await;
    eventually("the edge", || async {
        (one.nodes().await.len() == 1).then_some(())
    })
    .await;
    other.kill().await;
    // Its lease still runs, but the edge is here now: the later connection counts.
    let mut moved = Subscriber::connect(&one, edge("far")).await;
    moved.take().await;
    let nodes = one.nodes().await;
    assert_eq!(nodes.len(), 1);
    assert!(
        nodes[0]
            .replica
            .ends_with(&format!(":{}", one.address.port()))
    );
    drop(moved);
    eventually("the lease runs out", || async {
        one.nodes().await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_resources_are_applied_as_one() {
    let server = EtcdServer::start().await;
    let one = Service::ready(server.url("fleet")).await;
    let other = Service::ready(server.url("fleet")).await;
    let mut subscriber = Subscriber::connect(&other, edge("far")).await;
    subscriber.take().await;
    let applying = one.apply(many(10_000));
    let watching = async {
        // Whatever is seen meanwhile is nothing or all.
        loop {
            let (revision, resources) = other.list().await;
            match (revision, resources.len()) {
                (0, 0) => {}
                (1, 10_001) => return,
                half => panic!("a part of it was seen: {half:?}"),
            }
        }
    };
    let (applied, ()) = soon(
        "everywhere",
        Box::pin(async { tokio::join!(applying, watching) }),
    )
    .await;
    assert_eq!(applied.unwrap().changes.len(), 10_001);
    let update = subscriber.take().await;
    assert_eq!((update.revision, update.upserts.len()), (1, 10_001));
    // One more app costs one chunk, and leaves the others as they are.
    let before = objects(&server).await;
    one.apply(vec![app("app-0", 60_000)]).await.unwrap();
    let after = objects(&server).await;
    assert_eq!(after - before, 2, "one chunk and the layout");
}

async fn objects(server: &EtcdServer) -> i64 {
    let mut client = server.client().await;
    let options = etcd_client::GetOptions::new()
        .with_prefix()
        .with_count_only();
    client
        .get("/fleet/objects/", Some(options))
        .await
        .unwrap()
        .count()
}

#[tokio::test]
async fn writes_at_two_replicas_at_once_all_count() {
    let server = EtcdServer::start().await;
    let one = Service::ready(server.url("fleet")).await;
    let other = Service::ready(server.url("fleet")).await;
    one.apply(vec![prefix("198.51.100.0/24")]).await.unwrap();
    let write = async |service: &Service, name: &str, from: u16| {
        for n in 0..20 {
            service
                .apply(vec![app(&format!("{name}-{n}"), from + n)])
                .await
                .unwrap();
        }
    };
    tokio::join!(write(&one, "one", 1000), write(&other, "other", 2000));
    for service in [&one, &other] {
        eventually("all of them", || async {
            let (revision, resources) = service.list().await;
            (revision == 41 && resources.len() == 41).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_same_request_at_two_replicas_is_done_once() {
    let server = EtcdServer::start().await;
    let one = Service::ready(server.url("fleet")).await;
    let other = Service::ready(server.url("fleet")).await;
    let request = v1::ApplyRequest {
        resources: many(2),
        request_id: "once".to_owned(),
        ..Default::default()
    };
    let (here, there) = tokio::join!(
        one.apply_request(request.clone()),
        other.apply_request(request.clone())
    );
    assert_eq!(here.unwrap(), there.unwrap());
    assert_eq!(other.apply_request(request).await.unwrap().revision, 1);
}

#[tokio::test]
async fn without_its_store_a_replica_reads_but_does_not_write_and_says_so() {
    let server = EtcdServer::start().await;
    let link = Link::to(server.port()).await;
    let near = Service::ready(server.url("fleet")).await;
    let cut_off = Service::ready(url(link.port(), "fleet")).await;
    near.apply(many(2)).await.unwrap();
    eventually("the state", || async {
        (cut_off.list().await.0 == 1).then_some(())
    })
    .await;
    let mut subscriber = Subscriber::connect(&cut_off, edge("e1")).await;
    let first = subscriber.take().await;
    assert_eq!(first.upserts.len(), 3);

    link.cut();
    let mut changes = cut_off.readiness.changes();
    soon("it says so", async {
        while changes.report().is_ready() {
            changes.next().await;
        }
    })
    .await;
    let reason = cut_off.readiness.report().to_string();
    assert!(
        reason.contains("store: the store is out of reach"),
        "{reason}"
    );
    let refused = cut_off.apply(vec![app("more", 99)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.get_details_retry_info().is_some());
    assert_eq!(cut_off.list().await.1.len(), 3, "reading goes on");

    // Meanwhile the fleet moves on, and etcd forgets how.
    near.apply(vec![app("app-0", 700)]).await.unwrap();
    near.apply(vec![app("app-1", 701)]).await.unwrap();
    server.compact().await;
    link.mend();
    let update = match subscriber.next().await {
        Ok(update) => update,
        // Where that took long, it was to ask another replica; it asks this one again.
        Err(sent_away) => {
            assert_eq!(sent_away.code(), Code::Unavailable, "{sent_away:?}");
            let held = v1::Subscribe {
                revision: first.revision,
                state_hash: first.state_hash,
                ..edge("e1")
            };
            soon("ready again", cut_off.readiness.ready()).await;
            Subscriber::connect(&cut_off, held).await.take().await
        }
    };
    assert_eq!(
        (update.base_revision, update.revision, update.upserts.len()),
        (1, 3, 2)
    );
    soon("ready again", cut_off.readiness.ready()).await;
    cut_off.apply(vec![app("more", 99)]).await.unwrap();
}

#[tokio::test]
async fn who_is_ahead_of_a_replica_that_is_cut_off_is_not_led_back() {
    let server = EtcdServer::start().await;
    let link = Link::to(server.port()).await;
    let near = Service::ready(server.url("fleet")).await;
    let behind = Service::ready(url(link.port(), "fleet")).await;
    near.apply(many(2)).await.unwrap();
    eventually("the state", || async {
        (behind.list().await.0 == 1).then_some(())
    })
    .await;
    link.cut();
    let latest = near.apply(vec![app("app-0", 700)]).await.unwrap();
    let ahead = || v1::Subscribe {
        revision: latest.revision,
        state_hash: latest.state_hash.clone(),
        ..edge("e1")
    };
    // Sent away, to where the revision may be known.
    let refused = Subscriber::connect(&behind, ahead()).await.next().await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    link.mend();
    let update = eventually("the replica has caught up", || async {
        Subscriber::connect(&behind, ahead())
            .await
            .next()
            .await
            .ok()
    })
    .await;
    assert_eq!(update.revision, latest.revision);
    assert_eq!(
        behind.rewind().await,
        None,
        "it was behind, and the store was not"
    );
}

#[tokio::test]
async fn a_store_that_is_empty_all_at_once_takes_nothing_from_anybody() {
    let server = EtcdServer::start().await;
    let service = Service::ready(server.url("fleet")).await;
    let applied = service.apply(many(2)).await.unwrap();
    let mut subscriber = Subscriber::connect(&service, edge("e1")).await;
    assert_eq!(subscriber.take().await.revision, 1);

    let all = etcd_client::DeleteOptions::new().with_prefix();
    let mut etcd = server.client().await;
    etcd.delete("/fleet/", Some(all)).await.unwrap();
    let mut changes = service.readiness.changes();
    soon("it says so", async {
        while changes.report().is_ready() {
            changes.next().await;
        }
    })
    .await;
    let why = service.readiness.report().to_string();
    assert!(why.contains("is empty, and revision 1 was in it"), "{why}");
    assert!(subscriber.nothing_comes().await);
    assert_eq!(service.list().await.1.len(), 3, "reading goes on");
    let refused = service.apply(vec![app("more", 99)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss, "{refused:?}");

    // Nor by a service that knows of nothing, until something is applied there.
    service.stop().await;
    let service = Service::ready(server.url("fleet")).await;
    let holding = v1::Subscribe {
        revision: applied.revision,
        state_hash: applied.state_hash,
        ..edge("e1")
    };
    let mut subscriber = Subscriber::connect(&service, holding.clone()).await;
    let refused = subscriber.next().await.unwrap_err();
    assert!(refused.message().contains("is empty"), "{refused:?}");
    let anew = service.apply(many(5)).await.unwrap();
    let mut subscriber = Subscriber::connect(&service, holding).await;
    let update = subscriber.take().await;
    assert_eq!((update.revision, update.full), (anew.revision, true));
    assert_eq!(service.rewind().await.unwrap().lost_revision, 1);
}

#[tokio::test]
async fn writes_that_wait_at_a_replica_that_is_cut_off_are_refused_together() {
    let server = EtcdServer::start().await;
    let link = Link::to(server.port()).await;
    let service = Service::ready(url(link.port(), "fleet")).await;
    service.apply(many(1)).await.unwrap();
    link.cut();
    let refused_after = async |name: &str| {
        let began = Instant::now();
        let refused = service.apply(vec![app(name, 99)]).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        began.elapsed()
    };
    let one = refused_after("one").await;
    let [a, b, c, d] = ["a", "b", "c", "d"].map(refused_after);
    let (a, b, c, d) = tokio::join!(a, b, c, d);
    let last = a.max(b).max(c).max(d);
    assert!(last < 3 * one, "{last:?}, and one alone {one:?}");
}

#[tokio::test]
async fn a_replica_that_is_cut_off_does_not_go_on_showing_the_nodes_of_others() {
    let server = EtcdServer::start().await;
    let link = Link::to(server.port()).await;
    let near = Service::ready(server.url("fleet")).await;
    let cut_off = Service::ready(url(link.port(), "fleet")).await;
    let mut subscriber = Subscriber::connect(&near, edge("far")).await;
    subscriber.take().await;
    let replica = &cut_off;
    let shown = |shown: usize| {
        eventually("the edge comes or goes", move || async move {
            (replica.nodes().await.len() == shown).then_some(())
        })
    };
    shown(1).await;
    link.cut();
    shown(0).await;
    link.mend();
    shown(1).await;
}

#[tokio::test]
async fn who_is_connected_to_a_replica_that_is_cut_off_is_sent_to_others() {
    let server = EtcdServer::start().await;
    let link = Link::to(server.port()).await;
    let near = Service::ready(server.url("fleet")).await;
    let cut_off = Service::ready(url(link.port(), "fleet")).await;
    let applied = near.apply(many(2)).await.unwrap();
    eventually("the state", || async {
        (cut_off.list().await.0 == applied.revision).then_some(())
    })
    .await;
    let began = Instant::now();
    link.cut();
    let mut early = Subscriber::connect(&cut_off, edge("early")).await;
    early.take().await;
    let sent_away = early.next().await.unwrap_err();
    assert_eq!(sent_away.code(), Code::Unavailable, "{sent_away:?}");
    assert!(sent_away.message().contains("cut off from its store"));
    // Who is back in time is gone to nobody.
    assert!(began.elapsed() >= LEASE_TTL, "{:?}", began.elapsed());
    // Who has found no better one is told what is known here, and may stay.
    let mut late = Subscriber::connect(&cut_off, edge("late")).await;
    assert_eq!(late.take().await.revision, applied.revision);
    assert!(late.nothing_comes().await);
    // Until all is well again, and then for good.
    link.mend();
    let next = near.apply(vec![app("app-0", 700)]).await.unwrap();
    assert_eq!(late.take().await.revision, next.revision);
}

/// Takes whatever it is given.
#[derive(Default)]
struct Takes(Revision, Vec<u8>);

impl sync::Subscriber for Takes {
    fn held(&self) -> (Revision, Vec<u8>) {
        (self.0, self.1.clone())
    }

    async fn apply(&mut self, update: Update, _: Origin) -> Result<Applied, Gap> {
        *self = Self(update.revision, update.state_hash);
        Ok(Applied::default())
    }

    fn connection(&mut self, _: Result<(), &Status>) {}
}

#[tokio::test]
async fn who_knows_several_replicas_is_told_by_others_what_one_that_is_cut_off_has_missed() {
    let server = EtcdServer::start().await;
    let link = Link::to(server.port()).await;
    let near = Service::ready(server.url("fleet")).await;
    let cut_off = Service::ready(url(link.port(), "fleet")).await;
    let dials = [&cut_off, &near].map(|service| {
        let endpoint = service.endpoint();
        move || {
            let endpoint = endpoint.clone();
            async move {
                let connected = endpoint.connect().await;
                connected.map_err(|error| Status::from_error(error.into()))
            }
        }
    });
    let who = sync::Identity {
        role: v1::NodeRole::Balancer,
        name: "b".to_owned(),
        region: String::new(),
        version: String::new(),
        steering: String::new(),
        address: "http://b:7410".to_owned(),
    };
    let (_report, reports) = watch::channel(None);
    tokio::spawn(async move {
        // The first one first.
        sync::follow(dials.into(), who, reports, &mut Takes::default(), || 0).await;
    });
    let has = async |revision: u64| {
        let has = || async {
            let nodes = near.nodes().await.into_iter();
            let mut there = nodes.filter(|node| node.name == "b");
            there.find(|node| node.applied_revision == revision)
        };
        eventually("it has the revision", has).await
    };
    let first = near.apply(many(2)).await.unwrap();
    let before = has(first.revision).await;
    link.cut();
    let next = near.apply(vec![app("app-0", 700)]).await.unwrap();
    let after = has(next.revision).await;
    assert_ne!(after.replica, before.replica);
}

#[tokio::test]
async fn statuses_of_the_largest_size_are_shared() {
    let server = EtcdServer::start().await;
    let url = server.url("fleet");
    let etcd = etcd_url(&url);
    let members = connect(etcd, &Identity::none()).await.unwrap();
    let [ours, theirs] = [1, 2].map(|replica| Presence::new(&members, etcd, replica));
    let status = |length| v1::NodeStatus {
        replica: "x".repeat(length),
        ..Default::default()
    };
    let longest = OBJECT_MAX / 2;
    let status = status(2 * longest - status(longest).encoded_len());
    assert_eq!(status.encoded_len(), longest);
    let keys = ["a", "b", "c", "d", "e", "f"].map(|name| NodeKey {
        role: Role::Edge,
        name: name.parse().unwrap(),
    });
    let all = keys.each_ref().map(|key| Publication {
        key,
        status: Some(&status),
    });
    let mut lease = ours.grant().await.unwrap();
    ours.publish(&mut lease, &all).await.unwrap();
    assert_eq!(theirs.elsewhere().await.unwrap().nodes.len(), 6);
}

#[tokio::test]
async fn a_write_that_comes_after_a_later_one_does_not_bring_a_node_back() {
    let server = EtcdServer::start().await;
    let url = server.url("fleet");
    let etcd = etcd_url(&url);
    let members = connect(etcd, &Identity::none()).await.unwrap();
    let [ours, theirs] = [1, 2].map(|replica| Presence::new(&members, etcd, replica));
    let status = v1::NodeStatus::default();
    let key = NodeKey {
        role: Role::Edge,
        name: "a".parse().unwrap(),
    };
    let [there, gone] = [Some(&status), None].map(|status| [Publication { key: &key, status }]);
    let seen = async || theirs.elsewhere().await.unwrap().nodes.len();

    let mut lease = ours.grant().await.unwrap();
    let mut late = lease;
    ours.publish(&mut lease, &there).await.unwrap();
    assert_eq!(seen().await, 1);
    ours.publish(&mut lease, &gone).await.unwrap();
    assert_eq!(seen().await, 0);
    // As by a member that hung when it was asked, before another one was.
    let told_late = ours.publish(&mut late, &there).await;
    assert_eq!((seen().await, told_late.is_err()), (0, true));
    let mut again = lease;
    ours.publish(&mut lease, &there).await.unwrap();
    // As where the answer was lost with the member that was to give it.
    ours.publish(&mut again, &there).await.unwrap();
    assert_eq!((seen().await, again), (1, lease));

    // So also where a lease has followed, and outlives the one before it.
    let mut next = ours.grant().await.unwrap();
    ours.publish(&mut lease, &gone).await.unwrap_err();
    assert_eq!(seen().await, 1);
    ours.publish(&mut next, &there).await.unwrap();
    ours.revoke(lease).await.unwrap();
    assert_eq!(seen().await, 1);
    ours.publish(&mut next, &gone).await.unwrap();
    assert_eq!(seen().await, 0);
    ours.revoke(next).await.unwrap();
    ours.publish(&mut next, &there).await.unwrap_err();
    assert_eq!(seen().await, 0);
}

#[tokio::test]
async fn a_replica_starts_before_its_store_does() {
    let server = EtcdServer::start().await;
    let link = Link::to(server.port()).await;
    link.cut();
    let service = Service::start(url(link.port(), "fleet")).await;
    let asked = soon(
        "an answer",
        service.client().list(v1::ListRequest::default()),
    )
    .await;
    assert_eq!(asked.unwrap_err().code(), Code::Unavailable);
    assert!(!service.readiness.is_ready());
    link.mend();
    soon("ready", service.readiness.ready()).await;
    service.apply(many(1)).await.unwrap();
}
