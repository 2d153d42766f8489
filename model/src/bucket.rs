//! A token bucket, in whole numbers and thus exact.

use std::{num::NonZeroU32, time::Duration};

/// Billionths in a token: what a rate of one a second brings in a nanosecond.
const TOKEN: i64 = 1_000_000_000;

/// Gains `rate` tokens a second and holds at most as many as it gains in one.
/// The rate is an argument each time, so that it can change. Times are since
/// any fixed point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// In billionths of a token. Below 0 where more was spent than there was.
    level: i64,
    /// Nanoseconds.
    at: u64,
}

impl Bucket {
    pub fn full(rate: NonZeroU32, now: Duration) -> Self {
        Self {
            level: capacity(rate),
            at: nanos(now),
        }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, rate: NonZeroU32, now: Duration) -> bool {
        self.fill(rate, now);
        let there = self.level >= TOKEN;
        if there {
            self.level -= TOKEN;
        }
        there
    }

    /// Whole tokens that are there.
    pub fn tokens(&mut self, rate: NonZeroU32, now: Duration) -> u32 {
        self.fill(rate, now);
        u32::try_from(self.level / TOKEN).unwrap_or(0)
    }

    /// Takes tokens, also more than there are: nothing is there then until the
    /// debt is paid.
    pub fn spend(&mut self, count: u32) {
        self.level = self.level.saturating_sub(i64::from(count) * TOKEN);
    }

    /// How long until there are `count` tokens, of which there can be no more
    /// than `rate`.
    pub fn ready_in(&mut self, rate: NonZeroU32, now: Duration, count: u32) -> Duration {
        self.fill(rate, now);
        let wanted = i64::from(count.min(rate.get())) * TOKEN;
        let missing = u64::try_from(wanted.saturating_sub(self.level)).unwrap_or(0);
        Duration::from_nanos(missing.div_ceil(u64::from(rate.get())))
    }

    pub fn is_full(&mut self, rate: NonZeroU32, now: Duration) -> bool {
        self.fill(rate, now);
        self.level == capacity(rate)
    }

    fn fill(&mut self, rate: NonZeroU32, now: Duration) {
        let passed = nanos(now).saturating_sub(self.at);
        self.at += passed;
        let gained = u128::from(passed) * u128::from(rate.get());
        let gained = i64::try_from(gained).unwrap_or(i64::MAX);
        self.level = self.level.saturating_add(gained).min(capacity(rate));
    }
}

fn capacity(rate: NonZeroU32) -> i64 {
    // At most 2^32 * 10^9: it fits.
    i64::from(rate.get()) * TOKEN
}

/// 584 years of them.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(rate: u32) -> NonZeroU32 {
        NonZeroU32::new(rate).unwrap()
    }

    #[test]
    fn a_second_brings_what_the_rate_says_and_no_time_brings_more() {
        let rate = rate(3);
        let mut bucket = Bucket::full(rate, Duration::ZERO);
        let taken = |bucket: &mut Bucket, now| (0..9).filter(|_| bucket.take(rate, now)).count();
        assert_eq!(taken(&mut bucket, Duration::ZERO), 3);
        assert_eq!(
            taken(&mut bucket, SECOND / 3),
            0,
            "a third is less than 1/3 s"
        );
        assert_eq!(taken(&mut bucket, SECOND / 3 + Duration::from_nanos(1)), 1);
        assert_eq!(taken(&mut bucket, 100 * SECOND), 3);
        assert_eq!(taken(&mut bucket, 99 * SECOND), 0, "time that goes back");
        assert_eq!(taken(&mut bucket, Duration::MAX), 3);
    }

    #[test]
    fn a_debt_is_paid_before_there_is_anything_again() {
        let rate = rate(1000);
        let mut bucket = Bucket::full(rate, Duration::ZERO);
        bucket.spend(1500);
        assert_eq!(bucket.tokens(rate, Duration::ZERO), 0);
        assert_eq!(
            bucket.ready_in(rate, SECOND / 4, 1),
            SECOND / 4 + SECOND / 1000
        );
        assert_eq!(bucket.tokens(rate, SECOND / 2), 0);
        assert_eq!(bucket.tokens(rate, SECOND), 500);
    }

    #[test]
    fn a_lower_rate_holds_at_once() {
        let mut bucket = Bucket::full(rate(1000), Duration::ZERO);
        assert_eq!(bucket.tokens(rate(10), Duration::ZERO), 10);
        assert!(bucket.is_full(rate(10), Duration::ZERO));
    }

    proptest! {
        /// Of thirds of a nanosecond's worth nothing may be lost, whatever the steps.
        #[test]
        fn agrees_with_counting_by_nanoseconds(
            rate in prop_oneof![1u32..10, 1u32..=u32::MAX].prop_map(rate),
            steps in prop::collection::vec((0u64..2_000_000_000, 0u32..5, any::<u32>()), 1..60),
        ) {
            let mut bucket = Bucket::full(rate, Duration::ZERO);
            // What it held, in billionths, as one long sum.
            let full = i128::from(rate.get()) * 1_000_000_000;
            let (mut level, mut now) = (full, 0u64);
            for (passed, takes, spent) in steps {
                now += passed;
                let time = Duration::from_nanos(now);
                level = (level + i128::from(passed) * i128::from(rate.get())).min(full);
                for _ in 0..takes {
                    let there = level >= 1_000_000_000;
                    prop_assert_eq!(bucket.take(rate, time), there);
                    level -= if there { 1_000_000_000 } else { 0 };
                }
                let tokens = u32::try_from(level / 1_000_000_000).unwrap_or(0);
                prop_assert_eq!(bucket.tokens(rate, time), tokens);
                prop_assert_eq!(bucket.is_full(rate, time), level == full);
                // At the moment that it says, and not before.
                let count = spent.clamp(1, rate.get());
                let ready = bucket.ready_in(rate, time, count);
                let mut later = bucket;
                prop_assert!(later.tokens(rate, time + ready) >= count);
                if let Some(before) = ready.checked_sub(Duration::from_nanos(1)) {
                    let mut earlier = bucket;
                    prop_assert!(earlier.tokens(rate, time + before) < count);
                }
                bucket.spend(spent % 70_000);
                level -= i128::from(spent % 70_000) * 1_000_000_000;
            }
        }

        /// What passes in any stretch of time is its length times the rate, and what the bucket
        /// holds, at most.
        #[test]
        fn no_stretch_of_time_passes_more_than_it_may(
            rate in (1u32..50).prop_map(rate),
            steps in prop::collection::vec(0u64..300_000_000, 1..200),
        ) {
            let mut bucket = Bucket::full(rate, Duration::ZERO);
            let (mut now, mut passed) = (0u64, Vec::new());
            for step in steps {
                now += step;
                if bucket.take(rate, Duration::from_nanos(now)) {
                    passed.push(now);
                }
            }
            for (index, first) in passed.iter().enumerate() {
                for (count, last) in passed[index..].iter().enumerate() {
                    let may = u128::from(last - first) * u128::from(rate.get()) / 1_000_000_000;
                    prop_assert!((count as u128) < may + u128::from(rate.get()) + 1);
                }
            }
        }
    }
}
