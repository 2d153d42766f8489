//! What was expected of the demo, and what was seen.

use std::{fmt::Display, io};

use super::screen::{Screen, mark};
use crate::{console::Cell, failure::Failure};

#[derive(Debug, Default)]
pub struct Score(Vec<Expectation>);

#[derive(Debug)]
struct Expectation {
    what: String,
    wanted: String,
    seen: String,
    met: bool,
}

impl Score {
    /// Notes it, and hands back whether it was met.
    pub fn expect(
        &mut self,
        what: impl Display,
        wanted: impl Display,
        seen: impl Display,
        met: bool,
    ) -> bool {
        self.0.push(Expectation {
            what: what.to_string(),
            wanted: wanted.to_string(),
            seen: seen.to_string(),
            met,
        });
        met
    }

    pub fn show(&self, screen: &mut Screen) -> io::Result<()> {
        let row = |expectation: &Expectation| {
            let (mark, mood) = mark(expectation.met);
            vec![
                Cell::new(mark, mood),
                Cell::from(&expectation.what),
                Cell::from(&expectation.wanted),
                Cell::new(&expectation.seen, mood),
            ]
        };
        let rows = self.0.iter().map(row).collect();
        screen.table(&["", "WHAT", "WANTED", "SEEN"], rows)
    }

    /// # Errors
    /// Every expectation that was not met, by name.
    pub fn verdict(&self) -> Result<(), Failure> {
        let missed = self.0.iter().filter(|expectation| !expectation.met);
        let lines: Vec<String> = missed
            .map(
                |Expectation {
                     what, wanted, seen, ..
                 }| format!("{what}: wanted {wanted}, saw {seen}"),
            )
            .collect();
        match lines.len() {
            0 => Ok(()),
            count => {
                let of = self.0.len();
                let failure = Failure::refused(format_args!(
                    "{count} of {of} expectations of the demo were not met"
                ));
                Err(failure.details(lines))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_names_what_was_missed_and_nothing_else() {
        let mut score = Score::default();
        assert!(score.expect("echoes", 10, 10, true));
        assert!(score.verdict().is_ok());
        assert!(!score.expect("failures", 0, 3, false));
        let failure = score.verdict().expect_err("one was missed").to_string();
        assert_eq!(
            failure,
            "1 of 2 expectations of the demo were not met\n  failures: wanted 0, saw 3"
        );
    }
}
