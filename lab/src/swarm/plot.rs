//! The same as a picture: how long a change takes, over the number of edges and of apps.

use std::fmt::Write;

use super::measure::Measured;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 62.0;
const BOTTOM: f64 = 48.0;
const TOP: f64 = 34.0;
const RIGHT: f64 = 28.0;

/// A line of one colour.
struct Line {
    name: &'static str,
    colour: &'static str,
    of: fn(&Measured) -> f64,
}

const LINES: [Line; 3] = [
    Line {
        name: "p99",
        colour: "#c2410c",
        of: |size| size.applied_p99 * 1e3,
    },
    Line {
        name: "p50",
        colour: "#1d4ed8",
        of: |size| size.applied_p50 * 1e3,
    },
    Line {
        name: "CPU of both replicas",
        colour: "#4b5563",
        of: |size| size.cpu_per_change * 1e3,
    },
];

/// An SVG image with two plots on logarithmic axes: over edges, at the number of apps that most sizes
/// have, and over apps, at the largest number of edges that has several.
pub fn plot(sizes: &[Measured]) -> String {
    let apps = most_common(sizes.iter().map(|size| size.point.apps));
    let edges = most_common(sizes.iter().map(|size| size.point.edges));
    let mut by_edges: Vec<_> = sizes.iter().filter(|s| s.point.apps == apps).collect();
    let mut by_apps: Vec<_> = sizes.iter().filter(|s| s.point.edges == edges).collect();
    by_edges.sort_by_key(|size| size.point.edges);
    by_apps.sort_by_key(|size| size.point.apps);
    let (width, height) = (2.0 * WIDTH, HEIGHT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let title = format!("{} apps, ms for a change", thousands(apps as f64));
    panel(&mut svg, 0.0, &title, "edges", &by_edges, |size| {
        size.point.edges as f64
    });
    let title = format!("{} edges, ms for a change", thousands(edges as f64));
    panel(&mut svg, WIDTH, &title, "apps", &by_apps, |size| {
        size.point.apps as f64
    });
    svg += "</svg>\n";
    svg
}

fn panel(
    svg: &mut String,
    offset: f64,
    title: &str,
    unit: &str,
    sizes: &[&Measured],
    x_of: impl Fn(&Measured) -> f64,
) {
    let values = || {
        let lines = LINES.iter();
        lines.flat_map(|line| sizes.iter().map(|size| (line.of)(size)))
    };
    let x_axis = Axis::over(
        sizes.iter().map(|size| x_of(size)),
        (offset + LEFT, offset + WIDTH - RIGHT),
    );
    let y_axis = Axis::over(values(), (HEIGHT - BOTTOM, TOP));
    let mut text = |x: f64, y: f64, anchor: &str, colour: &str, what: &str| {
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{what}</text>"
        );
    };
    text(offset + LEFT, 18.0, "start", "#111827", title);
    text(
        offset + (LEFT + WIDTH) / 2.0,
        HEIGHT - 8.0,
        "middle",
        "#111827",
        unit,
    );
    for tick in x_axis.ticks() {
        let x = x_axis.place(tick);
        text(
            x,
            HEIGHT - BOTTOM + 18.0,
            "middle",
            "#374151",
            &thousands(tick),
        );
    }
    for tick in y_axis.ticks() {
        let y = y_axis.place(tick);
        text(
            offset + LEFT - 6.0,
            y + 4.0,
            "end",
            "#374151",
            &thousands(tick),
        );
    }
    for (row, line) in LINES.iter().enumerate() {
        let y = TOP + 12.0 + 16.0 * row as f64;
        text(offset + LEFT + 10.0, y, "start", line.colour, line.name);
    }
    for tick in y_axis.ticks() {
        let (y, x1, x2) = (y_axis.place(tick), offset + LEFT, offset + WIDTH - RIGHT);
        let _ = writeln!(
            svg,
            "<line x1=\"{x1:.1}\" y1=\"{y:.1}\" x2=\"{x2:.1}\" y2=\"{y:.1}\" stroke=\"#e5e7eb\"/>"
        );
    }
    for line in &LINES {
        let mut points = String::new();
        for size in sizes {
            let (x, y) = (x_axis.place(x_of(size)), y_axis.place((line.of)(size)));
            let _ = write!(points, "{x:.1},{y:.1} ");
            let colour = line.colour;
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
            );
        }
        let colour = line.colour;
        let points = points.trim_end();
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
        );
    }
}

/// Powers of ten around what there is.
struct Axis {
    low: i32,
    high: i32,
    ends: (f64, f64),
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, ends: (f64, f64)) -> Self {
        let logarithms = values.filter(|value| *value > 0.0).map(f64::log10);
        let (low, high) = logarithms.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), l| {
            (low.min(l), high.max(l))
        });
        let low = if low.is_finite() {
            low.floor() as i32
        } else {
            0
        };
        let high = if high.is_finite() {
            high.ceil() as i32
        } else {
            1
        };
        Self {
            low,
            high: high.max(low + 1),
            ends,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let part = (value.max(f64::MIN_POSITIVE).log10() - f64::from(self.low))
            / f64::from(self.high - self.low);
        self.ends.0 + (self.ends.1 - self.ends.0) * part.clamp(0.0, 1.0)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        (self.low..=self.high).map(|power| 10f64.powi(power))
    }
}

fn most_common(values: impl Iterator<Item = usize>) -> usize {
    let mut counts = std::collections::BTreeMap::new();
    for value in values {
        *counts.entry(value).or_insert(0) += 1;
    }
    let most = counts
        .into_iter()
        .max_by_key(|(value, count)| (*count, *value));
    most.map_or(0, |(value, _)| value)
}

/// 10,000.
fn thousands(value: f64) -> String {
    if value < 1.0 {
        return format!("{value}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_placed() {
        assert_eq!(thousands(100_000.0), "100,000");
        assert_eq!(thousands(1000.0), "1,000");
        assert_eq!(thousands(10.0), "10");
        let axis = Axis::over([10.0, 1000.0].into_iter(), (0.0, 100.0));
        assert_eq!(axis.place(100.0), 50.0);
        assert_eq!(axis.ticks().count(), 3);
    }
}
