//! Programs that people run, as origins and in front of the edge. What goes wrong in starting one
//! is a panic that says what: a test that needs it has failed.

#![allow(clippy::unwrap_used)]

mod dnsmasq;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyport_netns::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use dnsmasq::Dnsmasq;

use crate::cluster::{Cluster, PATIENCE, eventually};

/// A program's file.
///
/// # Panics
///
/// Where it is not installed, with the Debian package that has it.
pub fn program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = std::env::split_paths(&path).collect();
    places.push("/usr/sbin".into());
    // Debian keeps the servers of each version of PostgreSQL apart.
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    places.extend(versions.map(|version| version.unwrap().path().join("bin")));
    let mut found = places.into_iter().map(|place| place.join(name));
    let found = found.find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed; on Debian: apt install {package}"))
}

/// A server that is killed when this is dropped.
pub struct Running(Child);

impl Running {
    /// Starts it, with a log of this name in the cluster's directory, and waits until whoever is in
    /// `namespace` can connect to `ready`.
    ///
    /// # Panics
    ///
    /// Where it ends, or is not ready within [`PATIENCE`].
    pub fn start(
        name: &str,
        cluster: &Cluster,
        namespace: &Namespace,
        mut command: Command,
        ready: SocketAddr,
    ) -> Self {
        let log = cluster.directory().join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let mut server = Self(command.spawn().unwrap());
        eventually(PATIENCE, "the server listens", || {
            if let Some(status) = server.0.try_wait().unwrap() {
                let log = fs::read_to_string(&log).unwrap();
                panic!("{name} ended with {status}: {log}");
            }
            let dialled = cluster.dial_from(namespace, ready);
            dialled.map(drop).map_err(|error| format!("{error:?}"))
        });
        server
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// Where it has ended.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }

    /// Starts it, with nothing said, and does not wait.
    pub fn quietly(command: &mut Command) -> Self {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
        Self(quiet.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
