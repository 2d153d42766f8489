//! The form for people: factors first, figures of this machine last.

use comfy_table::{Cell, CellAlignment, Color, LineStyle, Table, TableStyle};

use super::contender::Contender;
use super::measure::Measure;
use super::results::Results;

/// Factors this near to 1 are called neither better nor worse.
const ALIKE: f64 = 0.05;

const LINE: LineStyle = LineStyle::none().fill('─').junction('─');
/// Lines above, below and under the head.
pub const STYLE: TableStyle = TableStyle::new()
    .top_border(LINE)
    .header_separator(LINE)
    .bottom_border(LINE);

/// One line for each measure.
pub fn table(results: &Results) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header([
        "HAProxy = 1, above is better",
        "routing",
        "nginx",
        "bare",
        "Anyport",
        "Anyport to the better",
        "here: routing",
        "HAProxy",
        "nginx",
        "Anyport",
    ]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for measure in Measure::ALL {
        let to_base = |contender| {
            let factor = results.factor(contender, measure.base(), measure);
            let factor = factor.map(|factor| format!("{:.2}", factor.median));
            cell_of(measure, contender, factor)
        };
        let here = |contender| {
            let median = results.median(contender, measure);
            cell_of(measure, contender, median.map(|value| measure.say(value)))
        };
        table.add_row([
            Cell::new(measure.title()),
            to_base(Contender::Plain),
            to_base(Contender::Nginx),
            to_base(Contender::Bare),
            to_base(Contender::Anyport),
            to_better(results, measure),
            here(Contender::Plain),
            here(Contender::Haproxy),
            here(Contender::Nginx),
            here(Contender::Anyport),
        ]);
    }
    table
}

fn to_better(results: &Results, measure: Measure) -> Cell {
    let Some(peer) = results.better_peer(measure) else {
        return cell(None);
    };
    let Some(factor) = results.factor(Contender::Anyport, peer, measure) else {
        return cell(None);
    };
    let (median, low, high) = (factor.median, factor.low, factor.high);
    let cell = cell(Some(format!("{peer} {median:.2} ({low:.2}–{high:.2})")));
    if median > 1.0 + ALIKE {
        cell.fg(Color::Green)
    } else if median < 1.0 - ALIKE {
        cell.fg(Color::Red)
    } else {
        cell
    }
}

fn cell_of(measure: Measure, contender: Contender, text: Option<String>) -> Cell {
    match measure.is_of(contender) {
        true => cell(text),
        false => Cell::new("n/a"),
    }
}

fn cell(text: Option<String>) -> Cell {
    Cell::new(text.as_deref().unwrap_or("–"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::tests::results;

    #[test]
    fn every_measure_has_a_line_also_without_figures() {
        let shown = table(&results(
            Measure::ConnectTail,
            &[&[
                (Contender::Haproxy, 200.0),
                (Contender::Nginx, 100.0),
                (Contender::Anyport, 80.0),
            ]],
        ))
        .to_string();
        for measure in Measure::ALL {
            assert!(shown.contains(measure.title()), "{shown}");
        }
        assert!(shown.contains("2.50"), "{shown}");
        assert!(shown.contains("nginx 1.25 (1.25–1.25)"), "{shown}");
    }
}
