//! Which flows there are, when they end, and what may be sent back to clients
//! that may not be who they say. Pure: time is an argument, sockets are
//! somebody else's.
//!
//! The source address of a datagram is anybody's claim until something that
//! was sent there has had an effect. So a flow starts out *unproven*, and is
//! *proven* by the first datagram from the client after something went back
//! to it.
//!
//! - To an unproven client, at most three times what it sent goes back, or
//!   [`FREE_ANSWER`] where that is more: one large answer of DNS.
//! - There is a bound on flows: of all, of one place (an address and port of the
//!   edge) and of one source (an IPv4 address, an IPv6 /64). Of the first two,
//!   unproven flows may have three quarters. Where there is no room, the unproven
//!   one that was silent for longest, of that place or source where it is theirs,
//!   makes some, once that is [`GIVES_WAY`]; else the new one is turned away.
//!   Proven flows never make room for anybody.
//!
//! A sender who forges a second datagram blindly proves nothing true, and this
//! cannot tell; the bound on flows of a source, the victim's, then bounds the
//! harm.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyport_model::limits::Source;

use queues::{Kind, Queues};

mod queues;

/// Bytes that may go back to an unproven client whatever it sent: an answer of
/// DNS by the largest size that resolvers ask for (RFC 6891).
pub(super) const FREE_ANSWER: u64 = 4096;

/// Bytes that may go back to an unproven client for each byte from it, as in
/// QUIC (RFC 9000, section 8).
pub(super) const AMPLIFICATION: u64 = 3;

/// An unproven flow that was silent for this long makes room for a new one.
pub(super) const GIVES_WAY: Duration = Duration::from_secs(1);

/// The two ends of a flow as the client sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) client: SocketAddr,
    pub(super) edge: SocketAddr,
}

impl Key {
    fn source(&self) -> Source {
        self.client.ip().into()
    }
}

/// How many flows there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    pub(super) all: usize,
    pub(super) per_place: usize,
    pub(super) per_source: usize,
}

impl Caps {
    /// What `all` flows leave to each: a half to one source.
    pub(super) fn of(all: usize, per_place: usize) -> Self {
        Self {
            all: all.max(1),
            per_place: per_place.max(1),
            per_source: (all / 2).max(1),
        }
    }

    /// Of all kinds of flows together, and of unproven ones.
    fn of_kind(&self, kind: Kind) -> (usize, usize) {
        let mostly = |all: usize| (all, (all - all / 4).max(1));
        match kind {
            Kind::Source => (self.per_source, self.per_source),
            Kind::Place => mostly(self.per_place),
            Kind::All => mostly(self.all),
        }
    }
}

/// Names a session for as long as it lives, and nothing afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id {
    slot: u32,
    generation: u32,
}

impl Id {
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.generation)
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        Self {
            slot: (bits >> 32) as u32,
            generation: bits as u32,
        }
    }
}

/// Why a new flow is turned away: there are as many as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shed {
    Full,
    PlaceFull,
    SourceFull,
}

/// All sessions of a worker, each with a `T`.
pub(super) struct Sessions<T> {
    caps: Caps,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    // The standard hasher is keyed at random: nobody can aim at one bucket.
    by_key: HashMap<Key, u32>,
    queues: Queues,
    /// One entry for each session, due no later than the session is; and
    /// those of sessions that are gone, until there are too many.
    deadlines: BinaryHeap<Reverse<(Instant, Id)>>,
}

struct Slot<T> {
    generation: u32,
    session: Option<Session<T>>,
}

struct Session<T> {
    key: Key,
    idle: Duration,
    active: Instant,
    /// From the client, and back to it.
    bytes_in: u64,
    bytes_back: u64,
    proven: bool,
    value: T,
}

impl<T> Sessions<T> {
    pub(super) fn new(caps: Caps) -> Self {
        Self {
            caps,
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            queues: Queues::new(),
            deadlines: BinaryHeap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn find(&self, key: &Key) -> Option<Id> {
        let &slot = self.by_key.get(key)?;
        let generation = self.slots.get(slot as usize)?.generation;
        Some(Id { slot, generation })
    }

    pub(super) fn get(&self, id: Id) -> Option<&T> {
        Some(&self.session(id)?.value)
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        Some(&mut self.session_mut(id)?.value)
    }

    pub(super) fn key(&self, id: Id) -> Option<Key> {
        Some(self.session(id)?.key)
    }

    /// Whether a new flow of `key` may be opened now, once those are closed that
    /// are given; mostly none.
    pub(super) fn room(&self, key: &Key, now: Instant) -> Result<Vec<Id>, Shed> {
        let mut instead: Vec<Id> = Vec::new();
        for kind in Kind::ALL {
            let Some(group) = self.queues.group(kind, key) else {
                continue;
            };
            let going = instead.iter().filter(|id| self.is_in(**id, kind, key));
            let going = going.count();
            let (most, most_unproven) = self.caps.of_kind(kind);
            if group.count - going < most && group.unproven - going < most_unproven {
                continue;
            }
            let unproven = self.queues.unproven(kind, group);
            let mut unproven = unproven.filter_map(|slot| self.at(slot));
            let oldest = unproven.find(|(id, _)| !instead.contains(id));
            match oldest {
                Some((id, session))
                    if now.saturating_duration_since(session.active) >= GIVES_WAY =>
                {
                    instead.push(id);
                }
                _ => return Err(kind.into()),
            }
        }
        Ok(instead)
    }

    fn is_in(&self, id: Id, kind: Kind, key: &Key) -> bool {
        self.session(id).is_some_and(|session| match kind {
            Kind::Source => session.key.source() == key.source(),
            Kind::Place => session.key.edge == key.edge,
            Kind::All => true,
        })
    }

    /// Opens the session of a flow that has none, which [`room`](Self::room)
    /// was asked for.
    pub(super) fn open(&mut self, key: Key, idle: Duration, now: Instant, value: T) -> Id {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                session: None,
            });
            (self.slots.len() - 1) as u32
        });
        let held = &mut self.slots[slot as usize];
        held.session = Some(Session {
            key,
            idle,
            active: now,
            bytes_in: 0,
            bytes_back: 0,
            proven: false,
            value,
        });
        let id = Id {
            slot,
            generation: held.generation,
        };
        let before = self.by_key.insert(key, slot);
        debug_assert!(before.is_none(), "{key:?} has a session");
        self.queues.join(slot, &key);
        self.push_deadline(now + idle, id);
        id
    }

    /// Ends a session; `None` if it has ended already.
    pub(super) fn close(&mut self, id: Id) -> Option<T> {
        self.session(id)?;
        let slot = self.slots.get_mut(id.slot as usize)?;
        let session = slot.session.take()?;
        // 31 bits: who uses an id as a number has one left.
        slot.generation = slot.generation.wrapping_add(1) & (u32::MAX >> 1);
        self.free.push(id.slot);
        self.by_key.remove(&session.key);
        self.queues.leave(id.slot, &session.key);
        Some(session.value)
    }

    /// A datagram of `bytes` came from the client.
    pub(super) fn client_sent(&mut self, id: Id, bytes: usize, now: Instant) {
        let Some(session) = self.session_mut(id) else {
            return;
        };
        session.active = now;
        session.bytes_in += bytes as u64;
        if session.proven {
            return;
        }
        if session.bytes_back > 0 {
            session.proven = true;
            self.queues.proven(id.slot);
        } else {
            self.queues.heard(id.slot);
        }
    }

    /// Whether a datagram of `bytes` may go back to the client; counted if so.
    pub(super) fn may_return(&mut self, id: Id, bytes: usize, now: Instant) -> bool {
        let Some(session) = self.session_mut(id) else {
            return false;
        };
        // An empty datagram weighs something on the wire too.
        let after = session.bytes_back + (bytes as u64).max(1);
        if !session.proven {
            let allowed = (session.bytes_in * AMPLIFICATION).max(FREE_ANSWER);
            if after > allowed {
                return false;
            }
        }
        session.bytes_back = after;
        session.active = now;
        if !session.proven {
            self.queues.heard(id.slot);
        }
        true
    }

    /// No session ends before this.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.peek().map(|Reverse((due, _))| *due)
    }

    /// One session after the other whose time has come. Each is to be closed.
    pub(super) fn expired(&mut self, now: Instant) -> Option<Id> {
        loop {
            let &Reverse((due, id)) = self.deadlines.peek()?;
            if due > now {
                return None;
            }
            self.deadlines.pop();
            let Some(session) = self.session(id) else {
                continue;
            };
            let due = session.active + session.idle;
            if due <= now {
                // Due again at once, should it not be closed.
                self.deadlines.push(Reverse((due, id)));
                return Some(id);
            }
            self.deadlines.push(Reverse((due, id)));
        }
    }

    /// All that are open.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        let slots = self.slots.iter().zip(0u32..);
        slots.filter_map(|(held, slot)| {
            let id = Id {
                slot,
                generation: held.generation,
            };
            Some((id, &held.session.as_ref()?.value))
        })
    }

    fn session(&self, id: Id) -> Option<&Session<T>> {
        let slot = self.slots.get(id.slot as usize)?;
        slot.session
            .as_ref()
            .filter(|_| slot.generation == id.generation)
    }

    fn session_mut(&mut self, id: Id) -> Option<&mut Session<T>> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        slot.session
            .as_mut()
            .filter(|_| slot.generation == id.generation)
    }

    fn at(&self, slot: u32) -> Option<(Id, &Session<T>)> {
        let held = self.slots.get(slot as usize)?;
        let id = Id {
            slot,
            generation: held.generation,
        };
        Some((id, held.session.as_ref()?))
    }

    fn push_deadline(&mut self, due: Instant, id: Id) {
        self.deadlines.push(Reverse((due, id)));
        // Sessions that end early leave theirs behind: bounded, whatever the
        // idle time.
        if self.deadlines.len() > self.len() * 2 + 64 {
            let mut all = std::mem::take(&mut self.deadlines).into_vec();
            all.retain(|Reverse((_, id))| self.session(*id).is_some());
            self.deadlines = all.into();
        }
    }
}

impl From<Kind> for Shed {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Source => Shed::SourceFull,
            Kind::Place => Shed::PlaceFull,
            Kind::All => Shed::Full,
        }
    }
}

#[cfg(test)]
mod tests;
