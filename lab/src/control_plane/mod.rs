//! A control plane on its own: an etcd of three members and two config services, each in a
//! namespace of its own, and in the edge's namespace those who write and those who follow.
//!
//! What goes wrong is a panic: a test that needs it has failed.

#![allow(clippy::unwrap_used)]

mod authority;
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
use anyport_node::{access::Role, identity::Identity, rpc::Endpoint};
use tempfile::TempDir;

pub use authority::Authority;
pub use etcd::{Cut, Etcd, Setup};
pub use traffic::{Answered, Client, Record, Traffic};

use crate::{
    cluster::{Metrics, PATIENCE, Process, certs, eventually, page, program_file},
    network::nft,
};

const MEMBERS: usize = 3;
const REPLICAS: usize = 2;
const GRPC: u16 = 7400;
const ADMIN: u16 = 7401;
const LOG_LINES: usize = 40;
const FIRST_AUTHORITY: &str = "first-authority";

/// What runs. Make and keep it on the test's own thread.
pub struct ControlPlane {
    // In the order of their end.
    pub etcd: Etcd,
    replicas: Vec<Process>,
    /// Where the certificates are; none: clear text.
    tls: Option<PathBuf>,
    directory: TempDir,
    topology: Topology,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl ControlPlane {
    /// Starts everything in clear text, and waits until it is ready. `quota`: bytes of each
    /// member's database.
    pub fn start(quota: Option<u64>) -> Self {
        Self::start_with(quota, false)
    }

    /// As [`start`](Self::start), in mutual TLS: between the replicas and etcd, too.
    pub fn start_in_tls() -> (Self, Authority) {
        let plane = Self::start_with(None, true);
        let directory = plane.directory.path().join(FIRST_AUTHORITY);
        (plane, Authority::at(directory))
    }

    fn start_with(quota: Option<u64>, in_tls: bool) -> Self {
        // Held by a test that failed, it protects nothing that could be half done.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let topology = Topology::new(MEMBERS + REPLICAS).unwrap();
        let directory = tempfile::Builder::new()
            .prefix("anyport-etcd-")
            .tempdir()
            .unwrap();
        let tls = in_tls.then(|| {
            let authority = directory.path().join(FIRST_AUTHORITY);
            let authority = Authority::make(authority, topology.origins(), 365);
            let used = directory.path().join("tls");
            fs::create_dir(&used).unwrap();
            authority::trust(&used, &[&authority]);
            authority.hand_out(&used);
            used
        });
        let setup = Setup {
            quota,
            tls: tls.clone(),
        };
        let etcd = Etcd::start(&topology.origins()[..MEMBERS], directory.path(), setup);
        let mut plane = Self {
            etcd,
            replicas: Vec::new(),
            tls,
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

    /// Another authority, which has issued everything anew, for a day longer; nobody is told of
    /// it yet.
    pub fn another_authority(&self) -> Authority {
        let directory = self.directory.path().join("second-authority");
        Authority::make(directory, self.topology.origins(), 366)
    }

    /// Whom all trust from now on; etcd once its members are restarted.
    pub fn trust(&self, authorities: &[&Authority]) {
        authority::trust(self.tls.as_ref().unwrap(), authorities);
    }

    /// What all show from now on.
    pub fn hand_out(&self, authority: &Authority) {
        authority.hand_out(self.tls.as_ref().unwrap());
    }

    /// Who this is, as the files say now.
    fn identity(&self, name: &str) -> Identity {
        match &self.tls {
            Some(directory) => certs::files(directory, name).load().unwrap(),
            None => Identity::none(),
        }
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
        if let Some(directory) = &self.tls {
            let shown = certs::files(directory, &authority::replica(replica));
            command.envs(certs::environment(&shown));
        }
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
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        [0, 1].map(|replica| format!("{scheme}://{}:{GRPC}", self.host(replica).v4))
    }

    /// How somebody dials a replica, with what the files say now.
    fn endpoint(&self, replica: usize, name: &str) -> Endpoint {
        let url = self.urls()[replica].parse().unwrap();
        Endpoint::new(&url, &self.identity(name), Role::ConfigService).unwrap()
    }

    /// Where clients and followers are.
    pub fn edge(&self) -> &Namespace {
        self.topology.edge()
    }

    /// A client of one replica.
    pub fn client(&self, replica: usize) -> Client {
        Client::new(self.edge(), self.endpoint(replica, authority::WRITER))
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
        if let Some(directory) = &self.tls {
            command.envs(certs::environment(&certs::files(
                directory,
                authority::WRITER,
            )));
        }
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
