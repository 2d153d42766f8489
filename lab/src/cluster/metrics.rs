//! What a service counts, read from its Prometheus text.

use std::collections::BTreeMap;
use std::str::FromStr;

/// All series of one service at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    series: Vec<Series>,
}

#[derive(Clone, Debug, PartialEq)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// A line that is no series.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form name{{label=\"value\",…}} number")]
pub struct MetricsError(String);

impl Metrics {
    /// The sum of all series of this name that have these labels, and maybe others. Zero where
    /// there is none: a counter that has not counted yet may be absent.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|series| series.value).sum()
    }

    /// The value of the one series of this name that has these labels. `None` where there is none
    /// or more than one.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self.matching(name, labels);
        let first = found.next()?;
        found.next().is_none().then_some(first.value)
    }

    fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Series> {
        let fits = move |series: &&Series| {
            let has = |(label, value): &(&str, &str)| {
                series
                    .labels
                    .get(*label)
                    .is_some_and(|found| found == value)
            };
            series.name == name && labels.iter().all(has)
        };
        self.series.iter().filter(fits)
    }
}

impl FromStr for Metrics {
    type Err = MetricsError;

    fn from_str(text: &str) -> Result<Self, MetricsError> {
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let read = |line: &str| series(line).ok_or_else(|| MetricsError(line.to_owned()));
        let series = lines.map(read).collect::<Result<_, _>>()?;
        Ok(Self { series })
    }
}

fn series(line: &str) -> Option<Series> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    let mut rest = rest.trim_start();
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            inside = inside.trim_start_matches([',', ' ']);
            if let Some(after) = inside.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = inside.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value);
            inside = after;
        }
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Series {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// A label's value, from after its opening quote, and what follows the closing one.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TEXT: &str = "\
# HELP anyport_connections_opened_total Connections accepted for an app.
# TYPE anyport_connections_opened_total counter
anyport_connections_opened_total{app=\"a\"} 3
anyport_connections_opened_total{app=\"b, \\\"c\\\" }\",edge=\"x\"} 4
anyport_edge_applied_revision 7
anyport_seconds_bucket{le=\"+Inf\"} +Inf
";

    #[test]
    fn series_are_found_by_name_and_labels() {
        let metrics: Metrics = TEXT.parse().unwrap();
        let opened = "anyport_connections_opened_total";
        assert_eq!(metrics.sum(opened, &[]), 7.0);
        assert_eq!(metrics.value(opened, &[]), None, "there are two");
        assert_eq!(metrics.value(opened, &[("app", "a")]), Some(3.0));
        assert_eq!(metrics.value(opened, &[("app", "b, \"c\" }")]), Some(4.0));
        assert_eq!(metrics.value(opened, &[("app", "none")]), None);
        assert_eq!(metrics.sum(opened, &[("app", "none")]), 0.0);
        assert_eq!(
            metrics.value("anyport_edge_applied_revision", &[]),
            Some(7.0)
        );
    }

    #[test]
    fn what_is_no_series_is_refused() {
        for line in ["name", "name{label=\"open} 1", "name{label} 1", "name one"] {
            let refused = Err(MetricsError(line.to_owned()));
            assert_eq!(line.parse::<Metrics>(), refused);
        }
    }
}
