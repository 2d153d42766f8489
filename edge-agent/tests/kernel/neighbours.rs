//! What others have in the kernel is left as it is.

use anyport_edge_agent::kernel::{Kernel, KernelError, Steering, undo};

use crate::support::{Agent, Listeners, PATIENCE, claim, on_edge, steered, under_both};

under_both![
    foreign_tables_routes_and_rules_are_the_same_before_and_after,
    an_address_of_the_host_itself_can_be_a_prefix,
    a_prefix_that_is_taken_otherwise_is_named,
    a_host_without_ipv6_serves_ipv4_and_names_the_prefix_that_it_does_not,
];

fn foreign_tables_routes_and_rules_are_the_same_before_and_after(steering: Steering) {
    on_edge(async |edge| {
        for command in [
            "nft add table inet neighbour",
            "nft add chain inet neighbour early { type filter hook prerouting priority -200; policy accept; }",
            "nft add rule inet neighbour early ip saddr 203.0.113.77 counter drop",
            "nft add table ip anyport",
            "nft add set inet neighbour tcp4 { type ipv4_addr . inet_service; flags interval; }",
            "nft add element inet neighbour tcp4 { 198.51.100.0/24 . 1-9 }",
            "ip route add local 203.0.113.0/25 dev lo table local proto static",
            "ip route add 203.0.113.128/25 dev lo table 100 proto 64",
            "ip -6 route add local 2001:db8:99::/48 dev lo table local proto static",
            "ip rule add fwmark 0x1 lookup 100 priority 900",
            "ip -6 rule add fwmark 0x1 lookup 100 priority 900",
        ] {
            edge.run(command);
        }
        let before = edge.foreign_state();
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let prefixes = ["198.51.100.0/24", "2001:db8:51::/48"];
        for ports in ["1-100", "200", "*"] {
            let claims = [
                claim("198.51.100.0/24", ports),
                claim("2001:db8:51::/48", ports),
            ];
            agent.apply(listeners.wants(&prefixes, &claims)).await;
            before.assert_same(&edge.foreign_state());
        }
        assert_eq!(
            edge.dial("198.51.100.7:80").await,
            steered("198.51.100.7:80")
        );
        agent.kill().await;
        undo().await.unwrap();
        before.assert_same(&edge.foreign_state());
    });
}

fn an_address_of_the_host_itself_can_be_a_prefix(steering: Steering) {
    on_edge(async |edge| {
        edge.run("ip address add 203.0.113.5/32 dev client");
        let before = edge.foreign_state();
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let claims = [claim("203.0.113.5/32", "80")];
        let wish = listeners.wants(&["203.0.113.5/32"], &claims);
        let applied = agent.apply(wish.clone()).await;
        // The kernel's own route does; ours would be in its place.
        assert_eq!((applied.routes_added, applied.conflicts.len()), (0, 0));
        assert_eq!(edge.dial("203.0.113.5:80").await, steered("203.0.113.5:80"));
        before.assert_same(&edge.foreign_state());

        // When the address goes, the prefix stays.
        edge.run("ip address del 203.0.113.5/32 dev client");
        agent
            .repaired(anyport_edge_agent::kernel::Drift::Route, 1)
            .await;
        assert_eq!(edge.dial("203.0.113.5:80").await, steered("203.0.113.5:80"));
    });
}

fn a_prefix_that_is_taken_otherwise_is_named(steering: Steering) {
    on_edge(async |edge| {
        edge.run("ip route add unreachable 198.51.100.0/24 table local");
        let before = edge.foreign_state();
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let claims = [
            claim("198.51.100.0/24", "80"),
            claim("203.0.113.0/24", "80"),
        ];
        let wish = listeners.wants(&["198.51.100.0/24", "203.0.113.0/24"], &claims);
        let applied = agent.apply(wish).await;
        let [conflict] = &applied.conflicts[..] else {
            panic!("{applied:?}");
        };
        assert_eq!(conflict.net, "198.51.100.0/24".parse().unwrap());
        assert!(conflict.reason.contains("route of its own"), "{conflict:?}");
        assert_eq!(applied.routes_added, 1);
        before.assert_same(&edge.foreign_state());
        assert_eq!(edge.dial("203.0.113.9:80").await, steered("203.0.113.9:80"));
    });
}

#[test]
fn a_table_of_our_name_that_is_not_ours_is_left_alone() {
    on_edge(async |edge| {
        edge.run("nft add table inet anyport");
        edge.run("nft add set inet anyport theirs { type ipv4_addr; }");
        let before = edge.run("nft -a list ruleset");
        let listeners = Listeners::open(Steering::Tproxy);
        let agent = Agent::start();
        let claims = [claim("198.51.100.0/24", "80")];
        let wish = listeners.wants(&["198.51.100.0/24"], &claims);
        let error = agent.handle.apply(wish).await.unwrap_err();
        assert!(matches!(error, KernelError::ForeignTable), "{error}");
        undo().await.unwrap();
        assert_eq!(edge.run("nft -a list ruleset"), before);

        // The wish was refused, not forgotten.
        edge.run("nft delete table inet anyport");
        agent.without_fault().await;
        assert!(agent.repairs().is_empty(), "what heals is no repair");
        assert_eq!(
            edge.dial("198.51.100.7:80").await,
            steered("198.51.100.7:80")
        );
    });
}

#[test]
fn a_table_of_another_layout_is_replaced() {
    on_edge(async |edge| {
        for comment in ["anyport layout 7; future", "anyport layout"] {
            edge.run("nft add table inet anyport");
            edge.run("nft delete table inet anyport");
            let file = tempfile::NamedTempFile::new().unwrap();
            let table = format!(
                "table inet anyport {{\n comment \"{comment} x\"\n set old {{ type ipv4_addr; }}\n}}\n"
            );
            std::fs::write(file.path(), table).unwrap();
            edge.run(&format!("nft -f {}", file.path().display()));

            let listeners = Listeners::open(Steering::Tproxy);
            let agent = Agent::start();
            let claims = [claim("198.51.100.0/24", "80")];
            let wish = listeners.wants(&["198.51.100.0/24"], &claims);
            assert!(agent.apply(wish).await.table_created);
            assert_eq!(
                edge.dial("198.51.100.7:80").await,
                steered("198.51.100.7:80")
            );
            assert!(!edge.run("nft list table inet anyport").contains("old"));
        }
    });
}

fn a_host_without_ipv6_serves_ipv4_and_names_the_prefix_that_it_does_not(steering: Steering) {
    on_edge(async |edge| {
        let listeners = Listeners::open(steering);
        edge.run("sysctl -w net.ipv6.conf.all.disable_ipv6=1");
        let agent = Agent::start();
        let claims = [
            claim("198.51.100.0/24", "80"),
            claim("2001:db8:51::/48", "80"),
        ];
        let prefixes = ["198.51.100.0/24", "2001:db8:51::/48"];
        let wish = listeners.wants(&prefixes, &claims);
        let mut without_listener = wish.clone();
        without_listener.listeners.v6 = None;
        for (wish, why) in [
            (without_listener, "listen on ::1"),
            (wish, "IPv6 is disabled"),
        ] {
            let applied = agent.apply(wish).await;
            let [conflict] = &applied.conflicts[..] else {
                panic!("{applied:?}");
            };
            assert_eq!(conflict.net, "2001:db8:51::/48".parse().unwrap());
            assert!(conflict.reason.contains(why), "{conflict:?}");
            assert_eq!(agent.handle.fault(), None);
            let v4 = "198.51.100.7:80";
            assert_eq!(edge.dial(v4).await, steered(v4));
        }

        // When the host gets IPv6, the prefix comes without a new wish.
        edge.run("sysctl -w net.ipv6.conf.all.disable_ipv6=0");
        let mut standing = agent.handle.standing();
        let whole = standing.wait_for(|standing| standing.conflicts.is_empty());
        tokio::time::timeout(PATIENCE, whole)
            .await
            .unwrap()
            .unwrap();
        assert!(agent.repairs().is_empty(), "{:?}", agent.repairs());
    });
}
