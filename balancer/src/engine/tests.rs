#![allow(clippy::unwrap_used)]
use std::{io, time::SystemTime};

use anyport_model::{
    names::OriginName,
    resource::{Monitor, Weight},
    weights::{OriginHealth, PoolState},
};
use proptest::prelude::*;

use super::{settling::SETTLE_MAX, sharing::LOOK, *};
use crate::{
    health::DialReport,
    membership::fixtures::*,
    peers::{Heard, Set},
    probe::{failure::Failure, schedule},
};

const MILLI: Duration = Duration::from_millis(1);

/// An engine, its clock, and origins that pass unless told otherwise.
struct Scene {
    engine: Engine,
    now: Now,
    /// What probes of an origin fail with.
    failing: BTreeMap<OriginKey, i32>,
    /// When each probe began.
    started: Vec<(OriginKey, Instant)>,
}

impl Scene {
    fn new() -> Self {
        Self {
            engine: Engine::new(),
            now: Now {
                instant: Instant::now(),
                wall: SystemTime::UNIX_EPOCH,
            },
            failing: BTreeMap::new(),
            started: Vec::new(),
        }
    }

    fn configured(monitor: Monitor, pools: Vec<Pool>) -> Self {
        let mut scene = Scene::new();
        scene.configure(monitor, pools);
        scene
    }

    fn configure(&mut self, monitor: Monitor, pools: Vec<Pool>) {
        let revision = self.engine.revision().next();
        let members = Members::of(&resources([monitor], pools));
        self.engine.configure(self.now, revision, members);
    }

    fn table(&mut self) -> Table {
        self.engine.weigh(self.now);
        self.engine.table()
    }

    fn report(&mut self, edge: &str, reports: &[DialReport]) -> Vec<Turn> {
        let edge = edge.parse().unwrap();
        let turns = self.engine.reported(self.now, &edge, reports);
        self.engine.weigh(self.now);
        turns
    }

    fn outcome(&self, key: &OriginKey) -> Outcome {
        match self.failing.get(key) {
            Some(code) => Err(Failure::Connect(io::Error::from_raw_os_error(*code))),
            None => Ok(MILLI),
        }
    }

    /// Lets time pass. Probes take no time.
    fn pass(&mut self, time: Duration) -> Vec<Turn> {
        let end = self.now.instant + time;
        let mut turns = Vec::new();
        let next = |engine: &Engine| {
            let next = engine.next_probe().into_iter().chain(engine.next_step());
            next.min().filter(|next| *next <= end)
        };
        while let Some(next) = next(&self.engine) {
            self.step_to(next.max(self.now.instant));
            self.engine.step(self.now);
            while let Some(ticket) = self.engine.start_due(self.now) {
                self.started.push((ticket.key.clone(), self.now.instant));
                let outcome = self.outcome(&ticket.key);
                turns.extend(self.engine.finished(self.now, ticket, outcome, 0));
            }
            self.engine.weigh(self.now);
        }
        self.step_to(end);
        turns
    }

    fn step_to(&mut self, instant: Instant) {
        self.now.wall += instant - self.now.instant;
        self.now.instant = instant;
    }

    fn health(&mut self, key: &OriginKey) -> OriginHealth {
        let table = self.table();
        let weights = &table.pools[&key.pool];
        let origin = weights.origins.iter().find(|o| o.name == key.origin);
        origin.unwrap().health
    }
}

fn game() -> Pool {
    pool(
        "game",
        Some("quick"),
        &[("a", "10.0.2.2:7000"), ("b", "10.0.2.3:7000")],
    )
}

fn report(key: OriginKey, dials: u64, failures: u64) -> DialReport {
    DialReport {
        key,
        dials,
        failures,
        last_failure: "connect: timed out".to_owned(),
        open: 0,
        took: None,
    }
}

#[test]
fn a_dead_origin_is_down_after_its_threshold_and_back_after_the_other() {
    let mut scene = Scene::configured(monitor("quick", 3, 2), vec![game()]);
    scene.pass(INTERVAL);
    let a = key("game", "a");
    scene.failing.insert(a.clone(), libc::ECONNREFUSED);
    let died = scene.now.instant;
    assert_eq!(scene.pass(INTERVAL), []);
    let turns = scene.pass(INTERVAL);
    assert_eq!(turns[0].verdict, Verdict::Down);
    assert_eq!(turns[0].reason, "connect: connection refused");
    assert!(scene.now.instant - died <= 2 * INTERVAL);
    let table = scene.table();
    assert_eq!(table.pools[&a.pool].state, PoolState::Degraded);
    assert_eq!(table.pools[&a.pool].share(1), 1.0);

    scene.failing.clear();
    assert_eq!(scene.pass(2 * INTERVAL), []);
    assert_eq!(scene.pass(INTERVAL)[0].verdict, Verdict::Up);
}

#[test]
fn weights_wait_for_the_first_verdicts() {
    let mut scene = Scene::new();
    assert!(!scene.engine.settle(scene.now));
    scene.configure(monitor("quick", 2, 2), vec![game()]);
    scene.failing.insert(key("game", "b"), libc::ECONNREFUSED);
    scene.pass(100 * MILLI);
    assert!(
        !scene.engine.settle(scene.now),
        "b failed once and may be down"
    );
    // Not after an interval of 10 s: an unknown origin is probed sooner.
    scene.pass(Duration::from_secs(1));
    assert!(scene.engine.settle(scene.now));
    assert_eq!(scene.health(&key("game", "b")), OriginHealth::Down);
}

#[test]
fn weights_wait_for_as_long_as_a_silent_origin_takes_to_be_down() {
    let patient = Monitor {
        timeout: Duration::from_secs(5),
        retries: 1,
        ..monitor("quick", 1, 3)
    };
    let mut scene = Scene::configured(patient, vec![game()]);
    // 3 probes of 2 attempts of 5 s, and the second between two probes.
    scene.step_to(scene.now.instant + Duration::from_secs(33) - MILLI);
    assert!(!scene.engine.settle(scene.now));
    assert_eq!(scene.engine.settles_at(), Some(scene.now.instant + MILLI));
    scene.step_to(scene.now.instant + MILLI);
    assert!(scene.engine.settle(scene.now));
    assert_eq!(scene.engine.settles_at(), None);
}

#[test]
fn time_without_a_network_is_no_time_for_verdicts() {
    let mut scene = Scene::configured(monitor("quick", 2, 2), vec![game()]);
    let [a, b] = [key("game", "a"), key("game", "b")];
    for key in [&a, &b] {
        scene.failing.insert(key.clone(), libc::ENETUNREACH);
    }
    scene.pass(10 * SETTLE_MAX);
    assert!(scene.engine.isolated().is_some());
    assert!(!scene.engine.settle(scene.now));
    assert_eq!(scene.engine.settles_at(), None);
    scene.failing.remove(&a);
    scene.failing.insert(b.clone(), libc::ECONNREFUSED);
    while scene.engine.isolated().is_some() {
        scene.pass(MILLI);
    }
    assert!(!scene.engine.settle(scene.now), "it failed only once");
    scene.pass(Duration::from_secs(3));
    assert!(scene.engine.settle(scene.now));
    assert_eq!(scene.health(&b), OriginHealth::Down);
}

#[test]
fn weights_do_not_wait_for_ever() {
    let endless = Monitor {
        timeout: Duration::from_secs(60),
        ..monitor("quick", 2, 9)
    };
    let mut scene = Scene::configured(endless, vec![game()]);
    scene.step_to(scene.now.instant + SETTLE_MAX - MILLI);
    assert!(!scene.engine.settle(scene.now));
    assert_eq!(scene.engine.settles_at(), Some(scene.now.instant + MILLI));
    scene.step_to(scene.now.instant + MILLI);
    assert!(scene.engine.settle(scene.now));
    assert_eq!(scene.engine.settles_at(), None);
}

#[test]
fn an_origin_that_is_gone_again_is_not_waited_for() {
    let mut scene = Scene::configured(monitor("quick", 2, 2), vec![game()]);
    scene.configure(monitor("quick", 2, 2), vec![]);
    assert!(scene.engine.settle(scene.now));
    assert!(scene.table().pools.is_empty());
}

#[test]
fn a_pool_that_comes_later_is_published_at_once_and_probed_at_once() {
    let mut scene = Scene::configured(monitor("quick", 2, 2), vec![]);
    assert!(scene.engine.settle(scene.now));
    let version = scene.engine.weights_version();
    scene.configure(monitor("quick", 2, 2), vec![game()]);
    assert!(scene.engine.settle(scene.now));
    assert!(scene.engine.weights_version() > version);
    assert_eq!(scene.engine.next_probe(), Some(scene.now.instant));
}

#[test]
fn an_alarming_report_brings_the_probe_forward_and_the_probe_decides() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![game()]);
    scene.pass(Duration::from_secs(1));
    // One that has nothing to say of it; so the other is not all of the fleet.
    scene.report("edge-2", &[]);
    let a = key("game", "a");
    let count = |scene: &Scene| scene.started.iter().filter(|(key, _)| *key == a).count();
    assert_eq!(count(&scene), 1);
    scene.report("edge-1", &[report(a.clone(), 100, 1)]);
    scene.pass(MILLI);
    assert_eq!(count(&scene), 1, "one failure in a hundred is no alarm");
    scene.report("edge-1", &[report(a.clone(), 10, 10)]);
    let turns = scene.pass(MILLI);
    assert_eq!((count(&scene), turns), (2, vec![]), "the origin answers");
    scene.failing.insert(a.clone(), libc::ECONNREFUSED);
    for _ in 0..50 {
        scene.report("edge-1", &[report(a.clone(), 10, 10)]);
        scene.pass(MILLI);
    }
    assert_eq!(count(&scene), 2, "not more often than every half second");
    let turns = scene.pass(ASKED_GAP);
    assert_eq!((count(&scene), turns[0].verdict), (3, Verdict::Down));
}

#[test]
fn reports_of_unknown_origins_are_nothing() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![game()]);
    let stray = report(key("game", "no-such"), 10, 10);
    scene.report("edge-1", &[stray]);
    scene.pass(MILLI);
}

#[test]
fn a_balancer_that_lost_its_network_holds_its_verdicts() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![game()]);
    scene.pass(INTERVAL);
    for key in [key("game", "a"), key("game", "b")] {
        scene.failing.insert(key, libc::ENETUNREACH);
    }
    let version = scene.engine.weights_version();
    assert_eq!(scene.pass(10 * INTERVAL), []);
    assert_eq!(scene.engine.weights_version(), version);
    assert_eq!(
        scene.engine.isolated(),
        Some("connect: network is unreachable")
    );
    scene.failing.clear();
    assert_eq!(scene.pass(INTERVAL), []);
    assert_eq!(scene.engine.isolated(), None);
}

#[test]
fn no_way_to_one_of_two_is_believed_without_waiting_for_the_interval() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![game()]);
    scene.pass(INTERVAL);
    let a = key("game", "a");
    scene.failing.insert(a.clone(), libc::ENETUNREACH);
    let turns = scene.pass(INTERVAL);
    assert_eq!((&turns[0].key, turns[0].verdict), (&a, Verdict::Down));
}

#[test]
fn however_many_are_suspected_nobody_is_asked_all_the_time() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![many(100)]);
    scene.pass(INTERVAL);
    let (answer, suspected): (Vec<_>, Vec<_>) = (0..100)
        .map(|n| key("game", &format!("o{n}")))
        .partition(|key| key.origin.as_str().ends_with('9'));
    for key in &suspected {
        scene.failing.insert(key.clone(), libc::ENETUNREACH);
    }
    scene.started.clear();
    scene.pass(2 * INTERVAL);
    for key in &suspected {
        assert_eq!(scene.health(key), OriginHealth::Down);
    }
    let asked = answer.iter().map(|witness| {
        let of_it = scene.started.iter().filter(|(key, _)| key == witness);
        let of_it: Vec<_> = of_it.map(|(_, at)| *at).collect();
        let gaps = of_it.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(
            gaps.clone().all(|gap| gap >= ASKED_GAP),
            "{witness}: {of_it:?}"
        );
        of_it.len()
    });
    let asked: Vec<_> = asked.collect();
    let (least, most) = (asked.iter().min().unwrap(), asked.iter().max().unwrap());
    assert!(most - least <= 3, "{asked:?}");
}

#[test]
fn the_outcome_of_an_old_target_counts_for_nothing() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![game()]);
    let old = scene.engine.start_due(scene.now).unwrap();
    let moved = pool("game", Some("quick"), &[("a", "10.0.2.9:7000")]);
    scene.configure(monitor("quick", 1, 1), vec![moved]);
    let refused = Err(Failure::Connect(io::Error::from_raw_os_error(
        libc::ECONNREFUSED,
    )));
    assert_eq!(scene.engine.finished(scene.now, old, refused, 0), []);
    assert_eq!(scene.health(&key("game", "a")), OriginHealth::Unknown);
}

#[test]
fn a_shorter_interval_is_kept_from_now_on() {
    let mut scene = Scene::configured(
        Monitor {
            interval: Duration::from_secs(3600),
            ..monitor("quick", 1, 1)
        },
        vec![game()],
    );
    scene.pass(Duration::from_secs(60));
    scene.configure(monitor("quick", 1, 1), vec![game()]);
    let next = scene.engine.next_probe().unwrap();
    assert_eq!(next - scene.now.instant, INTERVAL);
}

#[test]
fn probes_of_an_origin_are_an_interval_apart_whatever_happens_to_others() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![game()]);
    scene.failing.insert(key("game", "b"), libc::ECONNREFUSED);
    scene.pass(10 * INTERVAL);
    for origin in ["a", "b"] {
        let of_one: Vec<Instant> = scene
            .started
            .iter()
            .filter(|(started, _)| *started == key("game", origin))
            .map(|(_, at)| *at)
            .collect();
        assert!(of_one.len() > 9);
        for pair in of_one.windows(2) {
            assert_eq!(pair[1] - pair[0], schedule::pause(INTERVAL, 0));
        }
    }
}

fn three() -> Pool {
    let origins = [
        ("a", "10.0.2.2:7000"),
        ("b", "10.0.2.3:7000"),
        ("c", "10.0.2.4:7000"),
    ];
    pool("game", Some("quick"), &origins)
}

impl Scene {
    fn weights(&mut self) -> Vec<f64> {
        let table = self.table();
        let weights = &table.pools[&game().name];
        weights.origins.iter().map(|o| o.weight.as_f64()).collect()
    }

    /// Fails for long enough to be down, and then answers until it is up.
    fn restart(&mut self, origin: &str) {
        let key = key("game", origin);
        self.failing.insert(key.clone(), libc::ECONNREFUSED);
        while self.health(&key) != OriginHealth::Down {
            self.pass(INTERVAL);
        }
        self.failing.remove(&key);
        while self.health(&key) != OriginHealth::Up {
            self.pass(100 * MILLI);
        }
    }
}

#[test]
fn who_comes_back_takes_up_its_load_little_by_little() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![three()]);
    scene.pass(INTERVAL);
    assert_eq!(
        scene.weights(),
        [1.0, 1.0, 1.0],
        "at the start, all at once"
    );
    scene.restart("b");
    let mut seen = vec![scene.weights()[1]];
    let version = scene.engine.weights_version();
    for _ in 0..40 {
        scene.pass(Duration::from_secs(1));
        let [1.0, b, 1.0] = scene.weights()[..] else {
            panic!("{:?}", scene.weights());
        };
        seen.push(b);
    }
    assert_eq!((seen[0], seen.last()), (0.1, Some(&1.0)));
    assert!(seen.is_sorted());
    assert_eq!(scene.engine.weights_version() - version, 9, "few steps");
    assert_eq!(scene.engine.steps.next(), None);
}

/// `game` with so many origins, `o0`, `o1` …
fn many(count: u8) -> Pool {
    let origins = (0..count).map(|n| (format!("o{n}"), format!("10.0.2.{n}:7000")));
    let origins: Vec<_> = origins.collect();
    let named = origins
        .iter()
        .map(|(name, at)| (name.as_str(), at.as_str()));
    pool("game", Some("quick"), &named.collect::<Vec<_>>())
}

#[test]
fn many_verdicts_of_a_pool_are_one_weighing() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![many(100)]);
    let version = scene.engine.weights_version();
    scene.step_to(scene.now.instant + INTERVAL);
    while let Some(ticket) = scene.engine.start_due(scene.now) {
        scene.engine.finished(scene.now, ticket, Ok(MILLI), 0);
    }
    assert!(scene.engine.is_to_weigh());
    assert_eq!(scene.engine.weights_version(), version);
    assert_eq!(scene.health(&key("game", "o99")), OriginHealth::Up);
    assert_eq!(scene.engine.weights_version(), version + 1);
    assert!(!scene.engine.is_to_weigh());
}

#[test]
fn however_many_come_back_they_take_their_steps_together() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![many(100)]);
    scene.pass(INTERVAL);
    let half: Vec<_> = (0..50).map(|n| key("game", &format!("o{n}"))).collect();
    for key in &half {
        scene.failing.insert(key.clone(), libc::ECONNREFUSED);
    }
    scene.pass(2 * INTERVAL + INTERVAL / 2);
    scene.failing.clear();
    while half.iter().any(|key| scene.health(key) != OriginHealth::Up) {
        scene.pass(MILLI);
    }
    let version = scene.engine.weights_version();
    scene.pass(INTERVAL);
    let steps = scene.engine.weights_version() - version;
    assert!(steps <= 10, "{steps}");
    assert_eq!(scene.weights(), [1.0; 100]);
}

#[test]
fn the_first_to_come_back_carries_all_and_the_next_one_is_eased_in() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![game()]);
    let [a, b] = [key("game", "a"), key("game", "b")];
    for key in [&a, &b] {
        scene.failing.insert(key.clone(), libc::ECONNREFUSED);
    }
    scene.pass(3 * INTERVAL);
    assert_eq!(scene.weights(), [1.0, 1.0], "panic: health is ignored");
    scene.failing.remove(&a);
    scene.pass(2 * INTERVAL);
    assert_eq!(scene.weights(), [1.0, 0.0]);
    scene.restart("b");
    assert_eq!(scene.weights(), [1.0, 0.1]);
}

#[test]
fn an_origin_that_was_drained_or_added_is_eased_in() {
    let mut drained = three();
    drained.origins[1].enabled = false;
    drained.origins.truncate(2);
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![drained]);
    scene.pass(INTERVAL);
    assert_eq!(scene.weights(), [1.0, 0.0]);
    scene.configure(monitor("quick", 1, 1), vec![three()]);
    assert_eq!(scene.weights(), [1.0, 0.1, 0.1]);
    let mut seen = Vec::new();
    while scene.weights()[2] < 1.0 {
        seen.push(scene.weights()[2]);
        scene.pass(Duration::from_secs(1));
        assert_eq!(scene.health(&key("game", "c")), OriginHealth::Up);
    }
    assert!(seen.len() > 5 && seen.is_sorted(), "{seen:?}");
    scene.pass(5 * INTERVAL);
    assert_eq!(scene.weights(), [1.0, 1.0, 1.0]);
}

#[test]
fn an_origin_that_flaps_stays_away_longer() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![three()]);
    scene.pass(INTERVAL);
    let mut away = Vec::new();
    for _ in 0..6 {
        let went = scene.now.instant;
        scene.restart("b");
        away.push(scene.now.instant - went);
    }
    assert!(away[5] > away[4] && away[4] > away[3], "{away:?}");
    assert!(away[5] >= Duration::from_secs(80), "{away:?}");
    // It is probed when its time is over, and not an interval later.
    assert!(away[5] < Duration::from_secs(80) + 2 * INTERVAL, "{away:?}");
}

#[test]
fn what_is_forgiven_is_told_though_nothing_else_happens() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![three()]);
    scene.pass(INTERVAL);
    (0..3).for_each(|_| scene.restart("b"));
    let b = key("game", "b");
    let told = |scene: &Scene| scene.engine.opinion(&b).unwrap().recent_downs;
    scene.pass(Duration::from_secs(60));
    let mut seen = vec![(told(&scene), scene.engine.health_version())];
    for _ in 0..200 {
        scene.pass(INTERVAL);
        let now = (told(&scene), scene.engine.health_version());
        if *seen.last().unwrap() != now {
            seen.push(now);
        }
    }
    let version = seen[0].1;
    let expected = (0..4).map(|n| (3 - n, version + u64::from(n)));
    assert_eq!(seen, expected.collect::<Vec<_>>());
    assert_eq!(scene.engine.next_step(), None);
}

#[test]
fn one_failed_probe_takes_nothing_from_who_was_let_back_from_a_hold() {
    let mut scene = Scene::configured(monitor("quick", 1, 2), vec![three()]);
    scene.pass(INTERVAL);
    let [a, b, c] = ["a", "b", "c"].map(|origin| key("game", origin));
    (0..5).for_each(|_| scene.restart("b"));
    for key in [&a, &b] {
        scene.failing.insert(key.clone(), libc::ECONNREFUSED);
    }
    scene.pass(3 * INTERVAL);
    scene.failing.remove(&b);
    scene.pass(INTERVAL + INTERVAL / 2);
    assert_eq!(scene.health(&b), OriginHealth::Down, "it is held");
    assert_eq!(scene.weights(), [0.0, 1.0, 1.0]);
    scene.failing.insert(b.clone(), libc::ECONNREFUSED);
    scene.pass(INTERVAL);
    assert_eq!(scene.weights(), [0.0, 1.0, 1.0], "it failed once");
    scene.pass(INTERVAL);
    assert_eq!(scene.weights(), [1.0, 1.0, 1.0], "only c answers");
    assert_eq!(scene.health(&c), OriginHealth::Up);
}

#[test]
fn a_hold_does_not_make_a_pool_panic() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![three()]);
    scene.pass(INTERVAL);
    (0..5).for_each(|_| scene.restart("b"));
    let [a, b] = [key("game", "a"), key("game", "b")];
    scene.failing.insert(b.clone(), libc::ECONNREFUSED);
    while scene.health(&b) != OriginHealth::Down {
        scene.pass(100 * MILLI);
    }
    scene.failing.insert(a.clone(), libc::ECONNREFUSED);
    scene.pass(INTERVAL);
    assert_eq!(scene.weights(), [1.0, 1.0, 1.0], "only c answers");
    scene.failing.remove(&b);
    scene.pass(INTERVAL);
    assert_eq!(scene.health(&b), OriginHealth::Down, "it is held");
    assert_eq!(scene.weights(), [0.0, 1.0, 1.0]);
    scene.failing.remove(&a);
    scene.pass(INTERVAL);
    let [_, held, _] = scene.weights()[..] else {
        panic!("of three origins");
    };
    assert_eq!(held, 0.0, "others carry the pool again");
}

#[test]
fn one_without_weight_is_probed_and_gets_nothing_also_in_panic() {
    let mut pool = three();
    pool.origins[2].weight = Weight::ZERO;
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![pool]);
    scene.pass(INTERVAL);
    let c = key("game", "c");
    assert_eq!(scene.health(&c), OriginHealth::Up);
    for origin in ["a", "b", "c"] {
        scene
            .failing
            .insert(key("game", origin), libc::ECONNREFUSED);
    }
    scene.pass(3 * INTERVAL);
    assert_eq!(scene.health(&c), OriginHealth::Down);
    assert_eq!(scene.weights(), [1.0, 1.0, 0.0]);
}

#[test]
fn what_most_edges_cannot_connect_to_is_taken_from_all_and_let_back() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![three()]);
    scene.pass(INTERVAL);
    let b = key("game", "b");
    let fails = || [report(b.clone(), 5, 5)];
    assert_eq!(scene.report("edge-1", &fails()), []);
    let turns = scene.report("edge-2", &fails());
    assert_eq!(turns[0].verdict, Verdict::Down);
    assert_eq!(
        turns[0].reason,
        "10 connections failed at 2 of 2 edges (connect: timed out)"
    );
    assert_eq!(scene.weights(), [1.0, 0.0, 1.0]);
    scene.pass(Duration::from_secs(9));
    assert_eq!(scene.weights(), [1.0, 0.0, 1.0], "probes pass all the time");
    scene.pass(Duration::from_secs(4));
    let [_, let_back, _] = scene.weights()[..] else {
        panic!("of three origins");
    };
    assert!((0.1..1.0).contains(&let_back), "{let_back}");
    scene.pass(INTERVAL);
    assert_eq!(scene.weights(), [1.0, 1.0, 1.0]);
}

#[test]
fn the_only_edge_of_a_fleet_is_believed_once_it_is_known_to_be_the_only_one() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![three()]);
    scene.pass(INTERVAL);
    let fails = [report(key("game", "b"), 5, 5)];
    for _ in 0..10 {
        assert_eq!(scene.report("edge-1", &fails), []);
        scene.pass(Duration::from_secs(1));
    }
    let turns = scene.report("edge-1", &fails);
    assert_eq!(turns[0].verdict, Verdict::Down);
    assert_eq!(scene.weights(), [1.0, 0.0, 1.0]);
}

#[test]
fn an_edge_is_not_the_only_one_as_soon_as_the_other_is_silent() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![three()]);
    scene.pass(INTERVAL);
    let fails = [report(key("game", "b"), 5, 5)];
    for _ in 0..30 {
        assert_eq!(scene.report("edge-2", &[]), []);
        assert_eq!(scene.report("edge-1", &fails), []);
        scene.pass(Duration::from_secs(1));
    }
    // Ten seconds until the other is known to be gone, and ten more alone.
    for second in 1..20 {
        assert_eq!(scene.report("edge-1", &fails), [], "{second}");
        scene.pass(Duration::from_secs(1));
    }
    let turns = scene.report("edge-1", &fails);
    assert_eq!(turns[0].verdict, Verdict::Down);
}

#[test]
fn one_edge_of_several_takes_an_origin_from_nobody() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![three()]);
    scene.pass(INTERVAL);
    let b = key("game", "b");
    for second in 0..120 {
        // The other one dials it now and then, or never.
        let reaches = report(b.clone(), u64::from(second % 30 == 0), 0);
        assert_eq!(scene.report("edge-2", &[reaches]), []);
        assert_eq!(scene.report("edge-1", &[report(b.clone(), 5, 5)]), []);
        scene.pass(Duration::from_secs(1));
    }
    assert_eq!(scene.weights(), [1.0, 1.0, 1.0]);
}

#[test]
fn a_balancer_without_a_network_takes_nothing_from_edges() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![game()]);
    scene.pass(INTERVAL);
    for key in [key("game", "a"), key("game", "b")] {
        scene.failing.insert(key, libc::ENETUNREACH);
    }
    scene.pass(2 * INTERVAL);
    assert!(scene.engine.isolated().is_some());
    let fails = [report(key("game", "a"), 9, 9)];
    assert_eq!(scene.report("edge-1", &fails), []);
    assert_eq!(scene.weights(), [1.0, 1.0]);
}

#[test]
fn an_origin_that_holds_many_connections_gets_less_step_by_step_and_it_shows() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![three()]);
    scene.pass(INTERVAL);
    let open = |origin: &str, open| DialReport {
        open,
        ..report(key("game", origin), 0, 0)
    };
    let mut seen = Vec::new();
    for _ in 0..60 {
        scene.report(
            "edge-1",
            &[open("a", 2000), open("b", 9000), open("c", 2000)],
        );
        scene.pass(Duration::from_secs(1));
        seen.push(scene.weights()[1]);
    }
    assert!(
        seen.windows(2).all(|pair| pair[0] - pair[1] < 0.051),
        "{seen:?}"
    );
    assert_eq!((seen[4], seen.last()), (0.95, Some(&0.7)), "{seen:?}");
    let table = scene.table();
    let factors = table.pools[&game().name].origins[1].factors;
    assert_eq!(factors.load.as_f64(), 0.7);
    let version = scene.engine.weights_version();
    scene.report(
        "edge-1",
        &[open("a", 2100), open("b", 8800), open("c", 1900)],
    );
    scene.pass(3 * INTERVAL);
    // Nobody reports any more: back to what was declared.
    assert!(scene.engine.weights_version() > version);
    scene.pass(3 * INTERVAL);
    assert_eq!(scene.weights(), [1.0, 1.0, 1.0]);
    assert_eq!(scene.engine.next_step(), None);
}

/// What may happen to an engine.
#[derive(Debug, Clone)]
enum Event {
    /// Pools that are there from now on: of each of two, which of three origins
    /// (absent, enabled, disabled, moved elsewhere), and with a monitor or not.
    Configure([[u8; 3]; 2], [bool; 2]),
    Pass(u64),
    Start,
    /// The `n`th probe under way ends so.
    Finish(usize, Option<i32>),
    Report(u8, u8),
}

fn event() -> impl Strategy<Value = Event> {
    let errors = [
        libc::ECONNREFUSED,
        libc::ENETUNREACH,
        libc::EMFILE,
        libc::ETIMEDOUT,
    ];
    prop_oneof![
        1 => (prop::array::uniform2(prop::array::uniform3(0u8..4)), any::<[bool; 2]>())
            .prop_map(|(pools, monitored)| Event::Configure(pools, monitored)),
        4 => (0u64..20_000).prop_map(Event::Pass),
        8 => Just(Event::Start),
        8 => (any::<usize>(), prop::option::of(prop::sample::select(errors.to_vec())))
            .prop_map(|(index, code)| Event::Finish(index, code)),
        2 => (0u8..2, 0u8..3).prop_map(|(pool, origin)| Event::Report(pool, origin)),
    ]
}

fn declared(pools: [[u8; 3]; 2], monitored: [bool; 2]) -> Vec<Pool> {
    let pool = |number: usize| {
        let origins: Vec<(String, String, bool)> = pools[number]
            .iter()
            .enumerate()
            .filter(|(_, kind)| **kind > 0)
            .map(|(index, kind)| {
                let address = format!("10.0.{kind}.{index}:7000");
                (format!("o{index}"), address, *kind != 2)
            })
            .collect();
        let named: Vec<(&str, &str)> = origins
            .iter()
            .map(|(name, address, _)| (name.as_str(), address.as_str()))
            .collect();
        let monitor = monitored[number].then_some("quick");
        let mut pool = pool(&format!("p{number}"), monitor, &named);
        for (origin, (_, _, enabled)) in pool.origins.iter_mut().zip(&origins) {
            origin.enabled = *enabled;
        }
        pool
    };
    (0..2).map(pool).collect()
}

proptest! {
    #[test]
    fn whatever_happens_no_origin_is_lost_or_probed_twice_and_weights_are_true(
        events in prop::collection::vec(event(), 0..300)
    ) {
        let mut scene = Scene::new();
        let mut under_way: Vec<Ticket> = Vec::new();
        for event in events {
            match event.clone() {
                Event::Configure(pools, monitored) => {
                    scene.configure(monitor("quick", 2, 2), declared(pools, monitored));
                }
                Event::Pass(millis) => scene.step_to(scene.now.instant + Duration::from_millis(millis)),
                Event::Start => under_way.extend(scene.engine.start_due(scene.now)),
                Event::Finish(index, code) => {
                    if !under_way.is_empty() {
                        let ticket = under_way.swap_remove(index % under_way.len());
                        let outcome = match code {
                            Some(code) => Err(Failure::Connect(io::Error::from_raw_os_error(code))),
                            None => Ok(MILLI),
                        };
                        scene.engine.finished(scene.now, ticket, outcome, 7);
                    }
                }
                Event::Report(pool, origin) => {
                    let key = key(&format!("p{pool}"), &format!("o{origin}"));
                    scene.report("edge-1", &[report(key, 9, 9)]);
                }
            }
            scene.engine.step(scene.now);
            // Sometimes many things happen before pools are weighed.
            if matches!(event, Event::Pass(_)) {
                scene.engine.weigh(scene.now);
            }
            let engine = &scene.engine;
            for (key, watched) in engine.origins.iter() {
                let out = under_way
                    .iter()
                    .filter(|ticket| ticket.key == key && ticket.generation == watched.generation)
                    .count();
                let scheduled = usize::from(engine.schedule.contains(&key));
                prop_assert_eq!(out + scheduled, 1, "{}", key);
            }
            prop_assert_eq!(engine.pools.len(), engine.weights.len());
            for (pool, weights) in engine.pools() {
                let at = scene.now.instant;
                let expected = PoolWeights::weigh(pool, |origin| {
                    let watched = engine.origins.get(&OriginKey::of(&pool.name, origin));
                    watched.map_or(None.into(), |watched| watched.known(at))
                });
                let is_to_weigh = engine.unweighed.contains(&pool.name);
                prop_assert!(is_to_weigh || *weights == expected, "{:?} {:?}", weights, expected);
                for origin in &pool.origins {
                    let key = OriginKey::of(&pool.name, &origin.name);
                    let probed = origin.enabled && pool.monitor.is_some();
                    prop_assert_eq!(engine.opinion(&key).is_some(), probed);
                }
            }
        }
    }
}

/// This balancer, called `me`, and so many others.
fn set_of(others: usize) -> Set {
    let others = (0..others).map(|number| format!("b{number}"));
    let members = others.chain(["me".to_owned()]);
    let url = |name: &String| format!("http://{name}:7410");
    Set {
        epoch: 1,
        members: members
            .map(|name| (name.parse().unwrap(), url(&name)))
            .collect(),
    }
}

impl Scene {
    fn take_part(&mut self, others: usize) {
        let me = "me".parse().unwrap();
        self.engine.take_part(self.now, &me, set_of(others));
    }

    /// Another one says this of an origin.
    fn hear(&mut self, peer: &str, key: &OriginKey, verdict: Verdict) {
        let opinion = Opinion {
            verdict,
            ..Opinion::none(SystemTime::UNIX_EPOCH)
        };
        self.hear_opinion(peer, key, opinion);
    }

    fn hear_opinion(&mut self, peer: &str, key: &OriginKey, opinion: Opinion) {
        let asked = self.engine.origins.get(key).unwrap().asked;
        let heard = Heard {
            epoch: 1,
            said: [(key.clone(), (asked, Arc::new(opinion)))].into(),
            ..Heard::default()
        };
        self.engine.heard(self.now, &peer.parse().unwrap(), heard);
    }

    fn verdict(&self, key: &OriginKey) -> Verdict {
        self.engine.opinion(key).unwrap().verdict
    }

    /// How often each was probed within `time`.
    fn probed_within(&mut self, time: Duration) -> BTreeMap<OriginName, usize> {
        let before = self.started.len();
        self.pass(time);
        let mut counts = BTreeMap::new();
        for (key, _) in &self.started[before..] {
            *counts.entry(key.origin.clone()).or_insert(0) += 1;
        }
        counts
    }
}

#[test]
fn what_was_held_before_a_stop_counts_when_probes_bear_it_out() {
    let mut scene = Scene::configured(monitor("quick", 2, 2), vec![game()]);
    let a = key("game", "a");
    scene.take_part(1);
    scene.pass(INTERVAL);
    scene.hear("b0", &a, Verdict::Down);
    assert_eq!(scene.verdict(&a), Verdict::Up, "a tie is up");
    // It was stopped, and the origin died meanwhile, which the other one has seen.
    scene.failing.insert(a.clone(), libc::ECONNREFUSED);
    scene.engine.outdate(scene.now);
    assert_eq!(scene.verdict(&a), Verdict::Down);
    scene.pass(5 * INTERVAL);
    assert_eq!(scene.verdict(&a), Verdict::Down);
    // Of another one it was right.
    let b = key("game", "b");
    scene.hear("b0", &b, Verdict::Down);
    assert_eq!(scene.verdict(&b), Verdict::Up);
    scene.engine.outdate(scene.now);
    assert_eq!(scene.verdict(&b), Verdict::Down);
    scene.pass(2 * INTERVAL);
    assert_eq!(scene.verdict(&b), Verdict::Up);
    // Alone it holds what it held.
    scene.take_part(0);
    let mut alone = Scene::configured(monitor("quick", 2, 2), vec![game()]);
    alone.pass(INTERVAL);
    alone.engine.outdate(alone.now);
    assert_eq!(alone.verdict(&a), Verdict::Up);
}

#[test]
fn after_a_stop_weights_are_held_back_until_probes_have_borne_out_what_they_are_of() {
    let mut scene = Scene::configured(monitor("quick", 2, 2), vec![game()]);
    scene.take_part(1);
    scene.pass(INTERVAL);
    assert!(scene.engine.settle(scene.now));
    scene.step_to(scene.now.instant + INTERVAL);
    let begun: Vec<_> = std::iter::from_fn(|| scene.engine.start_due(scene.now)).collect();
    assert_eq!(begun.len(), 2);
    scene.step_to(scene.now.instant + INTERVAL);
    scene.engine.resume(scene.now);
    for ticket in begun {
        scene.engine.finished(scene.now, ticket, Ok(MILLI), 0);
    }
    assert!(!scene.engine.settle(scene.now), "they answered before");
    scene.failing.insert(key("game", "a"), libc::ECONNREFUSED);
    scene.hear("b0", &key("game", "b"), Verdict::Up);
    scene.pass(UNKNOWN_INTERVAL / 2);
    assert!(!scene.engine.settle(scene.now), "one failure is not enough");
    assert_eq!(scene.verdict(&key("game", "a")), Verdict::Up);
    scene.pass(2 * UNKNOWN_INTERVAL);
    assert_eq!(scene.verdict(&key("game", "a")), Verdict::Down);
    assert!(scene.engine.settle(scene.now));
}

#[test]
fn one_that_is_alone_probes_at_once_after_a_stop_and_tells_what_edges_hold_anyway() {
    let slow = Monitor {
        interval: 60 * INTERVAL,
        ..monitor("quick", 1, 1)
    };
    let mut scene = Scene::configured(slow, vec![game()]);
    scene.take_part(0);
    let a = key("game", "a");
    scene.failing.insert(a.clone(), libc::ECONNREFUSED);
    scene.pass(INTERVAL);
    assert!(scene.engine.settle(scene.now));
    let weights = scene.weights();
    scene.engine.probe_soon(scene.now, &a);
    let begun = scene.engine.start_due(scene.now).unwrap();
    scene.step_to(scene.now.instant + INTERVAL);
    assert_eq!(scene.engine.resume(scene.now), []);
    assert!(scene.engine.settle(scene.now));
    let turns = scene.engine.finished(scene.now, begun, Ok(MILLI), 0);
    assert_eq!(turns, [], "it answered before");
    assert_eq!(
        (scene.weights(), scene.verdict(&a)),
        (weights, Verdict::Down)
    );
    scene.failing.clear();
    assert_eq!(scene.probed_within(MILLI).len(), 2, "both at once");
    assert_eq!(scene.verdict(&a), Verdict::Up);
}

/// It passes its probes, and another one holds it down: for so long from now, or until as many
/// passes as it takes.
fn down_elsewhere(now: Now, held_for: Option<Duration>) -> Opinion {
    Opinion {
        verdict: Verdict::Down,
        passes_while_held: held_for.is_some(),
        held_until: held_for.map(|time| now.wall + time),
        recent_downs: 3,
        ..Opinion::none(now.wall)
    }
}

#[test]
fn the_start_of_one_ends_no_hold_of_another_and_takes_it_over() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![game()]);
    let a = key("game", "a");
    let told = |scene: &Scene| scene.engine.verdicts().unwrap().own[&a].1.verdict;
    // Probes may be quicker than the word of who takes part, and that one quicker than others.
    scene.pass(MILLI);
    scene.take_part(1);
    assert_eq!(told(&scene), Verdict::Unknown);
    assert!(!scene.engine.settle(scene.now), "nobody was heard yet");
    scene.pass(UNKNOWN_INTERVAL);
    assert_eq!(told(&scene), Verdict::Unknown);
    let hold = 4 * INTERVAL;
    scene.hear_opinion("b0", &a, down_elsewhere(scene.now, Some(hold)));
    assert!(scene.engine.settle(scene.now));
    assert_eq!(
        (scene.verdict(&a), told(&scene)),
        (Verdict::Down, Verdict::Down)
    );
    assert_eq!(scene.verdict(&key("game", "b")), Verdict::Up);
    scene.pass(hold / 2);
    assert_eq!(scene.verdict(&a), Verdict::Down);
    // The other one is restarted now, too.
    scene.engine.unheard(scene.now, &"b0".parse().unwrap());
    let held = scene.engine.opinion(&a).unwrap();
    assert_eq!((held.verdict, held.recent_downs), (Verdict::Down, 3));
    scene.pass(hold / 2 - MILLI);
    assert_eq!(scene.verdict(&a), Verdict::Down);
    scene.pass(INTERVAL);
    assert_eq!(scene.verdict(&a), Verdict::Up);
}

#[test]
fn one_that_was_stopped_ends_no_hold_of_another() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![game()]);
    let a = key("game", "a");
    scene.take_part(1);
    scene.pass(INTERVAL);
    assert_eq!(scene.verdict(&a), Verdict::Up);
    scene.engine.resume(scene.now);
    scene.pass(UNKNOWN_INTERVAL);
    scene.hear_opinion("b0", &a, down_elsewhere(scene.now, Some(4 * INTERVAL)));
    scene.pass(INTERVAL);
    assert_eq!(scene.verdict(&a), Verdict::Down);
    // Where it has watched all along, its word is as good as another's.
    let b = key("game", "b");
    scene.hear_opinion("b0", &b, down_elsewhere(scene.now, Some(4 * INTERVAL)));
    assert_eq!(scene.verdict(&b), Verdict::Up);
}

#[test]
fn what_another_holds_down_takes_who_starts_as_many_passes_as_any_other() {
    let mut scene = Scene::configured(monitor("quick", 3, 1), vec![game()]);
    let a = key("game", "a");
    scene.take_part(1);
    scene.hear_opinion("b0", &a, down_elsewhere(scene.now, None));
    scene.pass(MILLI);
    assert_eq!(scene.verdict(&a), Verdict::Down, "one pass");
    scene.pass(INTERVAL);
    assert_eq!(scene.verdict(&a), Verdict::Down, "two");
    scene.pass(INTERVAL);
    assert_eq!(scene.verdict(&a), Verdict::Up, "three, and a tie is up");
}

#[test]
fn who_starts_waits_for_others_no_longer_than_they_may_be_silent() {
    let mut scene = Scene::configured(monitor("quick", 1, 1), vec![game()]);
    scene.take_part(1);
    scene.failing.insert(key("game", "a"), libc::ECONNREFUSED);
    scene.pass(Duration::from_secs(5) - MILLI);
    assert!(!scene.engine.settle(scene.now));
    scene.pass(MILLI);
    assert!(scene.engine.settle(scene.now));
    assert_eq!(scene.verdict(&key("game", "a")), Verdict::Down);
    assert_eq!(scene.verdict(&key("game", "b")), Verdict::Up);
}

#[test]
fn an_origin_of_which_no_prober_is_heard_is_probed_all_the_same() {
    let names: Vec<_> = (0..20).map(|number| format!("o{number}")).collect();
    let origins: Vec<_> = names
        .iter()
        .map(|name| (&**name, "10.0.2.2:7000"))
        .collect();
    let pool = pool("game", Some("quick"), &origins);
    let mut scene = Scene::configured(monitor("quick", 2, 2), vec![pool]);
    scene.take_part(5);
    scene.pass(3 * INTERVAL);
    let all = scene.probed_within(3 * INTERVAL);
    assert_eq!(all.len(), 20, "nobody is heard: {all:?}");
    // All are heard, and others' origins are left to them, not before they had the
    // time for a verdict.
    let set = set_of(5);
    let me: NodeName = "me".parse().unwrap();
    let keys = || names.iter().map(|name| key("game", name));
    for key in keys() {
        for peer in set.members.keys().filter(|peer| **peer != me) {
            if set.has_probe(peer, &key) {
                scene.hear(peer.as_str(), &key, Verdict::Up);
            }
        }
    }
    scene.pass(LOOK);
    let begun = scene.probed_within(2 * INTERVAL);
    assert!(begun.len() > 10, "{begun:?}");
    scene.pass(scene.engine.time_for_verdicts());
    let mine: BTreeSet<_> = keys().filter(|key| set.has_probe(&me, key)).collect();
    let left: BTreeSet<_> = scene.probed_within(3 * INTERVAL).into_keys().collect();
    assert_eq!(left, mine.into_iter().map(|key| key.origin).collect());
    assert!(keys().all(|key| scene.verdict(&key) == Verdict::Up));
}
