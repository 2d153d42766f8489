//! What changes does not disturb what stays.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyport_edge_agent::kernel::Steering;
use anyport_netns::Namespace;

use crate::support::{
    Agent, Answer, Listeners, claim, dial_blocking, on_edge, steered, under_both,
};

under_both![
    claims_that_stay_are_steered_while_others_come_and_go,
    claims_that_change_their_shape_are_steered_throughout,
    a_restart_on_another_port_loses_no_connection,
    a_host_that_loses_its_ipv6_listener_no_longer_answers_for_ipv6,
];

type Outcome = Result<(), Answer>;

/// Clients that connect without a pause, and what the first unlucky one met.
pub(crate) struct Hammer {
    stop: Arc<AtomicBool>,
    dialled: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<anyport_netns::Result<Outcome>>>,
}

impl Hammer {
    pub(crate) fn start(client: &Namespace, targets: &[&str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let dialled = Arc::new(AtomicU64::new(0));
        let dialler = |target: &&str| {
            let to: SocketAddr = target.parse().unwrap();
            let (stop, dialled) = (Arc::clone(&stop), Arc::clone(&dialled));
            client
                .spawn_thread(move || {
                    // Once at least, however soon it is stopped.
                    loop {
                        match dial_blocking(to) {
                            Answer::Steered(seen) if seen == to => {
                                dialled.fetch_add(1, Ordering::Relaxed)
                            }
                            other => return Err(other),
                        };
                        if stop.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                    }
                })
                .unwrap()
        };
        let threads = targets.iter().map(dialler).collect();
        Self {
            stop,
            dialled,
            threads,
        }
    }

    /// Whether fewer connections than this were tried, all of which were steered so far.
    pub(crate) fn has_tried_less_than(&self, count: u64) -> bool {
        let all_go_on = self.threads.iter().all(|thread| !thread.is_finished());
        all_go_on && self.dialled.load(Ordering::Relaxed) < count
    }

    /// Panics if any connection was not steered, and gives how many were.
    pub(crate) async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let join = move || {
            let threads = self.threads.into_iter();
            let outcomes: Vec<Outcome> = threads.map(|t| t.join().unwrap().unwrap()).collect();
            outcomes.into_iter().for_each(Result::unwrap);
            self.dialled.load(Ordering::Relaxed)
        };
        tokio::task::spawn_blocking(join).await.unwrap()
    }
}

pub(crate) const PREFIXES: [&str; 2] = ["198.51.100.0/24", "2001:db8:51::/48"];
pub(crate) const STAYS: [&str; 2] = ["198.51.100.7:80", "[2001:db8:51::7]:80"];

fn claims_that_stay_are_steered_while_others_come_and_go(steering: Steering) {
    on_edge(async |edge| {
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let stays = [
            claim("198.51.100.7/32", "80"),
            claim("2001:db8:51::7/128", "80"),
        ];
        agent.apply(listeners.wants(&PREFIXES, &stays)).await;
        let hammer = Hammer::start(&edge.client(), &STAYS);
        let mut round = 0;
        while round < 100 || hammer.has_tried_less_than(100) {
            let mut claims = stays.to_vec();
            for n in 0..200 {
                let port = (1000 + round % 1000 * 7 + n).to_string();
                claims.push(claim(&format!("198.51.100.{n}/32"), &port));
                claims.push(claim(&format!("2001:db8:51::{n:x}:0/112"), &port));
            }
            agent.apply(listeners.wants(&PREFIXES, &claims)).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            round += 1;
        }
        let dialled = hammer.stop().await;
        assert!(dialled >= 100, "only {dialled} connections were tried");
    });
}

/// The addresses and ports stay claimed, but by rectangles of another shape:
/// an app around them comes and goes.
fn claims_that_change_their_shape_are_steered_throughout(steering: Steering) {
    on_edge(async |edge| {
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let alone = [
            claim("198.51.100.7/32", "1-100"),
            claim("2001:db8:51::7/128", "1-100"),
        ];
        let within = [
            claim("198.51.100.0/24", "50-90"),
            claim("198.51.100.7/32", "1-49"),
            claim("198.51.100.7/32", "91-100"),
            claim("2001:db8:51::/64", "50-90"),
            claim("2001:db8:51::7/128", "1-49"),
            claim("2001:db8:51::7/128", "91-100"),
        ];
        agent.apply(listeners.wants(&PREFIXES, &alone)).await;
        let hammer = Hammer::start(&edge.client(), &STAYS);
        let mut round = 0;
        while round < 200 || hammer.has_tried_less_than(100) {
            let claims = if round % 2 == 0 {
                &within[..]
            } else {
                &alone[..]
            };
            agent.apply(listeners.wants(&PREFIXES, claims)).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            round += 1;
        }
        let dialled = hammer.stop().await;
        assert!(dialled >= 100, "only {dialled} connections were tried");
    });
}

fn a_restart_on_another_port_loses_no_connection(steering: Steering) {
    on_edge(async |edge| {
        let claims = [
            claim("198.51.100.0/24", "*"),
            claim("2001:db8:51::/48", "*"),
        ];
        let first = Listeners::open(steering);
        let agent = Agent::start();
        agent.apply(first.wants(&PREFIXES, &claims)).await;
        let hammer = Hammer::start(&edge.client(), &STAYS);
        agent.kill().await;

        let second = Listeners::open(steering);
        assert_ne!(first.v4, second.v4);
        let agent = Agent::start();
        let applied = agent.apply(second.wants(&PREFIXES, &claims)).await;
        // One for each transport and family, or as many as listen.
        let renewed = match steering {
            Steering::Tproxy => (applied.rules_written, 4),
            Steering::SkLookup => (applied.sockets_put, 2),
        };
        assert_eq!(renewed.0, renewed.1);
        assert_eq!((applied.elements_added, applied.routes_added), (0, 0));
        let dialled = hammer.stop().await;
        assert!(dialled > 0);

        first.close().await;
        for to in STAYS {
            assert_eq!(edge.dial(to).await, steered(to));
        }
        assert!(agent.repairs().is_empty());
    });
}

fn a_host_that_loses_its_ipv6_listener_no_longer_answers_for_ipv6(steering: Steering) {
    on_edge(async |edge| {
        let claims = [
            claim("198.51.100.0/24", "*"),
            claim("2001:db8:51::/48", "*"),
        ];
        let listeners = Listeners::open(steering);
        let agent = Agent::start();
        let mut wish = listeners.wants(&PREFIXES, &claims);
        agent.apply(wish.clone()).await;
        wish.listeners.v6 = None;
        let applied = agent.apply(wish).await;
        assert_eq!(applied.conflicts.len(), 1, "{applied:?}");
        assert_eq!(edge.dial(STAYS[0]).await, steered(STAYS[0]));
        let left = edge.run("ip -6 route show table local proto 65");
        assert_eq!(left, "");
    });
}
