//! When each origin is probed next. Time and randomness are arguments.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// An interval is stretched by up to this part of it, so that probes of many
/// origins, and of one origin by many balancers, do not stay in step.
const JITTER: f64 = 0.1;

/// Between the first probes of origins that become known together: few are
/// probed at once, many do not start as one burst.
const FIRST_GAP: Duration = Duration::from_millis(2);

/// When, counted from now, the first probe of the `index`th of `count` new
/// origins is due: spread over `interval`, or over less where they are few.
pub(crate) fn first_pause(index: usize, count: usize, interval: Duration) -> Duration {
    let evenly = interval.mul_f64(index as f64 / count.max(1) as f64);
    let gaps = u32::try_from(index).unwrap_or(u32::MAX);
    evenly.min(FIRST_GAP.saturating_mul(gaps))
}

/// From the start of one probe to the start of the next. `random` is uniform
/// over all 64 bits.
pub(crate) fn pause(interval: Duration, random: u64) -> Duration {
    interval.mul_f64(1.0 + JITTER * (random as f64 / u64::MAX as f64))
}

/// Keys with the time each is due. A key that is taken out is the caller's
/// until it is put back: nothing is started twice.
#[derive(Debug)]
pub(crate) struct Schedule<K> {
    queue: BTreeSet<(Instant, K)>,
    due: BTreeMap<K, Instant>,
}

impl<K: Ord + Clone> Schedule<K> {
    pub(crate) fn new() -> Self {
        Self {
            queue: BTreeSet::new(),
            due: BTreeMap::new(),
        }
    }

    /// Puts `key` in, or moves it.
    pub(crate) fn put(&mut self, key: K, at: Instant) {
        self.remove(&key);
        self.queue.insert((at, key.clone()));
        self.due.insert(key, at);
    }

    /// Moves `key` forward to `at`, if it is here and later than that.
    pub(crate) fn hasten(&mut self, key: &K, at: Instant) {
        if self.due.get(key).is_some_and(|due| *due > at) {
            self.put(key.clone(), at);
        }
    }

    pub(crate) fn remove(&mut self, key: &K) {
        if let Some(at) = self.due.remove(key) {
            self.queue.remove(&(at, key.clone()));
        }
    }

    /// Takes out the key that is due longest.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        let (_, key) = self.queue.pop_first()?;
        self.due.remove(&key);
        Some(key)
    }

    /// When the next key is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.due.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_lone_new_origin_is_probed_at_once() {
        assert_eq!(first_pause(0, 1, 10 * SECOND), Duration::ZERO);
    }

    #[test]
    fn few_new_origins_need_not_wait_for_the_interval() {
        assert!(first_pause(9, 10, 10 * SECOND) < Duration::from_millis(50));
    }

    #[test]
    fn a_key_that_is_out_is_not_hastened_in() {
        let now = Instant::now();
        let mut schedule = Schedule::new();
        schedule.put("a", now);
        assert_eq!(schedule.take_due(now), Some("a"));
        schedule.hasten(&"a", now);
        assert_eq!(schedule.take_due(now), None);
    }

    #[test]
    fn hastening_never_delays() {
        let now = Instant::now();
        let mut schedule = Schedule::new();
        schedule.put("a", now + SECOND);
        schedule.hasten(&"a", now + 2 * SECOND);
        assert_eq!(schedule.next(), Some(now + SECOND));
        schedule.hasten(&"a", now);
        assert_eq!(schedule.next(), Some(now));
    }

    proptest! {
        #[test]
        fn pauses_are_the_interval_and_up_to_a_tenth(millis in 100u64..3_600_000, random: u64) {
            let interval = Duration::from_millis(millis);
            let pause = pause(interval, random);
            prop_assert!(pause >= interval && pause <= interval.mul_f64(1.1001));
        }

        #[test]
        fn first_probes_start_within_the_interval_and_not_as_a_burst(
            count in 1usize..2_000, millis in 100u64..3_600_000
        ) {
            let interval = Duration::from_millis(millis);
            let pauses: Vec<_> = (0..count).map(|index| first_pause(index, count, interval)).collect();
            prop_assert!(pauses.is_sorted());
            prop_assert!(pauses.iter().all(|pause| *pause < interval));
            // As even as the interval allows: no window of the schedule holds
            // more than its part of the probes, and one at each end.
            let gap = FIRST_GAP.min(interval.div_f64(count as f64));
            let window = gap * 10;
            for start in pauses.iter().step_by(41) {
                let inside = pauses.iter().filter(|p| *p >= start && **p < *start + window).count();
                prop_assert!(inside <= 12, "{inside} within {window:?}");
            }
        }

        /// Against the plainest thing that could work: a map that is searched.
        #[test]
        fn due_keys_come_out_in_order_and_once(
            steps in prop::collection::vec((0u8..4, 0u8..8, 0u64..50), 0..200)
        ) {
            let start = Instant::now();
            let at = |tick: u64| start + Duration::from_millis(tick);
            let mut schedule = Schedule::new();
            let mut plain: BTreeMap<u8, Instant> = BTreeMap::new();
            for (step, key, tick) in steps {
                match step {
                    0 => {
                        schedule.put(key, at(tick));
                        plain.insert(key, at(tick));
                    }
                    1 => {
                        schedule.hasten(&key, at(tick));
                        plain.entry(key).and_modify(|due| *due = (*due).min(at(tick)));
                    }
                    2 => {
                        schedule.remove(&key);
                        plain.remove(&key);
                    }
                    _ => {
                        let wanted = plain.iter().map(|(key, due)| (*due, *key)).min();
                        let wanted = wanted.filter(|(due, _)| *due <= at(tick)).map(|(_, key)| key);
                        prop_assert_eq!(schedule.take_due(at(tick)), wanted);
                        if let Some(key) = wanted {
                            plain.remove(&key);
                        }
                    }
                }
                prop_assert_eq!(schedule.next(), plain.values().min().copied());
            }
        }
    }
}
