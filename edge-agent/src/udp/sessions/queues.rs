//! Sessions by what they have in common, and of those that are unproven, which
//! was silent for longest. Every step takes the same time, however many there
//! are: each session is a link of three chains.

use std::{collections::HashMap, hash::Hash, net::SocketAddr};

use anyport_model::limits::Source;

use super::Key;

/// What sessions have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Source,
    Place,
    All,
}

impl Kind {
    /// The narrowest first: who makes room there does so in the others too.
    pub(super) const ALL: [Kind; 3] = [Kind::Source, Kind::Place, Kind::All];
}

/// Sessions by their slots.
pub(super) struct Queues {
    groups: Vec<Group>,
    free: Vec<u32>,
    by_source: HashMap<Source, u32>,
    by_place: HashMap<SocketAddr, u32>,
    /// By slot.
    members: Vec<Member>,
}

/// Sessions that have something in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    pub(super) count: usize,
    pub(super) unproven: usize,
    oldest: u32,
    newest: u32,
}

#[derive(Clone, Copy)]
struct Member {
    /// In the order of [`Kind::ALL`], as are the links.
    groups: [u32; 3],
    links: [Link; 3],
    queued: bool,
}

#[derive(Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
}

/// No slot and no group has this number.
const NONE: u32 = u32::MAX;

/// The group of all.
const EVERYBODY: u32 = 0;

const EMPTY: Group = Group {
    count: 0,
    unproven: 0,
    oldest: NONE,
    newest: NONE,
};

const NOBODY: Member = Member {
    groups: [NONE; 3],
    links: [UNLINKED; 3],
    queued: false,
};

const UNLINKED: Link = Link {
    older: NONE,
    newer: NONE,
};

impl Queues {
    pub(super) fn new() -> Self {
        Self {
            groups: vec![EMPTY],
            free: Vec::new(),
            by_source: HashMap::new(),
            by_place: HashMap::new(),
            members: Vec::new(),
        }
    }

    /// What a session of `key` would be in; `None`: nobody is there.
    pub(super) fn group(&self, kind: Kind, key: &Key) -> Option<&Group> {
        let index = match kind {
            Kind::Source => *self.by_source.get(&key.source())?,
            Kind::Place => *self.by_place.get(&key.edge)?,
            Kind::All => EVERYBODY,
        };
        self.groups.get(index as usize)
    }

    /// The slots of a group's unproven sessions, the one that was silent for
    /// longest first.
    pub(super) fn unproven(&self, kind: Kind, group: &Group) -> impl Iterator<Item = u32> {
        let next =
            move |slot: &u32| Some(self.members.get(*slot as usize)?.links[kind as usize].newer);
        std::iter::successors(Some(group.oldest), next).take_while(|slot| *slot != NONE)
    }

    /// The session in this slot is new, and unproven.
    pub(super) fn join(&mut self, slot: u32, key: &Key) {
        let (groups, free) = (&mut self.groups, &mut self.free);
        let joined = [
            found(&mut self.by_source, key.source(), groups, free),
            found(&mut self.by_place, key.edge, groups, free),
            EVERYBODY,
        ];
        let slots = self.members.len().max(slot as usize + 1);
        self.members.resize(slots, NOBODY);
        self.members[slot as usize].groups = joined;
        for group in joined {
            self.groups[group as usize].count += 1;
        }
        self.queue(slot);
    }

    /// It has ended.
    pub(super) fn leave(&mut self, slot: u32, key: &Key) {
        self.proven(slot);
        let groups = self.members[slot as usize].groups;
        for group in groups {
            self.groups[group as usize].count -= 1;
        }
        let [source, place, _] = groups;
        if self.groups[source as usize].count == 0 {
            self.by_source.remove(&key.source());
            self.free.push(source);
        }
        if self.groups[place as usize].count == 0 {
            self.by_place.remove(&key.edge);
            self.free.push(place);
        }
    }

    /// Something passed; where it is unproven, others were silent for longer.
    pub(super) fn heard(&mut self, slot: u32) {
        if self.unqueue(slot) {
            self.queue(slot);
        }
    }

    /// It makes room for nobody any more.
    pub(super) fn proven(&mut self, slot: u32) {
        self.unqueue(slot);
    }

    fn queue(&mut self, slot: u32) {
        let Self {
            groups, members, ..
        } = self;
        members[slot as usize].queued = true;
        for kind in Kind::ALL {
            let kind = kind as usize;
            let group = &mut groups[members[slot as usize].groups[kind] as usize];
            group.unproven += 1;
            let older = std::mem::replace(&mut group.newest, slot);
            match older {
                NONE => group.oldest = slot,
                older => members[older as usize].links[kind].newer = slot,
            }
            let newer = NONE;
            members[slot as usize].links[kind] = Link { older, newer };
        }
    }

    /// False: it was not queued.
    fn unqueue(&mut self, slot: u32) -> bool {
        let Self {
            groups, members, ..
        } = self;
        if !std::mem::take(&mut members[slot as usize].queued) {
            return false;
        }
        for kind in Kind::ALL {
            let kind = kind as usize;
            let group = &mut groups[members[slot as usize].groups[kind] as usize];
            group.unproven -= 1;
            let Link { older, newer } = members[slot as usize].links[kind];
            match older {
                NONE => group.oldest = newer,
                older => members[older as usize].links[kind].newer = newer,
            }
            match newer {
                NONE => group.newest = older,
                newer => members[newer as usize].links[kind].older = older,
            }
        }
        true
    }

    /// Nothing is kept of what is gone.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_source.is_empty()
            && self.by_place.is_empty()
            && self.groups.len() == self.free.len() + 1
    }
}

/// The group of a name, made where there is none.
fn found<N: Eq + Hash>(
    names: &mut HashMap<N, u32>,
    name: N,
    groups: &mut Vec<Group>,
    free: &mut Vec<u32>,
) -> u32 {
    *names.entry(name).or_insert_with(|| match free.pop() {
        Some(index) => {
            groups[index as usize] = EMPTY;
            index
        }
        None => {
            groups.push(EMPTY);
            // There are not more than twice as many as sessions.
            (groups.len() - 1) as u32
        }
    })
}
