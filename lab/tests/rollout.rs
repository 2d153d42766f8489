//! A change that some edges try before all others get it: a real agent tries it, with real
//! connections, and a simulated edge is all others. Needs root.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Store, eventually};
use anyport_lab::swarm::Fleet;
use anyport_model::names::Revision;

anyport_lab::on_both_stores![
    a_change_that_makes_an_origin_unreachable_is_taken_back_by_itself,
    a_change_that_goes_well_is_for_all,
];

const PLACE: &str = "198.51.100.10:8080";

fn place() -> SocketAddr {
    PLACE.parse().unwrap()
}

fn manifest(origin_port: u16) -> String {
    format!(
        "
prefixes: [{{ cidr: 198.51.100.0/24 }}]
apps:
  - name: web
    protocol: tcp/8080
    edge_ips: [198.51.100.10]
    origin_direct: [\"tcp://10.0.2.2:{origin_port}\"]
"
    )
}

/// One revision, at the agent and at another edge.
fn start(store: Store) -> (Cluster, Fleet) {
    let cluster = Cluster::start(Plan::on(store)).unwrap();
    cluster.apply(&manifest(7000)).unwrap();
    let urls: Vec<String> = cluster.replicas().iter().map(|r| r.url()).collect();
    let other = Fleet::start(cluster.topology().edge(), &urls, 1, None).unwrap();
    other.reaches(Revision(1));
    (cluster, other)
}

/// Connections, one after the other, for as long as `work` takes.
fn under_load<T>(cluster: &Cluster, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // Some are to fail.
                let _ = cluster.who(place());
            }
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        worked
    })
}

fn a_change_that_makes_an_origin_unreachable_is_taken_back_by_itself(store: Store) {
    let (cluster, other) = start(store);
    let _origin = cluster.echo(0, "a", [7000]).unwrap();
    assert_eq!(cluster.who(place()).unwrap().tag.as_str().to_owned(), "a");
    // Nobody listens there.
    let said = under_load(&cluster, || {
        let arguments = ["--canary=edge1", "--promote-after=20s", "--wait=60s"];
        cluster.try_apply(&manifest(7999), &arguments).unwrap()
    });
    assert_eq!(said.status, Some(1), "{said}");
    let wanted = "revision 2 is taken back: edge edge1, app web: ";
    assert!(said.err.contains(wanted), "{said}");
    assert!(
        said.err
            .contains("connections failed, most with status 521"),
        "{said}"
    );
    assert!(said.err.contains("revision 3 is as 1 was"), "{said}");
    assert!(said.out.contains("edge1: applied 2"), "{said}");
    // All is as it was, and the other edge has seen nothing of it.
    eventually(PATIENCE, "connections reach the origin again", || {
        cluster.who(place()).map(drop)
    });
    other.reaches(Revision(3));
    let taken = other.book.standings()[0];
    assert_eq!((taken.updates, taken.whole), (2, 1), "revisions 1 and 3");
    let history = cluster.anyport(&["history"]).unwrap();
    assert!(
        history.out.contains("back to 1: revision 2 is taken back"),
        "{history}"
    );
    assert!(history.out.contains("tried by edge1"), "{history}");
}

fn a_change_that_goes_well_is_for_all(store: Store) {
    let (cluster, other) = start(store);
    let _origins =
        [("a", 7000), ("b", 7001)].map(|(tag, port)| cluster.echo(0, tag, [port]).unwrap());
    let said = under_load(&cluster, || {
        let arguments = ["--canary=edge1", "--promote-after=never", "--wait=60s"];
        cluster.try_apply(&manifest(7001), &arguments).unwrap()
    });
    assert_eq!(said.status, Some(0), "{said}");
    assert!(
        said.out.contains("all others get it by `anyport promote`"),
        "{said}"
    );
    assert_eq!(cluster.who(place()).unwrap().tag.as_str().to_owned(), "b");
    let status = cluster.anyport(&["status"]).unwrap();
    assert!(
        status.out.contains("revision 2 is tried by edge1"),
        "{status}"
    );
    // Another change has to wait.
    let refused = cluster.try_apply(&manifest(7000), &[]).unwrap();
    assert_eq!(refused.status, Some(1), "{refused}");
    let wanted = "revision 2 is being tried by edge1: promote it, or roll back to 1";
    assert!(refused.err.contains(wanted), "{refused}");

    let promoted = cluster.anyport(&["promote", "--wait"]).unwrap();
    assert_eq!(promoted.status, Some(0), "{promoted}");
    other.reaches(Revision(3));
    assert_eq!(cluster.who(place()).unwrap().tag.as_str().to_owned(), "b");

    // By itself, after a second.
    let said = under_load(&cluster, || {
        let arguments = ["--canary=edge1", "--promote-after=1s", "--wait=60s"];
        cluster.try_apply(&manifest(7000), &arguments).unwrap()
    });
    assert_eq!(said.status, Some(0), "{said}");
    assert!(
        said.out
            .contains("promoted as revision 5: went well on edge1 for"),
        "{said}"
    );
    other.reaches(Revision(5));
    assert_eq!(other.book.contradictions(), Vec::<String>::new());
}
