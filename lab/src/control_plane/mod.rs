//! A control plane on its own: an etcd of three members and two config services, each in a
//! namespace of its own, and in the edge's namespace those who write and those who follow.
//!
//! What goes wrong is a panic: a test that needs it has failed.

#![allow(clippy::unwrap_used)]

mod etcd;
mod traffic;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use anyport_netns::{Namespace, Topology, topology::Origin};
use tempfile::TempDir;

pub use etcd::Etcd;
pub use traffic::{Answered, Client, Record, Traffic};

use crate::{
    cluster::{Metrics, PATIENCE, Process, eventually, page, program_file},
    network::nft,
};

const MEMBERS: usize = 3;
const REPLICAS: usize = 2;
const GRPC: u16 = 7400;
const ADMIN: u16 = 7401;
const LOG_LINES: usize = 40;

/// What runs. Make and keep it on the test's own thread.
pub struct ControlPlane {
    // In the order of their end.
    pub etcd: Etcd,
    replicas: Vec<Process>,
    directory: TempDir,
    topology: Topology,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl ControlPlane {
    /// Starts everything and waits until it is ready. `quota`: bytes of each member's database.
    pub fn start(quota: Option<u64>) -> Self {
        // Held by a test that failed, it protects nothing that could be half done.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let topology = Topology::new(MEMBERS + REPLICAS).unwrap();
        let directory = tempfile::Builder::new()
            .prefix("anyport-etcd-")
            .tempdir()
            .unwrap();
        let etcd = Etcd::start(&topology.origins()[..MEMBERS], directory.path(), quota);
        let mut plane = Self {
            etcd,
            replicas: Vec::new(),
            directory,
            topology,
            _turn: turn,
        };
        for replica in 0..REPLICAS {
            let process = plane.spawn(replica);
            plane.replicas.push(process);
        }
        for replica in 0..REPLICAS {
            plane.wait_until_ready(replica);
        }
        plane
    }

    fn host(&self, replica: usize) -> &Origin {
        &self.topology.origins()[MEMBERS + replica]
    }

    fn spawn(&self, replica: usize) -> Process {
        let host = self.host(replica);
        let mut command = host
            .namespace
            .command(program_file("config-service").unwrap());
        command
            .arg(format!("--store=etcd://{}", self.etcd.endpoints()))
            .arg(format!("--listen={}:{GRPC}", host.v4))
            .arg(format!("--admin={}:{ADMIN}", host.v4))
            .arg("--insecure");
        Process::spawn(command, &self.log_path(replica)).unwrap()
    }

    fn log_path(&self, replica: usize) -> PathBuf {
        self.directory
            .path()
            .join(format!("config-service-{replica}.log"))
    }

    /// Everything that a replica wrote to its log.
    pub fn log(&self, replica: usize) -> String {
        fs::read_to_string(self.log_path(replica)).unwrap()
    }

    /// gRPC URLs of the replicas.
    pub fn urls(&self) -> [String; REPLICAS] {
        [0, 1].map(|replica| format!("http://{}:{GRPC}", self.host(replica).v4))
    }

    /// Where clients and followers are.
    pub fn edge(&self) -> &Namespace {
        self.topology.edge()
    }

    /// A client of one replica.
    pub fn client(&self, replica: usize) -> Client {
        Client::new(self.edge(), &self.urls()[replica])
    }

    /// What `/readyz` says: whether it is ready, and why not.
    pub fn readiness(&self, replica: usize) -> (bool, String) {
        self.page(replica, "/readyz").unwrap()
    }

    fn page(&self, replica: usize, path: &str) -> Result<(bool, String), String> {
        let address: SocketAddr = (self.host(replica).v4, ADMIN).into();
        let answer = page(self.edge(), address, path).map_err(|error| error.to_string())?;
        Ok((answer.status == 200, answer.body))
    }

    /// Waits until a replica says that it does its job.
    pub fn wait_until_ready(&self, replica: usize) {
        eventually(PATIENCE, "a replica is ready", || {
            match self.page(replica, "/readyz")? {
                (true, _) => Ok(()),
                (false, why) => Err(why),
            }
        });
    }

    /// What a replica counts.
    pub fn metrics(&self, replica: usize) -> Metrics {
        let (_, text) = self.page(replica, "/metrics").unwrap();
        text.parse().unwrap()
    }

    /// Nothing that a replica sends to etcd arrives.
    pub fn cut(&self, replica: usize) {
        nft(
            &self.host(replica).namespace,
            "add table ip cut; add chain ip cut out { type filter hook output priority 0; }; \
             add rule ip cut out tcp dport 2379 drop",
        );
    }

    /// It does again.
    pub fn mend(&self, replica: usize) {
        nft(&self.host(replica).namespace, "delete table ip cut");
    }

    /// Runs `anyport` against a replica and gives its output.
    pub fn anyport(&self, replica: usize, arguments: &[&str]) -> String {
        let mut command = self.edge().command(program_file("anyport").unwrap());
        let url = &self.urls()[replica];
        let done = command
            .args(arguments)
            .args(["--server", url, "--insecure"])
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let replicas = (0..REPLICAS).map(|replica| self.log_path(replica));
        for path in self.etcd.logs().into_iter().chain(replicas) {
            let log = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            eprintln!("---- {}\n{end}", path.display());
        }
    }
}
