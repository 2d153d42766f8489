use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Instant,
};

use anyport_model::limits::{Limit, Limits, Reached, Source};

use super::sources::Sources;

/// What an app has open, on all workers together.
#[derive(Default)]
pub struct Tally {
    open: AtomicU32,
    sources: OnceLock<Box<Sources>>,
}

impl Tally {
    /// Counts one more connection of `source`, unless that is one too many.
    /// Gives the source where it was counted too: boxed, since connections of
    /// apps without such a limit carry nothing of it.
    pub fn enter(
        &self,
        limits: &Limits,
        source: Source,
        now: Instant,
    ) -> Result<Option<Box<Source>>, Reached> {
        let in_all = || self.enter_all(limits, source);
        if !limits.are_by_source() {
            return in_all().map(|()| None);
        }
        let sources = self.sources.get_or_init(|| Box::new(Sources::new(now)));
        sources.enter(limits, source, now, in_all)?;
        Ok(Some(Box::new(source)))
    }

    /// A connection has ended that [`enter`](Self::enter) let in, and what it
    /// gave for it.
    pub fn leave(&self, source: Option<Box<Source>>) {
        self.open.fetch_sub(1, Relaxed);
        if let (Some(source), Some(sources)) = (source, self.sources.get()) {
            sources.leave(*source, Instant::now());
        }
    }

    fn enter_all(&self, limits: &Limits, source: Source) -> Result<(), Reached> {
        let Some(value) = limits.connections else {
            self.open.fetch_add(1, Relaxed);
            return Ok(());
        };
        let more = |open: u32| (open < value.get()).then_some(open + 1);
        // The count alone is shared, and nothing is read by it: no order with
        // anything else is needed.
        let entered = self.open.fetch_update(Relaxed, Relaxed, more);
        entered.map(drop).map_err(|_| Reached {
            limit: Limit::Connections,
            value,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::{
        net::IpAddr,
        num::NonZeroU32,
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
    };

    fn limits(connections: u32, per_source: u32, new: u32) -> Limits {
        Limits {
            connections: NonZeroU32::new(connections),
            connections_per_source: NonZeroU32::new(per_source),
            new_connections_per_source: NonZeroU32::new(new),
            bytes_per_second_per_connection: None,
        }
    }

    fn source(host: u8) -> Source {
        Source::from(IpAddr::from([203, 0, 113, host]))
    }

    fn open(tally: &Tally) -> u32 {
        tally.open.load(Relaxed)
    }

    #[test]
    fn each_limit_says_which_it_is_and_takes_nothing() {
        let now = Instant::now();
        for (limits, limit) in [
            (limits(2, 0, 0), Limit::Connections),
            (limits(2, 9, 9), Limit::Connections),
            (limits(9, 2, 9), Limit::ConnectionsPerSource),
            (limits(9, 9, 2), Limit::NewConnectionsPerSource),
        ] {
            let tally = Tally::default();
            let mut held: Vec<_> = (0..2)
                .map(|_| tally.enter(&limits, source(1), now).unwrap())
                .collect();
            for _ in 0..3 {
                let reached = tally.enter(&limits, source(1), now).unwrap_err();
                assert_eq!((reached.limit, reached.value.get()), (limit, 2));
                assert_eq!(open(&tally), 2);
            }
            let other = tally.enter(&limits, source(2), now);
            assert_eq!(other.is_ok(), limit != Limit::Connections);
            held.extend(other);
            held.into_iter().for_each(|held| tally.leave(held));
            assert_eq!(open(&tally), 0);
            let again = tally.enter(&limits, source(1), now);
            assert_eq!(again.is_ok(), limit != Limit::NewConnectionsPerSource);
        }
    }

    #[test]
    fn who_finds_the_app_full_has_used_up_nothing_of_its_own() {
        let (tally, now, limits) = (Tally::default(), Instant::now(), limits(1, 1, 1));
        let first = tally.enter(&limits, source(1), now).unwrap();
        for _ in 0..3 {
            let reached = tally.enter(&limits, source(2), now).unwrap_err();
            assert_eq!(reached.limit, Limit::Connections);
        }
        tally.leave(first);
        assert!(tally.enter(&limits, source(2), now).is_ok());
    }

    #[test]
    fn what_is_open_counts_whatever_the_limits_were_then() {
        let (tally, now) = (Tally::default(), Instant::now());
        let none = Limits::default();
        let held: Vec<_> = (0..5)
            .map(|_| tally.enter(&none, source(1), now).unwrap())
            .collect();
        assert!(tally.enter(&limits(5, 0, 0), source(1), now).is_err());
        assert!(tally.enter(&limits(3, 0, 0), source(1), now).is_err());
        let sixth = tally.enter(&limits(6, 2, 0), source(1), now).unwrap();
        assert!(sixth.is_some() && held.iter().all(Option::is_none));
        // Those limits are gone while it is open, and come back.
        let seventh = tally.enter(&none, source(1), now).unwrap();
        let second = tally.enter(&limits(9, 2, 0), source(1), now).unwrap();
        let third = tally.enter(&limits(9, 2, 0), source(1), now).unwrap_err();
        assert_eq!(third.limit, Limit::ConnectionsPerSource);
        for held in held.into_iter().chain([sixth, seventh, second]) {
            tally.leave(held);
        }
        assert_eq!(open(&tally), 0);
    }

    /// The most that is ever in at the same time is the limit, and as many as
    /// it get in where nobody leaves.
    #[test]
    fn workers_at_the_same_time_let_in_as_many_as_the_limit_and_not_one_more() {
        const WORKERS: usize = 8;
        let now = Instant::now();
        for (limits, most) in [
            (limits(100, 0, 0), 100),
            (limits(0, 50, 0), 100),
            (limits(0, 0, 50), 100),
            (limits(90, 50, 60), 90),
        ] {
            let tally = Tally::default();
            let entered = AtomicUsize::new(0);
            let start = Barrier::new(WORKERS);
            std::thread::scope(|scope| {
                for worker in 0..WORKERS {
                    let (tally, entered, start) = (&tally, &entered, &start);
                    scope.spawn(move || {
                        start.wait();
                        for attempt in 0..200 {
                            let host = ((worker + attempt) % 2) as u8;
                            if tally.enter(&limits, source(host), now).is_ok() {
                                entered.fetch_add(1, SeqCst);
                            }
                        }
                    });
                }
            });
            assert_eq!(entered.load(SeqCst), most, "{limits:?}");
            assert_eq!(open(&tally) as usize, most);
        }
        // And with some that leave.
        let (tally, limits) = (Tally::default(), limits(10, 6, 0));
        let [inside, of_source] = [AtomicUsize::new(0), AtomicUsize::new(0)];
        std::thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| {
                    for attempt in 0..20_000 {
                        let host = (attempt % 3) as u8;
                        let Ok(held) = tally.enter(&limits, source(host), now) else {
                            continue;
                        };
                        assert!(inside.fetch_add(1, SeqCst) < 10);
                        if host == 0 {
                            assert!(of_source.fetch_add(1, SeqCst) < 6);
                            of_source.fetch_sub(1, SeqCst);
                        }
                        inside.fetch_sub(1, SeqCst);
                        tally.leave(held);
                    }
                });
            }
        });
        assert_eq!(open(&tally), 0);
    }
}
