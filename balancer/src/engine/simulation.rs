//! A few edges and the origins of one pool, second by second, from one seed: origins fail, flap,
//! get slow and return, or refuse clients while they answer probes, edges lose the way to one, the
//! balancer its network, and operators change weights. All of it is told to an engine, whose
//! weights the edges follow. In the end all is well, or stays as bad as it is then, and the weights
//! come to rest. `ANYPORT_SEED=17` tells one story again.

#![allow(clippy::unwrap_used)]

use std::{io, time::SystemTime};

use anyport_model::{
    resource::{Origin, Policy, Weight},
    weights::{OriginHealth, PoolWeights},
};

use super::{
    chance::{Chance, tell_stories},
    *,
};
use crate::{health::DialReport, membership::fixtures::*, probe::failure::Failure};

/// Told every time; `ANYPORT_STORIES=5000` tells more.
const STORIES: u64 = 400;
/// Seconds of a story in which things happen.
const TROUBLE: u64 = 60;
/// Every so many stories, how it ends is waited for.
const WAITED_FOR: u64 = 20;
/// Seconds after which nothing moves any more, when all is well: the longest hold, and what
/// factors take to go from one end to the other.
const CALM: u64 = 500;
/// The same, where who is slow stays so, and it is forgotten that it was ever faster.
const USED_TO: u64 = 5000;
/// What is reported wavers by up to so much when nothing happens, which is too little for a factor
/// to follow.
const NOISE: f64 = 0.03;
/// Seconds that an origin is dead before everybody knows.
const KNOWN_AFTER: u64 = 4;

/// An origin as it really is.
#[derive(Debug, Clone, Default)]
struct Server {
    /// In seconds; none: it answers.
    dead_for: Option<u64>,
    slow: bool,
    /// It answers probes, and no client.
    deaf: bool,
    /// Seconds that a connection lasts.
    lasts: f64,
    /// An edge that has no way to it.
    cut_from: Option<usize>,
    was_ever_dead: bool,
    was_ever_deaf: bool,
    /// Open at each edge.
    open: Vec<f64>,
}

struct World {
    chance: Chance,
    engine: Engine,
    now: Now,
    pool: Pool,
    servers: Vec<Server>,
    edges: usize,
    /// The balancer has no network.
    isolated: bool,
    noise: f64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let edges = 1 + chance.below(4) as usize;
        let origins = 1 + chance.below(5) as usize;
        let policies = Policy::ALL;
        let mut pool = pool("game", Some("quick"), &[]);
        pool.policy = policies[chance.below(policies.len() as u64) as usize];
        pool.minimum_origins = 1 + chance.below(2) as u32;
        pool.fallback = chance.one_in(3).then(|| "spare".parse().unwrap());
        let mut servers = Vec::new();
        for index in 0..origins {
            pool.origins.push(Origin {
                name: format!("o{index}").parse().unwrap(),
                address: format!("10.0.2.{}:7000", index + 2).parse().unwrap(),
                // The first one always counts.
                weight: Weight::of_thousandths(match index {
                    0 => 1000,
                    _ => 500 * chance.below(4) as u32,
                }),
                enabled: index == 0 || !chance.one_in(8),
            });
            servers.push(Server {
                lasts: 1.0 + chance.below(100) as f64,
                open: vec![0.0; edges],
                ..Server::default()
            });
        }
        let mut world = World {
            chance,
            engine: Engine::new(),
            now: Now {
                instant: Instant::now(),
                wall: SystemTime::UNIX_EPOCH,
            },
            pool,
            servers,
            edges,
            isolated: false,
            noise: 0.0,
        };
        world.configure();
        world
    }

    fn configure(&mut self) {
        let mut monitor = monitor("quick", 1, 1);
        monitor.interval = Duration::from_secs(1);
        let members = Members::of(&resources([monitor], [self.pool.clone()]));
        let revision = self.engine.revision().next();
        self.engine.configure(self.now, revision, members);
    }

    /// An operator drains an origin, takes it back, or weighs it otherwise; never the first one.
    fn operate(&mut self) {
        let index = self.chance.below(self.servers.len() as u64) as usize;
        if index == 0 {
            return;
        }
        let origin = &mut self.pool.origins[index];
        match self.chance.one_in(2) {
            true => origin.enabled = !origin.enabled,
            false => origin.weight = Weight::of_thousandths(500 * self.chance.below(4) as u32),
        }
        self.configure();
    }

    fn weights(&self) -> Arc<PoolWeights> {
        Arc::clone(&self.engine.table().pools[&self.pool.name])
    }

    fn trouble(&mut self) {
        self.isolated = match self.isolated {
            true => !self.chance.one_in(4),
            false => self.chance.one_in(60),
        };
        if self.chance.one_in(30) {
            self.operate();
        }
        // With one origin only, there is no telling.
        let probed = self.pool.origins.iter().filter(|origin| origin.enabled);
        let nobody_knows = self.isolated && probed.count() < 2;
        for server in &mut self.servers {
            server.was_ever_dead |= nobody_knows;
            server.dead_for = match server.dead_for {
                Some(_) if self.chance.one_in(6) => None,
                // Nobody knows while nobody sees it.
                Some(_) if self.isolated => Some(0),
                Some(seconds) => Some(seconds + 1),
                None => self.chance.one_in(25).then_some(0),
            };
            server.deaf = match server.deaf {
                true => !self.chance.one_in(10),
                false => self.chance.one_in(100),
            };
            server.was_ever_deaf |= server.deaf;
            server.was_ever_dead |= server.dead_for.is_some();
            server.slow = match server.slow {
                true => !self.chance.one_in(20),
                false => self.chance.one_in(40),
            };
        }
        // Of each origin it is always the same edge that has no way to it now and then.
        if self.edges > 1 && self.chance.one_in(20) {
            let index = self.chance.below(self.servers.len() as u64) as usize;
            let cut = &mut self.servers[index].cut_from;
            *cut = cut.is_none().then_some(index % self.edges);
        }
    }

    /// From now on nothing happens any more, but that edges see a little more or less of it.
    fn still(&mut self) {
        self.isolated = false;
        self.noise = NOISE;
        for server in &mut self.servers {
            // It would be tried again, now and then, for ever.
            server.deaf = false;
        }
    }

    fn peace(&mut self) {
        for server in &mut self.servers {
            server.dead_for = None;
            server.slow = false;
            server.cut_from = None;
        }
    }

    /// One second: probes, the edges' connections, and what they report.
    fn pass(&mut self) {
        self.now.instant += Duration::from_secs(1);
        self.now.wall += Duration::from_secs(1);
        while let Some(ticket) = self.engine.start_due(self.now) {
            let index = self.index(&ticket.key);
            let failed = |code| Err(Failure::Connect(io::Error::from_raw_os_error(code)));
            let outcome = match self.servers[index].dead_for {
                _ if self.isolated => failed(libc::ENETUNREACH),
                Some(_) => failed(libc::ECONNREFUSED),
                None => Ok(Duration::from_millis(1)),
            };
            self.engine.finished(self.now, ticket, outcome, 0);
        }
        self.engine.step(self.now);
        self.engine.weigh(self.now);
        for edge in 0..self.edges {
            let reports = self.connect(edge);
            let name = format!("edge-{edge}").parse().unwrap();
            self.engine.reported(self.now, &name, &reports);
            self.engine.weigh(self.now);
        }
    }

    fn index(&self, key: &OriginKey) -> usize {
        let origins = self.pool.origins.iter();
        origins
            .map(|o| &o.name)
            .position(|name| *name == key.origin)
            .unwrap()
    }

    /// A hundred connections by the weights of now. Three that fail at an edge make it leave an
    /// origin alone for the rest of the second.
    fn connect(&mut self, edge: usize) -> Vec<DialReport> {
        let weights = self.weights();
        let reports = self.servers.iter_mut().enumerate().map(|(index, server)| {
            let wanted = 100.0 * weights.share(index);
            let answers = server.dead_for.is_none() && !server.deaf;
            let reaches = answers && server.cut_from != Some(edge);
            let part = self.chance.below(2001) as f64 / 1000.0 - 1.0;
            let noise = 1.0 + self.noise * part;
            let made = if reaches { wanted } else { wanted.min(3.0) };
            let open = &mut server.open[edge];
            *open -= *open / server.lasts;
            *open += if reaches { made } else { 0.0 };
            let made = made.round() as u64;
            DialReport {
                key: OriginKey::of(&self.pool.name, &self.pool.origins[index].name),
                dials: made,
                failures: if reaches { 0 } else { made },
                last_failure: String::new(),
                open: (*open * noise) as u64,
                took: (reaches && made > 0).then(|| {
                    let distance = 1 + 20 * edge as u64;
                    let took = Duration::from_millis(if server.slow { 400 } else { distance });
                    took.mul_f64(noise)
                }),
            }
        });
        reports.collect()
    }

    fn check(&self) {
        let weights = self.weights();
        let total: f64 = (0..self.servers.len())
            .map(|index| weights.share(index))
            .sum();
        let takes = |index: usize| {
            let origin = &self.pool.origins[index];
            origin.enabled && origin.weight > Weight::ZERO
        };
        let gets = |index: usize| takes(index) && weights.share(index) > 0.0;
        let any = (0..self.servers.len()).any(gets);
        assert_eq!(any, total > 0.0, "{weights:?}");
        assert!(
            !any || (total - 1.0).abs() < 1e-9,
            "shares are {total}: {weights:?}"
        );
        assert!(
            any || self.pool.fallback.is_some(),
            "nobody gets it: {weights:?}"
        );
        for (index, server) in self.servers.iter().enumerate() {
            let share = weights.share(index);
            let known = server
                .dead_for
                .is_some_and(|seconds| seconds >= KNOWN_AFTER);
            assert!(
                !known || share == 0.0 || weights.panic,
                "o{index} is dead: {weights:?}"
            );
            assert!(takes(index) || share == 0.0, "o{index}: {weights:?}");
            let healthy = takes(index) && weights.origins[index].health.usable();
            assert!(!healthy || share > 0.0, "o{index}: {weights:?}");
            // Of one that answers, it is never taken from all, whatever edge has no way to it.
            if self.edges > 1 && !server.was_ever_dead && !server.was_ever_deaf {
                assert_ne!(
                    weights.origins[index].health,
                    OriginHealth::Down,
                    "o{index}"
                );
                assert!(!takes(index) || share > 0.0, "o{index}: {weights:?}");
            }
        }
    }

    fn tell(&mut self, seed: u64) {
        for _ in 0..TROUBLE {
            self.trouble();
            self.pass();
            self.check();
        }
        self.still();
        if !seed.is_multiple_of(WAITED_FOR) {
            return;
        }
        let all_is_well = seed.is_multiple_of(2 * WAITED_FOR);
        if all_is_well {
            self.peace();
        }
        for _ in 0..if all_is_well { CALM } else { USED_TO } {
            self.pass();
            self.check();
        }
        let (version, weights) = (self.engine.weights_version(), self.weights());
        for _ in 0..100 {
            self.pass();
        }
        assert_eq!(self.engine.weights_version(), version, "{weights:?}");
        for (index, origin) in self.pool.origins.iter().enumerate() {
            let enabled = origin.enabled && origin.weight > Weight::ZERO;
            let answers = self.servers[index].dead_for.is_none();
            let takes = weights.origins[index].weight > Weight::ZERO;
            let expected = enabled && (answers || weights.panic);
            assert_eq!(takes, expected, "who answers is back: {weights:?}");
        }
    }
}

#[test]
fn whatever_happens_to_origins_the_weights_are_right() {
    tell_stories(STORIES, |seed| World::new(seed).tell(seed));
}
