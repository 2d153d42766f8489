//! A fleet of simulated edges on two replicas: what a change costs, and what a restart does not.
//! How long things take is measured by `make swarm`. Needs root.

#![allow(clippy::unwrap_used)]

use anyport_lab::cluster::{PATIENCE, Replica, Service, eventually};
use anyport_lab::swarm::{Fleet, Stage, app, apps};
use anyport_model::names::Revision;
use anyport_proto::v1;

const EDGES: usize = 150;
const APPS: usize = 500;

const REPLICAS: [Service; 2] = [
    Service::ConfigService(Replica::First),
    Service::ConfigService(Replica::Second),
];

/// A fleet that has come with nothing and has everything.
fn fleet() -> (Stage, Fleet, Revision) {
    let stage = Stage::start().unwrap();
    let (revision, _) = stage.apply(apps(APPS));
    let fleet = stage.fleet(EDGES, None).unwrap();
    fleet.reaches(revision);
    (stage, fleet, revision)
}

fn sum(stage: &Stage, name: &str, labels: &[(&str, &str)]) -> f64 {
    let of = |replica| stage.cluster.metrics(replica).unwrap().sum(name, labels);
    REPLICAS.map(of).iter().sum()
}

/// What a replica shows of the whole fleet is what the fleet has.
fn all_are_listed_at(stage: &Stage, revision: Revision) {
    eventually(PATIENCE, "every edge is listed at the revision", || {
        let listed = stage.listed();
        let at = |node: &&v1::NodeStatus| node.applied_revision == revision.0;
        let there = listed.iter().filter(at).count();
        (there == EDGES && listed.len() == EDGES)
            .then_some(())
            .ok_or_else(|| format!("{there} of {}", listed.len()))
    });
}

fn all_witnesses_hold_what_is_declared(stage: &Stage, fleet: &Fleet) {
    let declared = stage.declared();
    assert_eq!(declared.len(), APPS + 1);
    let witnessed = fleet.witnessed();
    assert_eq!(witnessed.len(), EDGES.div_ceil(100));
    assert!(witnessed.iter().all(|held| *held == declared));
    assert_eq!(fleet.book.contradictions(), Vec::<String>::new());
}

#[test]
fn a_change_reaches_every_edge_in_few_bytes() {
    let (stage, fleet, first) = fleet();
    let bytes = || sum(&stage, "anyport_config_update_bytes_total", &[]);
    let whole = || sum(&stage, "anyport_config_updates_total", &[("full", "true")]);
    assert_eq!(whole(), EDGES as f64);
    const CHANGES: u16 = 10;
    let before = bytes();
    let mut last = first;
    for change in 0..CHANGES {
        let number = usize::from(change) * 37;
        (last, _) = stage.apply(vec![app(number, 8000 + change)]);
        fleet.reaches(last);
    }
    assert_eq!(last.0, first.0 + u64::from(CHANGES));
    let for_an_edge = (bytes() - before) / (EDGES as f64 * f64::from(CHANGES));
    assert!(for_an_edge < 400.0, "{for_an_edge} bytes");
    assert_eq!(whole(), EDGES as f64, "no whole state was sent again");
    all_witnesses_hold_what_is_declared(&stage, &fleet);
    all_are_listed_at(&stage, last);
    // Nobody is left behind, and nobody is told of a change twice.
    let times = fleet.book.take_times();
    assert_eq!(times.len(), EDGES * usize::from(CHANGES));
}

/// Written at full speed: who is slow gets the latest, and all end there.
#[test]
fn a_burst_of_changes_ends_with_the_last() {
    let (stage, fleet, first) = fleet();
    const CHANGES: u16 = 50;
    let mut last = first;
    for change in 0..CHANGES {
        (last, _) = stage.apply(vec![app(7, 8000 + change)]);
    }
    fleet.reaches(last);
    all_witnesses_hold_what_is_declared(&stage, &fleet);
    all_are_listed_at(&stage, last);
}

/// Edges go on from where they stand: after a restart of the control plane no state is sent again.
#[test]
fn after_both_replicas_died_the_fleet_is_in_step_without_a_whole_state() {
    let (mut stage, fleet, _) = fleet();
    for replica in REPLICAS {
        stage.cluster.kill9(replica).unwrap();
    }
    eventually(PATIENCE, "every edge notices", || {
        match fleet.book.count(|edge| edge.connected) {
            0 => Ok(()),
            some => Err(some),
        }
    });
    for replica in REPLICAS {
        stage.cluster.restart(replica).unwrap();
    }
    let (last, _) = stage.apply(vec![app(3, 9000)]);
    fleet.reaches(last);
    all_are_listed_at(&stage, last);
    all_witnesses_hold_what_is_declared(&stage, &fleet);
    assert_eq!(
        sum(&stage, "anyport_config_updates_total", &[("full", "true")]),
        0.0
    );
}

/// The other replica has them, and nobody else notices.
#[test]
fn the_edges_of_a_replica_that_died_go_to_the_other_one() {
    let (mut stage, fleet, _) = fleet();
    let second = Service::ConfigService(Replica::Second);
    stage.cluster.kill9(second).unwrap();
    let (last, _) = stage.apply(vec![app(5, 9000)]);
    fleet.reaches(last);
    let here = stage
        .cluster
        .metrics(Service::ConfigService(Replica::First))
        .unwrap();
    let here = here.value("anyport_config_nodes", &[("role", "edge")]);
    assert_eq!(here, Some(EDGES as f64));
    // What the dead one said of them is out of date for as long as its lease.
    eventually(2 * PATIENCE, "only one tells of them", || {
        let listed = stage.listed();
        let stale = listed.iter().filter(|node| node.applied_revision != last.0);
        match stale.count() {
            0 => Ok(()),
            some => Err(some),
        }
    });
    all_witnesses_hold_what_is_declared(&stage, &fleet);
}
