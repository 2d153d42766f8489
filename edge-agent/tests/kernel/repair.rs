//! Other programs break what is ours; it is put right within a second, and
//! counted by what it was.

use std::{collections::BTreeMap, time::Duration};

use anyport_edge_agent::kernel::{Drift, Steering};

use crate::support::{Agent, Answer, Edge, Listeners, claim, on_edge, steered, under_both};

under_both![
    a_deleted_route,
    a_deleted_route_over_ipv6,
    a_route_with_another_source,
    a_route_of_our_number_that_nobody_wants,
    every_route_gone_with_the_loopback_interface,
    a_closed_listener_answers_with_rst,
];

pub(crate) const V4: &str = "198.51.100.7:80";
pub(crate) const V6: &str = "[2001:db8:51::7]:80";

/// One rule for each transport and family.
const RULES: u64 = 4;

/// Breaks the set-up by `commands`, and expects each of `repairs`, nothing
/// else, within a second of the last command, and the set-up as it was.
fn broken_by(
    steering: Steering,
    commands: &'static [&'static str],
    repairs: &'static [(Drift, u64)],
) {
    on_edge(async |edge| {
        let listeners = Listeners::open(steering);
        let agent = set_up(&listeners).await;
        assert_both_steered(&edge).await;
        let before = ours(&edge);

        for command in commands {
            edge.run(command);
        }
        let mut took = Duration::ZERO;
        for &(what, count) in repairs {
            took += agent.repaired(what, count).await;
        }
        agent.assert_prompt(took);
        assert_both_steered(&edge).await;
        assert_eq!(ours(&edge), before);
        assert_eq!(
            agent.repairs(),
            BTreeMap::from_iter(repairs.iter().copied())
        );
    });
}

pub(crate) async fn set_up(listeners: &Listeners) -> Agent {
    let agent = Agent::start();
    let claims = [
        claim("198.51.100.0/24", "1-1000"),
        claim("2001:db8:51::/48", "1-1000"),
    ];
    let prefixes = ["198.51.100.0/24", "2001:db8:51::/48"];
    agent.apply(listeners.wants(&prefixes, &claims)).await;
    agent
}

pub(crate) async fn assert_both_steered(edge: &Edge) {
    assert_eq!(edge.dial(V4).await, steered(V4));
    assert_eq!(edge.dial(V6).await, steered(V6));
}

pub(crate) fn ours(edge: &Edge) -> String {
    edge.run("nft list ruleset")
        + &edge.run("ip -d route show table local proto 65")
        + &edge.run("ip -d -6 route show table local proto 65")
}

#[test]
fn a_deleted_table() {
    broken_by(
        Steering::Tproxy,
        &["nft delete table inet anyport"],
        &[(Drift::Table, 1)],
    );
}

#[test]
fn a_flushed_ruleset() {
    broken_by(
        Steering::Tproxy,
        &["nft flush ruleset"],
        &[(Drift::Table, 1)],
    );
}

#[test]
fn a_table_switched_off() {
    broken_by(
        Steering::Tproxy,
        &["nft add table inet anyport { flags dormant; }"],
        &[(Drift::Table, 1)],
    );
}

#[test]
fn a_foreign_chain_in_our_table() {
    broken_by(
        Steering::Tproxy,
        &[
            "nft add chain inet anyport mine { type filter hook prerouting priority -300; policy drop; }",
        ],
        &[(Drift::Table, 1)],
    );
}

#[test]
fn flushed_rules() {
    broken_by(
        Steering::Tproxy,
        &["nft flush chain inet anyport steer"],
        &[(Drift::Rule, RULES)],
    );
}

#[test]
fn a_foreign_rule_before_ours() {
    broken_by(
        Steering::Tproxy,
        &["nft insert rule inet anyport steer tcp dport 80 drop"],
        &[(Drift::Rule, 1)],
    );
}

#[test]
fn a_rule_that_steers_to_a_stranger() {
    broken_by(
        Steering::Tproxy,
        &[
            "nft insert rule inet anyport steer ip daddr . tcp dport @tcp4 tproxy ip to 127.0.0.1:9 accept",
        ],
        &[(Drift::Rule, 1)],
    );
}

#[test]
fn a_deleted_chain() {
    broken_by(
        Steering::Tproxy,
        &[
            "nft flush chain inet anyport steer",
            "nft delete chain inet anyport steer",
        ],
        &[(Drift::Chain, 1)],
    );
}

#[test]
fn a_chain_that_drops_by_default() {
    broken_by(
        Steering::Tproxy,
        &["nft add chain inet anyport steer { policy drop; }"],
        &[(Drift::Chain, 1)],
    );
}

#[test]
fn a_deleted_element() {
    broken_by(
        Steering::Tproxy,
        &["nft delete element inet anyport tcp4 { 198.51.100.0/24 . 1-1000 }"],
        &[(Drift::Elements, 1)],
    );
}

#[test]
fn flushed_sets() {
    broken_by(
        Steering::Tproxy,
        &["nft flush set inet anyport tcp4 ; flush set inet anyport tcp6"],
        &[(Drift::Elements, 2)],
    );
}

#[test]
fn a_foreign_element() {
    broken_by(
        Steering::Tproxy,
        &["nft add element inet anyport tcp4 { 203.0.113.1-203.0.113.9 . 7 }"],
        &[(Drift::Elements, 1)],
    );
}

fn a_deleted_route(steering: Steering) {
    broken_by(
        steering,
        &["ip route del local 198.51.100.0/24 dev lo table local"],
        &[(Drift::Route, 1)],
    );
}

fn a_deleted_route_over_ipv6(steering: Steering) {
    broken_by(
        steering,
        &["ip -6 route del local 2001:db8:51::/48 dev lo table local"],
        &[(Drift::Route, 1)],
    );
}

fn a_route_with_another_source(steering: Steering) {
    broken_by(
        steering,
        &["ip route change local 198.51.100.0/24 dev lo table local proto 65 scope host"],
        &[(Drift::Route, 1)],
    );
}

fn a_route_of_our_number_that_nobody_wants(steering: Steering) {
    broken_by(
        steering,
        &["ip route add local 203.0.113.0/24 dev lo table local proto 65"],
        &[(Drift::Route, 1)],
    );
}

fn every_route_gone_with_the_loopback_interface(steering: Steering) {
    on_edge(async |edge| {
        let listeners = Listeners::open(steering);
        let agent = set_up(&listeners).await;
        edge.run("ip link set lo down");
        while agent.handle.fault().is_none() {
            tokio::task::yield_now().await;
        }
        let fault = agent.handle.fault().unwrap();
        assert!(fault.contains("is `lo` up?"), "{fault}");
        edge.run("ip link set lo up");
        agent.repaired(Drift::Route, 1).await;
        assert_both_steered(&edge).await;
        assert_eq!(agent.handle.fault(), None);
    });
}

#[test]
fn a_crash_at_any_point_is_repaired_by_the_next_start() {
    on_edge(async |edge| {
        let listeners = Listeners::open(Steering::Tproxy);
        set_up(&listeners).await.kill().await;
        let whole = ours(&edge);
        for half_done in [
            "nft delete table inet anyport",
            "nft flush chain inet anyport steer",
            "nft flush set inet anyport tcp6",
            "ip route del local 198.51.100.0/24 dev lo table local",
            "ip route add local 198.51.100.0/28 dev lo table local proto 65",
        ] {
            edge.run(half_done);
            let agent = set_up(&listeners).await;
            assert_eq!(ours(&edge), whole, "{half_done}");
            assert!(agent.repairs().is_empty(), "a start is no repair");
            agent.kill().await;
        }
    });
}

#[test]
fn our_own_changes_are_not_taken_for_drift() {
    on_edge(async |edge| {
        let listeners = Listeners::open(Steering::Tproxy);
        let agent = set_up(&listeners).await;
        for n in 1..20 {
            let claims = [claim("198.51.100.0/24", &format!("{n}-{}", n + 100))];
            let prefixes = [format!("198.51.100.0/{}", 24 + n % 3)];
            let prefixes: Vec<_> = prefixes.iter().map(String::as_str).collect();
            agent.apply(listeners.wants(&prefixes, &claims)).await;
        }
        // What comes after our own announcements is drift, and is counted
        // once: by then every announcement of ours was looked into.
        edge.run("nft flush chain inet anyport steer");
        agent.repaired(Drift::Rule, RULES).await;
        assert_eq!(agent.repairs(), BTreeMap::from([(Drift::Rule, RULES)]));
    });
}

fn a_closed_listener_answers_with_rst(steering: Steering) {
    on_edge(async |edge| {
        let listeners = Listeners::open(steering);
        let _agent = set_up(&listeners).await;
        listeners.close().await;
        for to in [V4, V6] {
            assert_eq!(edge.dial_what_is_closed(to).await, Answer::Refused, "{to}");
        }
    });
}
