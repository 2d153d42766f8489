//! Which balancers take part, as replicas tell them.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyport_config_service::store::{
    balancers::{BalancerRecord, InMemory},
    etcd::{balancers::EtcdBalancers, connect, presence::LEASE_TTL},
};
use anyport_model::balancers::{BalancerSet, Epoch};
use anyport_node::identity::Identity;
use anyport_proto::{
    convert::{read_balancer_set, write_duration},
    v1::{self, discovery_service_client::DiscoveryServiceClient},
};
use support::{
    etcd::{EtcdServer, etcd_url, url},
    eventually,
    link::Link,
    service::{Service, embedded},
    soon,
    subscriber::{Subscriber, balancer, edge},
};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

/// Those of one replica.
struct Sets(Streaming<v1::BalancerSet>);

impl Sets {
    async fn watch(service: &Service, name: &str) -> Result<Self, Status> {
        let mut client = DiscoveryServiceClient::new(service.endpoint().connect_lazy());
        let name = name.to_owned();
        let asked = client.watch_balancers(v1::WatchBalancersRequest { name });
        Ok(Self(soon("an answer", asked).await?.into_inner()))
    }

    /// Once there are any.
    async fn follow(service: &Service, name: &str) -> Self {
        eventually("a set is known", async || {
            match Self::watch(service, name).await {
                Ok(sets) => Some(sets),
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    None
                }
            }
        })
        .await
    }

    async fn next(&mut self) -> BalancerSet {
        let set = soon("a set", self.0.message()).await.unwrap().unwrap();
        assert_eq!(set.lease, Some(write_duration(LEASE_TTL)));
        read_balancer_set(set).unwrap()
    }

    /// The first that has these members; none is earlier than the one before.
    async fn until(&mut self, names: &[&str]) -> BalancerSet {
        let mut before = None;
        loop {
            let set = self.next().await;
            assert!(Some(set.epoch) > before, "{set:?} after {before:?}");
            before = Some(set.epoch);
            let members = set.members.keys().map(|name| name.as_str());
            if members.eq(names.iter().copied()) {
                return set;
            }
        }
    }
}

async fn subscribe(service: &Service, name: &str) -> Subscriber {
    let who = v1::Subscribe {
        address: format!("http://{name}:7410"),
        ..balancer(name)
    };
    let mut subscriber = Subscriber::connect(service, who).await;
    subscriber.take().await;
    subscriber
}

#[tokio::test]
async fn replicas_tell_one_set_of_all_who_are_connected_to_any() {
    let server = EtcdServer::start().await;
    let one = Service::ready(server.url("fleet")).await;
    let other = Service::ready(server.url("fleet")).await;
    let refused = Sets::watch(&one, "a").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.get_details_retry_info().is_some());

    let _edge = Subscriber::connect(&one, edge("e")).await;
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let a = subscribe(&one, "a").await;
    let b = subscribe(&other, "b").await;
    let mut here = Sets::follow(&one, "a").await;
    let mut there = Sets::follow(&other, "b").await;
    let both = here.until(&["a", "b"]).await;
    assert_eq!(there.until(&["a", "b"]).await, both);
    assert!(u128::from(both.epoch.0) >= began.as_micros());
    let addresses: Vec<&str> = both.members.values().map(String::as_str).collect();
    assert_eq!(addresses, ["http://a:7410", "http://b:7410"]);

    // `a` changes replicas, and that is nothing to others; `b` stays away.
    let left = Instant::now();
    drop((a, b));
    let _a = subscribe(&other, "a").await;
    let set = there.next().await;
    let away = left.elapsed();
    assert!(away >= LEASE_TTL - Duration::from_millis(100), "{away:?}");
    assert_eq!(set, here.next().await);
    assert!(set.epoch > both.epoch);
    assert!(set.members.keys().map(|name| name.as_str()).eq(["a"]));
    let _b = subscribe(&one, "b").await;
    let again = there.until(&["a", "b"]).await;
    assert_eq!(here.until(&["a", "b"]).await, again);
    assert!(again.epoch > set.epoch);
}

/// Two replicas that read the same, and both want to replace it.
async fn the_first_to_replace_it_is_the_only_one(records: [&dyn BalancerRecord; 2]) {
    let set = |epoch, name: &str| BalancerSet {
        epoch: Epoch(epoch),
        members: [(name.parse().unwrap(), String::new())].into(),
    };
    let [one, other] = records;
    let mut stored = None;
    for round in 0..2 {
        let (seen, same) = (one.read().await.unwrap(), other.read().await.unwrap());
        assert_eq!((&seen.set, &same.set), (&stored, &stored));
        let first = set(10 * round + 1, "first");
        one.replace(&seen, &first).await.unwrap();
        other
            .replace(&same, &set(10 * round + 2, "second"))
            .await
            .unwrap();
        soon("it moved", other.moved(&same)).await.unwrap();
        stored = Some(first);
        assert_eq!(other.read().await.unwrap().set, stored);
    }
}

#[tokio::test]
async fn of_two_replicas_that_replace_the_set_at_once_one_does() {
    let memory = InMemory::default();
    the_first_to_replace_it_is_the_only_one([&memory, &memory]).await;
    let server = EtcdServer::start().await;
    let url = server.url("fleet");
    let members = connect(etcd_url(&url), &Identity::none()).await.unwrap();
    let [one, other] = [(); 2].map(|()| EtcdBalancers::new(&members, etcd_url(&url)));
    the_first_to_replace_it_is_the_only_one([&one, &other]).await;
}

#[tokio::test]
async fn the_set_outlives_every_replica_and_one_that_has_just_started_removes_nobody() {
    let server = EtcdServer::start().await;
    let service = Service::ready(server.url("fleet")).await;
    let both = {
        let _a = subscribe(&service, "a").await;
        let _b = subscribe(&service, "b").await;
        let mut sets = Sets::follow(&service, "a").await;
        sets.until(&["a", "b"]).await
    };
    service.stop().await;
    let started = Instant::now();
    let service = Service::ready(server.url("fleet")).await;
    let mut sets = Sets::follow(&service, "a").await;
    assert_eq!(sets.next().await, both, "before anybody is back");
    let _a = subscribe(&service, "a").await;
    let alone = sets.next().await;
    let after = started.elapsed();
    assert!(after >= LEASE_TTL, "{after:?}");
    assert!(alone.members.keys().map(|name| name.as_str()).eq(["a"]));
}

#[tokio::test]
async fn a_replica_that_is_cut_off_says_nothing_new_and_then_what_all_say() {
    let server = EtcdServer::start().await;
    let link = Link::to(server.port()).await;
    let near = Service::ready(server.url("fleet")).await;
    let cut_off = Service::ready(url(link.port(), "fleet")).await;
    let _a = subscribe(&near, "a").await;
    let mut sets = Sets::follow(&cut_off, "a").await;
    let first = sets.until(&["a"]).await;

    link.cut();
    let _b = subscribe(&near, "b").await;
    let _c = subscribe(&cut_off, "c").await;
    let mut others = Sets::follow(&near, "a").await;
    let news = others.until(&["a", "b"]).await;
    let mut again = Sets::watch(&cut_off, "a").await.unwrap();
    assert_eq!(again.next().await, first);
    let patience = Duration::from_secs(2);
    let told = tokio::time::timeout(patience, sets.0.message()).await;
    assert!(told.is_err(), "{told:?}");

    // Who follows it is sent to the others, when it may have missed that somebody left.
    let ended = soon("the end", sets.0.message()).await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    let refused = Sets::watch(&cut_off, "a").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    link.mend();
    // It may have been sent to the others, too.
    let _c = subscribe(&cut_off, "c").await;
    let mut sets = Sets::follow(&cut_off, "a").await;
    let all = sets.until(&["a", "b", "c"]).await;
    assert!(all.epoch > news.epoch);
    assert_eq!(others.until(&["a", "b", "c"]).await, all);
}

#[tokio::test]
async fn a_replica_that_never_reached_its_store_knows_of_no_set() {
    let server = EtcdServer::start().await;
    let link = Link::to(server.port()).await;
    link.cut();
    let service = Service::start(url(link.port(), "fleet")).await;
    let refused = Sets::watch(&service, "a").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("not known here"), "{refused}");
}

#[tokio::test]
async fn without_etcd_the_set_is_known_once_all_had_time_to_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let service = Service::ready(embedded(directory.path())).await;
    let _a = subscribe(&service, "a").await;
    let _b = subscribe(&service, "b").await;
    let before = Sets::follow(&service, "a").await.next().await;
    assert_eq!(before.members.len(), 2);
    service.stop().await;

    let service = Service::ready(embedded(directory.path())).await;
    let _a = subscribe(&service, "a").await;
    let waits = Sets::watch(&service, "a").await.err().unwrap();
    assert_eq!(waits.code(), Code::Unavailable, "`b` may be on its way");
    let _b = subscribe(&service, "b").await;
    let after = Sets::follow(&service, "a").await.next().await;
    assert_eq!(after.members, before.members);
    assert!(after.epoch > before.epoch);
    // From then on at once.
    let mut sets = Sets::follow(&service, "a").await;
    let _c = subscribe(&service, "c").await;
    assert_eq!(sets.until(&["a", "b", "c"]).await.members.len(), 3);
    service.stop().await;
    let ended = soon("the end", sets.0.message()).await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
}

#[tokio::test]
async fn who_asks_without_a_name_is_told_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let service = Service::ready(embedded(directory.path())).await;
    let refused = Sets::watch(&service, "").await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let fields = refused.get_details_bad_request().unwrap().field_violations;
    assert_eq!(fields[0].field, "name");
}
