//! The real programs, each as a process of its own, in the network of a [`Topology`].
//!
//! The control plane and the agent run in the edge's namespace and talk over its loopback; origins
//! and clients run in theirs, and so do balancers and further agents where a plan wants several. Every cluster has namespaces of its own, so all of them use the
//! programs' usual ports.
//!
//! What always holds:
//!
//! - **Never a stale program.** The first cluster of a test process has cargo build the programs,
//!   and runs exactly what cargo names; where everything is fresh that takes a moment.
//! - **Nothing left behind.** What the agent pins is in a BPF file system of the cluster's own. Processes are killed by id when the cluster is dropped, and by the
//!   kernel when the thread that started them ends in whatever way. So start, restart and keep a
//!   cluster on the test's own thread.
//! - **One at a time.** Within a test process a second cluster waits for the first to be gone: what
//!   is measured in seconds must not depend on how many tests the harness runs at once.
//! - **A failed test shows the logs.** When a cluster is dropped by a panic, the end of every
//!   process's log goes to the test's output.

mod apart;
mod beside;
pub(crate) mod certs;
mod command;
mod each;
mod error;
mod http;
mod metrics;
mod process;
mod programs;
mod service;
mod visit;
mod wait;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyport_netns::{Mounts, Namespace, Topology};
use anyport_node::identity::TlsArgs;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use apart::Apart;
pub use beside::Beside;
pub use command::Said;
pub use error::{Error, Result};
pub use metrics::Metrics;
pub use service::{Replica, Service, Steering, Store};
pub use visit::echoes;
pub use wait::eventually;

pub(crate) use http::get as page;
pub(crate) use process::Process;
use programs::Programs;
pub(crate) use programs::file as program_file;

/// How long anything may take that should be a matter of moments. A test that needs it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The threads of the agent that carry connections, where a plan does not say.
const WORKERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

/// Lines of each log that a failed test shows.
const LOG_LINES: usize = 80;

/// What a cluster consists of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Origin namespaces; servers in them are the test's to start.
    pub origins: usize,
    /// Where the config service keeps its state.
    pub store: Store,
    /// How the agent has the kernel steer.
    pub steering: Steering,
    /// Worker threads of the agent.
    pub workers: NonZeroUsize,
    /// How many descriptors the agent may have open; none: as many as this process.
    pub open_files: Option<u64>,
    /// Environment of every process, for example of the exporter of traces. They inherit nothing
    /// of the kind from the test's own.
    pub environment: Vec<(String, String)>,
    /// Everything in mutual TLS, with certificates that `anyport certs` made.
    pub tls: bool,
    /// Neither balancer nor agent: nodes are the test's, in the client's namespace, and the config
    /// service listens where they can reach it.
    pub without_nodes: bool,
    /// Balancers, each in a namespace of its own; 0: one, beside the agent.
    pub balancers: usize,
    /// Agents beyond the first, each in a namespace of its own with a client of its own. The first
    /// agent begins with the first balancer, the second with the second, and so on.
    pub more_edges: usize,
}

impl Plan {
    /// With a store, and a way of steering for it: the two have nothing to do with each other, so
    /// a test that runs on both stores has run under both ways of steering.
    pub fn on(store: Store) -> Self {
        let steering = match store {
            Store::Embedded => Steering::Tproxy,
            Store::Etcd => Steering::SkLookup,
        };
        Self {
            store,
            steering,
            ..Self::default()
        }
    }
}

impl Plan {
    /// Is there anybody who is not in the edge's namespace?
    fn is_apart(&self) -> bool {
        self.without_nodes || self.balancers > 0 || self.more_edges > 0
    }

    fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            origins: 1,
            store: Store::Embedded,
            steering: Steering::Tproxy,
            workers: WORKERS,
            open_files: None,
            environment: Vec::new(),
            tls: false,
            without_nodes: false,
            balancers: 0,
            more_edges: 0,
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    // In the order of their end: processes before their directory and their network.
    processes: BTreeMap<Service, Process>,
    directory: TempDir,
    apart: Apart,
    topology: Topology,
    plan: Plan,
    programs: &'static Programs,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Cluster {
    /// Builds the programs, makes the network, starts everything and waits until all of it is
    /// ready: the store answers, the agent has the (empty) configuration, and the replica that
    /// commands talk to knows of it.
    ///
    /// # Errors
    ///
    /// Where a program cannot be built or started, or is not ready within [`PATIENCE`]; then with
    /// its log.
    pub fn start(plan: Plan) -> Result<Self> {
        let topology = Topology::new(plan.hosts())?;
        Self::start_in(topology, plan)
    }

    /// As [`start`](Self::start), in a network that the test has prepared. `plan.origins` is not
    /// looked at; balancers and further agents take the place of the last origins.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_in(topology: Topology, plan: Plan) -> Result<Self> {
        let programs = programs::built()?;
        // Held by a test that failed, it protects nothing that could be half done.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::Builder::new()
            .prefix("anyport-lab-")
            .tempdir()
            .map_err(|source| Error::io("making a directory for the cluster", source))?;
        let services = Service::all_of(&plan);
        let mut cluster = Self {
            processes: BTreeMap::new(),
            directory,
            apart: Apart::new(&topology, &plan)?,
            topology,
            plan,
            programs,
            _turn: turn,
        };
        if cluster.plan.tls {
            for service in &services {
                let hosts = service.hosts(&cluster.plan);
                cluster.issue_for(certs::role(*service), &service.name(), &hosts)?;
            }
            cluster.issue("operator", certs::OPERATOR)?;
        }
        // All at once: each has to bear that the others are not there yet.
        for service in &services {
            cluster.spawn(*service)?;
        }
        for service in &services {
            cluster.wait_until_ready(*service)?;
        }
        if services.contains(&Service::EdgeAgent) {
            cluster.wait_until_listed()?;
        }
        Ok(cluster)
    }

    /// The network.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Where a process runs.
    pub fn namespace(&self, service: Service) -> &Namespace {
        let apart = match service {
            Service::BalancerApart(number) => self.apart.balancer(number),
            Service::EdgeApart(number) => self.apart.edge(number),
            _ => None,
        };
        apart.unwrap_or(self.topology.edge())
    }

    /// Where clients of an agent are.
    pub fn client_of(&self, agent: Service) -> &Namespace {
        let apart = match agent {
            Service::EdgeApart(number) => self.apart.client(number),
            _ => None,
        };
        apart.unwrap_or(self.topology.client())
    }

    /// The directory in which the agent pins what belongs to sk_lookup.
    ///
    /// # Errors
    ///
    /// Where the edge's namespace cannot be looked at.
    pub fn pins(&self) -> Result<PathBuf> {
        let edge = self.topology.edge();
        let namespace = std::fs::metadata(edge.path())
            .map_err(|source| Error::io("looking at the edge's namespace", source))?;
        let bpf_fs = edge.mounts().and_then(Mounts::bpf_fs);
        let bpf_fs = bpf_fs.unwrap_or_else(|| "/sys/fs/bpf".into());
        Ok(bpf_fs.join("anyport").join(namespace.ino().to_string()))
    }

    /// What of the way back of transparent connections is in the kernel of the edge; empty, where
    /// nothing is.
    ///
    /// # Errors
    ///
    /// Where the kernel cannot be asked.
    pub fn return_path(&self) -> Result<String> {
        let script = "ip rule show table 65; ip -6 rule show table 65; ip route show table 65; \
                      ip -6 route show table 65; nft list tables | grep return; true";
        let mut command = self.topology.edge().command("sh");
        let output = command.args(["-c", script]).output();
        let output = output.map_err(|source| Error::io("asking for the way back", source))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The config service's replicas.
    pub fn replicas(&self) -> &'static [Replica] {
        self.plan.store.replicas()
    }

    /// A directory for files of the test, gone with the cluster.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process id.
    ///
    /// # Errors
    ///
    /// Where it does not run.
    pub fn pid(&self, service: Service) -> Result<u32> {
        Ok(self.running(service)?.pid())
    }

    /// Resident bytes of a process.
    ///
    /// # Errors
    ///
    /// Where it does not run.
    pub fn resident(&self, service: Service) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid(service)?);
        let failed = |source| Error::io(format!("reading {path}"), source);
        let status = std::fs::read_to_string(&path).map_err(failed)?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        let kilobytes: Option<u64> = kilobytes;
        let bytes = kilobytes.map(|kilobytes| kilobytes << 10);
        bytes.ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// Where it does not run.
    pub fn signal(&self, service: Service, signal: Signal) -> Result<()> {
        self.running(service)?.signal(signal).map_err(|source| {
            let what = format!("signalling {service}");
            Error::io(what, source)
        })
    }

    /// Kills a process with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// Where it does not run.
    pub fn kill9(&mut self, service: Service) -> Result<()> {
        let mut process = self
            .processes
            .remove(&service)
            .ok_or(Error::NotRunning { service })?;
        process.kill9().map_err(|source| {
            let what = format!("killing {service}");
            Error::io(what, source)
        })
    }

    /// Sends SIGTERM, and waits for the process to end by itself; gives its exit status.
    ///
    /// # Errors
    ///
    /// Where it does not run, or has not ended after `limit`; then it is killed.
    pub fn terminate(&mut self, service: Service, limit: Duration) -> Result<Option<i32>> {
        let mut process = self
            .processes
            .remove(&service)
            .ok_or(Error::NotRunning { service })?;
        process.terminate(limit).map_err(|source| {
            let what = format!("ending {service}");
            Error::io(what, source)
        })
    }

    /// Starts a process that does not run, on the state that it left, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// Where it cannot be started, or is not ready within [`PATIENCE`]; then with its log.
    pub fn restart(&mut self, service: Service) -> Result<()> {
        self.spawn(service)?;
        self.wait_until_ready(service)
    }

    /// Waits until a process that was started says that it does its job.
    ///
    /// # Errors
    ///
    /// Where it ends, or does not say so within [`PATIENCE`]; then with its log.
    pub fn wait_until_ready(&mut self, service: Service) -> Result<()> {
        let path = service.ready_path();
        let outcome = wait::until(PATIENCE, || {
            let process = self.processes.get_mut(&service);
            if let Some(status) = process.and_then(Process::has_ended) {
                return Ok(Err(format!("it ended with {status}")));
            }
            match self.get(service, path) {
                Ok(_) => Ok(Ok(())),
                Err(error) => Err(error::with_causes(&error)),
            }
        });
        outcome.flatten().map_err(|last| Error::NotReady {
            service,
            last,
            log: self.log_tail(service),
        })
    }

    /// With two replicas, the one that commands talk to hears of the agent, which is connected to
    /// the other, a moment after that one does.
    fn wait_until_listed(&self) -> Result<()> {
        let listed = || match self.anyport(&["get", "edges", "edge1"]) {
            Ok(said) if said.status == Some(0) => Ok(()),
            Ok(said) => Err(said.to_string()),
            Err(error) => Err(error::with_causes(&error)),
        };
        wait::until(PATIENCE, listed).map_err(|last| Error::NotReady {
            service: Service::EdgeAgent,
            last,
            log: self.log_tail(Service::EdgeAgent),
        })
    }

    /// Starts a process that does not run, and does not wait.
    ///
    /// # Errors
    ///
    /// Where it cannot be started.
    pub fn spawn(&mut self, service: Service) -> Result<()> {
        let process = self.start_process(service)?;
        self.processes.insert(service, process);
        Ok(())
    }

    fn start_process(&self, service: Service) -> Result<Process> {
        let program = self.programs.path(service.program())?;
        let namespace = self.namespace(service);
        let mut command = match (service, self.plan.open_files) {
            (Service::EdgeAgent, Some(limit)) => {
                let mut shell = namespace.command("sh");
                shell.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")]);
                shell.arg(program);
                shell
            }
            _ => namespace.command(program),
        };
        command::clear_environment(&mut command);
        command.envs(
            self.plan
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        );
        if self.plan.tls {
            let tls = self.certificate(&service.name());
            command.envs(certs::environment(&tls));
        }
        command.args(service.arguments(&self.plan, self.directory.path()));
        Process::spawn(command, &self.log_path(service)).map_err(|source| {
            let what = format!("starting {service}");
            Error::io(what, source)
        })
    }

    /// How many workers an agent gets that is started from now on.
    pub fn set_workers(&mut self, workers: NonZeroUsize) {
        self.plan.workers = workers;
    }

    /// Applies a manifest with `anyport apply --wait`, through the first replica.
    ///
    /// # Errors
    ///
    /// Where the command did not exit with 0.
    pub fn apply(&self, manifest: &str) -> Result<Said> {
        let said = self.try_apply(manifest, &["--wait=60s"])?;
        match said.status {
            Some(0) => Ok(said),
            _ => Err(Error::Refused { said }),
        }
    }

    /// Runs `anyport apply` on a manifest, with further arguments, and gives what came of it.
    ///
    /// # Errors
    ///
    /// Where the command cannot be run, or does not end.
    pub fn try_apply(&self, manifest: &str, arguments: &[&str]) -> Result<Said> {
        let path = self.directory.path().join("manifest.yaml");
        std::fs::write(&path, manifest)
            .map_err(|source| Error::io(format!("writing {}", path.display()), source))?;
        let path = path.display().to_string();
        let mut all = vec!["apply", "-f", path.as_str()];
        all.extend(arguments);
        self.anyport(&all)
    }

    /// Runs `anyport` against the first replica, and gives what came of it, whatever that is.
    ///
    /// # Errors
    ///
    /// Where the command cannot be run, or does not end.
    pub fn anyport(&self, arguments: &[&str]) -> Result<Said> {
        let mut command = self.anyport_command()?;
        command.args(arguments);
        command::run(command, self.directory.path())
    }

    /// The command `anyport` against the first replica, for a test that runs it itself.
    ///
    /// # Errors
    ///
    /// Where there is no such program.
    pub fn anyport_command(&self) -> Result<Command> {
        let mut command = self.topology.edge().command(self.programs.path("anyport")?);
        command::clear_environment(&mut command);
        command.envs(
            self.plan
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        );
        command.env("ANYPORT_SERVER", Replica::First.url_in(self.plan.scheme()));
        if self.plan.tls {
            command.envs(certs::environment(&self.certificate(certs::OPERATOR)));
        }
        Ok(command)
    }

    /// The file of a program, as it was built from this source.
    ///
    /// # Errors
    ///
    /// Where there is no such program.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        self.programs.path(name)
    }

    /// Issues a certificate, in place of an earlier one of that name; with the first one, makes
    /// the authority.
    ///
    /// # Errors
    ///
    /// Where the command did not exit with 0.
    pub fn issue(&self, roles: &str, name: &str) -> Result<TlsArgs> {
        self.issue_for(roles, name, &[])
    }

    fn issue_for(&self, roles: &str, name: &str, hosts: &[IpAddr]) -> Result<TlsArgs> {
        let directory = self.certificates().display().to_string();
        let certs = |arguments: &[&str]| {
            let said = self.anyport(&[&["certs"], arguments, &["--dir", &directory]].concat())?;
            match said.status {
                Some(0) => Ok(()),
                _ => Err(Error::Refused { said }),
            }
        };
        if !self.certificates().exists() {
            certs(&["init"])?;
        }
        let hosts: Vec<String> = hosts.iter().map(|host| format!("--ip={host}")).collect();
        let mut arguments = vec!["issue", roles, name, "--force"];
        arguments.extend(hosts.iter().map(String::as_str));
        certs(&arguments)?;
        Ok(self.certificate(name))
    }

    /// Where the certificates are.
    pub fn certificates(&self) -> PathBuf {
        certs::directory(self.directory.path())
    }

    /// The files of a certificate that was issued.
    pub fn certificate(&self, name: &str) -> TlsArgs {
        certs::files(&self.certificates(), name)
    }

    /// What a service counts now.
    ///
    /// # Errors
    ///
    /// Where it does not answer, or with something else than metrics.
    pub fn metrics(&self, service: Service) -> Result<Metrics> {
        let text = self.get(service, "/metrics")?;
        text.parse()
            .map_err(|source| Error::Metrics { service, source })
    }

    /// Connections of an app that the agent has counted as ended with this status.
    ///
    /// # Errors
    ///
    /// As [`metrics`](Self::metrics).
    pub fn closed(&self, app: &str, status: &str) -> Result<f64> {
        let labels = [("app", app), ("status", status)];
        let metrics = self.metrics(Service::EdgeAgent)?;
        Ok(metrics.sum("anyport_connections_closed_total", &labels))
    }

    /// What a service's admin server answers, if that is 200.
    ///
    /// # Errors
    ///
    /// Where it does not answer, or with another status.
    pub fn get(&self, service: Service, path: &str) -> Result<String> {
        let answer = http::get(self.namespace(service), service.admin(), path)
            .map_err(|source| Error::io(format!("asking {service} for {path}"), source))?;
        match answer.status {
            200 => Ok(answer.body),
            status => Err(Error::Status {
                service,
                path: path.to_owned(),
                status,
                body: answer.body,
            }),
        }
    }

    /// Everything that a process wrote to its log, over all of its starts.
    pub fn log(&self, service: Service) -> String {
        let bytes = std::fs::read(self.log_path(service)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn running(&self, service: Service) -> Result<&Process> {
        self.processes
            .get(&service)
            .ok_or(Error::NotRunning { service })
    }

    fn log_path(&self, service: Service) -> PathBuf {
        self.directory.path().join(format!("{service}.log"))
    }

    fn log_tail(&self, service: Service) -> String {
        let log = self.log(service);
        let skipped = log.lines().count().saturating_sub(LOG_LINES);
        log.lines()
            .skip(skipped)
            .fold(String::new(), |tail, line| tail + line + "\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            for service in Service::all_of(&self.plan) {
                let running = if self.processes.contains_key(&service) {
                    "running"
                } else {
                    "not running"
                };
                eprintln!(
                    "---- log of {service} ({running})\n{}",
                    self.log_tail(service)
                );
            }
        }
    }
}
