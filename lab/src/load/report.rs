//! What a run found, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use comfy_table::{Table, TableStyle};
use hdrhistogram::{CreationError, Histogram};
use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};

use super::failure::Failure;
use super::who::{Tag, Who};

/// Latencies are kept in nanoseconds up to an hour, to three digits; longer ones count as an hour.
const LONGEST: u64 = 3_600_000_000_000;
const DIGITS: u8 = 3;

/// What one run found.
#[derive(Clone, Debug)]
pub struct Report {
    mode: &'static str,
    elapsed: Duration,
    tally: Tally,
}

/// How long something took, over the whole run.
#[derive(Clone, Debug)]
pub struct Latency {
    nanoseconds: Histogram<u64>,
}

/// The counts of one thread, or of all.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    pub(super) begun: u64,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    failures: BTreeMap<Failure, u64>,
    answers: BTreeMap<Tag, u64>,
    latency: Latency,
    connect: Latency,
}

impl Report {
    pub(super) fn new(mode: &'static str, elapsed: Duration, tally: Tally) -> Self {
        Self {
            mode,
            elapsed,
            tally,
        }
    }

    /// How long the run took.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Operations done: connections asked and closed, round trips, transfers, or connections held to
    /// the end, by the kind of load.
    pub fn operations(&self) -> u64 {
        self.tally.latency.count()
    }

    /// Operations done per second.
    pub fn operations_per_second(&self) -> f64 {
        self.per_second(self.operations())
    }

    /// Connections opened.
    pub fn opened(&self) -> u64 {
        self.tally.connect.count()
    }

    /// Operations that the end of the run cut off. They are neither done nor failed.
    pub fn unfinished(&self) -> u64 {
        let ended = self.operations() + self.failed();
        self.tally.begun.saturating_sub(ended)
    }

    /// Operations failed.
    pub fn failed(&self) -> u64 {
        self.tally.failures.values().sum()
    }

    /// Operations failed, by kind.
    pub fn failures(&self) -> &BTreeMap<Failure, u64> {
        &self.tally.failures
    }

    /// How often each server answered that it was the one asked.
    pub fn answers(&self) -> &BTreeMap<Tag, u64> {
        &self.tally.answers
    }

    /// Bytes of payload sent.
    pub fn bytes_sent(&self) -> u64 {
        self.tally.bytes_sent
    }

    /// Bytes of payload received, and found right.
    pub fn bytes_received(&self) -> u64 {
        self.tally.bytes_received
    }

    /// How long the operations done took.
    pub fn latency(&self) -> &Latency {
        &self.tally.latency
    }

    /// How long it took to connect.
    pub fn connect_latency(&self) -> &Latency {
        &self.tally.connect
    }

    fn per_second(&self, amount: u64) -> f64 {
        amount as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl Latency {
    fn new() -> Result<Self, CreationError> {
        let nanoseconds = Histogram::new_with_bounds(1, LONGEST, DIGITS)?;
        Ok(Self { nanoseconds })
    }

    /// How many were measured.
    pub fn count(&self) -> u64 {
        self.nanoseconds.len()
    }

    /// The time within which `percent` of a hundred ended. Zero where nothing was measured.
    pub fn percentile(&self, percent: f64) -> Duration {
        Duration::from_nanos(self.nanoseconds.value_at_percentile(percent))
    }

    /// The longest. Zero where nothing was measured.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.max())
    }

    fn record(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.saturating_record(nanoseconds);
    }

    fn add(&mut self, other: &Self) {
        for value in other.nanoseconds.iter_recorded() {
            self.nanoseconds
                .saturating_record_n(value.value_iterated_to(), value.count_at_value());
        }
    }
}

impl Tally {
    pub(super) fn new() -> Result<Self, CreationError> {
        Ok(Self {
            begun: 0,
            bytes_sent: 0,
            bytes_received: 0,
            failures: BTreeMap::new(),
            answers: BTreeMap::new(),
            latency: Latency::new()?,
            connect: Latency::new()?,
        })
    }

    pub(super) fn opened(&mut self, latency: Duration) {
        self.connect.record(latency);
    }

    pub(super) fn done(&mut self, latency: Duration) {
        self.latency.record(latency);
    }

    pub(super) fn failed(&mut self, failure: Failure) {
        *self.failures.entry(failure).or_default() += 1;
    }

    pub(super) fn answered(&mut self, who: Who) {
        *self.answers.entry(who.tag).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: Self) {
        self.begun += other.begun;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        for (tag, count) in other.answers {
            *self.answers.entry(tag).or_default() += count;
        }
        self.latency.add(&other.latency);
        self.connect.add(&other.connect);
    }
}

/// The table for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(TableStyle::new());
        let mut row = |name: &str, value: String| {
            table.add_row([name.to_owned(), value]);
        };
        let rate = self.operations_per_second();
        row("load", format!("{} for {:.2?}", self.mode, self.elapsed));
        row(
            "operations",
            format!("{} ({rate:.1} per second)", self.operations()),
        );
        row("connections", format!("{} opened", self.opened()));
        for (name, latency) in [
            ("connect", self.connect_latency()),
            ("latency", self.latency()),
        ] {
            row(name, latency.to_string());
        }
        for (name, bytes) in [
            ("sent", self.bytes_sent()),
            ("received", self.bytes_received()),
        ] {
            let rate = self.per_second(bytes) / 1e6;
            row(name, format!("{bytes} bytes ({rate:.1} MB per second)"));
        }
        for (tag, count) in self.answers() {
            row("answered by", format!("{tag}: {count}"));
        }
        row("cut off by the end", self.unfinished().to_string());
        row("failed", self.failed().to_string());
        for (failure, count) in self.failures() {
            row("", format!("{failure}: {count}"));
        }
        write!(f, "{}", table.trim_fmt())
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count() == 0 {
            return f.write_str("none measured");
        }
        let (p50, p99, max) = (self.percentile(50.0), self.percentile(99.0), self.max());
        write!(f, "p50 {p50:.1?}  p99 {p99:.1?}  max {max:.1?}")
    }
}

/// The form for programs. Units are in the names.
impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut report = serializer.serialize_struct("Report", 13)?;
        report.serialize_field("mode", self.mode)?;
        report.serialize_field("elapsed_seconds", &self.elapsed.as_secs_f64())?;
        report.serialize_field("operations", &self.operations())?;
        report.serialize_field("operations_per_second", &self.operations_per_second())?;
        report.serialize_field("connections_opened", &self.opened())?;
        report.serialize_field("unfinished", &self.unfinished())?;
        report.serialize_field("failed", &self.failed())?;
        report.serialize_field("failures", &ByText(self.failures()))?;
        report.serialize_field("answers", &ByText(self.answers()))?;
        report.serialize_field("bytes_sent", &self.bytes_sent())?;
        report.serialize_field("bytes_received", &self.bytes_received())?;
        report.serialize_field("connect_microseconds", self.connect_latency())?;
        report.serialize_field("latency_microseconds", self.latency())?;
        report.end()
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
        let mut latency = serializer.serialize_struct("Latency", 4)?;
        latency.serialize_field("count", &self.count())?;
        latency.serialize_field("p50", &micros(self.percentile(50.0)))?;
        latency.serialize_field("p99", &micros(self.percentile(99.0)))?;
        latency.serialize_field("max", &micros(self.max()))?;
        latency.end()
    }
}

struct ByText<'a, K>(&'a BTreeMap<K, u64>);

impl<K: fmt::Display> Serialize for ByText<'_, K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, count) in self.0 {
            map.serialize_entry(&key.to_string(), count)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn tally(milliseconds: std::ops::Range<u64>) -> Tally {
        let mut tally = Tally::new().unwrap();
        for time in milliseconds {
            tally.begun += 1;
            tally.opened(Duration::from_micros(time));
            tally.done(Duration::from_millis(time));
        }
        tally
    }

    #[test]
    fn the_counts_of_all_threads_are_added_up() {
        let mut total = tally(1..51);
        let mut other = tally(51..101);
        other.begun += 4;
        other.failed(Failure::Reset);
        other.failed(Failure::Other("what".to_owned()));
        other.failed(Failure::Reset);
        total.failed(Failure::Reset);
        total.begun += 1;
        total.bytes_sent = 1;
        other.bytes_sent = 2;
        total.add(other);
        let report = Report::new("test", Duration::from_secs(2), total);
        assert_eq!(report.operations(), 100);
        assert_eq!(report.operations_per_second(), 50.0);
        assert_eq!(report.opened(), 100);
        assert_eq!(report.bytes_sent(), 3);
        assert_eq!(report.failed(), 4);
        assert_eq!(report.failures()[&Failure::Reset], 3);
        assert_eq!(report.unfinished(), 1);
        let near = |time: Duration, milliseconds: f64| {
            let off = time.as_secs_f64() * 1e3 / milliseconds - 1.0;
            assert!(off.abs() < 0.002, "{time:?} is not {milliseconds} ms");
        };
        near(report.latency().percentile(50.0), 50.0);
        near(report.latency().percentile(99.0), 99.0);
        near(report.latency().max(), 100.0);
        near(report.connect_latency().max(), 0.1);
    }

    #[test]
    fn a_program_reads_the_units_from_the_names() {
        let mut tally = tally(1..101);
        tally.begun += 1;
        tally.failed(Failure::Refused);
        let report = Report::new("connect", Duration::from_secs(1), tally);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["mode"], "connect");
        assert_eq!(json["operations"], 100);
        assert_eq!(json["failures"]["refused"], 1);
        let p50 = json["latency_microseconds"]["p50"].as_f64().unwrap();
        assert!((49_900.0..50_100.0).contains(&p50), "{p50}");
    }

    #[test]
    fn a_latency_beyond_the_scale_counts_as_the_longest() {
        let mut latency = Latency::new().unwrap();
        latency.record(Duration::MAX);
        latency.record(Duration::ZERO);
        assert_eq!(latency.count(), 2);
        assert!(latency.max() >= Duration::from_nanos(LONGEST));
    }
}
