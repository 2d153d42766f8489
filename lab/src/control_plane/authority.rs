//! Authorities of a control plane in TLS, and what they have issued.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyport_netns::topology::Origin;

use super::{MEMBERS, REPLICAS, etcd};
use crate::cluster::program_file;

/// A name that only certificates of replicas have: all that etcd lets in.
pub(super) const STORE_CLIENT: &str = "store.anyport";
/// Who writes.
pub(super) const WRITER: &str = "writer";

/// The name of a replica.
pub(super) fn replica(number: usize) -> String {
    format!("config-service-{number}")
}

/// The name of who follows a replica.
pub(super) fn follower(replica: usize) -> String {
    format!("follower-{replica}")
}

/// An authority and one certificate of it for each who takes part, in a directory.
pub struct Authority(PathBuf);

impl Authority {
    /// One that was made before.
    pub(super) fn at(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Has `anyport certs` make one, and issue for so many days. Members of etcd are on the first
    /// hosts, replicas on the others.
    pub(super) fn make(directory: PathBuf, hosts: &[Origin], days: u32) -> Self {
        let authority = Self(directory);
        authority.certs(&["init"]);
        let days = days.to_string();
        let issue = |arguments: &[&str]| {
            authority.certs(&[&["issue"], arguments, &["--days", &days]].concat());
        };
        for (number, host) in hosts.iter().enumerate() {
            let ip = host.v4.to_string();
            let issue = |name: &str, more: &[&str]| {
                issue(&[&["config-service", name, "--ip", &ip], more].concat());
            };
            match number.checked_sub(MEMBERS) {
                None => issue(&etcd::name(number), &[]),
                Some(number) => issue(&replica(number), &["--dns", STORE_CLIENT]),
            }
        }
        for number in 0..REPLICAS {
            issue(&["edge", &follower(number)]);
        }
        issue(&["operator", WRITER]);
        authority
    }

    fn certs(&self, arguments: &[&str]) {
        let mut command = Command::new(program_file("anyport").unwrap());
        command
            .arg("certs")
            .args(arguments)
            .arg("--dir")
            .arg(&self.0);
        let done = command.output().unwrap();
        assert!(done.status.success(), "{command:?}: {done:?}");
    }

    fn own(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// Puts what it has issued to where it is used, one file after the other.
    pub(super) fn hand_out(&self, used: &Path) {
        for entry in fs::read_dir(&self.0).unwrap() {
            let file = entry.unwrap().file_name();
            if !file.to_string_lossy().starts_with("ca.") {
                fs::copy(self.0.join(&file), used.join(&file)).unwrap();
            }
        }
    }
}

/// Has those who use what is there trust these.
pub(super) fn trust(used: &Path, authorities: &[&Authority]) {
    let own = authorities
        .iter()
        .map(|authority| fs::read_to_string(authority.own()).unwrap());
    fs::write(used.join("ca.pem"), own.collect::<String>()).unwrap();
}
