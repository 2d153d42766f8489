//! The real program, which can be killed.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyport_config_service::store::StoreUrl;
use anyport_proto::{
    sync::UPDATE_MAX,
    v1::{self, config_service_client::ConfigServiceClient},
};
use tonic::transport::{Channel, Endpoint};

use super::eventually;

/// A running config service; killed when dropped.
pub struct Program {
    process: Child,
    port: u16,
}

impl Program {
    pub fn start(store: &StoreUrl) -> Self {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        Self::start_on(store, port)
    }

    /// On a port of the test's choice.
    pub fn start_on(store: &StoreUrl, port: u16) -> Self {
        let process = Command::new(env!("CARGO_BIN_EXE_config-service"))
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin", "127.0.0.1:0"])
            .arg(format!("--store={store}"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// A client, once the program answers.
    pub async fn client(&self) -> ConfigServiceClient<Channel> {
        eventually("the program listens", || async {
            let mut client = client(self.port);
            client.list(v1::ListRequest::default()).await.ok()?;
            Some(client)
        })
        .await
    }
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
