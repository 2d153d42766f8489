//! What each source has open of an app, and how fast it begins.
//!
//! A source is forgotten once it has nothing open and its bucket is full again,
//! which takes a second at most. At any time each of the [`PARTS`] parts holds
//! the sources that have something open and at most [`LINGER_MAX`] others,
//! whatever addresses are forged. Where more come within a second, those that
//! ended first are forgotten, and may begin anew.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyport_model::{
    bucket::Bucket,
    limits::{Limit, Limits, Reached, Source},
};

/// Each with a lock of its own; which one is a source's, nobody outside knows.
const PARTS: usize = 16;

const LINGER_MAX: usize = 1024;

/// In this time a bucket is full, whatever its rate.
const FULL_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Sources {
    since: Instant,
    // Keyed at random: nobody can aim at one part, or at one bucket of a map.
    hasher: RandomState,
    parts: [Mutex<Part>; PARTS],
}

#[derive(Default)]
struct Part {
    sources: HashMap<Source, Entry>,
    /// Sources that had nothing open when they were put here, each once, and
    /// when to look whether they still have not.
    lingering: VecDeque<(Duration, Source)>,
}

struct Entry {
    open: u32,
    /// None: there was no limit on new connections yet.
    bucket: Option<Bucket>,
    /// The last one.
    began: Duration,
    lingers: bool,
}

impl Sources {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            hasher: RandomState::new(),
            parts: Default::default(),
        }
    }

    /// Counts one more connection of `source` where no limit is against it,
    /// `in_all` included.
    pub(super) fn enter(
        &self,
        limits: &Limits,
        source: Source,
        now: Instant,
        in_all: impl FnOnce() -> Result<(), Reached>,
    ) -> Result<(), Reached> {
        let now = now.saturating_duration_since(self.since);
        let mut part = self.part(source);
        part.forget(now);
        part.enter(limits, source, now, in_all)
    }

    pub(super) fn leave(&self, source: Source, now: Instant) {
        let now = now.saturating_duration_since(self.since);
        let mut part = self.part(source);
        part.leave(source, now);
        part.forget(now);
    }

    fn part(&self, source: Source) -> MutexGuard<'_, Part> {
        let index = self.hasher.hash_one(source) as usize % PARTS;
        // What is under these locks is valid after every statement.
        self.parts[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    fn enter(
        &mut self,
        limits: &Limits,
        source: Source,
        now: Duration,
        in_all: impl FnOnce() -> Result<(), Reached>,
    ) -> Result<(), Reached> {
        let known = self.sources.get(&source);
        let reached = |limit, value| Reached {
            limit,
            value,
            source,
        };
        let open = known.map_or(0, |known| known.open);
        if let Some(most) = limits.connections_per_source
            && open >= most.get()
        {
            return Err(reached(Limit::ConnectionsPerSource, most));
        }
        let mut bucket = known.and_then(|known| known.bucket);
        if let Some(rate) = limits.new_connections_per_source {
            let bucket = bucket.get_or_insert(Bucket::full(rate, now));
            if !bucket.take(rate, now) {
                return Err(reached(Limit::NewConnectionsPerSource, rate));
            }
        }
        in_all()?;
        let entry = self.sources.entry(source).or_insert(Entry {
            open: 0,
            bucket: None,
            began: now,
            lingers: false,
        });
        entry.open = open + 1;
        entry.bucket = bucket;
        entry.began = now;
        Ok(())
    }

    fn leave(&mut self, source: Source, now: Duration) {
        let Some(entry) = self.sources.get_mut(&source) else {
            return;
        };
        entry.open = entry.open.saturating_sub(1);
        if entry.open > 0 || entry.lingers {
            return;
        }
        if entry.is_as_new(now) {
            self.sources.remove(&source);
        } else {
            entry.lingers = true;
            self.lingering.push_back((entry.began + FULL_AFTER, source));
        }
    }

    /// Forgets whom there is no longer anything to know of.
    fn forget(&mut self, now: Duration) {
        while let Some(&(due, source)) = self.lingering.front() {
            let too_many = self.lingering.len() > LINGER_MAX;
            if due > now && !too_many {
                break;
            }
            self.lingering.pop_front();
            let Some(entry) = self.sources.get_mut(&source) else {
                continue;
            };
            if entry.open > 0 {
                entry.lingers = false;
            } else if too_many || entry.is_as_new(now) {
                self.sources.remove(&source);
            } else {
                // It came back and left again meanwhile.
                self.lingering.push_back((entry.began + FULL_AFTER, source));
            }
        }
        // What a flood has grown is given back.
        if self.sources.capacity() > 64 + self.sources.len() * 8 {
            self.sources.shrink_to(self.sources.len() * 2);
            self.lingering.shrink_to(self.lingering.len() * 2);
        }
    }
}

impl Entry {
    /// Nothing would be different if it was not known.
    fn is_as_new(&self, now: Duration) -> bool {
        self.open == 0 && (self.bucket.is_none() || now >= self.began + FULL_AFTER)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::num::NonZeroU32;

    fn limits(per_source: u32, new: u32) -> Limits {
        Limits {
            connections_per_source: NonZeroU32::new(per_source),
            new_connections_per_source: NonZeroU32::new(new),
            ..Limits::default()
        }
    }

    fn nth(n: u32) -> Source {
        Source::V4(n.into())
    }

    impl Sources {
        fn enters(&self, limits: &Limits, source: Source, now: Instant) -> bool {
            self.enter(limits, source, now, || Ok(())).is_ok()
        }

        fn known(&self) -> usize {
            let parts = self.parts.iter();
            parts.map(|part| part.lock().unwrap().sources.len()).sum()
        }

        fn memory(&self) -> usize {
            let of = |part: &Part| {
                part.sources.capacity() * size_of::<(Source, Entry)>()
                    + part.lingering.capacity() * size_of::<(Duration, Source)>()
            };
            self.parts
                .iter()
                .map(|part| of(&part.lock().unwrap()))
                .sum()
        }
    }

    #[test]
    fn a_source_is_forgotten_a_second_after_it_began_last() {
        let start = Instant::now();
        let sources = Sources::new(start);
        let limits = limits(0, 2);
        let ms = |ms| start + Duration::from_millis(ms);
        assert!(sources.enters(&limits, nth(1), start) && sources.enters(&limits, nth(1), start));
        sources.leave(nth(1), start);
        sources.leave(nth(1), start);
        assert!(
            !sources.enters(&limits, nth(1), ms(100)),
            "its bucket is empty"
        );
        assert!(sources.enters(&limits, nth(1), ms(500)));
        sources.leave(nth(1), ms(600));
        // As it does for one that begins nothing more.
        let part = |now| sources.part(nth(1)).forget(now);
        part(Duration::from_millis(1499));
        assert_eq!(sources.known(), 1);
        part(Duration::from_millis(1500));
        assert_eq!(sources.known(), 0);
    }

    #[test]
    fn one_that_was_open_for_long_and_one_without_a_rate_are_forgotten_at_once() {
        let start = Instant::now();
        let sources = Sources::new(start);
        assert!(sources.enters(&limits(1, 1), nth(1), start));
        assert!(sources.enters(&limits(1, 0), nth(2), start));
        sources.leave(nth(2), start);
        assert_eq!(sources.known(), 1);
        sources.leave(nth(1), start + FULL_AFTER);
        assert_eq!(sources.known(), 0);
    }

    #[test]
    fn a_flood_of_sources_does_not_grow_it_without_end() {
        let start = Instant::now();
        let sources = Sources::new(start);
        let limits = limits(5, 5);
        for n in 0..1_000_000 {
            assert!(sources.enters(&limits, nth(n), start));
            sources.leave(nth(n), start);
        }
        assert!(sources.known() <= PARTS * LINGER_MAX, "{}", sources.known());
        assert!(sources.memory() < 8 << 20, "{} bytes", sources.memory());
        // Whoever is inside is never forgotten.
        assert!(sources.enters(&limits, nth(0), start));
        for n in 1..200_000 {
            assert!(sources.enters(&limits, nth(n), start));
            sources.leave(nth(n), start);
        }
        let inside = |sources: &Sources| {
            let part = sources.part(nth(0));
            part.sources.get(&nth(0)).map(|entry| entry.open)
        };
        assert_eq!(inside(&sources), Some(1));
        // And when it is over, its memory is given back as others come.
        for n in 0..1000 {
            let now = start + 2 * FULL_AFTER;
            assert!(sources.enters(&limits, nth(n), now));
            sources.leave(nth(n), now + FULL_AFTER);
        }
        assert_eq!((sources.known(), inside(&sources)), (1, Some(1)));
        assert!(sources.memory() < 1 << 20, "{} bytes", sources.memory());
    }

    /// Remembers everything.
    #[derive(Default)]
    struct Naive(HashMap<Source, (u32, Option<Bucket>)>);

    impl Naive {
        fn enters(&mut self, limits: &Limits, source: Source, now: Duration) -> bool {
            let (open, bucket) = self.0.entry(source).or_default();
            let full = |most: NonZeroU32| *open >= most.get();
            if limits.connections_per_source.is_some_and(full) {
                return false;
            }
            if let Some(rate) = limits.new_connections_per_source {
                let bucket = bucket.get_or_insert(Bucket::full(rate, now));
                if !bucket.take(rate, now) {
                    return false;
                }
            }
            *open += 1;
            true
        }
    }

    proptest! {
        #[test]
        fn nobody_can_tell_that_sources_are_forgotten(
            per_source in 0u32..4,
            new in 0u32..4,
            steps in prop::collection::vec((0u64..700, 0u32..3, any::<bool>()), 1..200),
        ) {
            let (start, limits) = (Instant::now(), limits(per_source, new));
            let (sources, mut naive) = (Sources::new(start), Naive::default());
            let mut now = Duration::ZERO;
            for (passed, n, enters) in steps {
                now += Duration::from_millis(passed);
                let source = nth(n);
                let open = naive.0.get(&source).map_or(0, |(open, _)| *open);
                if enters {
                    let entered = sources.enters(&limits, source, start + now);
                    prop_assert_eq!(entered, naive.enters(&limits, source, now));
                } else if open > 0 {
                    sources.leave(source, start + now);
                    naive.0.entry(source).or_default().0 -= 1;
                }
            }
        }
    }
}
