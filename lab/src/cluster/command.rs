//! Commands that are run to their end.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::error::{Error, Result};
use super::process::Process;

/// No command of these tests takes longer: `apply --wait` gives up after half of it.
const LONGEST: Duration = Duration::from_secs(120);

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its exit status; `None` where a signal ended it.
    pub status: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// The lines of its output as objects.
    ///
    /// # Errors
    ///
    /// Itself, where its exit status is not 0 or a line is no JSON.
    pub fn objects(&self) -> std::result::Result<Vec<serde_json::Value>, &Self> {
        let lines = self.out.lines().map(serde_json::from_str);
        match (self.status, lines.collect()) {
            (Some(0), Ok(objects)) => Ok(objects),
            _ => Err(self),
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => writeln!(f, "exit status {status}")?,
            None => writeln!(f, "ended by a signal")?,
        }
        write!(f, "{}{}", self.out, self.err)
    }
}

/// Nothing of the test's own environment may decide how a program behaves: only what is needed to
/// find files and other programs is passed on.
pub(super) fn clear_environment(command: &mut Command) {
    command.env_clear();
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
}

/// Runs it to its end. Its output goes through files in `directory`, so that however much it is,
/// nobody has to read meanwhile.
pub(super) fn run(mut command: Command, directory: &Path) -> Result<Said> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| Error::io(format!("running {program}"), source);
    let mut out = tempfile::tempfile_in(directory).map_err(failed)?;
    let mut err = tempfile::tempfile_in(directory).map_err(failed)?;
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone().map_err(failed)?)
        .stderr(err.try_clone().map_err(failed)?);
    let mut process = Process::of(command.spawn().map_err(failed)?);
    let ended = process.end_within(LONGEST);
    drop(process);
    let said = Said {
        status: ended.as_ref().ok().and_then(|status| status.code()),
        out: read_all(&mut out).map_err(failed)?,
        err: read_all(&mut err).map_err(failed)?,
    };
    match ended {
        Ok(_) => Ok(said),
        Err(_) => Err(Error::NoEnd { said }),
    }
}

fn read_all(file: &mut File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
