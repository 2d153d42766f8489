//! A real etcd of our own.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyport_config_service::store::{EtcdUrl, StoreUrl};
use etcd_client::Client;
use tempfile::TempDir;

use super::{eventually, port::Port};

const PROGRAM: &str = "/usr/bin/etcd";

/// A running etcd; killed when dropped.
pub struct EtcdServer {
    process: Child,
    port: Port,
    _peer_port: Port,
    directory: TempDir,
}

impl EtcdServer {
    /// One that answers.
    pub async fn start() -> Self {
        assert!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing: this test needs a real etcd (package etcd-server)"
        );
        let directory = tempfile::tempdir().unwrap();
        let (port, peer_port) = (Port::reserve(), Port::reserve());
        let process = spawn(directory.path(), port.number(), peer_port.number());
        let server = Self {
            process,
            port,
            _peer_port: peer_port,
            directory,
        };
        let answers = eventually("etcd answers", || async {
            let asked = async { server.client().await.get("ready", None).await };
            let answer = tokio::time::timeout(Duration::from_secs(1), asked).await;
            answer.ok()?.ok()
        });
        Box::pin(answers).await;
        server
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// It hangs: what is asked of it waits.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(sent.unwrap().success(), "kill {signal} {pid}");
    }

    /// Where it keeps everything.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// With a prefix of its own for each test.
    pub fn url(&self, prefix: &str) -> StoreUrl {
        url(self.port(), prefix)
    }

    pub async fn client(&self) -> Client {
        let member = format!("127.0.0.1:{}", self.port());
        Client::connect([member], None).await.unwrap()
    }

    /// Forgets all history but the present, as etcd's own compaction does.
    pub async fn compact(&self) {
        let mut client = self.client().await;
        // A write of somebody else, so that there is something to forget.
        let noise = client.put("noise", "", None).await.unwrap();
        let revision = noise.header().unwrap().revision();
        client.compact(revision, None).await.unwrap();
    }
}

pub fn url(port: u16, prefix: &str) -> StoreUrl {
    format!("etcd://127.0.0.1:{port}/{prefix}").parse().unwrap()
}

pub fn etcd_url(url: &StoreUrl) -> &EtcdUrl {
    match url {
        StoreUrl::Etcd(url) => url,
        StoreUrl::Embedded(_) => panic!("{url} is not etcd"),
    }
}

fn spawn(directory: &Path, port: u16, peer_port: u16) -> Child {
    let (client, peer) = (
        format!("http://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{peer_port}"),
    );
    Command::new(PROGRAM)
        .arg("--data-dir")
        .arg(directory.join(port.to_string()))
        .args(["--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(["--log-level", "error"])
        // No test takes its power: a disk that is busy with others is not waited for.
        .arg("--unsafe-no-fsync")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd starts")
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
