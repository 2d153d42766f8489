//! The way back of transparent connections: there while it is wanted, put
//! right when others break it, and gone without a trace.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyport_edge_agent::kernel::{Desired, Drift, Kernel, Steering, undo};

use crate::support::{Agent, Edge, Listeners, claim, on_edge};

const FAMILIES: [&str; 2] = ["-4", "-6"];

fn wants(listeners: &Listeners, return_path: bool) -> Desired {
    let claims = [claim("198.51.100.0/24", "1-1000")];
    let mut desired = listeners.wants(&["198.51.100.0/24"], &claims);
    desired.return_path = return_path;
    desired
}

/// Everything of it, as other programs show it.
fn shown(edge: &Edge) -> String {
    let mut shown = String::new();
    for family in FAMILIES {
        shown += &edge.run(&format!("ip {family} rule show table 65"));
        // A table that was never used is an error to ask for.
        let all = edge.run(&format!("ip {family} route show table all"));
        let ours = all.lines().filter(|line| line.contains("table 65 "));
        ours.for_each(|line| shown += &format!("{line}\n"));
    }
    if edge.run("nft list tables").contains("anyport_return") {
        shown += &edge.run("nft -s list table inet anyport_return");
    }
    shown
}

#[test]
fn it_is_there_while_it_is_wanted_and_then_gone() {
    there_while_wanted(Steering::Tproxy);
}

#[test]
fn it_does_not_depend_on_how_connections_are_steered() {
    there_while_wanted(Steering::SkLookup);
}

fn there_while_wanted(steering: Steering) {
    on_edge(async move |edge| {
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let before = edge.foreign_state();
        agent.apply(wants(&listeners, false)).await;
        assert_eq!(shown(&edge), "");
        agent.apply(wants(&listeners, true)).await;
        let there = shown(&edge);
        for part in [
            "65:\tfrom all fwmark 0x616e7970 lookup 65 proto 65",
            "local default dev lo table 65 proto 65",
            "fib daddr type != local socket transparent 1 socket wildcard 0",
            "meta mark set 0x616e7970",
            "meta l4proto udp tproxy to :9",
        ] {
            assert!(there.contains(part), "{part} is not in {there}");
        }
        assert_eq!(there.matches("lookup 65").count(), 2, "{there}");
        agent.apply(wants(&listeners, false)).await;
        assert_eq!(shown(&edge), "");
        agent.apply(wants(&listeners, true)).await;
        assert_eq!(shown(&edge), there);
        agent.kill().await;
        // Another agent finds it as it should be.
        let agent = Agent::start();
        agent.apply(wants(&listeners, true)).await;
        assert_eq!(shown(&edge), there);
        assert!(agent.repairs().is_empty(), "{:?}", agent.repairs());
        agent.kill().await;
        assert_eq!(undo().await.unwrap().return_path, 5);
        assert_eq!(shown(&edge), "");
        before.assert_same(&edge.foreign_state());
    });
}

#[test]
fn it_stays_for_open_connections_also_after_a_wish_that_was_refused() {
    on_edge(async |edge| {
        let listeners = Listeners::open(Steering::Tproxy);
        let open = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&open);
        let agent = Agent::start_while(move || asked.load(Relaxed));
        agent.apply(wants(&listeners, true)).await;
        let there = shown(&edge);
        // No longer wanted for new connections, but needed by those that are open.
        agent.apply(wants(&listeners, false)).await;
        assert_eq!(shown(&edge), there);
        // What is refused half way leaves nothing granted.
        edge.run("nft delete table inet anyport");
        edge.run("nft add table inet anyport");
        let refused = agent.handle.apply(wants(&listeners, false)).await;
        assert!(refused.is_err(), "{refused:?}");
        edge.run("nft delete table inet anyport");
        agent.without_fault().await;
        assert_eq!(shown(&edge), there);
        open.store(false, Relaxed);
        agent.apply(wants(&listeners, false)).await;
        assert_eq!(shown(&edge), "");
    });
}

#[test]
fn whatever_others_break_of_it_is_put_right() {
    on_edge(async |edge| {
        let listeners = Listeners::open(Steering::Tproxy);
        let agent = Agent::start();
        agent.apply(wants(&listeners, true)).await;
        let there = shown(&edge);
        let (mut repaired, mut all) = (0, Duration::ZERO);
        for (command, count) in [
            ("ip rule del priority 65", 1),
            ("ip -6 rule del priority 65", 1),
            ("ip route flush table 65", 1),
            ("ip -6 route flush table 65", 1),
            ("nft delete table inet anyport_return", 1),
            ("nft flush table inet anyport_return", 1),
            ("nft flush chain inet anyport_return reassemble", 1),
            ("nft add rule inet anyport_return divert accept", 1),
        ] {
            edge.run(command);
            repaired += count;
            all += agent.repaired(Drift::ReturnPath, repaired).await;
            assert_eq!(shown(&edge), there, "{command}");
        }
        // Within a second each; by the pass that looks at everything it would be 2.5 s on average.
        assert!(all < repaired as u32 * Duration::from_secs(1), "{all:?}");
    });
}

#[test]
fn a_table_of_its_name_that_is_not_ours_is_left_alone() {
    on_edge(async |edge| {
        let listeners = Listeners::open(Steering::Tproxy);
        let agent = Agent::start();
        edge.run("nft add table inet anyport_return");
        agent.apply(wants(&listeners, false)).await;
        let refused = agent.handle.apply(wants(&listeners, true)).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("was not made by Anyport"), "{refused}");
        assert!(edge.run("nft list tables").contains("anyport_return"));
        edge.run("nft delete table inet anyport_return");
        agent.without_fault().await;
        assert!(shown(&edge).contains("meta mark set"));
    });
}
