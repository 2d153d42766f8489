#![allow(clippy::unwrap_used)]

use super::{pool::InOrder, *};
use crate::{origin::Failed, stats::Stats};
use anyport_model::{
    dns::{Answer, DnsOrigin, Question, RecordType, Service},
    names::PoolName,
    pick::{Draw, Load},
    ports::PortRange,
    positions::Positions,
    resource::{DirectOrigin, Origin, OriginChoice, Policy, Pool, Prefix, Resource, Weight},
    state::Resources,
    weights::{Factors, OriginHealth, OriginWeight, PoolWeights},
};

fn pool(name: &str, fallback: Option<&str>, origins: &[&str]) -> Resource {
    Resource::Pool(Arc::new(Pool {
        name: name.parse().unwrap(),
        monitor: None,
        policy: Policy::Weighted,
        minimum_origins: 1,
        fallback: fallback.map(|name| name.parse().unwrap()),
        origins: origins
            .iter()
            .enumerate()
            .map(|(index, address)| Origin {
                name: format!("o{index}").parse().unwrap(),
                address: address.parse().unwrap(),
                weight: Weight::ONE,
                enabled: true,
            })
            .collect(),
    }))
}

fn app(name: &str, ports: &str, origin: OriginChoice) -> Resource {
    Resource::App(Arc::new(App::new(
        name.parse().unwrap(),
        ports.parse().unwrap(),
        vec!["198.51.100.0/24".parse().unwrap()],
        origin,
    )))
}

fn to_pool(name: &str) -> OriginChoice {
    OriginChoice::Pool {
        pool: name.parse().unwrap(),
        port: None,
    }
}

fn resources(list: impl IntoIterator<Item = Resource>) -> Resources {
    list.into_iter().map(|r| (r.reference(), r)).collect()
}

fn writer() -> TableWriter {
    let registry = prometheus::Registry::new();
    TableWriter::new(Arc::new(Stats::new(&registry).unwrap()))
}

fn publish(writer: &mut TableWriter, list: impl IntoIterator<Item = Resource>) -> Seen {
    let prefix = Prefix::new("198.51.100.0/24".parse().unwrap()).unwrap();
    let list = list.into_iter().chain([Resource::Prefix(prefix)]);
    let prepared = writer.prepare(Revision(1), &resources(list));
    let seen = Seen {
        rejected: prepared.rejections.len(),
        claims: prepared.kernel.claims.len(),
    };
    writer.publish(prepared);
    seen
}

struct Seen {
    rejected: usize,
    claims: usize,
}

/// The pool and the address that a connection would go to first.
fn way(writer: &TableWriter, destination: &str) -> Option<(String, SocketAddr)> {
    let snapshot = writer.reader().load_full();
    let destination: SocketAddr = destination.parse().unwrap();
    let target = snapshot.target(Transport::Tcp, destination)?;
    let draw = Draw {
        turn: 0,
        random: 0,
        client: [203, 0, 113, 7].into(),
    };
    let index = target
        .pool
        .wheel
        .choose(draw, |_| Load::default(), &Positions::NONE);
    let index = index.unwrap_or(0);
    let address = target.address(index, destination.port())?;
    Some((target.pool.id.label().to_owned(), address))
}

fn weights(name: &str, state: PoolState, weights: &[f64]) -> (PoolName, PoolWeights) {
    let origins = weights
        .iter()
        .enumerate()
        .map(|(index, weight)| OriginWeight {
            name: format!("o{index}").parse().unwrap(),
            health: OriginHealth::Up,
            weight: Weight::new(*weight).unwrap(),
            factors: Factors::NONE,
        });
    let origins = origins.collect();
    let weights = PoolWeights {
        state,
        panic: false,
        origins,
    };
    (name.parse().unwrap(), weights)
}

#[test]
fn a_range_goes_to_the_origin_by_offset() {
    let mut writer = writer();
    let edge: PortRange = "1000-2000".parse().unwrap();
    let port = PortMap::new(edge, "3000-4000".parse().unwrap()).unwrap();
    let ip = "10.0.2.2".parse().unwrap();
    let direct = OriginChoice::Direct(vec![DirectOrigin { ip, port }]);
    publish(&mut writer, [app("ranged", "1000-2000", direct)]);
    let (_, address) = way(&writer, "198.51.100.9:1005").unwrap();
    assert_eq!(address, "10.0.2.2:3005".parse().unwrap());
    assert_eq!(way(&writer, "198.51.100.9:2001"), None);
}

fn named(record: RecordType, port: Option<u16>) -> (Question, OriginChoice) {
    let question = Question {
        name: "game.internal".parse().unwrap(),
        record,
        ttl: None,
    };
    let dns = DnsOrigin::new(question.clone(), port.map(PortMap::Fixed)).unwrap();
    (question, OriginChoice::Dns(dns))
}

/// What a connection to the app would find: addresses, and how many of them
/// are of the first choice.
fn places(writer: &TableWriter) -> (Vec<String>, usize) {
    let snapshot = writer.reader().load_full();
    let target = snapshot.target(Transport::Tcp, "198.51.100.9:7".parse().unwrap());
    let target = target.unwrap();
    let all = 0..target.pool.origins.len();
    let all = all.map(|index| target.address(index, 7).unwrap().to_string());
    (
        all.collect(),
        target.pool.wheel.candidates_left(&Positions::NONE),
    )
}

#[test]
fn what_a_name_stands_for_comes_into_the_table_and_outlives_a_new_one() {
    let mut writer = writer();
    let (question, origin) = named(RecordType::A, Some(7000));
    let list = || {
        [
            app("named", "*", origin.clone()),
            pool("other", None, &["10.0.2.9:1"]),
            app("beside", "80", to_pool("other")),
        ]
    };
    publish(&mut writer, list());
    assert_eq!(**writer.questions().borrow(), [question.clone()].into());
    assert_eq!(places(&writer), (Vec::new(), 0));
    let answer = |hosts: &[u8]| {
        let ips = hosts.iter().map(|&host| [10, 0, 2, host].into());
        Ok(Answer::of_addresses(ips).unwrap())
    };
    writer.resolved(&question, answer(&[2, 3]));
    let two = || vec!["10.0.2.2:7000".to_owned(), "10.0.2.3:7000".to_owned()];
    assert_eq!(places(&writer), (two(), 2));
    let failed = Failed {
        status: anyport_model::outcome::Status::Unresolvable,
        reason: "no".into(),
    };
    let before = writer.reader().load_full();
    writer.resolved(&question, Err(failed));
    writer.resolved(&question, answer(&[3, 2]));
    let after = writer.reader().load_full();
    assert!(Arc::ptr_eq(&before, &after), "nothing has changed");
    publish(&mut writer, list());
    assert_eq!(places(&writer), (two(), 2));
    writer.resolved(&question, answer(&[4]));
    assert_eq!(places(&writer), (vec!["10.0.2.4:7000".to_owned()], 1));
    publish(&mut writer, []);
    assert!(writer.questions().borrow().is_empty());
}

#[test]
fn services_of_a_later_priority_are_no_first_choice() {
    let mut writer = writer();
    let (question, origin) = named(RecordType::Srv, None);
    publish(&mut writer, [app("named", "*", origin)]);
    let service = |priority, port, host| Service {
        priority,
        weight: 1,
        port,
        addresses: vec![[10, 0, 2, host].into()],
    };
    let services = [service(20, 9, 4), service(10, 7, 2), service(10, 8, 3)];
    writer.resolved(&question, Ok(Answer::of_services(services).unwrap()));
    let all = ["10.0.2.2:7", "10.0.2.3:8", "10.0.2.4:9"].map(str::to_owned);
    assert_eq!(places(&writer), (all.into(), 2));
}

#[test]
fn entries_that_nothing_changes_stay_the_same() {
    let mut writer = writer();
    let list = || {
        [
            pool("one", None, &["10.0.2.2:1"]),
            pool("two", None, &["10.0.2.3:1"]),
            app("a", "1", to_pool("one")),
            app("b", "2", to_pool("two")),
        ]
    };
    publish(&mut writer, list());
    let first = writer.reader().load_full();
    publish(&mut writer, list());
    let up = || weights("one", PoolState::Healthy, &[0.5]);
    writer.weigh([up()]);
    let second = writer.reader().load_full();
    writer.weigh([up()]);
    let third = writer.reader().load_full();
    let same = |one: &Snapshot, other: &Snapshot| {
        let pairs = one.pools.iter().zip(&other.pools);
        pairs.map(|(a, b)| Arc::ptr_eq(a, b)).collect::<Vec<_>>()
    };
    assert_eq!(same(&first, &second), [false, true]);
    assert_eq!(same(&second, &third), [true, true]);
}

#[test]
fn weights_move_connections_and_outlive_a_new_table() {
    let mut writer = writer();
    let list = || {
        [
            pool("game", None, &["10.0.2.2:1", "10.0.2.3:1"]),
            app("a", "*", to_pool("game")),
        ]
    };
    publish(&mut writer, list());
    assert_eq!(
        way(&writer, "198.51.100.9:7").unwrap().1,
        "10.0.2.2:1".parse().unwrap()
    );
    writer.weigh([weights("game", PoolState::Degraded, &[0.0, 1.0])]);
    assert_eq!(
        way(&writer, "198.51.100.9:7").unwrap().1,
        "10.0.2.3:1".parse().unwrap()
    );
    publish(&mut writer, list());
    assert_eq!(
        way(&writer, "198.51.100.9:7").unwrap().1,
        "10.0.2.3:1".parse().unwrap()
    );
}

#[test]
fn weights_are_found_by_name_whatever_the_order() {
    let all = ["a", "b", "c", "d"];
    let mut known = InOrder::new(&all, |name| name);
    for wanted in ["a", "b", "x", "d", "a", "c", "c", "y", "b"] {
        let found = known.find(&wanted).copied();
        assert_eq!(found, all.contains(&wanted).then_some(wanted));
    }
}

#[test]
fn a_pool_that_is_down_gives_way_to_its_fallback_and_comes_back() {
    let mut writer = writer();
    publish(
        &mut writer,
        [
            pool("first", Some("second"), &["10.0.2.2:1"]),
            pool("second", None, &["10.0.2.3:1"]),
            app("a", "*", to_pool("first")),
        ],
    );
    let used = |writer: &TableWriter| way(writer, "198.51.100.9:7").unwrap().0;
    assert_eq!(used(&writer), "first");
    writer.weigh([weights("first", PoolState::Down, &[0.0])]);
    assert_eq!(used(&writer), "second");
    writer.weigh([weights("second", PoolState::Down, &[0.0])]);
    assert_eq!(
        used(&writer),
        "first",
        "all down: the app's own pool is tried"
    );
    writer.weigh([weights("first", PoolState::Healthy, &[1.0])]);
    assert_eq!(used(&writer), "first");
}

#[test]
fn pools_stand_in_for_one_that_fails_in_their_order_and_those_that_are_down_last() {
    let mut writer = writer();
    let one = |name, next| pool(name, next, &["10.0.2.2:1"]);
    let chain = [
        one("a", Some("b")),
        one("b", Some("c")),
        one("c", Some("d")),
        one("d", None),
    ];
    publish(
        &mut writer,
        chain.into_iter().chain([app("x", "*", to_pool("a"))]),
    );
    let order = |writer: &TableWriter| {
        let snapshot = writer.reader().load_full();
        let target = snapshot.target(Transport::Tcp, "198.51.100.9:7".parse().unwrap());
        let pools = target.unwrap().pools().map(|pool| pool.id.label());
        pools.collect::<Vec<_>>().concat()
    };
    assert_eq!(order(&writer), "abcd");
    let state = |name, state| weights(name, state, &[1.0]);
    writer.weigh([state("a", PoolState::Down), state("c", PoolState::Down)]);
    assert_eq!(order(&writer), "bdac");
    writer.weigh([state("b", PoolState::Down), state("d", PoolState::Down)]);
    assert_eq!(order(&writer), "abcd");
}

#[test]
fn who_holds_an_older_table_finds_an_app_as_it_is_declared_now() {
    let mut writer = writer();
    let pool = || pool("game", None, &["10.0.2.2:1"]);
    publish(&mut writer, [pool(), app("a", "1", to_pool("game"))]);
    let older = writer.reader().load_full();
    let entry = older.apps.first().unwrap();
    publish(&mut writer, [pool(), app("a", "2", to_pool("game"))]);
    let newer = writer.reader().load_full();
    let declared = newer.declared(entry).unwrap();
    assert_eq!(declared.ports, "2".parse().unwrap());
    publish(&mut writer, [pool()]);
    let newer = writer.reader().load_full();
    assert!(newer.declared(entry).is_none());
}

#[test]
fn an_app_without_its_pool_is_rejected_alone_and_served_as_before() {
    let mut writer = writer();
    let good = || app("good", "1", to_pool("game"));
    let game = || pool("game", None, &["10.0.2.2:1"]);
    publish(
        &mut writer,
        [game(), good(), app("moved", "2", to_pool("game"))],
    );
    let seen = publish(
        &mut writer,
        [
            game(),
            good(),
            app("moved", "2", to_pool("absent")),
            app("new", "3", to_pool("absent")),
        ],
    );
    assert_eq!(
        (seen.rejected, seen.claims),
        (2, 1),
        "1 and 2 are one claim"
    );
    assert!(way(&writer, "198.51.100.9:1").is_some());
    assert!(way(&writer, "198.51.100.9:2").is_some());
    assert!(way(&writer, "198.51.100.9:3").is_none());
}

#[test]
fn an_app_that_moved_to_an_unreadable_pool_outlives_its_old_one() {
    let mut writer = writer();
    let moved = |pool| app("moved", "2", to_pool(pool));
    let old = [
        pool("old", Some("spare"), &["10.0.2.2:1"]),
        pool("spare", None, &["10.0.2.3:1"]),
        moved("old"),
    ];
    publish(&mut writer, old.clone());
    for revision in [2, 3] {
        let list = resources([moved("unreadable")]);
        let prepared = writer.prepare(Revision(revision), &list);
        assert_eq!(prepared.rejections.len(), 1);
        assert_eq!(prepared.in_use, resources(old.clone()), "to be kept");
        writer.publish(prepared);
        let used = way(&writer, "198.51.100.9:2").unwrap();
        assert_eq!(used, ("old".to_owned(), "10.0.2.2:1".parse().unwrap()));
    }
    writer.weigh([weights("old", PoolState::Down, &[0.0])]);
    assert_eq!(way(&writer, "198.51.100.9:2").unwrap().0, "spare");

    // What was kept is enough to start from.
    let mut restarted = self::writer();
    let kept = resources(old);
    let prepared = restarted.prepare(Revision(3), &kept);
    restarted.publish(prepared);
    assert_eq!(way(&restarted, "198.51.100.9:2").unwrap().0, "old");
}

#[test]
fn an_app_that_was_never_served_is_not_kept() {
    let list = resources([app("new", "3", to_pool("absent"))]);
    let prepared = writer().prepare(Revision(1), &list);
    assert_eq!(prepared.in_use, Resources::new());
}
