//! One process of a contender.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::error::{Error, Result};

/// Lines of a log that an error shows.
const LOG_LINES: usize = 20;

/// A running process; killed when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    program: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it. All that it says goes to a file in `directory`, and nothing of this process's
    /// environment but the path decides what it does.
    pub(super) fn spawn(
        program: &'static str,
        mut command: Command,
        directory: &Path,
    ) -> Result<Self> {
        let log = directory.join(format!("{program}.log"));
        let failed = || Error::system(format!("starting {program}"));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(failed())?;
        clear_environment(&mut command);
        let child = command
            // Ctrl-C is for the comparison, which then ends its processes itself.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(failed())?)
            .stderr(file)
            .spawn()
            .map_err(failed())?;
        Ok(Self {
            program,
            child,
            log,
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails where it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        let status = self
            .child
            .try_wait()
            .map_err(Error::system(format!("looking after {}", self.program)))?;
        match status {
            None => Ok(()),
            Some(status) => Err(Error::Ended {
                program: self.program,
                status,
                log: self.log_tail(),
            }),
        }
    }

    pub(super) fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("---- {}\n{}", self.program, tail.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Leaves a command only what it takes to find programs and files.
pub(super) fn clear_environment(command: &mut Command) {
    command.env_clear();
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
}
