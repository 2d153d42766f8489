//! dnsmasq, as the name server that an agent asks.

use std::fs::{self, File};
use std::io;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::program;
use crate::cluster::{Cluster, PATIENCE, eventually};

/// For the A records of `ready.internal` (RFC 1035, section 4).
const QUERY: &[u8] = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x05ready\x08internal\0\0\x01\0\x01";
const ASKED_AGAIN: Duration = Duration::from_millis(500);

/// A dnsmasq on the edge's loopback that knows the names of one file, below `internal`, for two
/// seconds at a time. Killed when this is dropped.
pub struct Dnsmasq<'c> {
    cluster: &'c Cluster,
    hosts: PathBuf,
    records: Vec<String>,
    child: Option<Child>,
}

impl<'c> Dnsmasq<'c> {
    /// Where it listens, in the edge's namespace.
    pub const ADDRESS: &'static str = "127.0.0.1:5353";

    /// The environment of an agent that is to ask it.
    pub fn environment() -> Vec<(String, String)> {
        vec![("ANYPORT_RESOLVER".to_owned(), Self::ADDRESS.to_owned())]
    }

    /// Starts it with these lines of a hosts file, and with further options for other records.
    pub fn start(cluster: &'c Cluster, hosts: &str, records: &[&str]) -> Self {
        let mut server = Self {
            cluster,
            hosts: cluster.directory().join("hosts"),
            records: records.iter().map(|&record| record.to_owned()).collect(),
            child: None,
        };
        server.write(hosts);
        server.run();
        server
    }

    /// What it knows from its next start, or from [`change`](Self::change), on.
    pub fn write(&self, hosts: &str) {
        fs::write(&self.hosts, hosts).unwrap();
    }

    /// Starts it again after [`stop`](Self::stop), and waits until it answers.
    pub fn run(&mut self) {
        let log = File::create(self.cluster.directory().join("dnsmasq.log")).unwrap();
        let edge = self.cluster.topology().edge();
        let mut command = edge.command(program("dnsmasq", "dnsmasq-base"));
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--user=root",
            "--log-facility=-",
            "--no-resolv",
            "--no-hosts",
            "--local=/internal/",
            "--local-ttl=2",
            "--listen-address=127.0.0.1",
            "--port=5353",
            "--bind-interfaces",
        ]);
        command.args(&self.records);
        command.arg(format!("--addn-hosts={}", self.hosts.display()));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap());
        self.child = Some(command.stderr(log).spawn().unwrap());
        eventually(PATIENCE, "dnsmasq answers", || self.answers());
    }

    /// Asks for a name of which there is none, to which there is an answer too.
    fn answers(&self) -> io::Result<()> {
        let edge = self.cluster.topology().edge();
        let socket = edge.run(|| UdpSocket::bind("127.0.0.1:0")).unwrap()?;
        socket.connect(Self::ADDRESS)?;
        socket.set_read_timeout(Some(ASKED_AGAIN))?;
        socket.send(QUERY)?;
        socket.recv(&mut [0; 512]).map(drop)
    }

    /// Other addresses from now on.
    pub fn change(&self, hosts: &str) {
        self.write(hosts);
        self.signal(Signal::SIGHUP);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(id.cast_signed()), signal).unwrap();
    }

    /// Kills it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Dnsmasq<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}
