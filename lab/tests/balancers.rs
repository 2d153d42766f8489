//! Several balancers that share the probing of origins, each in a namespace of its own: what edges
//! are told, and do, while some of them are killed, paused or cut off. Needs root.
//!
//! Each origin is probed at one port and serves clients at another, so that a test says what is
//! healthy and sees by itself who is sent clients, and who is probed when.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Replica, Service, Store, eventually};
use anyport_lab::load::serve::Server;
use anyport_lab::network::nft;
use anyport_lab::weights::{Said, Watch};
use anyport_netns::topology::EDGE_LINK;
use anyport_netns::{Namespace, link};
use nix::sys::signal::Signal;

const TARGET: &str = "198.51.100.10:443";
const SERVED: u16 = 7000;
const PROBED: u16 = 7001;
const NAMES: [&str; 2] = ["a", "b"];
/// How long a balancer that is away takes part all the same.
const LEASE: Duration = Duration::from_secs(15);
/// Until one that is silent is noticed to be away (15 s), and is removed.
const REMOVED: Duration = LEASE.saturating_mul(2).saturating_add(PATIENCE);
const BALANCERS: usize = 3;

/// Three balancers, three edges that begin with one of them each, and a pool of two origins.
struct Fleet {
    // Before the cluster, which waits for nobody.
    watches: Vec<Watch>,
    probed: [Option<Server>; 2],
    served: [Server; 2],
    cluster: Cluster,
}

fn edges() -> [Service; 3] {
    [
        Service::EdgeAgent,
        Service::EdgeApart(0),
        Service::EdgeApart(1),
    ]
}

fn target() -> SocketAddr {
    TARGET.parse().unwrap()
}

const MANIFEST: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
monitors:
  - { name: quick, type: tcp, port: 7001, interval: 200ms, timeout: 5s, consecutive_up: 1, consecutive_down: 1 }
pools:
  - name: game
    monitor: quick
    origins:
      - { name: a, address: "10.0.2.2:7000" }
      - { name: b, address: "10.0.2.3:7000" }
apps:
  - { name: stream, protocol: tcp/443, edge_ips: [198.51.100.10], origin_pool: game }
"#;

impl Fleet {
    fn start() -> Self {
        Self::start_with(Plan::on(Store::Etcd))
    }

    fn start_with(plan: Plan) -> Self {
        let cluster = Cluster::start(Plan {
            origins: NAMES.len(),
            balancers: BALANCERS,
            more_edges: edges().len() - 1,
            ..plan.clone()
        });
        let cluster = cluster.unwrap();
        let at = |port| [0, 1].map(|origin| cluster.echo(origin, NAMES[origin], [port]).unwrap());
        let (served, probed) = (at(SERVED), at(PROBED).map(Some));
        eventually(PATIENCE, "all edges are known", || {
            let there = cluster.anyport(&["get", "edges"]).unwrap();
            let named = edges().iter().all(|edge| there.out.contains(&edge.name()));
            named.then_some(()).ok_or(there)
        });
        await_members(&cluster, BALANCERS);
        cluster.apply(MANIFEST).unwrap();
        let mut fleet = Self {
            watches: Vec::new(),
            probed,
            served,
            cluster,
        };
        if !plan.tls {
            fleet.watch();
        }
        // Each begins with another balancer, now that all of them can be followed.
        for edge in edges() {
            fleet.cluster.kill9(edge).unwrap();
            fleet.cluster.restart(edge).unwrap();
        }
        fleet.eventually_answer(&NAMES);
        fleet
    }

    /// The balancer that an edge followed last, by its number.
    fn followed(&self, edge: Service) -> Option<usize> {
        let log = self.cluster.log(edge);
        let followed = log
            .lines()
            .rev()
            .filter(|line| line.contains("following the balancer"));
        let line = followed.take(1).next()?;
        (0..BALANCERS).find(|number| {
            let name = Service::BalancerApart(*number).name();
            line.contains(&format!("\"balancer\":\"{name}\""))
        })
    }

    /// From now on everything is written down that the balancers tell; and all of them have been
    /// told who takes part.
    fn watch(&mut self) {
        let edge = self.cluster.topology().edge();
        self.watches = (0..BALANCERS)
            .map(|number| {
                let at = Service::BalancerApart(number).listen();
                Watch::start(edge, "watcher", format!("http://{at}"))
            })
            .collect();
        let latest = epoch(&self.cluster);
        for watch in &self.watches {
            eventually(PATIENCE, "each balancer goes by the latest set", || {
                let said = watch.latest();
                let is_latest = said.as_ref().is_some_and(|said| said.epoch == latest);
                is_latest.then_some(()).ok_or(format!("{said:?}"))
            });
        }
    }

    /// Waits until all balancers, or all but those of these numbers, tell this weight of an origin.
    fn eventually_tell(&self, origin: &str, weight: f64, but: &[usize]) {
        for (number, watch) in self.watches.iter().enumerate() {
            if but.contains(&number) {
                continue;
            }
            let what = format!("{number} tells that {origin} has {weight}");
            eventually(PATIENCE, &what, || {
                let latest = watch.latest();
                let told = latest.as_ref().and_then(|said| said.of(origin));
                (told == Some(weight))
                    .then_some(())
                    .ok_or(format!("{latest:?}"))
            });
        }
    }

    /// What the balancers told since then, each with its number.
    fn told_since(&self, since: Instant) -> Vec<(usize, Said)> {
        let all = self.watches.iter().enumerate();
        let said =
            all.flat_map(|(number, watch)| watch.said().into_iter().map(move |s| (number, s)));
        said.filter(|(_, said)| said.at >= since).collect()
    }

    fn balancer(&self, number: usize) -> &Namespace {
        self.cluster.namespace(Service::BalancerApart(number))
    }

    fn signal(&self, numbers: &[usize], signal: Signal) {
        for number in numbers {
            let balancer = Service::BalancerApart(*number);
            self.cluster.signal(balancer, signal).unwrap();
        }
    }

    /// It fails its probes; clients that come are served all the same.
    fn fail(&mut self, origin: usize) {
        self.probed[origin] = None;
    }

    fn heal(&mut self, origin: usize) {
        let server = self.cluster.echo(origin, NAMES[origin], [PROBED]).unwrap();
        self.probed[origin] = Some(server);
    }

    /// Who answers clients of an edge.
    fn answers(&self, edge: Service) -> BTreeSet<String> {
        let client = self.cluster.client_of(edge);
        let who = |_| self.cluster.who_from(client, target()).unwrap();
        // Of two that have the same share, one is left out once in 2^39.
        (0..40).map(|n| who(n).tag.to_string()).collect()
    }

    fn eventually_answer(&self, wanted: &[&str]) {
        let wanted: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
        for edge in edges() {
            eventually(PATIENCE, &format!("{wanted:?} answer at {edge}"), || {
                let seen = self.answers(edge);
                (seen == wanted).then_some(()).ok_or(format!("{seen:?}"))
            });
        }
    }
}

fn count(cluster: &Cluster, name: &str) -> Option<f64> {
    let service = Service::ConfigService(Replica::First);
    cluster.metrics(service).unwrap().value(name, &[])
}

fn await_members(cluster: &Cluster, wanted: usize) {
    eventually(REMOVED, &format!("{wanted} take part"), || {
        let members = count(cluster, "anyport_config_balancers");
        (members == Some(wanted as f64))
            .then_some(())
            .ok_or(format!("{members:?}"))
    });
}

fn epoch(cluster: &Cluster) -> u64 {
    count(cluster, "anyport_config_balancers_epoch").unwrap() as u64
}

/// What leaves there to this, as nftables has it, is lost.
fn lose(namespace: &Namespace, what: &str) {
    let hook = "type filter hook output priority 0;";
    let rule = format!("add rule ip cut out {what} counter drop");
    nft(
        namespace,
        &format!("add table ip cut; add chain ip cut out {{ {hook} }}; {rule}"),
    );
}

fn mend(namespace: &Namespace) {
    nft(namespace, "delete table ip cut");
}

/// How many packets were lost there.
fn lost(namespace: &Namespace) -> u64 {
    let mut command = namespace.command("nft");
    let listed = command
        .args(["list", "table", "ip", "cut"])
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let (_, count) = listed.split_once("packets ").unwrap();
    count.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn where_one_is_killed_edges_go_on_with_right_weights() {
    let mut fleet = Fleet::start();
    fleet.cluster.kill9(Service::BalancerApart(0)).unwrap();
    fleet.fail(1);
    fleet.eventually_answer(&["a"]);
    fleet.heal(1);
    fleet.eventually_answer(&NAMES);
    // Once more, when it is none of them any more.
    await_members(&fleet.cluster, 2);
    fleet.fail(0);
    fleet.eventually_answer(&["b"]);
    fleet.heal(0);
    fleet.eventually_answer(&NAMES);
    fleet.cluster.restart(Service::BalancerApart(0)).unwrap();
    await_members(&fleet.cluster, 3);
    fleet.eventually_answer(&NAMES);
}

/// As a virtual machine that is moved: it goes on with what was true before, and edges have
/// nobody else to turn to.
#[test]
fn what_one_knew_before_it_was_paused_reaches_no_edge() {
    let mut fleet = Fleet::start();
    // Slow to find out, so that there is time to tell what is not so any more.
    let slow = MANIFEST.replace("interval: 200ms", "interval: 1s");
    let slow = slow.replace("consecutive_down: 1", "consecutive_down: 3");
    fleet.cluster.apply(&slow).unwrap();
    let before = epoch(&fleet.cluster);
    fleet.signal(&[0, 1], Signal::SIGSTOP);
    await_members(&fleet.cluster, 1);
    let alone = epoch(&fleet.cluster);
    assert!(alone > before);
    fleet.fail(1);
    fleet.eventually_answer(&["a"]);

    let sent = fleet.served[1].accepted();
    let resumed = Instant::now();
    fleet.signal(&[0, 1], Signal::SIGCONT);
    fleet.cluster.kill9(Service::BalancerApart(2)).unwrap();
    eventually(REMOVED, "the two tell weights of their own set", || {
        for edge in edges() {
            assert_eq!(fleet.answers(edge), ["a".to_owned()].into(), "{edge}");
        }
        let latest = [0, 1].map(|number| fleet.watches[number].latest().unwrap());
        let members = count(&fleet.cluster, "anyport_config_balancers");
        let later = latest.iter().all(|said| said.epoch > alone);
        (later && members == Some(2.0))
            .then_some(())
            .ok_or(format!("{members:?} {latest:?}"))
    });
    assert_eq!(fleet.served[1].accepted(), sent, "none came to b");
    for (number, said) in fleet.told_since(resumed) {
        let stale = said.epoch >= alone && said.of("game/b") != Some(0.0);
        assert!(
            !stale,
            "{number} told {said:?}, {before} and {alone} were before"
        );
    }
    fleet.heal(1);
    fleet.eventually_answer(&NAMES);
}

#[test]
fn one_that_was_paused_takes_part_again_and_its_edges_had_others() {
    let mut fleet = Fleet::start();
    fleet.fail(1);
    fleet.eventually_answer(&["a"]);
    let its = fleet.followed(Service::EdgeAgent).unwrap();
    fleet.signal(&[its], Signal::SIGSTOP);
    // An origin's state changes meanwhile, and stays so to every edge.
    fleet.heal(1);
    fleet.eventually_answer(&NAMES);
    await_members(&fleet.cluster, 2);
    eventually(PATIENCE, "its edge leaves it", || {
        let followed = fleet.followed(Service::EdgeAgent);
        (followed != Some(its)).then_some(()).ok_or("it does not")
    });
    fleet.signal(&[its], Signal::SIGCONT);
    let both: BTreeSet<String> = NAMES.map(str::to_owned).into();
    let resumed = Instant::now();
    while resumed.elapsed() < Duration::from_secs(5) {
        for edge in edges() {
            assert_eq!(fleet.answers(edge), both, "{edge}");
        }
    }
    await_members(&fleet.cluster, 3);
}

/// One balancer cannot reach any origin, by what `cut` does there; `noticed` says when it had the
/// time to hold it against them.
fn where_one_cannot_reach_origins(
    cut: impl Fn(&Namespace),
    noticed: impl Fn(&Fleet) -> bool,
    mend: impl Fn(&Namespace),
) {
    let mut fleet = Fleet::start();
    for origin in ["game/a", "game/b"] {
        fleet.eventually_tell(origin, 1.0, &[]);
    }
    let since = Instant::now();
    cut(fleet.balancer(0));
    eventually(PATIENCE, "it notices", || {
        noticed(&fleet).then_some(()).ok_or("not yet")
    });
    fleet.eventually_answer(&NAMES);
    for (number, said) in fleet.told_since(since) {
        let weights = ["game/a", "game/b"].map(|origin| said.of(origin));
        assert_eq!(weights, [Some(1.0); 2], "{number} told {said:?}");
    }
    // What the others find out, it tells, too.
    fleet.fail(1);
    fleet.eventually_tell("game/b", 0.0, &[]);
    fleet.eventually_answer(&["a"]);
    fleet.heal(1);
    fleet.eventually_tell("game/b", 1.0, &[]);
    fleet.eventually_answer(&NAMES);
    let mended = Instant::now();
    mend(fleet.balancer(0));
    let isolated = "anyport_balancer_isolated";
    eventually(PATIENCE, "it sees its network", || {
        let metrics = fleet.cluster.metrics(Service::BalancerApart(0)).unwrap();
        let isolated = metrics.value(isolated, &[]);
        (isolated == Some(0.0)).then_some(()).ok_or("it does not")
    });
    for (number, said) in fleet.told_since(mended) {
        assert_eq!(said.of("game/a"), Some(1.0), "{number} told {said:?}");
    }
}

#[test]
fn one_whose_link_to_the_origins_is_down_takes_none_from_anybody() {
    where_one_cannot_reach_origins(
        |namespace| link::down(namespace, EDGE_LINK).unwrap(),
        |fleet| {
            let metrics = fleet.cluster.metrics(Service::BalancerApart(0)).unwrap();
            metrics.value("anyport_balancer_isolated", &[]) == Some(1.0)
        },
        |namespace| link::up(namespace, EDGE_LINK).unwrap(),
    );
}

#[test]
fn one_whose_packets_to_the_origins_are_lost_takes_none_from_anybody() {
    where_one_cannot_reach_origins(
        |namespace| lose(namespace, &format!("oifname {EDGE_LINK}")),
        // Five probes of each.
        |fleet| lost(fleet.balancer(0)) >= 10,
        mend,
    );
}

#[test]
fn one_that_is_cut_off_from_the_config_service_is_left_by_its_edges() {
    let mut fleet = Fleet::start();
    let its = fleet.followed(Service::EdgeAgent).unwrap();
    lose(fleet.balancer(its), "tcp dport { 7400, 7402 }");
    // While it takes part all the same.
    fleet.fail(1);
    fleet.eventually_answer(&["a"]);
    fleet.eventually_tell("game/b", 0.0, &[]);
    await_members(&fleet.cluster, 2);
    let without = epoch(&fleet.cluster);
    eventually(PATIENCE, "its edge leaves it", || {
        match fleet.followed(Service::EdgeAgent) {
            Some(followed) if followed == its => Err("it does not"),
            _ => Ok(()),
        }
    });
    fleet.heal(1);
    fleet.eventually_answer(&NAMES);
    fleet.eventually_tell("game/b", 1.0, &[its]);
    let own = fleet.watches[its].latest().unwrap();
    assert!(own.epoch < without, "{own:?}, {without}");
    mend(fleet.balancer(its));
    await_members(&fleet.cluster, 3);
    eventually(PATIENCE, "it tells weights again", || {
        let latest = fleet.watches[its].latest().unwrap();
        let again = latest.epoch > without && latest.of("game/b") == Some(1.0);
        again.then_some(()).ok_or(format!("{latest:?}"))
    });
}

/// Of four balancers three probe an origin.
#[test]
fn no_origin_is_unprobed_for_longer_than_a_lease_where_all_who_probe_it_die() {
    const ORIGINS: u16 = 12;
    const FIRST: u16 = 7101;
    const INTERVAL: Duration = Duration::from_millis(200);
    let mut cluster = Cluster::start(Plan {
        balancers: 4,
        ..Plan::on(Store::Etcd)
    })
    .unwrap();
    let ports = || FIRST..FIRST + ORIGINS;
    let servers: Vec<Server> = ports()
        .map(|port| cluster.echo(0, "a", [port]).unwrap())
        .collect();
    await_members(&cluster, 4);
    let origins: String = ports()
        .map(|port| format!("      - {{ name: o{port}, address: \"10.0.2.2:{port}\" }}\n"))
        .collect();
    let declared = MANIFEST.replace(" port: 7001,", "");
    let (head, rest) = declared.split_once("    origins:\n").unwrap();
    let (_, apps) = rest.split_once("apps:").unwrap();
    cluster
        .apply(&format!("{head}    origins:\n{origins}apps:{apps}"))
        .unwrap();
    let counts = || servers.iter().map(Server::accepted).collect::<Vec<_>>();
    eventually(PATIENCE, "all are probed", || {
        let counts = counts();
        counts
            .iter()
            .all(|count| *count > 3)
            .then_some(())
            .ok_or(format!("{counts:?}"))
    });

    for number in 0..3 {
        cluster.kill9(Service::BalancerApart(number)).unwrap();
    }
    let killed = Instant::now();
    let mut seen = counts();
    let mut last = vec![killed; servers.len()];
    let mut longest = vec![Duration::ZERO; servers.len()];
    // Until the last one had time for all of them.
    while killed.elapsed() < LEASE + Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(20));
        for (index, count) in counts().into_iter().enumerate() {
            let unprobed = last[index].elapsed();
            longest[index] = longest[index].max(unprobed);
            if count != seen[index] {
                (seen[index], last[index]) = (count, Instant::now());
            }
        }
    }
    let worst = longest.iter().max().unwrap();
    // The one that is left hears none of them, and does not wait for the set to change.
    assert!(*worst < LEASE, "{longest:?}");
    assert!(
        *worst > 5 * INTERVAL,
        "nobody died of three who probe one: {longest:?}"
    );
    await_members(&cluster, 1);
}

#[test]
fn in_tls_balancers_tell_each_other_what_they_see() {
    let fleet = Fleet::start_with(Plan {
        tls: true,
        ..Plan::on(Store::Etcd)
    });
    let name = |number| Service::BalancerApart(number).name();
    for number in 0..BALANCERS {
        let others = (0..BALANCERS).filter(|other| *other != number).map(name);
        for other in others {
            let of = Service::BalancerApart(number);
            eventually(PATIENCE, &format!("{of} hears {other}"), || {
                let log = fleet.cluster.log(of);
                let said = format!("\"says what it sees\",\"balancer\":\"{other}\"");
                log.contains(&said).then_some(()).ok_or(log)
            });
        }
    }
}
