//! Several balancers and the origins of one pool, second by second, from one seed: origins fail and
//! return, some of them all the time, and one balancer at a time is killed, stopped, cut off from
//! the origins or from the config service. `ANYPORT_SEED=17` tells one story again.

#![allow(clippy::unwrap_used)]

use std::{io, time::SystemTime};

use anyport_model::resource::Weight;

use super::{
    chance::{Chance, tell_stories},
    *,
};
use crate::{
    membership::fixtures::*,
    peers::{Heard, Set, Verdicts},
    probe::failure::Failure,
};

/// Told every time; `ANYPORT_STORIES=5000` tells more.
const STORIES: u64 = 150;
const SECONDS: u64 = 120;
/// Of the config service, in seconds.
const LEASE: u64 = 15;
/// After which a balancer that says nothing is not believed any more, in seconds.
const SILENT: u64 = 5;
/// Seconds after which all know that an origin is dead: a probe each second, of which two that
/// fail are enough, and the word to others.
const KNOWN_AFTER: u64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    Killed,
    Stopped,
    /// No probe of it gets an answer.
    NoOrigins,
    NoConfigService,
}

struct Balancer {
    name: NodeName,
    engine: Engine,
    /// As it was last told.
    set: Set,
    trouble: Trouble,
    /// By who listens: what was told last.
    told: BTreeMap<usize, Arc<Verdicts>>,
    /// By who speaks: seconds since it was heard; nothing: it is not believed.
    silent: BTreeMap<usize, u64>,
    /// Seconds since the config service heard of it.
    away: u64,
}

impl Balancer {
    fn runs(&self) -> bool {
        !matches!(self.trouble, Trouble::Killed | Trouble::Stopped)
    }
}

struct Fleet {
    chance: Chance,
    now: Now,
    pool: Pool,
    balancers: Vec<Balancer>,
    /// By the config service.
    set: Set,
    /// Seconds that each origin is dead.
    dead_for: Vec<Option<u64>>,
    was_ever_dead: Vec<bool>,
    /// Which ones fail and return all the time.
    flaps: Vec<bool>,
    /// Until when all who probed it have held it down.
    held_until: Vec<Option<SystemTime>>,
    /// Seconds since somebody who sees origins has probed each.
    unprobed: Vec<u64>,
    /// Seconds since the balancer in trouble changed.
    quiet: u64,
    /// The epoch that each edge took weights of.
    highest: Vec<u64>,
}

impl Fleet {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let count = 2 + chance.below(4) as usize;
        let addresses: Vec<_> = (2..8).map(|host| format!("10.0.2.{host}:7000")).collect();
        let names = ["a", "b", "c", "d", "e", "f"];
        let origins: Vec<_> = names
            .into_iter()
            .zip(addresses.iter().map(|a| &**a))
            .collect();
        let mut pool = pool("game", Some("quick"), &origins);
        // One that has a fallback never panics, so that each verdict is seen.
        pool.fallback = Some("spare".parse().unwrap());
        let now = Now {
            instant: Instant::now(),
            wall: SystemTime::UNIX_EPOCH,
        };
        let balancer = |number| Balancer {
            name: format!("b{number}").parse().unwrap(),
            engine: engine(now, &pool),
            set: Set::default(),
            trouble: Trouble::None,
            told: BTreeMap::new(),
            silent: BTreeMap::new(),
            away: 0,
        };
        let flaps = origins.iter().map(|_| chance.one_in(3)).collect();
        let mut fleet = Self {
            chance,
            now,
            balancers: (0..count).map(balancer).collect(),
            set: Set::default(),
            dead_for: vec![None; origins.len()],
            was_ever_dead: vec![false; origins.len()],
            flaps,
            held_until: vec![None; origins.len()],
            unprobed: vec![0; origins.len()],
            quiet: 0,
            highest: vec![0; count],
            pool,
        };
        fleet.tell_set();
        fleet
    }

    /// The config service, at work.
    fn tell_set(&mut self) {
        let members = self
            .balancers
            .iter()
            .filter(|balancer| balancer.away < LEASE);
        let url = |balancer: &Balancer| format!("http://{}:7410", balancer.name);
        let members = members
            .map(|balancer| (balancer.name.clone(), url(balancer)))
            .collect();
        if self.set.members != members {
            let epoch = self.set.epoch + 1;
            self.set = Set { epoch, members };
        }
        for balancer in &mut self.balancers {
            if balancer.runs() && balancer.trouble != Trouble::NoConfigService {
                let name = balancer.name.clone();
                balancer.engine.take_part(self.now, &name, self.set.clone());
                balancer.set = self.set.clone();
            }
        }
    }

    fn trouble(&mut self) {
        for (index, dead) in self.dead_for.iter_mut().enumerate() {
            let (fails, returns) = if self.flaps[index] { (8, 3) } else { (60, 20) };
            *dead = match *dead {
                Some(_) if self.chance.one_in(returns) => None,
                Some(seconds) => Some(seconds + 1),
                None => self.chance.one_in(fails).then_some(0),
            };
            self.was_ever_dead[index] |= dead.is_some();
        }
        // One at a time, and the next only when the set is whole again and all have heard all.
        let calm = self.quiet > LEASE + SILENT;
        let in_trouble = self
            .balancers
            .iter()
            .position(|b| b.trouble != Trouble::None);
        match in_trouble {
            Some(index) if self.chance.one_in(20) => {
                let balancer = &mut self.balancers[index];
                if balancer.trouble == Trouble::Killed {
                    balancer.engine = engine(self.now, &self.pool);
                    balancer.told.clear();
                    balancer.silent.clear();
                    balancer.set = Set::default();
                }
                if balancer.trouble == Trouble::Stopped {
                    balancer.engine.resume(self.now);
                }
                balancer.trouble = Trouble::None;
                self.quiet = 0;
            }
            None if calm && self.chance.one_in(5) => {
                let index = self.chance.below(self.balancers.len() as u64) as usize;
                self.balancers[index].trouble = match self.chance.below(4) {
                    0 => Trouble::Killed,
                    1 => Trouble::Stopped,
                    2 => Trouble::NoOrigins,
                    _ => Trouble::NoConfigService,
                };
                self.quiet = 0;
            }
            _ => self.quiet += 1,
        }
    }

    fn pass(&mut self) {
        self.now.instant += Duration::from_secs(1);
        self.now.wall += Duration::from_secs(1);
        for balancer in &mut self.balancers {
            let known = balancer.runs() && balancer.trouble != Trouble::NoConfigService;
            balancer.away = if known { 0 } else { balancer.away + 1 };
        }
        self.tell_set();
        for unprobed in &mut self.unprobed {
            *unprobed += 1;
        }
        self.probe();
        self.talk();
        if self.quiet > SILENT {
            self.see_who_is_held();
        }
    }

    fn see_who_is_held(&mut self) {
        for (origin, held) in self.pool.origins.iter().zip(&mut self.held_until) {
            let key = OriginKey::of(&self.pool.name, &origin.name);
            let run = self.balancers.iter().filter(|balancer| balancer.runs());
            let own = run.filter_map(|b| b.engine.origins.get(&key)?.own.as_deref());
            let until = own.map(|own| own.held_until.filter(|_| own.verdict == Verdict::Down));
            // None is the least.
            *held = until.min().flatten().max(*held);
        }
    }

    fn probe(&mut self) {
        for balancer in self.balancers.iter_mut().filter(|balancer| balancer.runs()) {
            let sees = balancer.trouble != Trouble::NoOrigins;
            while let Some(ticket) = balancer.engine.start_due(self.now) {
                let origins = &mut self.pool.origins.iter();
                let index = origins.position(|o| o.name == ticket.key.origin).unwrap();
                let outcome = match self.dead_for[index] {
                    None if sees => Ok(Duration::from_millis(1)),
                    _ => Err(Failure::Connect(io::Error::from_raw_os_error(
                        libc::ETIMEDOUT,
                    ))),
                };
                if sees {
                    self.unprobed[index] = 0;
                }
                balancer.engine.finished(self.now, ticket, outcome, 0);
            }
            balancer.engine.step(self.now);
        }
    }

    fn talk(&mut self) {
        for listener in 0..self.balancers.len() {
            for speaker in 0..self.balancers.len() {
                if speaker != listener && self.balancers[listener].runs() {
                    self.hear(listener, speaker);
                }
            }
            self.balancers[listener].engine.weigh(self.now);
        }
    }

    fn hear(&mut self, listener: usize, speaker: usize) {
        let now = self.now;
        let [listens, speaks] = self
            .balancers
            .get_disjoint_mut([listener, speaker])
            .unwrap();
        if !listens.set.members.contains_key(&speaks.name) {
            listens.silent.remove(&speaker);
            return;
        }
        let name = speaks.name.clone();
        if !speaks.runs() {
            let Some(silent) = listens.silent.get_mut(&speaker) else {
                return;
            };
            *silent += 1;
            // A connection to one that was killed breaks at once.
            if speaks.trouble == Trouble::Killed || *silent >= SILENT {
                listens.silent.remove(&speaker);
                listens.engine.unheard(now, &name);
            }
            return;
        }
        let Some(verdicts) = speaks.engine.verdicts().map(Arc::new) else {
            return;
        };
        // Who asks anew is told everything.
        let heard_before = listens.silent.insert(speaker, 0).is_some();
        let told = speaks.told.insert(listener, Arc::clone(&verdicts));
        let update = verdicts.write(name.as_str(), told.as_deref().filter(|_| heard_before));
        listens
            .engine
            .heard(now, &name, Heard::read(update).unwrap());
    }

    /// There are as many edges as balancers, and each likes another one best.
    fn check(&mut self) {
        let now = self.now;
        for balancer in self.balancers.iter_mut().filter(|balancer| balancer.runs()) {
            balancer.engine.settle(now);
        }
        for edge in 0..self.balancers.len() {
            let table = self.followed_by(edge);
            if let Some((name, table)) = table {
                self.highest[edge] = table.epoch;
                self.check_table(&name, &table);
            }
        }
        for unprobed in &self.unprobed {
            assert!(*unprobed <= LEASE + 2, "unprobed for {unprobed} s");
        }
    }

    /// Whom an edge follows, of those that have weights for it.
    fn followed_by(&mut self, edge: usize) -> Option<(NodeName, Table)> {
        let now = self.now;
        let count = self.balancers.len();
        (0..count).find_map(|next| {
            let balancer = &mut self.balancers[(edge + next) % count];
            let serves = balancer.runs()
                && balancer.engine.settle(now)
                && balancer.engine.superseded_by(now.instant).is_none();
            let table = serves.then(|| balancer.engine.table())?;
            let taken = table.epoch >= self.highest[edge];
            taken.then(|| (balancer.name.clone(), table))
        })
    }

    fn check_table(&self, name: &NodeName, table: &Table) {
        let calm = self.quiet > SILENT;
        let weights = &table.pools[&self.pool.name];
        for (origin, weight) in weights.origins.iter().enumerate() {
            let who = format!("{name} of {}: {weights:?}", weight.name);
            // Whatever becomes of one balancer.
            if !self.was_ever_dead[origin] {
                assert!(weight.weight > Weight::ZERO, "wrongly down: {who}");
            }
            if self.held_until[origin] > Some(self.now.wall) {
                assert_eq!(weight.weight, Weight::ZERO, "no longer held down: {who}");
            }
            let known = self.dead_for[origin].is_some_and(|seconds| seconds >= KNOWN_AFTER);
            if known && calm {
                assert_eq!(weight.weight, Weight::ZERO, "not known to be dead: {who}");
            }
        }
    }

    fn tell(&mut self) {
        for _ in 0..SECONDS {
            self.trouble();
            self.pass();
            self.check();
        }
    }
}

fn engine(now: Now, pool: &Pool) -> Engine {
    let mut engine = Engine::new();
    let mut monitor = monitor("quick", 1, 2);
    monitor.interval = Duration::from_secs(1);
    let members = Members::of(&resources([monitor], [pool.clone()]));
    engine.configure(now, Revision(1), members);
    engine
}

#[test]
fn whatever_becomes_of_one_balancer_the_verdicts_are_right() {
    tell_stories(STORIES, |seed| Fleet::new(seed).tell());
}
