//! A balancer that may not send echo requests. Needs root, to give it up.

use anyport_netns::Namespace;
use anyport_proto::v1::{self, HealthState, MonitorType};

use crate::support::*;

/// In a new namespace, `net.ipv4.ping_group_range` lets nobody.
#[test]
fn without_the_right_to_send_echoes_nobody_is_blamed_and_readyz_says_so() {
    let here = Namespace::new("balancer").unwrap();
    here.block_on(async || {
        // SAFETY: the call takes numbers, and is about this thread alone, which ends
        // with the test, and about those that it starts.
        let became_nobody = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(became_nobody, 0);
        scenario().await;
    })
    .unwrap();
}

async fn scenario() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let monitor = v1::Monitor {
        r#type: MonitorType::Icmp.into(),
        consecutive_down: 1,
        ..monitor(INTERVAL)
    };
    let address = "127.0.0.1:7000".parse().unwrap();
    let game = pool("game", "quick", &[("a", address)]);
    config.say(full(1, resources(monitor, vec![game])));
    let page = balancer
        .page("/readyz", |status, page| {
            status == 200 && page.contains("probes: ")
        })
        .await;
    assert!(page.contains("CAP_NET_RAW"), "{page}");
    let prefix = "anyport_probe_seconds_count{result=\"local\"} ";
    let several = |page: &str| {
        let count = page.lines().find_map(|line| line.strip_prefix(prefix));
        count.is_some_and(|count| count.parse::<u64>().unwrap() > 2)
    };
    balancer.page("/metrics", |_, page| several(page)).await;
    let held = balancer.health("game").await;
    assert_eq!(held.origins[0].health(), HealthState::Unknown);
}
