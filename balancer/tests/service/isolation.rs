//! A balancer whose own link goes down, in network namespaces. Needs root.

use std::net::{TcpListener as StdListener, UdpSocket};

use anyport_netns::{Namespace, link};
use anyport_proto::v1::{self, HealthState, MonitorType};
use tokio::net::TcpListener;

use crate::support::*;

/// The balancer's namespace, its link "uplink", and that of the origins.
fn network() -> (Namespace, Namespace) {
    let here = Namespace::new("balancer").unwrap();
    let there = Namespace::new("origins").unwrap();
    link::veth((&here, "uplink"), (&there, "servers")).unwrap();
    let address = |namespace, link, text: &str| {
        link::add_address(namespace, link, text.parse().unwrap()).unwrap();
    };
    address(&here, "uplink", "198.51.100.1/24");
    address(&there, "servers", "198.51.100.2/24");
    address(&there, "servers", "198.51.100.3/24");
    (here, there)
}

#[test]
fn a_balancer_that_loses_its_link_holds_its_verdicts_and_says_so() {
    let (here, there) = network();
    here.block_on(async || scenario(&here, &there).await)
        .unwrap();
}

#[test]
fn so_it_is_where_origins_are_asked_by_datagrams() {
    let (here, there) = network();
    // Sockets that say nothing; the kernel answers to echoes.
    let bind = |address: &str| UdpSocket::bind(address).unwrap();
    let open = ["198.51.100.2:7000", "198.51.100.3:7000"];
    let _sockets = there.run(move || open.map(bind)).unwrap();
    for kind in [MonitorType::Udp, MonitorType::Icmp] {
        here.block_on(async || by_datagrams(&here, kind).await)
            .unwrap();
    }
}

async fn by_datagrams(here: &Namespace, kind: MonitorType) {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    // Silence is good by UDP, and is waited for.
    let timeout = (kind == MonitorType::Udp).then(|| INTERVAL.try_into().unwrap());
    let monitor = v1::Monitor {
        r#type: kind.into(),
        timeout,
        consecutive_down: 1,
        ..monitor(INTERVAL)
    };
    let at = |address: &str| address.parse().unwrap();
    let origins = [
        ("a", at("198.51.100.2:7000")),
        ("b", at("198.51.100.3:7000")),
    ];
    let game = pool("game", "quick", &origins);
    config.say(full(1, resources(monitor, vec![game])));
    let mut watch = balancer.watch().await;
    watch.until("game", "a", HealthState::Up).await;
    watch.until("game", "b", HealthState::Up).await;
    held_while_the_link_is_down(here, &balancer).await;
}

/// Many probes fail, and none of them is held against an origin.
async fn held_while_the_link_is_down(here: &Namespace, balancer: &Running) {
    link::down(here, "uplink").unwrap();
    // It may have been too busy to judge before, and says why it is so now.
    let is_told = |page: &str| {
        let mut lines = page.lines();
        let told = lines.find(|line| line.starts_with("network: "));
        told.is_some_and(|line| line.contains("network is unreachable"))
    };
    balancer
        .page("/readyz", |status, page| status == 503 && is_told(page))
        .await;
    let failures = |page: &str| {
        let mut lines = page.lines();
        let prefix = "anyport_probe_seconds_count{result=\"local\"} ";
        let count = lines.find_map(|line| line.strip_prefix(prefix));
        count.is_some_and(|count| count.parse::<u64>().unwrap() > 10)
    };
    let page = balancer.page("/metrics", |_, page| failures(page)).await;
    assert!(page.contains("anyport_balancer_isolated 1\n"), "{page}");
    for origin in balancer.health("game").await.origins {
        assert_eq!(origin.health(), HealthState::Up, "{origin:?}");
    }
    link::up(here, "uplink").unwrap();
    balancer.page("/readyz", |status, _| status == 200).await;
}

async fn scenario(here: &Namespace, there: &Namespace) {
    let origin = |address: &str| {
        let listener = there.run(|| StdListener::bind(address).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        Origin::on(TcpListener::from_std(listener).unwrap())
    };
    let (a, b) = (origin("198.51.100.2:7000"), origin("198.51.100.3:7000"));
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let mut monitor = monitor(INTERVAL);
    monitor.consecutive_down = 1;
    let game = pool("game", "quick", &[("a", a.address), ("b", b.address)]);
    config.say(full(1, resources(monitor, vec![game])));
    let mut watch = balancer.watch().await;
    watch.until("game", "a", HealthState::Up).await;
    watch.until("game", "b", HealthState::Up).await;

    held_while_the_link_is_down(here, &balancer).await;
    a.kill().await;
    watch.until("game", "a", HealthState::Down).await;
    let b = watch.origin("game", "b").unwrap();
    assert_eq!(b.health(), HealthState::Up);
}
