//! What users see: results on standard output, and nothing but results there.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use comfy_table::{Attribute, Color, ContentArrangement, Table};
use serde::Serialize;

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
    /// As in a manifest
    Yaml,
}

/// What a piece of text says about the thing it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mood {
    #[default]
    Plain,
    Good,
    Notable,
    Bad,
    Faint,
}

/// A text of a table, with its mood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    mood: Mood,
}

/// Standard output.
pub struct Console {
    out: Box<dyn Write + Send>,
    colours: bool,
    /// Columns of the terminal; `None` where there is none: nothing is wrapped
    /// for a program.
    width: Option<u16>,
}

impl Cell {
    pub fn new(text: impl Display, mood: Mood) -> Self {
        Self {
            text: printable(&text.to_string()),
            mood,
        }
    }

    pub fn text(&self) -> &str {
        &self.text
    }
}

impl<T: Display> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Mood::Plain)
    }
}

impl Console {
    /// The standard output of this process.
    pub fn stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        Self {
            out: Box::new(io::stdout()),
            colours: terminal && colours_wanted(),
            width: if terminal { Table::new().width() } else { None },
        }
    }

    pub fn line(&mut self, text: impl Display) -> io::Result<()> {
        writeln!(self.out, "{text}")?;
        // Lines that come one by one, as those of `--wait`, are to be seen.
        self.out.flush()
    }

    /// The text as this console shows a mood.
    pub fn paint(&self, text: impl Display, mood: Mood) -> String {
        let text = printable(&text.to_string());
        let code = match mood {
            Mood::Plain => return text,
            Mood::Good => "32",
            Mood::Notable => "33",
            Mood::Bad => "31",
            Mood::Faint => "2",
        };
        if self.colours {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text
        }
    }

    /// Columns two spaces apart, each line after `indent`.
    pub fn table(&mut self, indent: &str, header: &[&str], rows: Vec<Vec<Cell>>) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(header.iter().map(|title| {
            let cell = comfy_table::Cell::new(title);
            styled(cell, Mood::Faint)
        }));
        for row in rows {
            table.add_row(row.into_iter().map(|cell| {
                let mood = cell.mood;
                styled(comfy_table::Cell::new(cell.text), mood)
            }));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        match self.width {
            Some(width) => {
                table.set_content_arrangement(ContentArrangement::Dynamic);
                let indent = u16::try_from(indent.len()).unwrap_or(0);
                table.set_width(width.saturating_sub(indent));
            }
            None => {
                table.set_content_arrangement(ContentArrangement::Disabled);
            }
        }
        if self.colours {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        for line in table.lines() {
            writeln!(self.out, "{}", format!("{indent}{line}").trim_end())?;
        }
        self.out.flush()
    }

    pub fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.out, value)?;
        writeln!(self.out)?;
        self.out.flush()
    }

    /// On one line.
    pub fn json_line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        writeln!(self.out)?;
        self.out.flush()
    }

    pub fn yaml(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
        write!(self.out, "{text}")?;
        self.out.flush()
    }
}

fn styled(cell: comfy_table::Cell, mood: Mood) -> comfy_table::Cell {
    match mood {
        Mood::Plain => cell,
        Mood::Good => cell.fg(Color::DarkGreen),
        Mood::Notable => cell.fg(Color::DarkYellow),
        Mood::Bad => cell.fg(Color::DarkRed),
        Mood::Faint => cell.add_attribute(Attribute::Dim),
    }
}

/// Says on standard error what users should know besides.
pub fn warn(what: impl Display) {
    let label = if colours_on_stderr() {
        "\u{1b}[33mwarning:\u{1b}[0m"
    } else {
        "warning:"
    };
    let what = printable(&what.to_string());
    eprintln!("{label} {what}");
}

/// Standard error in colours? <https://no-color.org>
pub fn colours_on_stderr() -> bool {
    io::stderr().is_terminal() && colours_wanted()
}

fn colours_wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// Reasons and messages come from others: what would move the cursor of a
/// terminal is replaced.
pub fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}
