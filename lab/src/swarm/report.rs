//! What was found, for people and for programs.

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::measure::Measured;
use crate::bench::STYLE;

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    /// A size each.
    pub sizes: &'a [Measured],
}

/// One line for each size.
pub fn table(sizes: &[Measured]) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header([
        "edges",
        "apps",
        "applied p50",
        "p99",
        "slowest",
        "to an edge",
        "from it",
        "a subscriber",
        "CPU, 2 replicas",
        "cold start",
        "at most",
        "after restart",
        "at most",
        "whole states",
    ]);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for size in sizes {
        table.add_row([
            size.point.edges.to_string(),
            size.point.apps.to_string(),
            milliseconds(size.applied_p50),
            milliseconds(size.applied_p99),
            milliseconds(size.applied_max),
            format!("{:.0} B", size.bytes_to_edge),
            format!("{:.0} B", size.bytes_from_edge),
            format!("{:.0} KiB", size.subscriber_bytes / 1024.0),
            milliseconds(size.cpu_per_change),
            size.cold_start.map_or_else(String::new, seconds),
            size.cold_peak.map_or_else(String::new, mebibytes),
            seconds(size.restart),
            mebibytes(size.restart_peak),
            size.restart_whole.to_string(),
        ]);
    }
    table
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.0} ms", seconds * 1e3)
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.1} s")
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
