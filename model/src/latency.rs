//! How long an origin takes to answer: a peak EWMA, as in Finagle. A rise is
//! believed at once, a fall little by little, and what is old is believed less
//! and less, so that an origin that was slow is tried again.

use std::time::Duration;

/// In this time without a sample, the value falls to 1/e of itself.
const DECAY: Duration = Duration::from_secs(10);

/// A longer sample counts as this: an origin that speaks only when it has
/// something to say is no slower for that.
pub const SAMPLE_MAX: Duration = Duration::from_secs(10);

/// A value and when it was right, in one word, so that threads can share it:
/// microseconds in the upper 24 bits (16 s), below them the time of the last
/// sample in milliseconds (34 years). Zero: no sample yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeakEwma(u64);

const TIME_BITS: u32 = 40;
const VALUE_MAX: u64 = (1 << (64 - TIME_BITS)) - 1;

impl PeakEwma {
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The value after a sample. Times are since any fixed point.
    #[must_use]
    pub fn observe(self, now: Duration, sample: Duration) -> Self {
        let sample = micros(sample.min(SAMPLE_MAX)).max(1);
        let value = if self.0 == 0 || sample >= self.micros() {
            sample as f64
        } else {
            let kept = self.kept(now);
            self.micros() as f64 * kept + sample as f64 * (1.0 - kept)
        };
        let time = (now.as_millis() as u64) & ((1 << TIME_BITS) - 1);
        Self((value.round() as u64).clamp(1, VALUE_MAX) << TIME_BITS | time)
    }

    /// The value when an answer takes `least` at least.
    #[must_use]
    pub fn at_least(self, now: Duration, least: Duration) -> Self {
        match self.value(now) {
            Some(value) if value >= least => self,
            _ => Self::default().observe(now, least),
        }
    }

    /// What an answer is thought to take, 1 µs at least, so that what it is
    /// multiplied by counts; `None` where nothing is known.
    pub fn value(self, now: Duration) -> Option<Duration> {
        let micros = self.micros() as f64 * self.kept(now);
        (self.0 != 0).then(|| Duration::from_micros((micros as u64).max(1)))
    }

    fn micros(self) -> u64 {
        self.0 >> TIME_BITS
    }

    /// The part of the value that time has left.
    fn kept(self, now: Duration) -> f64 {
        let then = Duration::from_millis(self.0 & ((1 << TIME_BITS) - 1));
        let passed = now.saturating_sub(then);
        (-passed.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_rise_counts_at_once_and_a_fall_little_by_little() {
        let mut ewma = PeakEwma::default();
        assert_eq!(ewma.value(ms(0)), None);
        ewma = ewma.observe(ms(0), ms(1));
        ewma = ewma.observe(ms(100), ms(80));
        assert_eq!(ewma.value(ms(100)), Some(ms(80)));
        ewma = ewma.observe(ms(200), ms(1));
        let after_one = ewma.value(ms(200)).unwrap();
        assert!(after_one > ms(70) && after_one < ms(80), "{after_one:?}");
        for step in 0..600 {
            ewma = ewma.observe(ms(300 + 100 * step), ms(1));
        }
        let settled = ewma.value(ms(60_200)).unwrap();
        assert!(settled < ms(2), "{settled:?}");
    }

    #[test]
    fn what_is_old_is_believed_less_and_less() {
        let ewma = PeakEwma::default().observe(ms(0), ms(100));
        let at = |seconds| ewma.value(Duration::from_secs(seconds)).unwrap();
        assert!((36..37).contains(&at(10).as_millis()), "{:?}", at(10));
        assert!(at(60) < ms(1));
        assert_eq!(
            at(100_000),
            Duration::from_micros(1),
            "known, and no longer held against it"
        );
    }

    #[test]
    fn what_is_old_does_not_fall_below_what_is_known_anew() {
        let ewma = PeakEwma::default().at_least(ms(0), ms(4));
        assert_eq!(ewma.value(ms(0)), Some(ms(4)));
        let ewma = ewma.observe(ms(0), ms(100));
        assert_eq!(ewma.at_least(ms(10_000), ms(4)), ewma);
        let later = ewma.at_least(ms(60_000), ms(4));
        assert_eq!(later.value(ms(60_000)), Some(ms(4)));
    }

    proptest! {
        #[test]
        fn the_value_lies_between_what_was_seen(
            samples in prop::collection::vec((0u64..5000, 0u64..20_000_000), 1..50),
        ) {
            let mut now = Duration::ZERO;
            let mut ewma = PeakEwma::default();
            let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
            for (pause, sample) in samples {
                now += ms(pause);
                let sample = Duration::from_micros(sample);
                ewma = PeakEwma::from_bits(ewma.observe(now, sample).to_bits());
                let counted = sample.clamp(Duration::from_micros(1), SAMPLE_MAX);
                (least, most) = (least.min(counted), most.max(counted));
                let value = ewma.value(now).unwrap();
                let millisecond = ms(1);
                prop_assert!(value <= most && value + millisecond >= least, "{value:?}");
                prop_assert!(value + Duration::from_micros(1) >= counted.min(value));
            }
        }
    }
}
