//! An origin that just refused is left alone for a while.
//!
//! The balancer decides what is healthy. Until it has, or while it is gone,
//! each connection that chose a dead origin would pay for finding out, up to a
//! whole time-out; so this edge remembers. When the rest is over, one connection
//! finds out for all.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
pub struct Rest {
    /// Failures in a row, whether somebody tries the origin, and when the others
    /// come back to it, in one word: 15 bits of count above one bit above 48 bits
    /// of milliseconds (8,900 years). 0: nothing is against it.
    state: AtomicU64,
    /// When that was changed last, in milliseconds: what dials that were under way
    /// then show of the origin is older.
    changed: AtomicU64,
}

/// What follows when nothing is heard of a connection that tries an origin for
/// all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unheard {
    /// Its client may have left: another one tries.
    AnotherTries,
    /// Some origins never answer, as of datagrams: all come back.
    AllComeBack,
}

const TIME_BITS: u32 = 48;
const TRIAL: u64 = 1 << TIME_BITS;
const FAILURES_MAX: u64 = (1 << 15) - 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    failures: u64,
    on_trial: bool,
    until: u64,
}

impl State {
    fn of(word: u64) -> Option<Self> {
        (word != 0).then_some(Self {
            failures: word >> (TIME_BITS + 1),
            on_trial: word & TRIAL != 0,
            until: word & (TRIAL - 1),
        })
    }

    fn new(failures: u64, on_trial: bool, until: Duration) -> Self {
        Self {
            failures: failures.min(FAILURES_MAX),
            on_trial,
            until: millis(until) & (TRIAL - 1),
        }
    }

    fn word(self) -> u64 {
        let trial = if self.on_trial { TRIAL } else { 0 };
        self.failures << (TIME_BITS + 1) | trial | self.until
    }
}

impl Rest {
    /// A dial that `began` then failed `now`, both after any fixed point in time.
    /// The rest doubles with each failure in a row; dials that were under way when
    /// it, a trial, or a recovery began say nothing new. Whether nothing was
    /// against the origin before.
    pub fn failed(&self, began: Duration, now: Duration) -> bool {
        if millis(began) < self.changed.load(Relaxed) {
            return false;
        }
        let failures = match State::of(self.state.load(Relaxed)) {
            Some(state) if !state.on_trial && millis(now) < state.until => return false,
            Some(state) => state.failures,
            None => 0,
        };
        let doubled = FIRST.saturating_mul(1 << failures.min(16));
        // Two failures at once may count as one.
        let state = State::new(failures + 1, false, now + doubled.min(LONGEST));
        self.changed.fetch_max(millis(now), Relaxed);
        self.state.swap(state.word(), Relaxed) == 0
    }

    /// Whether something was against the origin before.
    pub fn succeeded(&self, now: Duration) -> bool {
        if self.state.load(Relaxed) == 0 {
            return false;
        }
        self.changed.fetch_max(millis(now), Relaxed);
        self.state.swap(0, Relaxed) != 0
    }

    /// It is left alone: it rests, or somebody tries it.
    pub fn is_resting(&self, now: Duration) -> bool {
        State::of(self.state.load(Relaxed)).is_some_and(|state| millis(now) < state.until)
    }

    /// Whether a connection may use it that has found it at rest no longer. After
    /// a rest this is so for one of them, and until that one succeeded or failed
    /// it rests for all others, or until nothing was heard for `patience`.
    pub fn may_try(&self, now: Duration, patience: Duration, unheard: Unheard) -> bool {
        let mut word = self.state.load(Relaxed);
        loop {
            let Some(state) = State::of(word) else {
                return true;
            };
            if millis(now) < state.until {
                return false;
            }
            if state.on_trial && unheard == Unheard::AllComeBack {
                return true;
            }
            let trial = State::new(state.failures, true, now + patience);
            let trial = trial.word();
            match self
                .state
                .compare_exchange_weak(word, trial, Relaxed, Relaxed)
            {
                Ok(_) => {
                    self.changed.fetch_max(millis(now), Relaxed);
                    return true;
                }
                Err(other) => word = other,
            }
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATIENCE: Duration = Duration::from_secs(5);
    const MS: Duration = Duration::from_millis(1);

    /// At once.
    fn fail(rest: &Rest, now: Duration) {
        rest.failed(now, now);
    }

    fn may_try(rest: &Rest, now: Duration) -> bool {
        rest.may_try(now, PATIENCE, Unheard::AnotherTries)
    }

    fn rest_after(rest: &Rest, now: Duration) -> Duration {
        let mut length = Duration::ZERO;
        while rest.is_resting(now + length) {
            length += MS;
        }
        length
    }

    #[test]
    fn rests_double_up_to_a_bound_and_end_with_a_success() {
        let rest = Rest::default();
        let mut now = Duration::from_secs(5);
        assert!(!rest.is_resting(now));
        for expected in [500, 1000, 2000, 4000, 8000, 15_000, 15_000] {
            fail(&rest, now);
            let length = rest_after(&rest, now);
            assert_eq!(length, Duration::from_millis(expected));
            now += length;
        }
        rest.succeeded(now);
        assert!(!rest.is_resting(now));
        fail(&rest, now);
        assert_eq!(rest_after(&rest, now), FIRST);
    }

    #[test]
    fn any_number_of_failures_is_counted_without_harm() {
        let rest = Rest::default();
        let mut now = Duration::ZERO;
        for _ in 0..100_000 {
            fail(&rest, now);
            now += LONGEST;
        }
        fail(&rest, now);
        assert!(rest.is_resting(now));
        assert!(!rest.is_resting(now + LONGEST));
    }

    #[test]
    fn dials_that_fail_together_are_one_failure() {
        let rest = Rest::default();
        let now = Duration::from_secs(1);
        for _ in 0..50 {
            fail(&rest, now);
        }
        assert_eq!(rest_after(&rest, now), FIRST);
    }

    #[test]
    fn when_a_rest_ends_one_tries_and_the_others_wait_for_it() {
        let rest = Rest::default();
        let mut now = Duration::from_secs(1);
        assert!((0..9).all(|_| may_try(&rest, now)), "it is well");
        fail(&rest, now);
        assert!(!may_try(&rest, now));
        now += FIRST;
        assert!(!rest.is_resting(now));
        let tries = |now| (0..9).filter(|_| may_try(&rest, now)).count();
        assert_eq!(tries(now), 1);
        assert_eq!(rest_after(&rest, now), PATIENCE);
        // It failed: a longer rest, and then one again.
        fail(&rest, now + MS);
        now += MS;
        assert_eq!(rest_after(&rest, now), FIRST * 2);
        now += FIRST * 2;
        assert_eq!(tries(now), 1);
        // It succeeded: all come back.
        rest.succeeded(now);
        assert!(!rest.is_resting(now));
        assert_eq!(tries(now), 9);
    }

    #[test]
    fn a_trial_of_which_nothing_is_heard_keeps_nobody_for_longer_than_its_time() {
        let rest = Rest::default();
        fail(&rest, Duration::ZERO);
        assert!(may_try(&rest, FIRST));
        let over = FIRST + PATIENCE;
        assert!(rest.is_resting(over - MS) && !rest.is_resting(over));
        let all = || rest.may_try(over, PATIENCE, Unheard::AllComeBack);
        assert!((0..9).all(|_| all()));
        fail(&rest, over);
        assert_eq!(rest_after(&rest, over), FIRST * 2, "the second in a row");
    }

    #[test]
    fn where_a_trial_tells_nothing_one_other_tries() {
        let rest = Rest::default();
        fail(&rest, Duration::ZERO);
        for trial in 0..4 {
            let now = FIRST + PATIENCE * trial;
            assert_eq!((0..9).filter(|_| may_try(&rest, now)).count(), 1);
            assert!(rest.is_resting(now + PATIENCE - MS));
        }
    }

    #[test]
    fn dials_from_before_say_nothing_of_a_trial_or_a_recovery() {
        let (rest, began) = (Rest::default(), Duration::from_secs(1));
        let failed = began + MS;
        rest.failed(began, failed);
        let mut now = failed + FIRST;
        rest.failed(began, now);
        assert!(
            !rest.is_resting(now),
            "it was under way when the rest began"
        );
        assert!(may_try(&rest, now));
        rest.failed(failed + MS, now + MS);
        assert_eq!(rest_after(&rest, now), PATIENCE, "the trial goes on");
        now += MS;
        rest.succeeded(now);
        rest.failed(now - MS, now + MS);
        assert!(!rest.is_resting(now + MS), "it has recovered since");
        rest.failed(now, now + MS);
        assert!(rest.is_resting(now + MS));
    }

    #[test]
    fn of_many_at_the_same_moment_one_tries() {
        for _ in 0..200 {
            let rest = Rest::default();
            fail(&rest, Duration::ZERO);
            let tries = std::thread::scope(|scope| {
                let all = [(); 4].map(|()| scope.spawn(|| may_try(&rest, LONGEST)));
                let tried = all.map(|one| one.join().is_ok_and(|tried| tried));
                tried.iter().filter(|tried| **tried).count()
            });
            assert_eq!(tries, 1);
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Choose,
        Fail,
        Succeed,
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            5 => Just(Event::Choose),
            2 => Just(Event::Fail),
            1 => Just(Event::Succeed),
        ]
    }

    /// What was last seen of an origin that has failed.
    #[derive(Clone, Copy)]
    enum Seen {
        /// The first and the last failure since it was tried.
        Failed(Duration, Duration),
        Tried(Duration),
    }

    proptest! {
        /// Whatever happens in whatever order: until a success, connections begin
        /// one by one, after a rest or when nothing was heard of the last one.
        #[test]
        fn an_origin_that_fails_is_tried_one_by_one(
            events in prop::collection::vec((any_event(), 0u64..4000), 1..200),
        ) {
            let (rest, mut now, mut seen) = (Rest::default(), FIRST, None);
            for (event, millis) in events {
                now += Duration::from_millis(millis);
                match event {
                    Event::Succeed => {
                        rest.succeeded(now);
                        seen = None;
                    }
                    Event::Fail => {
                        fail(&rest, now);
                        prop_assert!(rest.is_resting(now));
                        let first = match seen {
                            Some(Seen::Failed(first, _)) => first,
                            _ => now,
                        };
                        seen = Some(Seen::Failed(first, now));
                    }
                    Event::Choose => {
                        let may = may_try(&rest, now);
                        match seen {
                            None => prop_assert!(may),
                            Some(Seen::Failed(first, _)) if may => prop_assert!(now >= first + FIRST),
                            Some(Seen::Failed(_, last)) => prop_assert!(now < last + LONGEST),
                            Some(Seen::Tried(at)) => prop_assert_eq!(may, now >= at + PATIENCE),
                        }
                        if may && seen.is_some() {
                            seen = Some(Seen::Tried(now));
                        }
                    }
                }
            }
        }
    }
}
