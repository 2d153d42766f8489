//! A whole config service in this process.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyport_config_service::{
    Config, ConfigService, RunError,
    state::{Retention, StoreKeyArgs},
    store::{StoreUrl, embedded::OpenError},
};
use anyport_node::{drain::Drain, ready::Readiness};
use anyport_proto::{
    sync::UPDATE_MAX,
    v1::{self, config_service_client::ConfigServiceClient},
};
use tokio::task::JoinHandle;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::{eventually, soon};

pub struct Service {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub drain: Drain,
    pub readiness: Readiness,
    task: JoinHandle<Result<(), RunError>>,
}

pub fn embedded(directory: &Path) -> StoreUrl {
    StoreUrl::Embedded(directory.to_owned())
}

impl Service {
    /// Does not wait until it is ready.
    pub async fn start(store: StoreUrl) -> Self {
        Self::start_keeping(store, None, Retention::default()).await
    }

    /// As [`start`](Self::start), with a file of store keys.
    pub async fn start_with(store: StoreUrl, store_key: Option<PathBuf>) -> Self {
        Self::start_keeping(store, store_key, Retention::default()).await
    }

    /// As [`start_with`](Self::start_with), and not for as long as is usual.
    pub async fn start_keeping(
        store: StoreUrl,
        store_key: Option<PathBuf>,
        retention: Retention,
    ) -> Self {
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            admin: "127.0.0.1:0".parse().unwrap(),
            store,
            retention,
            store_key: StoreKeyArgs { store_key },
            tls: Default::default(),
        };
        let bind = || async {
            match ConfigService::bind(&config).await {
                // The last task of one that was stopped lets go of it a moment later.
                Err(RunError::Embedded(OpenError::InUse { .. })) => None,
                other => Some(other.expect("it starts")),
            }
        };
        let service = eventually("the store is free", bind).await;
        let drain = Drain::new();
        let (address, admin) = (service.address(), service.admin_address());
        let readiness = service.readiness();
        let task = tokio::spawn({
            let drain = drain.clone();
            async move { service.serve(&drain).await }
        });
        Self {
            address,
            admin,
            drain,
            readiness,
            task,
        }
    }

    pub async fn ready(store: StoreUrl) -> Self {
        Self::ready_with(store, None).await
    }

    pub async fn ready_with(store: StoreUrl, store_key: Option<PathBuf>) -> Self {
        let service = Self::start_with(store, store_key).await;
        let mut changes = service.readiness.changes();
        soon("ready", async {
            // The store is a condition only once the service runs.
            while !service.loaded().await {
                changes.report();
                tokio::task::yield_now().await;
            }
        })
        .await;
        service
    }

    pub async fn loaded(&self) -> bool {
        let mut client = self.client();
        client.list(v1::ListRequest::default()).await.is_ok()
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::try_from(format!("http://{}", self.address)).unwrap()
    }

    pub fn client(&self) -> ConfigServiceClient<Channel> {
        ConfigServiceClient::new(self.endpoint().connect_lazy())
            .max_decoding_message_size(UPDATE_MAX)
            .max_encoding_message_size(UPDATE_MAX)
    }

    pub async fn apply(&self, resources: Vec<v1::Resource>) -> Result<v1::ApplyResponse, Status> {
        self.apply_request(v1::ApplyRequest {
            resources,
            ..Default::default()
        })
        .await
    }

    pub async fn apply_request(
        &self,
        request: v1::ApplyRequest,
    ) -> Result<v1::ApplyResponse, Status> {
        let answer = soon("apply", self.client().apply(request)).await?;
        Ok(answer.into_inner())
    }

    /// All resources, through all pages.
    pub async fn list(&self) -> (u64, Vec<v1::Resource>) {
        let mut resources = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListRequest {
                page_token,
                ..Default::default()
            };
            let page = soon("list", self.client().list(request))
                .await
                .unwrap()
                .into_inner();
            resources.extend(page.resources);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return (page.revision, resources);
            }
        }
    }

    pub async fn nodes(&self) -> Vec<v1::NodeStatus> {
        let mut client = self.client();
        let answer = client.list_nodes(v1::ListNodesRequest::default());
        soon("nodes", answer).await.unwrap().into_inner().nodes
    }

    /// Revisions, newest first: a page of them.
    pub async fn history(&self) -> Vec<v1::RevisionRecord> {
        let mut client = self.client();
        let answer = client.history(v1::HistoryRequest::default());
        soon("history", answer)
            .await
            .unwrap()
            .into_inner()
            .revisions
    }

    pub async fn roll_back(&self, revision: u64) -> Result<v1::RollbackResponse, Status> {
        let request = v1::RollbackRequest {
            revision,
            ..Default::default()
        };
        let mut client = self.client();
        let answer = soon("rollback", client.rollback(request)).await?;
        Ok(answer.into_inner())
    }

    /// Where the store was found to have lost what it held.
    pub async fn rewind(&self) -> Option<v1::StoreRewind> {
        let mut client = self.client();
        let answer = client.list_nodes(v1::ListNodesRequest::default());
        soon("nodes", answer)
            .await
            .unwrap()
            .into_inner()
            .store_rewind
    }

    pub async fn stop(self) {
        self.drain.begin();
        soon("stop", self.task)
            .await
            .expect("no panic")
            .expect("a good end");
    }

    /// As if the process were killed: nothing is said to anyone.
    pub async fn kill(self) {
        self.task.abort();
        let _ = soon("kill", self.task).await;
    }
}
