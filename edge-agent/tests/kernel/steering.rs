//! What is steered, where to, and what is not.

use anyport_edge_agent::kernel::{Kernel, Steering, Undone, undo};

use crate::support::{Agent, Answer, Listeners, claim, on_edge, steered, under_both};

under_both![
    a_claimed_port_reaches_the_listener_with_its_destination,
    what_is_not_claimed_is_refused_at_once,
    clients_on_the_edge_host_itself_are_served_too,
    prefixes_and_claims_may_nest,
    a_second_wish_for_the_same_changes_nothing,
    ten_thousand_claims_are_applied_in_one_go,
];

fn a_claimed_port_reaches_the_listener_with_its_destination(steering: Steering) {
    on_edge(async |edge| {
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let claims = [
            claim("198.51.100.0/25", "5000-6000"),
            claim("2001:db8:51::/64", "443"),
        ];
        let prefixes = ["198.51.100.0/24", "2001:db8:51::/48"];
        agent.apply(listeners.wants(&prefixes, &claims)).await;

        for to in [
            "198.51.100.0:5000",
            "198.51.100.127:6000",
            "[2001:db8:51::]:443",
            "[2001:db8:51::ffff:ffff:ffff:ffff]:443",
        ] {
            assert_eq!(edge.dial(to).await, steered(to));
        }
    });
}

fn what_is_not_claimed_is_refused_at_once(steering: Steering) {
    on_edge(async |edge| {
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let claims = [
            claim("198.51.100.0/25", "5000-6000"),
            claim("2001:db8:51::/64", "443"),
        ];
        let prefixes = ["198.51.100.0/24", "2001:db8:51::/48"];
        agent.apply(listeners.wants(&prefixes, &claims)).await;

        for to in [
            "198.51.100.5:4999",
            "198.51.100.5:6001",
            "198.51.100.128:5000",
            "[2001:db8:51::1]:444",
            "[2001:db8:51:1::1]:443",
        ] {
            assert_eq!(edge.dial(to).await, Answer::Refused, "{to}");
        }
    });
}

fn clients_on_the_edge_host_itself_are_served_too(steering: Steering) {
    on_edge(async |edge| {
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let claims = [
            claim("198.51.100.0/24", "*"),
            claim("2001:db8:51::/48", "*"),
        ];
        let prefixes = ["198.51.100.0/24", "2001:db8:51::/48"];
        agent.apply(listeners.wants(&prefixes, &claims)).await;

        for to in ["198.51.100.7:25565", "[2001:db8:51::7]:25565"] {
            assert_eq!(edge.dial_from_itself(to).await, steered(to));
            assert!(edge.source_of_itself(to).await.is_loopback(), "{to}");
        }
    });
}

fn prefixes_and_claims_may_nest(steering: Steering) {
    on_edge(async |edge| {
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let claims = [
            claim("198.51.100.0/24", "50-60"),
            claim("198.51.100.10/32", "1-49"),
            claim("198.51.100.10/32", "61-100"),
        ];
        let prefixes = ["198.51.100.0/24", "198.51.100.8/29", "198.51.100.10/32"];
        agent.apply(listeners.wants(&prefixes, &claims)).await;
        for to in ["198.51.100.10:1", "198.51.100.10:55", "198.51.100.10:100"] {
            assert_eq!(edge.dial(to).await, steered(to));
        }
        assert_eq!(edge.dial("198.51.100.9:100").await, Answer::Refused);

        // The outer one goes, the inner ones stay.
        let inner = ["198.51.100.8/29", "198.51.100.10/32"];
        let applied = agent.apply(listeners.wants(&inner, &claims)).await;
        assert_eq!((applied.routes_added, applied.routes_removed), (0, 1));
        assert_eq!(
            edge.dial("198.51.100.10:55").await,
            steered("198.51.100.10:55")
        );
    });
}

fn a_second_wish_for_the_same_changes_nothing(steering: Steering) {
    on_edge(async |_edge| {
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let claims = [
            claim("198.51.100.0/24", "*"),
            claim("198.51.100.0/24", "*"),
            claim("2001:db8:51::/48", "7-9"),
        ];
        let wish = listeners.wants(&["198.51.100.1/24", "2001:db8:51::/48"], &claims);
        let first = agent.apply(wish.clone()).await;
        assert_eq!((first.routes_added, first.elements_added), (2, 2));
        assert_ne!(first.table_created, first.program_attached);
        assert_eq!(agent.apply(wish).await, Default::default());
    });
}

fn ten_thousand_claims_are_applied_in_one_go(steering: Steering) {
    on_edge(async |edge| {
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let claims: Vec<_> = (0..10_000u32)
            .map(|n| {
                let prefix = ["198.51.100", "203.0.113"][(n >> 8) as usize % 2];
                let net = format!("{prefix}.{}/32", n & 255);
                let first = 1 + 20 * (n >> 9);
                claim(&net, &format!("{first}-{}", first + 9))
            })
            .chain((0..2_000).map(|n| claim(&format!("2001:db8:51::{n:x}/128"), "80-90")))
            .collect();
        let mut wish = listeners.wants(&["198.51.100.0/24", "2001:db8:51::/48"], &claims);
        let applied = agent.apply(wish.clone()).await;
        assert_eq!(applied.elements_added, 12_000);

        // One fewer is one change, not ten thousand.
        wish.claims.pop();
        let applied = agent.apply(wish).await;
        assert_eq!((applied.elements_added, applied.elements_removed), (0, 1));

        let to = "198.51.100.255:30";
        assert_eq!(edge.dial(to).await, steered(to));
        assert_eq!(edge.dial("198.51.100.255:31").await, Answer::Refused);
    });
}

#[test]
fn undo_leaves_nothing_behind() {
    on_edge(async |edge| {
        let before = edge.foreign_state();
        assert_eq!(edge.run("nft list ruleset"), "");
        let listeners = Listeners::open(Steering::Tproxy);
        let agent = Agent::start();
        let claims = [claim("198.51.100.0/24", "*")];
        let prefixes = ["198.51.100.0/24", "198.51.100.64/26", "2001:db8:51::/48"];
        agent.apply(listeners.wants(&prefixes, &claims)).await;
        agent.kill().await;
        assert_eq!(
            edge.run("ip route show table local proto 65")
                .lines()
                .count(),
            2
        );
        assert!(
            edge.run("nft list ruleset")
                .contains("198.51.100.0/24 . 1-65535")
        );

        let everything = Undone {
            routes: 3,
            table: true,
            program: false,
            return_path: 0,
        };
        assert_eq!(undo().await.unwrap(), everything);
        assert_eq!(undo().await.unwrap(), Undone::default());
        before.assert_same(&edge.foreign_state());
        assert_eq!(edge.run("nft list ruleset"), "");
        assert_eq!(edge.run("ip route show table all proto 65"), "");
        assert_eq!(edge.run("ip -6 route show table all proto 65"), "");
    });
}

#[test]
fn claims_that_overlap_are_refused_as_a_whole() {
    on_edge(async |edge| {
        let listeners = Listeners::open(Steering::Tproxy);
        let agent = Agent::start();
        let good = [claim("198.51.100.0/25", "80")];
        agent
            .apply(listeners.wants(&["198.51.100.0/24"], &good))
            .await;
        let before = edge.run("nft list ruleset");

        let overlapping = [
            claim("198.51.100.0/24", "1-100"),
            claim("198.51.100.7/32", "50-200"),
        ];
        let wish = listeners.wants(&["198.51.100.0/24"], &overlapping);
        let error = agent.handle.apply(wish).await.unwrap_err().to_string();
        assert!(error.contains("two of the claims overlap"), "{error}");
        assert_eq!(agent.handle.fault().as_deref(), Some(&*error));
        assert_eq!(edge.run("nft list ruleset"), before);

        agent
            .apply(listeners.wants(&["198.51.100.0/24"], &good))
            .await;
        assert_eq!(agent.handle.fault(), None);
    });
}
