//! What the agent does to its host: nothing beyond what is its own, and that for good. `nft` and
//! `ip` are the oracle. Needs root.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::time::{Duration, Instant};

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Service, Steering, Store, eventually};
use anyport_lab::load::connect::{self, Close, Request};
use anyport_lab::load::{Control, Failure, Load, pingpong};
use anyport_netns::{Namespace, Topology, counters};

anyport_lab::on_both_stores![
    no_connection_is_ever_tracked,
    what_others_own_is_the_same_before_during_and_after,
    what_is_deleted_by_hand_is_back_within_a_second_and_counted_while_traffic_flows,
    a_port_that_nobody_claims_is_refused_by_the_kernel_alone
];

const MANIFEST: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 2001:db8:51::/64
apps:
  - name: app
    protocol: tcp/8000-8999
    edge_ips: [198.51.100.0/24, "2001:db8:51::/64"]
    origin_direct: ["tcp://10.0.2.2:7000"]
"#;

/// The routing protocol number of the agent's own routes.
const OWN_ROUTES: &str = "proto 65";

fn plan(store: Store) -> Plan {
    Plan::on(store)
}

fn output(namespace: &Namespace, program: &str, arguments: &str) -> String {
    let mut command = namespace.command(program);
    command.args(arguments.split_whitespace());
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn load(target: &str, at_once: usize, control: &Control) -> Load {
    Load {
        connections: NonZeroUsize::new(at_once).unwrap(),
        duration: Duration::from_secs(60),
        control: control.clone(),
        ..Load::on(target.parse::<SocketAddr>().unwrap())
    }
}

/// Short connections, one after the other, each with a question and its answer.
fn short(target: &str, at_once: usize, control: &Control) -> connect::Plan {
    connect::Plan {
        load: load(target, at_once, control),
        request: Request::Echo(NonZeroU64::new(64).unwrap()),
        close: Close::Reset,
    }
}

/// Conversations that never end by themselves.
fn long(target: &str, at_once: usize, control: &Control) -> pingpong::Plan {
    pingpong::Plan {
        load: load(target, at_once, control),
        bytes: NonZeroU64::new(64).unwrap(),
        pause: Duration::from_millis(20),
    }
}

fn passes(control: &Control, more: u64) {
    let from = control.operations();
    eventually(PATIENCE, "the load goes on", || {
        let done = control.operations() - from;
        (done >= more)
            .then_some(())
            .ok_or(format!("{done} of {more}"))
    });
}

fn no_connection_is_ever_tracked(store: Store) {
    let cluster = Cluster::start(plan(store)).unwrap();
    let _origin = cluster.echo(0, "origin", [7000]).unwrap();
    cluster.apply(MANIFEST).unwrap();
    let edge = cluster.topology().edge();
    // `None` is a kernel that tracks nothing at all.
    let tracked = || counters::conntrack_entries(edge).unwrap().unwrap_or(0);
    let control = Control::default();
    for target in ["198.51.100.10:8000", "[2001:db8:51::10]:8000"] {
        let plan = long(target, 8, &control);
        let client = cluster.topology().client();
        let run = client.spawn_thread(move || pingpong::run(&plan)).unwrap();
        let until = control.operations() + 500;
        while control.operations() < until {
            assert_eq!(tracked(), 0);
            passes(&control, 50);
        }
        drop(run);
    }
    control.stop();
    assert_eq!((control.failures(), tracked()), (0, 0));
}

/// What is in the kernel and not the agent's.
fn foreign(edge: &Namespace) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    for table in output(edge, "nft", "list tables").lines() {
        if table != "table inet anyport" {
            let rules = output(edge, "nft", &format!("-a list {table}"));
            state.insert(table.to_owned(), rules);
        }
    }
    for family in ["-4", "-6"] {
        let routes = output(edge, "ip", &format!("-d {family} route show table all"));
        let routes = routes.lines().filter(|line| !line.contains(OWN_ROUTES));
        let routes: Vec<_> = routes.collect();
        state.insert(format!("routes {family}"), routes.join("\n"));
        let rules = output(edge, "ip", &format!("-d {family} rule"));
        state.insert(format!("rules {family}"), rules);
    }
    state
}

fn what_others_own_is_the_same_before_during_and_after(store: Store) {
    let topology = Topology::new(1).unwrap();
    let edge = topology.edge().clone();
    for statement in [
        "add table inet anyport_neighbour",
        "add set inet anyport_neighbour blocked { type ipv4_addr; flags interval; }",
        "add element inet anyport_neighbour blocked { 203.0.113.0/25 }",
        "add chain inet anyport_neighbour first { type filter hook prerouting priority -150; }",
        "add rule inet anyport_neighbour first ip saddr @blocked drop",
        "add rule inet anyport_neighbour first meta mark set meta mark or 0x100",
        "add table ip nothing",
    ] {
        output(&edge, "nft", statement);
    }
    for statement in [
        "route add local 203.0.113.0/24 dev lo",
        "route add 192.168.77.0/24 via 10.0.2.2",
        "route add blackhole 198.51.100.0/25 table 77",
        "rule add fwmark 0x200/0x200 lookup 77 priority 1000",
        "-6 route add local 2001:db8:51:1::/64 dev lo",
        "-6 rule add from fd00:7::/64 lookup 77 priority 1000",
    ] {
        output(&edge, "ip", statement);
    }
    let before = foreign(&edge);
    let mut cluster = Cluster::start_in(topology, plan(store)).unwrap();
    let _origin = cluster.echo(0, "origin", [7000]).unwrap();
    assert_eq!(foreign(&edge), before, "an agent without apps");
    cluster.apply(MANIFEST).unwrap();
    cluster.who("198.51.100.10:8000".parse().unwrap()).unwrap();
    assert_eq!(foreign(&edge), before, "while it steers");
    let fewer = "prefixes: [ { cidr: 198.51.100.0/28 } ]";
    let said = cluster
        .try_apply(fewer, &["--prune", "--allow-mass-deletion", "--wait=60s"])
        .unwrap();
    assert_eq!(said.status, Some(0), "{said}");
    assert_eq!(foreign(&edge), before, "after its apps are gone");
    let own = output(&edge, "ip", "-4 route show table all");
    let own: Vec<_> = own
        .lines()
        .filter(|line| line.contains(OWN_ROUTES))
        .collect();
    assert_eq!(own.len(), 1, "its own routes: {own:?}");
    assert!(own[0].contains("198.51.100.0/28"), "{own:?}");
    let ended = cluster.terminate(Service::EdgeAgent, PATIENCE).unwrap();
    assert_eq!((ended, foreign(&edge)), (Some(0), before), "after its end");
}

/// The agent's pins or table, and routes, as text, without what changes with each writing of them.
/// The pin of a program is named by what it steers.
fn own(cluster: &Cluster) -> Result<String, String> {
    let edge = cluster.topology().edge();
    let pins = std::fs::read_dir(cluster.pins().unwrap());
    let pins = pins.into_iter().flatten().flatten();
    let pins: BTreeSet<_> = pins.map(|pin| pin.file_name()).collect();
    let table = edge
        .command("nft")
        .args(["list", "table", "inet", "anyport"])
        .output()
        .unwrap();
    let mut text = format!("{pins:?}\n") + &String::from_utf8_lossy(&table.stdout);
    for family in ["-4", "-6"] {
        let routes = output(edge, "ip", &format!("{family} route show table all"));
        for route in routes.lines().filter(|line| line.contains(OWN_ROUTES)) {
            text += &format!("{}\n", route.trim_end());
        }
    }
    Ok(text)
}

fn what_is_deleted_by_hand_is_back_within_a_second_and_counted_while_traffic_flows(store: Store) {
    const HELD: usize = 10;
    const AT_ONCE: u64 = 2;
    let cluster = Cluster::start(plan(store)).unwrap();
    let _origin = cluster.echo(0, "origin", [7000]).unwrap();
    cluster.apply(MANIFEST).unwrap();
    let edge = cluster.topology().edge();
    let client = cluster.topology().client();
    let whole = own(&cluster).unwrap();
    let pins = cluster.pins().unwrap();
    let is_pinned = plan(store).steering == Steering::SkLookup;
    assert_eq!(pins.exists(), is_pinned);
    let on_host = Path::new("/sys/fs/bpf/anyport").join(pins.file_name().unwrap());
    assert!(!on_host.exists(), "{on_host:?} is not the cluster's own");
    let pins = pins.display().to_string();
    let (sign, mut deeds) = match plan(store).steering {
        Steering::Tproxy => (
            "tproxy ip to",
            vec![
                ("table", "nft", "delete table inet anyport".to_owned()),
                ("table", "nft", "flush ruleset".to_owned()),
            ],
        ),
        Steering::SkLookup => (
            "claims-",
            vec![
                ("pin", "rm", format!("{pins}/link")),
                ("pin", "rm", format!("-r {pins}")),
            ],
        ),
    };
    for route in ["198.51.100.0/24", "2001:db8:51::/64"] {
        let family = if route.contains(':') { "-6" } else { "-4" };
        let deed = format!("{family} route del local {route} dev lo table local");
        deeds.push(("route", "ip", deed));
    }
    assert!(
        whole.contains(sign) && whole.contains("198.51.100.0/24"),
        "{whole}"
    );

    let (held, new) = (Control::default(), Control::default());
    let conversations = long("198.51.100.10:8000", HELD, &held);
    let conversations = client
        .spawn_thread(move || pingpong::run(&conversations))
        .unwrap();
    let connections = short(
        "198.51.100.10:8001",
        usize::try_from(AT_ONCE).unwrap(),
        &new,
    );
    let connections = client
        .spawn_thread(move || connect::run(&connections))
        .unwrap();
    passes(&held, 100);
    passes(&new, 100);
    assert_eq!((held.failures(), new.failures()), (0, 0));

    let mut took = Duration::ZERO;
    for (what, program, deed) in &deeds {
        let repairs = || {
            let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
            metrics.value("anyport_kernel_drift_repaired_total", &[("what", *what)])
        };
        let before = repairs().unwrap();
        output(edge, program, deed);
        let deleted = Instant::now();
        eventually(PATIENCE, deed, || {
            let now = own(&cluster)?;
            (now == whole).then_some(()).ok_or(now)
        });
        took += deleted.elapsed();
        eventually(PATIENCE, "the repair is counted", || {
            let counted = repairs();
            (counted == Some(before + 1.0))
                .then_some(())
                .ok_or(format!("{counted:?}"))
        });
        // Those that were begun before the repair may still fail.
        passes(&new, 4 * AT_ONCE);
        let failed = new.failures();
        passes(&new, 200);
        assert_eq!(
            new.failures(),
            failed,
            "{deed}: connections fail after the repair"
        );
        passes(&held, 50);
    }
    // Within a second each; where the machine stands still in one of them, the others make up for it.
    // The pass that looks at everything would take 2.5 s on average.
    let most = Duration::from_secs(1) * deeds.len() as u32;
    assert!(took < most, "repaired after {took:?} in all");
    held.stop();
    new.stop();
    let held = conversations.join().unwrap().unwrap().unwrap();
    assert_eq!((held.failed(), held.opened()), (0, HELD as u64), "{held}");
    let new = connections.join().unwrap().unwrap().unwrap();
    // With the table away the address is still local, and the kernel answers by a reset.
    let refused: Vec<_> = new.failures().keys().collect();
    assert!(
        refused.iter().all(|kind| **kind == Failure::Refused),
        "{new}"
    );
}

/// TCP counters of a namespace, by name.
fn tcp_counters(namespace: &Namespace) -> BTreeMap<String, u64> {
    let read = || std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let text = namespace.run(read).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let values = values.split(' ').map(|value| value.parse().unwrap_or(0));
    names.split(' ').map(str::to_owned).zip(values).collect()
}

fn a_port_that_nobody_claims_is_refused_by_the_kernel_alone(store: Store) {
    let cluster = Cluster::start(plan(store)).unwrap();
    let _origin = cluster.echo(0, "origin", [7000]).unwrap();
    cluster.apply(MANIFEST).unwrap();
    let edge = cluster.topology().edge();
    let accepts = || {
        let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
        let opened = metrics.sum("anyport_connections_opened_total", &[]);
        opened + metrics.sum("anyport_connections_unclaimed_total", &[])
    };
    let client = cluster.topology().client();
    let again = || tcp_counters(client)["RetransSegs"];
    let before = (accepts(), tcp_counters(edge), again());
    let ports = (1..=40).map(|n| n * 100).chain([7999, 9000, 65535]);
    let addresses = ["198.51.100.10", "198.51.100.255", "2001:db8:51::10"];
    let mut dials = 0;
    for port in ports {
        for address in addresses {
            let target = SocketAddr::new(address.parse().unwrap(), port);
            let error = format!("{:?}", cluster.dial(target).unwrap_err());
            assert!(error.contains("refused"), "{target}: {error}");
            dials += 1;
        }
    }
    let after = tcp_counters(edge);
    assert_eq!(again(), before.2, "a SYN that is dropped comes again");
    let grown = |name: &str| after[name] - before.1[name];
    // Of what is opened from here to here, between the processes, both ends are counted.
    let own_only = grown("PassiveOpens") <= grown("ActiveOpens");
    assert!(own_only, "somebody took a connection");
    assert!(grown("OutRsts") >= dials, "{} of {dials}", grown("OutRsts"));
    assert_eq!(accepts(), before.0);
    cluster.who("198.51.100.10:8000".parse().unwrap()).unwrap();
    assert_eq!(accepts(), before.0 + 1.0);
}
