#![allow(clippy::unwrap_used)]
use std::time::UNIX_EPOCH;

use anyport_model::balancers::Epoch;
use proptest::prelude::*;

use super::*;

const TICK: Duration = Duration::from_millis(500);
const FIRST: Duration = Duration::from_secs(5);

fn name(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn connected(names: &[&str]) -> Connected {
    let url = |of: &str| format!("http://{of}:7410");
    names.iter().map(|of| (name(of), url(of))).collect()
}

/// A replica with what is stored, and a clock that is moved by looking.
struct Alone {
    roster: Roster,
    now: Instant,
    stored: Option<BalancerSet>,
}

impl Alone {
    fn new(first: Duration) -> Self {
        Self {
            roster: Roster::new(first),
            now: Instant::now(),
            stored: None,
        }
    }

    fn restart(&mut self) {
        self.roster = Roster::new(Duration::ZERO);
        self.roster.read(self.stored.clone());
    }

    /// Looks every [`TICK`] for so long, and stores what is wanted.
    fn look_for(&mut self, time: Duration, names: &[&str]) -> Vec<&str> {
        let until = self.now + time;
        while self.now < until {
            self.now += TICK;
            self.look(names);
        }
        self.members()
    }

    fn look(&mut self, names: &[&str]) {
        self.roster.look(Some(connected(names)), self.now);
        if let Some(set) = self.roster.wanted(UNIX_EPOCH) {
            self.stored = Some(set.clone());
            assert!(self.roster.read(Some(set.clone())));
            assert_eq!(self.roster.latest(), Some(&set));
        }
    }

    fn members(&self) -> Vec<&str> {
        let set = self.stored.iter().flat_map(|set| set.members.keys());
        set.map(|name| name.as_str()).collect()
    }

    fn epoch(&self) -> u64 {
        self.stored.as_ref().map_or(0, |set| set.epoch.0)
    }
}

#[test]
fn whoever_comes_takes_part_at_once_and_who_leaves_for_as_long_as_a_lease() {
    let mut alone = Alone::new(Duration::ZERO);
    assert_eq!(alone.look_for(TICK, &["a"]), ["a"]);
    assert_eq!(alone.look_for(TICK, &["a", "b"]), ["a", "b"]);
    let epoch = alone.epoch();
    assert_eq!(alone.look_for(LEASE_TTL, &["a"]), ["a", "b"]);
    // Back in time, and it was never gone.
    assert_eq!(alone.look_for(TICK, &["a", "b"]), ["a", "b"]);
    assert_eq!(alone.epoch(), epoch);
    assert_eq!(alone.look_for(LEASE_TTL, &["a"]), ["a", "b"]);
    assert_eq!(alone.look_for(TICK, &["a"]), ["a"]);
    assert!(alone.epoch() > epoch);
    assert_eq!(alone.look_for(LEASE_TTL + TICK, &[]), [""; 0]);
}

#[test]
fn where_there_was_no_set_those_who_were_members_may_come_back_first() {
    let mut alone = Alone::new(FIRST);
    assert_eq!(alone.look_for(LEASE_TTL, &[]), [""; 0]);
    assert_eq!(alone.epoch(), 0, "there is nobody to be in it");
    assert_eq!(alone.look_for(FIRST, &["a"]), [""; 0]);
    assert_eq!(alone.look_for(TICK, &["a", "b"]), ["a", "b"]);
    // From then on, at once.
    assert_eq!(alone.look_for(TICK, &["a", "b", "c"]), ["a", "b", "c"]);
}

#[test]
fn another_address_is_another_set() {
    let mut alone = Alone::new(Duration::ZERO);
    alone.look_for(TICK, &["a"]);
    let epoch = alone.epoch();
    let moved = Connected::from([(name("a"), "http://10.0.0.1:7410".to_owned())]);
    alone.roster.look(Some(moved.clone()), alone.now);
    let set = alone.roster.wanted(UNIX_EPOCH).unwrap();
    assert_eq!((set.members, set.epoch > Epoch(epoch)), (moved, true));
}

#[test]
fn who_has_just_started_or_knew_nothing_or_slept_removes_nobody_for_a_lease() {
    let mut alone = Alone::new(Duration::ZERO);
    alone.look_for(TICK, &["a", "b"]);
    type Forgets = fn(&mut Alone);
    let forgets: [(&str, Forgets); 3] = [
        ("started", Alone::restart),
        ("knew nothing", |alone| alone.roster.look(None, alone.now)),
        ("slept", |alone| alone.now += LEASE_TTL),
    ];
    for (what, forget) in forgets {
        let nearly = LEASE_TTL - TICK;
        assert_eq!(alone.look_for(nearly, &["a"]), ["a", "b"], "{what}");
        forget(&mut alone);
        assert_eq!(alone.look_for(LEASE_TTL, &["a"]), ["a", "b"], "{what}");
        assert_eq!(alone.look_for(TICK, &["a"]), ["a"], "{what}");
        alone.look_for(TICK, &["a", "b"]);
    }
}

#[test]
fn a_store_that_went_back_is_led_on_with_a_later_epoch() {
    let mut alone = Alone::new(Duration::ZERO);
    alone.look_for(TICK, &["a"]);
    let backup = alone.stored.clone();
    alone.look_for(TICK, &["a", "b"]);
    for restored in [backup, None] {
        let lost = alone.epoch();
        assert!(!alone.roster.read(restored), "not told");
        alone.look(&["a", "b"]);
        assert_eq!(alone.members(), ["a", "b"]);
        assert!(alone.epoch() > lost);
    }
    // Nor is what has the same number taken for the same.
    let mut other = alone.stored.clone().unwrap();
    other.members.insert(name("z"), String::new());
    let epoch = other.epoch;
    assert!(!alone.roster.read(Some(other)));
    assert!(alone.roster.wanted(UNIX_EPOCH).unwrap().epoch > epoch);
}

#[test]
fn there_is_an_end_to_members_and_those_there_are_stay() {
    let mut alone = Alone::new(Duration::ZERO);
    let names: Vec<String> = (0..MEMBERS_MAX + 5).map(|n| format!("m{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (early, late) = names.split_at(5);
    alone.look_for(TICK, late);
    assert_eq!(alone.members(), late);
    let epoch = alone.epoch();
    alone.look_for(TICK, &names);
    assert_eq!((alone.members(), alone.epoch()), (late.to_vec(), epoch));
    assert_eq!(early.len(), 5);
}

const REPLICAS: usize = 2;
const BALANCERS: usize = 4;

/// What happens to two replicas that share a store.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A balancer connects to one of them, in place of another connection.
    Connect {
        balancer: usize,
        at: u16,
    },
    Disconnect {
        balancer: usize,
    },
    Pass {
        ticks: u32,
    },
    Restart {
        replica: usize,
    },
    /// It loses the store, and what it knew of the other.
    CutOff {
        replica: usize,
    },
    Mend {
        replica: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (balancer, replica) = (0..BALANCERS, 0..REPLICAS);
    prop_oneof![
        3 => (balancer.clone(), 1..3_u16).prop_map(|(balancer, at)| Step::Connect { balancer, at }),
        3 => balancer.prop_map(|balancer| Step::Disconnect { balancer }),
        6 => (1..40_u32).prop_map(|ticks| Step::Pass { ticks }),
        1 => replica.clone().prop_map(|replica| Step::Restart { replica }),
        1 => replica.clone().prop_map(|replica| Step::CutOff { replica }),
        2 => replica.prop_map(|replica| Step::Mend { replica }),
    ]
}

struct Replica {
    roster: Roster,
    cut_off: bool,
    /// Since when it has known all, without a break.
    knowing: Option<Instant>,
    told: Vec<BalancerSet>,
}

struct Fleet {
    now: Instant,
    stored: Option<BalancerSet>,
    /// Port of each that is connected.
    connected: [Option<u16>; BALANCERS],
    /// When each was last seen to be connected by anybody who looked.
    last_there: [Option<Instant>; BALANCERS],
    replicas: [Replica; REPLICAS],
}

fn balancer(index: usize) -> NodeName {
    name(&format!("b{index}"))
}

impl Replica {
    fn new() -> Self {
        Self {
            roster: Roster::new(Duration::ZERO),
            cut_off: false,
            knowing: None,
            told: Vec::new(),
        }
    }

    fn read(&mut self, stored: Option<BalancerSet>) {
        if self.roster.read(stored) {
            self.told.extend(self.roster.latest().cloned());
        }
    }
}

impl Fleet {
    fn new() -> Self {
        Self {
            now: Instant::now(),
            stored: None,
            connected: [None; BALANCERS],
            last_there: [None; BALANCERS],
            replicas: [Replica::new(), Replica::new()],
        }
    }

    fn there(&self) -> Connected {
        let there = self.connected.iter().enumerate();
        there
            .filter_map(|(index, port)| Some((balancer(index), format!("http://b:{}", (*port)?))))
            .collect()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Connect { balancer, at } => self.connected[balancer] = Some(at),
            Step::Disconnect { balancer } => self.connected[balancer] = None,
            Step::Pass { ticks } => (0..ticks).for_each(|_| self.tick()),
            Step::Restart { replica } => {
                let cut_off = self.replicas[replica].cut_off;
                let told = std::mem::take(&mut self.replicas[replica].told);
                self.replicas[replica] = Replica {
                    cut_off,
                    told,
                    ..Replica::new()
                };
            }
            Step::CutOff { replica } => {
                let replica = &mut self.replicas[replica];
                replica.cut_off = true;
                replica.knowing = None;
                replica.roster.look(None, self.now);
            }
            Step::Mend { replica } => self.replicas[replica].cut_off = false,
        }
    }

    /// Both read, then both look, then both store what they want, if what they read is
    /// still there.
    fn tick(&mut self) {
        self.now += TICK;
        let there = self.there();
        for (port, last) in self.connected.iter().zip(&mut self.last_there) {
            if port.is_some() {
                *last = Some(self.now);
            }
        }
        let read = self.stored.clone();
        let mut wanted = Vec::new();
        for (index, replica) in self.replicas.iter_mut().enumerate() {
            if replica.cut_off {
                continue;
            }
            replica.read(read.clone());
            replica.roster.look(Some(there.clone()), self.now);
            replica.knowing.get_or_insert(self.now);
            let clock = UNIX_EPOCH + Duration::from_micros(1_000);
            wanted.extend(replica.roster.wanted(clock).map(|set| (index, set)));
        }
        for (index, set) in wanted {
            if self.stored == read {
                self.check(index, &set);
                self.stored = Some(set);
            }
        }
        for replica in self.replicas.iter_mut().filter(|replica| !replica.cut_off) {
            replica.read(self.stored.clone());
        }
    }

    fn check(&self, replica: usize, set: &BalancerSet) {
        let Some(before) = &self.stored else { return };
        assert!(set.epoch > before.epoch, "{set:?} after {before:?}");
        assert_ne!(set.members, before.members);
        let removed = before
            .members
            .keys()
            .filter(|name| !set.members.contains_key(*name));
        for name in removed {
            let index = (0..BALANCERS)
                .find(|index| balancer(*index) == *name)
                .unwrap();
            let last = self.last_there[index].unwrap();
            assert!(
                self.now - last >= LEASE_TTL,
                "{name} was away for {:?}",
                self.now - last
            );
            let knowing = self.replicas[replica].knowing.unwrap();
            assert!(
                self.now - knowing >= LEASE_TTL,
                "{replica} knew for {:?}",
                self.now - knowing
            );
        }
    }
}

proptest! {
    #[test]
    fn replicas_that_race_agree_and_remove_nobody_before_its_time(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let mut fleet = Fleet::new();
        for step in steps {
            fleet.step(step);
        }
        for replica in 0..REPLICAS {
            fleet.step(Step::Mend { replica });
        }
        let ticks = 2 + LEASE_TTL.as_millis() / TICK.as_millis();
        fleet.step(Step::Pass { ticks: ticks as u32 });
        let there = fleet.there();
        if let Some(stored) = &fleet.stored {
            prop_assert_eq!(&stored.members, &there);
            let settled = stored.epoch;
            fleet.step(Step::Pass { ticks: 100 });
            prop_assert_eq!(fleet.stored.as_ref().unwrap().epoch, settled);
        } else {
            prop_assert!(there.is_empty());
        }
        // One epoch, one set; and nobody is told an earlier one.
        let mut sets = BTreeMap::new();
        for replica in &fleet.replicas {
            for set in &replica.told {
                let known = sets.entry(set.epoch).or_insert(&set.members);
                prop_assert_eq!(*known, &set.members);
            }
        }
        let stored = fleet.stored;
        for replica in &fleet.replicas {
            prop_assert_eq!(replica.told.last(), stored.as_ref());
        }
    }
}
