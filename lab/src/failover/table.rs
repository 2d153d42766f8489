//! The form for people: factors first, figures of this machine last.

use comfy_table::{CellAlignment, Table};

use super::{Distance, Outage, Phase};
use crate::bench::STYLE;

/// One line for each way to die and each contender.
pub fn outages(outages: &[Outage]) -> Table {
    let mut table = new([
        "an origin",
        "HAProxy = 1, below is better",
        "p99",
        "slowest",
        "last dial",
        "here: failed",
        "p50",
        "p99",
        "slowest",
        "dials",
        "last dial",
        "at most",
    ]);
    for outage in outages {
        let base = outages.iter().find(|base| base.origin == outage.origin);
        let base = base.unwrap_or(outage);
        table.add_row([
            outage.origin.to_owned(),
            outage.who.to_owned(),
            ratio(outage.waited.p99, base.waited.p99),
            ratio(outage.waited.slowest, base.waited.slowest),
            ratio(outage.last_dial, base.last_dial),
            format!(
                "{} of {}",
                outage.failed,
                outage.failed + outage.waited.count
            ),
            milliseconds(outage.waited.p50),
            milliseconds(outage.waited.p99),
            milliseconds(outage.waited.slowest),
            format!("{:.0}", outage.dials),
            format!("{:.2} s", outage.last_dial),
            format!("{:.2} s", outage.last_dial_at_most),
        ]);
    }
    table
}

/// One line for each phase and each contender.
pub fn distances(distances: &[Distance]) -> Table {
    let mut table = new([
        "origins at 1, 5, 20 ms",
        "HAProxy leastconn = 1, below is better",
        "mean",
        "p50",
        "p99",
        "here: mean",
        "p50",
        "p99",
        "slowest",
        "shares",
        "back",
    ]);
    type Of = fn(&Distance) -> &Phase;
    let even: Of = |distance| &distance.even;
    let slow: Of = |distance| &distance.slow;
    let phases = [("as they are", even), ("the nearest at 50 ms", slow)];
    for (index, (name, phase)) in phases.into_iter().enumerate() {
        for distance in distances {
            let of = phase(distance).waited;
            let base = phase(&distances[0]).waited;
            let back = if index == 0 {
                String::new()
            } else {
                format!("{:.0} s", distance.back)
            };
            table.add_row([
                name.to_owned(),
                distance.who.to_owned(),
                ratio(of.mean, base.mean),
                ratio(of.p50, base.p50),
                ratio(of.p99, base.p99),
                milliseconds(of.mean),
                milliseconds(of.p50),
                milliseconds(of.p99),
                milliseconds(of.slowest),
                phase(distance)
                    .shares
                    .map(|share| format!("{:.0} %", share * 100.0))
                    .join(", "),
                back,
            ]);
        }
    }
    table
}

fn new<const N: usize>(head: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(head);
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn ratio(of: f64, base: f64) -> String {
    match base > 0.0 {
        true => format!("{:.2}", of / base),
        false => "–".to_owned(),
    }
}

fn milliseconds(value: f64) -> String {
    match value < 100.0 {
        true => format!("{value:.1} ms"),
        false => format!("{value:.0} ms"),
    }
}
