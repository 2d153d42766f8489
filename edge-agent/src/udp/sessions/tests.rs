//! Rules one by one, and then all of them under a simulation: a generator
//! whose seed is in the failure, a clock that is a number, and a model that
//! keeps a plain list.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;

const IDLE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

fn key(client: &str) -> Key {
    Key {
        client: client.parse().unwrap(),
        edge: "198.51.100.1:53".parse().unwrap(),
    }
}

fn nth(n: u32) -> Key {
    Key {
        client: SocketAddr::from((n.to_be_bytes(), 1000)),
        edge: "198.51.100.1:53".parse().unwrap(),
    }
}

/// Three unproven ones at most.
const SMALL: Caps = Caps {
    all: 4,
    per_place: 100,
    per_source: 2,
};

fn is_free(sessions: &Sessions<()>, key: Key, now: Instant) {
    assert_eq!(sessions.room(&key, now), Ok(Vec::new()));
}

fn opened(sessions: &mut Sessions<()>, key: Key, now: Instant) -> Id {
    is_free(sessions, key, now);
    let id = sessions.open(key, IDLE, now, ());
    sessions.client_sent(id, 40, now);
    id
}

/// Makes the client answer to an answer.
fn prove(sessions: &mut Sessions<()>, id: Id, now: Instant) {
    assert!(sessions.may_return(id, 40, now));
    sessions.client_sent(id, 40, now);
}

#[test]
fn a_flow_ends_when_nothing_passed_for_its_idle_time() {
    let mut sessions = Sessions::new(SMALL);
    let start = Instant::now();
    let id = opened(&mut sessions, nth(1), start);
    assert_eq!(sessions.expired(start + IDLE - SECOND), None);
    assert!(sessions.may_return(id, 9, start + IDLE - SECOND));
    assert_eq!(sessions.expired(start + IDLE), None);
    let end = start + IDLE - SECOND + IDLE;
    assert_eq!(sessions.expired(end - SECOND), None);
    assert_eq!(sessions.expired(end), Some(id));
    assert_eq!(sessions.close(id), Some(()));
    assert_eq!((sessions.expired(end), sessions.len()), (None, 0));
}

#[test]
fn an_id_names_nothing_once_its_session_has_ended() {
    let mut sessions = Sessions::new(SMALL);
    let now = Instant::now();
    let first = opened(&mut sessions, nth(1), now);
    sessions.close(first);
    let second = opened(&mut sessions, nth(2), now);
    assert_eq!(first.slot, second.slot);
    assert_eq!(sessions.get(first), None);
    assert_eq!(sessions.close(first), None);
    assert!(!sessions.may_return(first, 1, now));
    sessions.client_sent(first, 1, now);
    assert_eq!(sessions.find(&nth(2)), Some(second));
}

#[test]
fn an_unproven_client_gets_one_large_answer_or_three_times_what_it_sent() {
    let mut sessions = Sessions::new(SMALL);
    let now = Instant::now();
    let id = opened(&mut sessions, nth(1), now);
    assert!(!sessions.may_return(id, 4097, now));
    assert!(sessions.may_return(id, 4096, now));
    assert!(!sessions.may_return(id, 1, now));

    let id = opened(&mut sessions, nth(2), now);
    sessions.client_sent(id, 5000, now);
    assert!(sessions.may_return(id, 15_000, now));
    assert!(!sessions.may_return(id, 121, now));
}

#[test]
fn a_datagram_after_an_answer_proves_the_client() {
    let mut sessions = Sessions::new(SMALL);
    let now = Instant::now();
    let id = opened(&mut sessions, nth(1), now);
    // Two datagrams and no answer between: whoever forged one can forge two.
    sessions.client_sent(id, 40, now);
    assert!(!sessions.may_return(id, 9000, now));
    prove(&mut sessions, id, now);
    assert!(sessions.may_return(id, 1_000_000, now));
}

#[test]
fn an_endless_stream_of_empty_answers_is_no_loophole() {
    let mut sessions = Sessions::new(SMALL);
    let now = Instant::now();
    let id = opened(&mut sessions, nth(1), now);
    let passed = (0..10_000).filter(|_| sessions.may_return(id, 0, now));
    assert_eq!(passed.count(), 4096);
}

#[test]
fn an_answer_that_was_held_back_keeps_nothing_alive() {
    let mut sessions = Sessions::new(SMALL);
    let start = Instant::now();
    let id = opened(&mut sessions, nth(1), start);
    assert!(!sessions.may_return(id, 5000, start + IDLE - SECOND));
    assert_eq!(sessions.expired(start + IDLE), Some(id));
}

#[test]
fn the_unproven_one_that_was_silent_longest_makes_room() {
    let mut sessions = Sessions::new(SMALL);
    let start = Instant::now();
    let first = opened(&mut sessions, nth(1), start);
    let second = opened(&mut sessions, nth(2), start);
    opened(&mut sessions, nth(3), start);
    assert_eq!(sessions.room(&nth(4), start), Err(Shed::Full));
    // The first one says something again.
    sessions.client_sent(first, 1, start + SECOND / 2);
    let later = start + GIVES_WAY;
    assert_eq!(sessions.room(&nth(4), later), Ok(vec![second]));
}

#[test]
fn who_has_its_share_makes_room_for_itself_alone() {
    let caps = Caps {
        all: 100,
        per_place: 4,
        per_source: 2,
    };
    let at = |client: &str, edge: &str| Key {
        client: client.parse().unwrap(),
        edge: edge.parse().unwrap(),
    };
    let (here, there) = ("198.51.100.1:53", "198.51.100.1:54");
    let mut sessions = Sessions::new(caps);
    let start = Instant::now();
    let other = opened(&mut sessions, at("10.0.0.9:1", there), start);
    let first = opened(&mut sessions, at("10.0.0.1:1", here), start);
    opened(&mut sessions, at("10.0.0.1:2", here), start);
    let own = at("10.0.0.1:3", here);
    assert_eq!(sessions.room(&own, start), Err(Shed::SourceFull));
    let later = start + GIVES_WAY;
    assert_eq!(sessions.room(&own, later), Ok(vec![first]));
    // The place is full of unproven ones with a third; others are not.
    let third = opened(&mut sessions, at("10.0.0.2:1", here), later);
    assert_eq!(
        sessions.room(&at("10.0.0.3:1", here), later),
        Ok(vec![first])
    );
    is_free(&sessions, at("10.0.0.3:1", there), later);
    // Proven, it leaves room for one, and makes none.
    prove(&mut sessions, third, later);
    let fourth = opened(&mut sessions, at("10.0.0.3:1", here), later);
    prove(&mut sessions, fourth, later);
    sessions.client_sent(first, 1, later);
    let second = sessions.find(&at("10.0.0.1:2", here)).unwrap();
    assert_eq!(
        sessions.room(&at("10.0.0.4:1", here), later),
        Ok(vec![second])
    );
    prove(&mut sessions, second, later);
    assert_eq!(
        sessions.room(&at("10.0.0.4:1", here), later),
        Err(Shed::PlaceFull)
    );
    // Who is full and where it is full may be two that have to go.
    let (full, far) = (at("10.0.0.9:2", there), at("10.0.0.9:3", here));
    opened(&mut sessions, full, later);
    let silent = later + GIVES_WAY;
    assert_eq!(sessions.room(&far, silent), Ok(vec![other, first]));
}

#[test]
fn proven_flows_make_room_for_nobody() {
    let mut sessions = Sessions::new(SMALL);
    let start = Instant::now();
    for n in 0..4 {
        let id = opened(&mut sessions, nth(n), start);
        prove(&mut sessions, id, start);
    }
    assert_eq!(sessions.room(&nth(9), start + IDLE / 2), Err(Shed::Full));
}

#[test]
fn a_source_is_an_address_of_ipv4_or_a_64_of_ipv6() {
    let now = Instant::now();
    for [first, second, third, other] in [
        ["192.0.0.1:1", "192.0.0.1:2", "192.0.0.1:3", "192.0.0.2:1"],
        [
            "[2001:db8::1]:1",
            "[2001:db8::2]:1",
            "[2001:db8::ffff:0:0:1]:1",
            "[2001:db8:0:1::1]:1",
        ],
    ] {
        let mut sessions = Sessions::new(SMALL);
        let id = opened(&mut sessions, key(first), now);
        opened(&mut sessions, key(second), now);
        assert_eq!(sessions.room(&key(third), now), Err(Shed::SourceFull));
        is_free(&sessions, key(other), now);
        sessions.close(id);
        is_free(&sessions, key(third), now);
    }
}

#[test]
fn sessions_that_end_early_leave_no_memory_behind() {
    let mut sessions = Sessions::new(SMALL);
    let now = Instant::now();
    for n in 0..100_000 {
        let id = sessions.open(nth(n), 24 * 3600 * SECOND, now, ());
        sessions.close(id);
    }
    assert!(sessions.deadlines.len() <= 128 && sessions.slots.len() == 1);
    assert!(sessions.by_key.is_empty() && sessions.queues.is_empty());
}

/// What the simulation believes of one session.
#[derive(Debug)]
struct Believed {
    key: Key,
    idle: Duration,
    active: Instant,
    /// Of two that were active at the same instant, the later has the higher.
    turn: u64,
    bytes_in: u64,
    bytes_back: u64,
    proven: bool,
}

struct Simulation {
    random: SmallRng,
    now: Instant,
    caps: Caps,
    sessions: Sessions<u64>,
    believed: BTreeMap<Id, Believed>,
    opened: u64,
    turns: u64,
}

impl Simulation {
    fn run(seed: u64, steps: u32) {
        let mut random = SmallRng::seed_from_u64(seed);
        let caps = Caps {
            all: random.random_range(1..30),
            per_place: random.random_range(1..20),
            per_source: random.random_range(1..8),
        };
        let mut simulation = Self {
            random,
            now: Instant::now(),
            caps,
            sessions: Sessions::new(caps),
            believed: BTreeMap::new(),
            opened: 0,
            turns: 0,
        };
        for _ in 0..steps {
            simulation.step();
            simulation.check();
        }
    }

    fn any_key(&mut self) -> Key {
        // Few sources and ports, so that they meet.
        let host = self.random.random_range(0..8u8);
        let port = self.random.random_range(1..12);
        let client = if self.random.random_bool(0.5) {
            SocketAddr::from(([10, 0, 0, host], port))
        } else {
            SocketAddr::from(([0x2001, 0xdb8, 0, u16::from(host % 4), 0, 0, 0, 1], port))
        };
        let edge = SocketAddr::from(([198, 51, 100, 1], self.random.random_range(53..56)));
        Key { client, edge }
    }

    fn any_id(&mut self) -> Option<Id> {
        let nth = self.random.random_range(0..self.believed.len().max(1));
        self.believed.keys().nth(nth).copied()
    }

    fn step(&mut self) {
        let size = *[0, 1, 40, 1200, 4096, 65_507]
            .get(self.random.random_range(0..6))
            .unwrap();
        match self.random.random_range(0..100) {
            0..=34 => self.arrive(size),
            35..=54 => {
                if let Some(id) = self.any_id() {
                    self.client_sent(id, size);
                }
            }
            55..=79 => {
                if let Some(id) = self.any_id() {
                    self.origin_sent(id, size);
                }
            }
            80..=84 => {
                if let Some(id) = self.any_id() {
                    self.believed.remove(&id);
                    assert!(self.sessions.close(id).is_some());
                    assert!(self.sessions.close(id).is_none());
                }
            }
            _ => {
                let step = self.random.random_range(0..3000);
                self.now += Duration::from_millis(step);
                self.expire();
            }
        }
    }

    /// A datagram on the steered socket.
    fn arrive(&mut self, size: usize) {
        let key = self.any_key();
        let known = self.believed.iter().find(|(_, b)| b.key == key);
        let known = known.map(|(id, _)| *id);
        assert_eq!(self.sessions.find(&key), known);
        if let Some(id) = known {
            return self.client_sent(id, size);
        }
        let room = self.sessions.room(&key, self.now);
        assert_eq!(room, self.believed_room(&key));
        let Ok(instead) = room else {
            return;
        };
        for id in instead {
            self.believed.remove(&id).unwrap();
            self.sessions.close(id).unwrap();
        }
        let idle = Duration::from_millis(self.random.random_range(500..20_000));
        self.opened += 1;
        let id = self.sessions.open(key, idle, self.now, self.opened);
        let before = self.believed.insert(
            id,
            Believed {
                key,
                idle,
                active: self.now,
                turn: 0,
                bytes_in: 0,
                bytes_back: 0,
                proven: false,
            },
        );
        assert!(before.is_none());
        self.client_sent(id, size);
    }

    /// By looking at all there is.
    fn believed_room(&self, key: &Key) -> Result<Vec<Id>, Shed> {
        let mostly = |of: usize| (of, (of - of / 4).max(1));
        let mut gone: Vec<Id> = Vec::new();
        for kind in [Kind::Source, Kind::Place, Kind::All] {
            let is_in = |b: &Believed| match kind {
                Kind::Source => b.key.source() == key.source(),
                Kind::Place => b.key.edge == key.edge,
                Kind::All => true,
            };
            let (most, most_unproven) = match kind {
                Kind::Source => (self.caps.per_source, self.caps.per_source),
                Kind::Place => mostly(self.caps.per_place),
                Kind::All => mostly(self.caps.all),
            };
            let left = |(id, b): &(&Id, &Believed)| is_in(b) && !gone.contains(id);
            let all = self.believed.iter().filter(left).count();
            let unproven = || self.believed.iter().filter(left).filter(|(_, b)| !b.proven);
            if all < most && unproven().count() < most_unproven {
                continue;
            }
            let oldest = unproven().min_by_key(|(_, b)| b.turn);
            match oldest {
                Some((id, b)) if self.now - b.active >= GIVES_WAY => gone.push(*id),
                _ => return Err(kind.into()),
            }
        }
        Ok(gone)
    }

    fn client_sent(&mut self, id: Id, size: usize) {
        self.turns += 1;
        let believed = self.believed.get_mut(&id).unwrap();
        believed.proven |= believed.bytes_back > 0;
        believed.bytes_in += size as u64;
        (believed.active, believed.turn) = (self.now, self.turns);
        self.sessions.client_sent(id, size, self.now);
    }

    fn origin_sent(&mut self, id: Id, size: usize) {
        self.turns += 1;
        let believed = self.believed.get_mut(&id).unwrap();
        let after = believed.bytes_back + (size as u64).max(1);
        let allowed = believed.proven || after <= 4096.max(3 * believed.bytes_in);
        assert_eq!(self.sessions.may_return(id, size, self.now), allowed);
        if allowed {
            believed.bytes_back = after;
            (believed.active, believed.turn) = (self.now, self.turns);
        }
    }

    fn expire(&mut self) {
        while let Some(id) = self.sessions.expired(self.now) {
            let gone = self.believed.remove(&id).unwrap();
            assert!(gone.active + gone.idle <= self.now, "{gone:?} ends early");
            self.sessions.close(id).unwrap();
        }
        let due = |b: &&Believed| b.active + b.idle <= self.now;
        assert_eq!(self.believed.values().find(due).map(|b| b.key), None);
    }

    /// What holds after every step.
    fn check(&self) {
        let sessions = &self.sessions;
        assert_eq!(sessions.len(), self.believed.len());
        assert!(sessions.len() <= self.caps.all);
        let ids: Vec<Id> = sessions.iter().map(|(id, _)| id).collect();
        assert!(ids.len() == self.believed.len());
        assert!(ids.iter().all(|id| self.believed.contains_key(id)));
        // The queue of all holds each unproven one once, in order of its last sign.
        let all = sessions.queues.group(Kind::All, &nth(0)).unwrap();
        let queue = sessions.queues.unproven(Kind::All, all);
        let turns: Vec<u64> = queue
            .map(|slot| self.believed[&sessions.at(slot).unwrap().0].turn)
            .collect();
        let unproven = self.believed.values().filter(|b| !b.proven).count();
        assert_eq!((turns.len(), all.unproven), (unproven, unproven));
        assert!(turns.is_sorted(), "{turns:?}");
        assert!(unproven <= self.caps.of_kind(Kind::All).1);
        assert_eq!(self.believed.is_empty(), sessions.queues.is_empty());
        // Nobody is overlooked until the next deadline.
        let due = self.believed.values().map(|b| b.active + b.idle).min();
        assert!(due.is_none_or(|due| sessions.next_deadline().is_some_and(|next| next <= due)));
        assert!(sessions.deadlines.len() <= sessions.len() * 2 + 64 + self.caps.all * 2);
        assert!(sessions.slots.len() <= self.caps.all);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn holds_under_any_course_of_events(seed: u64) {
        Simulation::run(seed, 1000);
    }
}

/// The same course in each run of the tests, and a long one.
#[test]
fn holds_for_long() {
    Simulation::run(65, 30_000);
}
