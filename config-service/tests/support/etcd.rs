//! A real etcd of our own.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyport_config_service::store::{EtcdUrl, StoreUrl};
use etcd_client::Client;
use tempfile::TempDir;

use super::PATIENCE;

const PROGRAM: &str = "/usr/bin/etcd";

/// A running etcd; killed when dropped.
pub struct EtcdServer {
    process: Child,
    port: u16,
    directory: TempDir,
}

impl EtcdServer {
    pub async fn start() -> Self {
        assert!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing: this test needs a real etcd (package etcd-server)"
        );
        let directory = tempfile::tempdir().unwrap();
        // Between finding a port and etcd's using it, another may take it.
        for _ in 0..5 {
            let (port, peer_port) = (free_port(), free_port());
            let process = spawn(directory.path(), port, peer_port);
            let mut server = Self {
                process,
                port,
                directory: tempfile::tempdir().unwrap(),
            };
            if server.answers().await {
                server.directory = directory;
                return server;
            }
        }
        panic!("etcd did not start in 5 attempts");
    }

    /// Does it come to answer, before it exits?
    async fn answers(&mut self) -> bool {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < deadline {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            let asked = async { self.client().await.get("ready", None).await };
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(1), asked).await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    pub fn port(&self) -> u16 {
        self.port
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
        url(self.port, prefix)
    }

    pub async fn client(&self) -> Client {
        let member = format!("127.0.0.1:{}", self.port);
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

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
