//! What a comparison is told on its command line.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::programs::{Programs, own_directory};
use super::setting::Setting;

/// The same for all comparisons.
#[derive(Args, Debug)]
pub struct Options {
    /// One short round: shows that all of it works, and says nothing more
    #[arg(long)]
    pub quick: bool,
    /// Write everything that was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where Anyport's programs are [default: beside this one]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// What a comparison needs to begin.
#[derive(Debug)]
pub struct Prepared {
    /// The programs that were found.
    pub programs: Programs,
    /// What it runs on.
    pub setting: Setting,
    /// Where to write everything, if that was asked for.
    pub json: Option<File>,
}

impl Options {
    /// Finds the programs and opens the file, so that what is wrong with them does not cost minutes.
    ///
    /// # Errors
    ///
    /// Where a program is not there, or the file cannot be written.
    pub fn prepare(self) -> anyhow::Result<Prepared> {
        let directory = match self.bin_dir {
            Some(directory) => directory,
            None => own_directory().context("finding Anyport's programs; say --bin-dir")?,
        };
        let programs = Programs::find(&directory)?;
        let json = self.json.map(|path| {
            let file = File::create(&path);
            file.with_context(|| format!("--json {}", path.display()))
        });
        let json = json.transpose()?;
        let setting = Setting::of(&programs, &directory);
        Ok(Prepared {
            programs,
            setting,
            json,
        })
    }
}
