//! A second process of a service, beside the one that runs.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::process::Process;
use super::{Cluster, Error, Result, Service};

/// A process that the cluster does not count as the service: a successor that is not one yet, or
/// a predecessor that still finishes. Killed when it is dropped.
#[derive(Debug)]
pub struct Beside {
    service: Service,
    process: Process,
}

impl Cluster {
    /// Starts a second process of a service that runs, with the same flags, state and log, and
    /// does not wait.
    ///
    /// # Errors
    ///
    /// Where it cannot be started.
    pub fn spawn_beside(&self, service: Service) -> Result<Beside> {
        let process = self.start_process(service)?;
        Ok(Beside { service, process })
    }

    /// The process that runs is no longer the cluster's service: the test sees to its end.
    ///
    /// # Errors
    ///
    /// Where none runs.
    pub fn retire(&mut self, service: Service) -> Result<Beside> {
        let process = self
            .processes
            .remove(&service)
            .ok_or(Error::NotRunning { service })?;
        Ok(Beside { service, process })
    }

    /// From now on `successor` is the service; gives the process that was it before.
    ///
    /// # Errors
    ///
    /// Where none was.
    pub fn succeed(&mut self, successor: Beside) -> Result<Beside> {
        let Beside { service, process } = successor;
        let process = self
            .processes
            .insert(service, process)
            .ok_or(Error::NotRunning { service })?;
        Ok(Beside { service, process })
    }
}

impl Beside {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// Where it has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let failed = |source| Error::io(format!("signalling {}", self.service), source);
        self.process.signal(signal).map_err(failed)
    }

    /// Waits for it to end by itself; gives its exit status, if it had one.
    ///
    /// # Errors
    ///
    /// Where it has not ended after `limit`.
    pub fn end_within(&mut self, limit: Duration) -> Result<Option<i32>> {
        let ended = self.process.end_within(limit);
        let failed = |source| Error::io(format!("waiting for {} to end", self.service), source);
        Ok(ended.map_err(failed)?.code())
    }

    /// Has it ended?
    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended().is_some()
    }
}
