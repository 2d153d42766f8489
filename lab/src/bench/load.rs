//! The loads of a turn, and what is read from each.

use std::num::{NonZeroU64, NonZeroUsize};
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use super::error::Result;
use super::measure::Measure;
use super::plan::Plan;
use super::results::Sample;
use super::stage::{ECHO_PORT, SOURCE_PORT, Stage};
use super::usage::{Usage, kernel_socket_memory};
use crate::load::{Control, Load, Report, RunError, bulk, connect, datagram, pingpong};

/// Connections at once of the loads that keep moving.
const BUSY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(31);
/// Streams at once: enough for both workers of a proxy to have some.
const STREAMS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);
/// Bytes of a request, and of an answer: as many as games and DNS send.
const DATAGRAM: NonZeroU64 = NonZeroU64::MIN.saturating_add(63);
/// Longer than any stream of a run gets.
const ENDLESS: NonZeroU64 = NonZeroU64::MAX;
/// Longer than idle connections are held.
const LONG: Duration = Duration::from_secs(120);

/// Between two readings of memory, and how long they may go on to differ.
const SETTLE_STEP: Duration = Duration::from_millis(100);
const SETTLE: Duration = Duration::from_secs(2);
/// Descriptors that may be open for another purpose than connections.
const OTHER_DESCRIPTORS: u64 = 64;

const MICROSECONDS: f64 = 1e6;
const MILLISECONDS: f64 = 1e3;

/// Connections that have said something once and are silent since.
///
/// Best put on a proxy that has carried nothing yet: one that was under load has memory to spare.
pub(super) fn idle(stage: &mut Stage, plan: &Plan, sample: &mut Sample) -> Result<()> {
    let control = Control::default();
    let load = pingpong::Plan {
        load: Load {
            control: control.clone(),
            ..stage.load(ECHO_PORT, plan.idle, LONG)
        },
        bytes: NonZeroU64::MIN,
        pause: LONG,
    };
    let before = Reading::settled(stage)?;
    let client = stage.client().clone();
    let (report, held) = thread::scope(|scope| {
        let load = scope.spawn(|| client.run(|| pingpong::run(&load)));
        let held = hold(stage, plan, &control);
        control.stop();
        (
            load.join().unwrap_or_else(|panic| resume_unwind(panic)),
            held,
        )
    });
    let held = held?;
    sample.failed("idle connections", &report??);
    let each = |before: u64, now: u64| (now as f64 - before as f64) / plan.idle.get() as f64;
    if let (Some(before), Some(held)) = (before.proxy, held.proxy) {
        sample.put(Measure::IdleMemory, each(before.memory, held.memory));
        let descriptors = each(before.descriptors, held.descriptors);
        sample.put(Measure::IdleDescriptors, descriptors);
    }
    let kernel = before.kernel.zip(held.kernel);
    let kernel = kernel.map(|(before, held)| each(before, held));
    sample.put(Measure::IdleKernelMemory, kernel);
    let left = before.proxy.unwrap_or_default().descriptors + OTHER_DESCRIPTORS;
    stage.wait("all idle connections closed", |stage| {
        let now = stage.usage()?.unwrap_or_default().descriptors;
        Ok((now <= left)
            .then_some(())
            .ok_or_else(|| format!("{now} descriptors, where {left} would do")))
    })
}

/// Waits until all idle connections are there, and reads what they take.
fn hold(stage: &mut Stage, plan: &Plan, control: &Control) -> Result<Reading> {
    let all = plan.idle.get() as u64;
    stage.wait("idle connections opened", |_| {
        let (held, failed) = (control.operations(), control.failures());
        Ok((held >= all)
            .then_some(())
            .ok_or_else(|| format!("{held} of {all}, {failed} attempts failed")))
    })?;
    Reading::settled(stage)
}

/// Short connections, one byte there and back on each.
pub(super) fn connect(stage: &mut Stage, plan: &Plan, sample: &mut Sample) -> Result<()> {
    let load = connect::Plan {
        load: stage.load(ECHO_PORT, BUSY, plan.load),
        request: connect::Request::Echo(NonZeroU64::MIN),
        close: connect::Close::Fin,
    };
    let (report, cpu) = timed(stage, || connect::run(&load))?;
    sample.failed("connect, ask, close", &report);
    sample.put(Measure::ConnectRate, report.operations_per_second());
    let (median, tail) = latencies(&report);
    sample.put(Measure::ConnectMedian, median);
    sample.put(Measure::ConnectTail, tail);
    let cpu = share(cpu, report.operations());
    sample.put(
        Measure::ConnectCpu,
        cpu.map(|seconds| seconds * MICROSECONDS),
    );
    Ok(())
}

/// Round trips of one byte on kept connections.
pub(super) fn round_trips(stage: &mut Stage, plan: &Plan, sample: &mut Sample) -> Result<()> {
    let load = pingpong::Plan {
        load: stage.load(ECHO_PORT, BUSY, plan.load),
        bytes: NonZeroU64::MIN,
        pause: Duration::ZERO,
    };
    let (report, cpu) = timed(stage, || pingpong::run(&load))?;
    sample.failed("round trips", &report);
    sample.put(Measure::RoundTripRate, report.operations_per_second());
    let (median, tail) = latencies(&report);
    sample.put(Measure::RoundTripMedian, median);
    sample.put(Measure::RoundTripTail, tail);
    let cpu = share(cpu, report.operations());
    sample.put(
        Measure::RoundTripCpu,
        cpu.map(|seconds| seconds * MICROSECONDS),
    );
    Ok(())
}

/// Streams from the origin to the client.
pub(super) fn bulk(stage: &mut Stage, plan: &Plan, sample: &mut Sample) -> Result<()> {
    let load = bulk::Plan {
        load: stage.load(SOURCE_PORT, STREAMS, plan.load),
        bytes: ENDLESS,
        direction: bulk::Direction::Down,
    };
    let (report, cpu) = timed(stage, || bulk::run(&load))?;
    sample.failed("streams", &report);
    let bytes = report.bytes_received();
    let bits_per_second = bytes as f64 * 8.0 / report.elapsed().as_secs_f64();
    sample.put(Measure::BulkRate, bits_per_second / 1e9);
    let cpu = share(cpu, bytes).map(|seconds_per_byte| seconds_per_byte * 1e9);
    sample.put(Measure::BulkCpu, cpu.map(|seconds| seconds * MILLISECONDS));
    Ok(())
}

/// Requests and answers by datagrams on kept flows.
pub(super) fn datagrams(stage: &mut Stage, plan: &Plan, sample: &mut Sample) -> Result<()> {
    let load = datagram::Plan {
        load: stage.load(ECHO_PORT, BUSY, plan.load),
        bytes: DATAGRAM,
        pause: Duration::ZERO,
    };
    let (report, cpu) = timed(stage, || datagram::run(&load))?;
    sample.failed("datagrams", &report);
    // A request and its answer.
    sample.put(Measure::DatagramRate, report.operations_per_second() * 2.0);
    let (median, tail) = latencies(&report);
    sample.put(Measure::DatagramMedian, median);
    sample.put(Measure::DatagramTail, tail);
    let cpu = share(cpu, report.operations() * 2);
    sample.put(
        Measure::DatagramCpu,
        cpu.map(|seconds| seconds * MICROSECONDS),
    );
    Ok(())
}

/// Runs a load at the client, and reads the processor time that the proxy used meanwhile.
fn timed(
    stage: &mut Stage,
    run: impl FnOnce() -> std::result::Result<Report, RunError> + Send,
) -> Result<(Report, Option<Duration>)> {
    let before = stage.usage()?;
    let report = stage.client().run(run)??;
    let after = stage.usage()?;
    stage.check()?;
    let cpu = before
        .zip(after)
        .map(|(before, after)| after.cpu.saturating_sub(before.cpu));
    Ok((report, cpu))
}

/// Seconds of processor time for each of `amount`. `None` where there was too little of either to be
/// seen.
fn share(cpu: Option<Duration>, amount: u64) -> Option<f64> {
    let cpu = cpu.filter(|cpu| !cpu.is_zero() && amount > 0)?;
    Some(cpu.as_secs_f64() / amount as f64)
}

/// Median and 99th percentile in microseconds.
fn latencies(report: &Report) -> (Option<f64>, Option<f64>) {
    let latency = report.latency();
    let percentile = |percent| {
        let time = latency.percentile(percent);
        (latency.count() > 0).then_some(time.as_secs_f64() * MICROSECONDS)
    };
    (percentile(50.0), percentile(99.0))
}

/// What is in use at a moment.
struct Reading {
    proxy: Option<Usage>,
    kernel: Option<u64>,
}

impl Reading {
    /// Reads when the proxy has come to rest, or after [`SETTLE`].
    fn settled(stage: &Stage) -> Result<Self> {
        let at_rest = |usage: Option<Usage>| usage.map(|usage| (usage.memory, usage.descriptors));
        let started = Instant::now();
        let mut last = stage.usage()?;
        loop {
            thread::sleep(SETTLE_STEP);
            let proxy = stage.usage()?;
            if at_rest(proxy) == at_rest(last) || started.elapsed() >= SETTLE {
                let kernel = kernel_socket_memory();
                return Ok(Self { proxy, kernel });
            }
            last = proxy;
        }
    }
}
