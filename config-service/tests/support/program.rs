//! The real program, which can be killed.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyport_config_service::store::StoreUrl;
use anyport_proto::{
    sync::UPDATE_MAX,
    v1::{self, config_service_client::ConfigServiceClient},
};
use tonic::transport::{Channel, Endpoint};

use super::{eventually, port::Port};

/// A running config service; killed when dropped.
pub struct Program {
    process: Child,
    port: Port,
}

impl Program {
    pub fn start(store: &StoreUrl) -> Self {
        Self::start_on(Port::reserve(), store, Stdio::null())
    }

    /// With a file for its log.
    pub fn start_logging(store: &StoreUrl, log: &Path) -> Self {
        let log = File::create(log).unwrap();
        Self::start_on(Port::reserve(), store, log.into())
    }

    fn start_on(port: Port, store: &StoreUrl, log: Stdio) -> Self {
        Self {
            process: spawn(port.number(), store, log),
            port,
        }
    }

    /// After a kill, where it was.
    pub fn start_again(&mut self, store: &StoreUrl) {
        self.process = spawn(self.port(), store, Stdio::null());
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Bytes of memory that it has now.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() << 10
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// A client, once the program answers.
    pub async fn client(&self) -> ConfigServiceClient<Channel> {
        eventually("the program listens", || async {
            let mut client = client(self.port());
            client.list(v1::ListRequest::default()).await.ok()?;
            Some(client)
        })
        .await
    }
}

fn spawn(port: u16, store: &StoreUrl, log: Stdio) -> Child {
    Command::new(env!("CARGO_BIN_EXE_config-service"))
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["--admin", "127.0.0.1:0"])
        .arg(format!("--store={store}"))
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// A client of whoever listens there, now or later.
pub fn client(port: u16) -> ConfigServiceClient<Channel> {
    let url = format!("http://127.0.0.1:{port}");
    let endpoint = Endpoint::try_from(url).unwrap();
    let endpoint = endpoint.connect_timeout(Duration::from_secs(1));
    ConfigServiceClient::new(endpoint.connect_lazy()).max_decoding_message_size(UPDATE_MAX)
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
