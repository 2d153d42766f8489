//! An etcd of three real members, each in a namespace of its own.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyport_netns::{Namespace, topology::Origin};

use super::authority::{STORE_CLIENT, replica};
use crate::{
    cluster::{PATIENCE, Process, certs, eventually},
    network::nft,
    servers::program,
};

const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;

/// The members, by number from 0. Killed when this is dropped.
pub struct Etcd {
    hosts: Vec<Origin>,
    running: BTreeMap<usize, Process>,
    /// Of data, logs and snapshots.
    directory: PathBuf,
    setup: Setup,
}

/// From whom a member is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    Everybody,
    /// Who asks it gets there as before.
    Members,
}

/// What is not alike in every test.
#[derive(Clone, Default)]
pub struct Setup {
    /// Bytes that its database may have; none: etcd's own limit.
    pub quota: Option<u64>,
    /// Where the certificates are; none: clear text.
    pub tls: Option<PathBuf>,
}

impl Etcd {
    /// Starts a member on each host, and waits until all of them answer. Start it from the thread
    /// that keeps it: its processes end with that thread.
    pub fn start(hosts: &[Origin], directory: &Path, setup: Setup) -> Self {
        let mut etcd = Self {
            hosts: hosts.to_vec(),
            running: BTreeMap::new(),
            directory: directory.to_owned(),
            setup,
        };
        etcd.start_all();
        etcd
    }

    fn start_all(&mut self) {
        let all = 0..self.hosts.len();
        all.clone().for_each(|member| self.spawn(member));
        all.for_each(|member| self.wait_until_healthy(member));
    }

    /// Where clients are served, `HOST:PORT` with a comma between.
    pub fn endpoints(&self) -> String {
        let all = (0..self.hosts.len()).map(|member| self.clients(member).to_string());
        all.collect::<Vec<_>>().join(",")
    }

    fn clients(&self, member: usize) -> SocketAddr {
        (self.hosts[member].v4, CLIENTS).into()
    }

    /// Every member with the place where it listens for the others.
    fn all_peers(&self) -> String {
        let named =
            |(member, host): (usize, &Origin)| format!("{}={}", name(member), peers(host.v4));
        self.hosts
            .iter()
            .enumerate()
            .map(named)
            .collect::<Vec<_>>()
            .join(",")
    }

    fn data(&self, member: usize) -> PathBuf {
        self.directory.join(format!("etcd-{member}"))
    }

    fn spawn(&mut self, member: usize) {
        let host = &self.hosts[member];
        let mut command = host.namespace.command(program("etcd", "etcd-server"));
        let scheme = if self.setup.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let clients = format!("{scheme}://{}", self.clients(member));
        let peers = peers(host.v4);
        command
            .args(["--name", &name(member)])
            .arg("--data-dir")
            .arg(self.data(member))
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &self.all_peers()])
            .args(["--logger", "zap", "--log-level", "warn"]);
        if let Some(directory) = &self.setup.tls {
            command
                .args(certs::of_etcd(directory, &name(member)))
                .args(["--client-cert-allowed-hostname", STORE_CLIENT]);
        }
        if let Some(quota) = self.setup.quota {
            command.args(["--quota-backend-bytes", &quota.to_string()]);
        }
        let log = self.directory.join(format!("etcd-{member}.log"));
        let process = Process::spawn(command, &log).unwrap();
        self.running.insert(member, process);
    }

    fn wait_until_healthy(&self, member: usize) {
        let endpoint = self.clients(member).to_string();
        eventually(PATIENCE, "a member of etcd is healthy", || {
            self.try_ctl(&endpoint, &["endpoint", "health"])
        });
    }

    /// SIGKILL.
    pub fn kill9(&mut self, member: usize) {
        let process = self.running.remove(&member);
        process.expect("it runs").kill9().unwrap();
    }

    /// Starts members that were killed, on their data.
    pub fn restart(&mut self, members: &[usize]) {
        members.iter().for_each(|member| self.spawn(*member));
        for member in members {
            self.wait_until_healthy(*member);
        }
    }

    /// Nothing gets to a member any more, nor away from it, and nobody is told; waits until that
    /// shows.
    pub fn cut(&self, member: usize, from: Cut) {
        let lost = match from {
            Cut::Everybody => vec!["meta oifname != lo".to_owned()],
            Cut::Members => ["sport", "dport"]
                .map(|port| format!("tcp {port} {PEERS}"))
                .into(),
        };
        let mut rules = String::from("add table ip cut");
        for hook in ["input", "output"] {
            let chain =
                format!("; add chain ip cut {hook} {{ type filter hook {hook} priority 0; }}");
            rules += &chain;
            for lost in &lost {
                let lost = match hook {
                    "input" => lost.replace("oifname", "iifname"),
                    _ => lost.clone(),
                };
                rules += &format!("; add rule ip cut {hook} {lost} drop");
            }
        }
        nft(&self.hosts[member].namespace, &rules);
        let endpoint = self.clients(member).to_string();
        eventually(PATIENCE, "a member of etcd is cut off", || {
            match self.try_ctl(&endpoint, &["endpoint", "health"]) {
                Ok(said) => Err(said),
                Err(_) => Ok(()),
            }
        });
    }

    /// Everything gets there again; waits until it is well.
    pub fn mend(&self, member: usize) {
        nft(&self.hosts[member].namespace, "delete table ip cut");
        self.wait_until_healthy(member);
    }

    /// The member that leads.
    pub fn leader(&self) -> usize {
        let leads = |entry: &serde_json::Value| {
            let status = &entry["Status"];
            status["leader"] == status["header"]["member_id"]
        };
        // In an election there is none.
        let leader = eventually(PATIENCE, "a member leads", || {
            let status = self.ctl(&["endpoint", "status", "-w", "json"]);
            let status: Vec<serde_json::Value> = serde_json::from_str(&status).unwrap();
            let leader = status.iter().find(|entry| leads(entry));
            leader.cloned().ok_or_else(|| format!("{status:?}"))
        });
        let endpoint = leader["Endpoint"].as_str().unwrap().to_owned();
        let all = 0..self.hosts.len();
        let mut leading = all.filter(|member| self.clients(*member).to_string() == endpoint);
        leading.next().expect("one of ours")
    }

    /// Forgets all that is older than now.
    pub fn compact(&self) {
        let status = self.ctl(&["endpoint", "status", "-w", "json"]);
        let status: Vec<serde_json::Value> = serde_json::from_str(&status).unwrap();
        let revisions = status
            .iter()
            .map(|entry| entry["Status"]["header"]["revision"].as_u64());
        let revision = revisions.flatten().max().unwrap().to_string();
        eventually(PATIENCE, "etcd forgets", || {
            match self.try_ctl(&self.running(), &["compact", &revision]) {
                // An earlier attempt did it, and its answer was lost.
                Err(said) if said.contains("has been compacted") => Ok(said),
                other => other,
            }
        });
    }

    /// Puts values of somebody else until there is no room for more.
    pub fn fill(&self) {
        let value = self.directory.join("junk");
        fs::write(&value, "x".repeat(1_000_000)).unwrap();
        let endpoints = self.endpoints();
        let put = |number: u32| {
            let mut put = self.etcdctl(&endpoints);
            put.args(["put", &format!("/junk/{number}")]);
            let put = put.stdin(fs::File::open(&value).unwrap()).output().unwrap();
            let said = String::from_utf8_lossy(&put.stderr).into_owned();
            match put.status.success() {
                true => Ok(true),
                false if said.contains("space exceeded") => Ok(false),
                // So much at once may be late.
                false => Err(said),
            }
        };
        let mut numbers = 0..;
        while eventually(PATIENCE, "etcd takes it, or is full", || put(numbers.start)) {
            numbers.next();
        }
    }

    /// Makes room again, and says so.
    pub fn make_room(&self) {
        self.ctl(&["del", "--prefix", "/junk/"]);
        self.compact();
        self.ctl(&["defrag", "--command-timeout=30s"]);
        self.ctl(&["alarm", "disarm"]);
    }

    /// Saves what there is.
    pub fn snapshot(&self) -> PathBuf {
        let file = self.directory.join("snapshot.db");
        let endpoint = self.clients(0).to_string();
        // A member may be behind the others. Of what it reads for somebody it is not.
        self.eventually_ctl(&endpoint, &["get", "/"]);
        let path = file.display().to_string();
        self.try_ctl(&endpoint, &["snapshot", "save", &path])
            .unwrap();
        file
    }

    /// Kills all members, and starts them on what was saved, as an operator does after a disaster.
    pub fn restore(&mut self, snapshot: &Path) {
        for member in 0..self.hosts.len() {
            self.kill9(member);
            fs::remove_dir_all(self.data(member)).unwrap();
            let data = self.data(member).display().to_string();
            let peers = peers(self.hosts[member].v4);
            let snapshot = snapshot.display().to_string();
            let endpoint = self.clients(member).to_string();
            let restore = [
                "snapshot",
                "restore",
                &snapshot,
                "--name",
                &name(member),
                "--data-dir",
                &data,
                "--initial-cluster",
                &self.all_peers(),
                "--initial-cluster-token",
                "restored",
                "--initial-advertise-peer-urls",
                &peers,
            ];
            self.try_ctl(&endpoint, &restore).unwrap();
        }
        self.start_all();
    }

    fn etcdctl(&self, endpoints: &str) -> Command {
        let namespace: &Namespace = &self.hosts[0].namespace;
        let mut command = namespace.command(program("etcdctl", "etcd-client"));
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", endpoints])
            .args(["--dial-timeout=2s", "--command-timeout=10s"]);
        self.show(&mut command, &replica(0));
        command
    }

    /// Has `etcdctl` show a certificate, where there are some.
    fn show(&self, command: &mut Command, name: &str) {
        if let Some(directory) = &self.setup.tls {
            let shown = certs::files(directory, name);
            command
                .env("ETCDCTL_CACERT", shown.tls_ca.unwrap())
                .env("ETCDCTL_CERT", shown.tls_cert.unwrap())
                .env("ETCDCTL_KEY", shown.tls_key.unwrap());
        }
    }

    /// Is the holder of a certificate served?
    pub fn lets_in(&self, name: &str) -> bool {
        let mut command = self.etcdctl(&self.endpoints());
        self.show(&mut command, name);
        let done = command.args(["get", "/"]).output().unwrap();
        done.status.success()
    }

    fn ctl(&self, arguments: &[&str]) -> String {
        self.eventually_ctl(&self.running(), arguments)
    }

    /// Where those that run serve clients: what is asked of all members is asked of no other.
    fn running(&self) -> String {
        let running = self
            .running
            .keys()
            .map(|member| self.clients(*member).to_string());
        running.collect::<Vec<_>>().join(",")
    }

    /// In an election nothing is answered.
    fn eventually_ctl(&self, endpoints: &str, arguments: &[&str]) -> String {
        eventually(PATIENCE, "etcd does as it is told", || {
            self.try_ctl(endpoints, arguments)
        })
    }

    fn try_ctl(&self, endpoints: &str, arguments: &[&str]) -> Result<String, String> {
        let done = self.etcdctl(endpoints).args(arguments).output().unwrap();
        let out = String::from_utf8_lossy(&done.stdout).into_owned();
        match done.status.success() {
            true => Ok(out),
            false => Err(format!(
                "etcdctl {arguments:?}: {out}{}",
                String::from_utf8_lossy(&done.stderr)
            )),
        }
    }

    /// The end of each member's log.
    pub(super) fn logs(&self) -> Vec<PathBuf> {
        let all = 0..self.hosts.len();
        all.map(|member| self.directory.join(format!("etcd-{member}.log")))
            .collect()
    }
}

/// Of a member, and of its certificate.
pub(super) fn name(member: usize) -> String {
    format!("m{member}")
}

fn peers(address: Ipv4Addr) -> String {
    format!("http://{address}:{PEERS}")
}
