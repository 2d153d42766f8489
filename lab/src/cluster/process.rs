//! One process of the cluster.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait;

/// A running process; killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts it. All that it says goes to the end of `log`.
    pub(crate) fn spawn(mut command: Command, log: &Path) -> io::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self::of(child))
    }

    pub(crate) fn of(child: Child) -> Self {
        Self { child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL; returns when it is gone.
    pub(crate) fn kill9(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// SIGTERM; returns when it is gone, with its exit status if it had one.
    pub(crate) fn terminate(&mut self, limit: Duration) -> io::Result<Option<i32>> {
        self.signal(Signal::SIGTERM)?;
        self.end_within(limit).map(|status| status.code())
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let id = i32::try_from(self.pid()).map_err(io::Error::other)?;
        // Not waited for yet, so the id cannot have become another's; where it
        // has been, there is no such process.
        Ok(kill(Pid::from_raw(id), signal)?)
    }

    /// Waits for it to end by itself.
    pub(crate) fn end_within(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        wait::until(limit, || self.has_ended().ok_or("it still runs"))
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("not within {limit:?}")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.kill9();
    }
}
