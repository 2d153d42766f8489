//! What the demo shows as it goes: each step while it runs, and what came of it.

use std::{
    fmt::Display,
    io,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::console::{Cell, Console, Mood};

/// Columns of a step's line, up to its figure's end.
const WIDTH: usize = 78;
const SPIN: Duration = Duration::from_millis(80);

/// The screen, or whatever stands in for it.
pub struct Screen {
    console: Console,
    step: Option<Step>,
}

struct Step {
    begun: Instant,
    /// Hidden where there is no terminal.
    spinner: ProgressBar,
}

impl Screen {
    pub fn new(console: Console) -> Self {
        Self {
            console,
            step: None,
        }
    }

    /// Shows what is being done, until [`end`](Self::end).
    pub fn begin(&mut self, doing: impl Display) {
        let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            spinner.set_style(style);
        }
        spinner.set_message(doing.to_string());
        spinner.enable_steady_tick(SPIN);
        self.step = Some(Step {
            begun: Instant::now(),
            spinner,
        });
    }

    /// What came of the step, and how long it took.
    pub fn end(&mut self, good: bool, what: impl Display) -> io::Result<()> {
        let took = self.step.as_ref().map(|step| step.begun.elapsed());
        self.clear();
        self.result(good, what, took.unwrap_or_default())
    }

    /// Something that was seen, and how long it took.
    pub fn result(&mut self, good: bool, what: impl Display, took: Duration) -> io::Result<()> {
        let (mark, mood) = mark(good);
        let what = what.to_string();
        let room = WIDTH.saturating_sub(what.chars().count() + 3);
        let figure = format!("{:>room$}", time(took));
        let mark = self.console.paint(mark, mood);
        let figure = self.console.paint(figure, Mood::Faint);
        self.console.line(format_args!("{mark} {what} {figure}"))
    }

    /// Ends a step of which nothing came.
    pub fn clear(&mut self) {
        if let Some(step) = self.step.take() {
            step.spinner.finish_and_clear();
        }
    }

    /// A line below a step.
    pub fn note(&mut self, text: impl Display) -> io::Result<()> {
        let text = self.console.paint(text, Mood::Faint);
        self.console.line(format_args!("    {text}"))
    }

    pub fn line(&mut self, text: impl Display) -> io::Result<()> {
        self.console.line(text)
    }

    pub fn table(&mut self, header: &[&str], rows: Vec<Vec<Cell>>) -> io::Result<()> {
        self.console.table("    ", header, rows)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A tick or a cross.
pub fn mark(good: bool) -> (&'static str, Mood) {
    if good {
        ("✓", Mood::Good)
    } else {
        ("✗", Mood::Bad)
    }
}

/// `0.4 ms`, `52 ms`, `1.2 s`.
pub fn time(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    match ms {
        ..9.95 => format!("{ms:.1} ms"),
        ..999.5 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1000.0),
    }
}

/// `12,345`.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        let shown = [0, 999, 1000, 65_535, 1_234_567].map(grouped);
        assert_eq!(shown, ["0", "999", "1,000", "65,535", "1,234,567"]);
        let shown = [40, 9_949, 9_950, 999_499, 999_500, 12_345_678]
            .map(|micros| time(Duration::from_micros(micros)));
        assert_eq!(
            shown,
            ["0.0 ms", "9.9 ms", "10 ms", "999 ms", "1.0 s", "12.3 s"]
        );
    }
}
