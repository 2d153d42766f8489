//! The proxies, and how each is configured.

pub(crate) mod anyport;
pub(super) mod bare;
pub(crate) mod haproxy;
pub(super) mod nginx;

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::error::{Error, Result};
use super::process::Process;

/// A running proxy, with what it needs beside it.
pub(crate) struct Proxy {
    // In the order of their end: processes before their directory.
    /// The one that carries connections, the parent of others that do.
    carrier: Process,
    beside: Vec<Process>,
    directory: TempDir,
}

impl Proxy {
    /// The process whose use, with that of its descendants, is the proxy's.
    pub(super) fn counted(&self) -> u32 {
        self.carrier.id()
    }

    pub(crate) fn check(&mut self) -> Result<()> {
        let mut all = self.beside.iter_mut().chain([&mut self.carrier]);
        all.try_for_each(Process::check)
    }

    pub(crate) fn log_tails(&self) -> String {
        let all = self.beside.iter().chain([&self.carrier]);
        all.map(Process::log_tail).collect::<Vec<_>>().join("\n")
    }
}

fn directory() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("anyport-bench-")
        .tempdir()
        .map_err(Error::system("making a directory for a proxy"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::system(format!("writing {}", path.display())))
}
