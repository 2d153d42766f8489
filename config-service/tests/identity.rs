//! Who wrote, by the certificate and not by what was said.

#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, net::SocketAddr, path::PathBuf};

use anyport_config_service::{Config, ConfigService, RunError};
use anyport_node::{
    access::Role,
    drain::Drain,
    identity::TlsArgs,
    rpc::{Channel, ServerUrl},
};
use anyport_proto::v1::{
    self, config_service_client::ConfigServiceClient,
    discovery_service_client::DiscoveryServiceClient,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use support::{eventually, resources::many, service::embedded, soon};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::{Code, Status};

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    files: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
            files: TempDir::new().unwrap(),
        }
    }

    fn write(&self, name: &str, text: &str) -> Option<PathBuf> {
        let path = self.files.path().join(name);
        fs::write(&path, text).unwrap();
        Some(path)
    }

    fn issue(&self, role: Role, common_name: &str) -> TlsArgs {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, role.organization());
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        TlsArgs {
            tls_cert: self.write(&format!("{common_name}.pem"), &certificate.pem()),
            tls_key: self.write(&format!("{common_name}.key"), &key.serialize_pem()),
            tls_ca: self.write("ca.pem", &self.issuer.pem()),
            insecure: false,
        }
    }
}

struct Running {
    authority: Authority,
    url: ServerUrl,
    drain: Drain,
    serving: JoinHandle<Result<(), RunError>>,
    _directory: TempDir,
}

impl Running {
    async fn start() -> Self {
        let authority = Authority::new();
        let directory = tempfile::tempdir().unwrap();
        let any_port: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let config = Config {
            listen: any_port,
            admin: any_port,
            store: embedded(directory.path()),
            retention: Default::default(),
            store_key: Default::default(),
            tls: authority.issue(Role::ConfigService, "config-service"),
        };
        let service = ConfigService::bind(&config).await.unwrap();
        let url = format!("https://{}", service.address()).parse().unwrap();
        let drain = Drain::new();
        let serving = tokio::spawn({
            let drain = drain.clone();
            async move { service.serve(&drain).await }
        });
        let running = Self {
            authority,
            url,
            drain,
            serving,
            _directory: directory,
        };
        let viewer = running.client(Role::Viewer, "ready");
        eventually("ready", || {
            let mut viewer = viewer.clone();
            async move { viewer.list(v1::ListRequest::default()).await.ok() }
        })
        .await;
        running
    }

    fn channel(&self, role: Role, name: &str) -> Channel {
        let identity = self.authority.issue(role, name).load().unwrap();
        Channel::lazy(&self.url, &identity, Role::ConfigService).unwrap()
    }

    fn client(&self, role: Role, name: &str) -> ConfigServiceClient<Channel> {
        ConfigServiceClient::new(self.channel(role, name))
    }

    /// What the one who is certified as that role and name is first sent when it
    /// subscribes as `node` of that name.
    async fn subscribed(
        &self,
        (role, certified): (Role, &str),
        (node, name): (v1::NodeRole, &str),
    ) -> Result<v1::Update, Status> {
        let mut client = DiscoveryServiceClient::new(self.channel(role, certified));
        let subscribe = v1::Subscribe {
            role: node.into(),
            name: name.to_owned(),
            ..Default::default()
        };
        let message = Some(v1::sync_request::Message::Subscribe(subscribe));
        let requests =
            tokio_stream::once(v1::SyncRequest { message }).chain(tokio_stream::pending());
        let mut updates = client.sync(requests).await?.into_inner();
        let first = soon("an answer", updates.message()).await?;
        Ok(first.unwrap().update.unwrap())
    }

    /// What the one who is certified as that role and name is told when it asks under
    /// `name` which balancers take part.
    async fn watched(&self, (role, certified): (Role, &str), name: &str) -> Result<(), Status> {
        let mut client = DiscoveryServiceClient::new(self.channel(role, certified));
        let name = name.to_owned();
        let asked = client.watch_balancers(v1::WatchBalancersRequest { name });
        asked.await.map(drop)
    }

    async fn stop(self) {
        self.drain.begin();
        self.serving.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_history_names_the_certificate_and_not_what_the_client_says() {
    let running = Running::start().await;
    let mut client = running.client(Role::Operator, "ana");
    let request = v1::ApplyRequest {
        resources: many(1),
        author: "somebody else".to_owned(),
        ..Default::default()
    };
    client.apply(request).await.unwrap();
    let history = client
        .history(v1::HistoryRequest::default())
        .await
        .unwrap()
        .into_inner();
    let written = &history.revisions[0];
    assert_eq!((&*written.author, &*written.roles), ("ana", "operator"));
    assert!(written.serial.contains(':'), "{written:?}");
    assert!(written.peer.starts_with("127.0.0.1:"), "{written:?}");
    drop(client);
    running.stop().await;
}

#[tokio::test]
async fn a_node_subscribes_as_what_its_certificate_says_and_as_nothing_else() {
    use v1::NodeRole::{Balancer, Edge};
    let running = Running::start().await;
    for (certified, node) in [
        ((Role::Edge, "fra-1"), (Edge, "fra-1")),
        ((Role::Balancer, "one"), (Balancer, "one")),
    ] {
        let update = running.subscribed(certified, node).await.unwrap();
        assert!(update.full);
    }
    for (certified, node, needs) in [
        (
            (Role::Edge, "fra-1"),
            (Edge, "fra-2"),
            "O=anyport:edge and CN=fra-2",
        ),
        (
            (Role::Edge, "fra-1"),
            (Balancer, "fra-1"),
            "O=anyport:balancer and CN=fra-1",
        ),
        (
            (Role::Balancer, "one"),
            (Edge, "one"),
            "O=anyport:edge and CN=one",
        ),
        (
            (Role::Operator, "ana"),
            (Edge, "ana"),
            "needs edge or balancer",
        ),
    ] {
        let refused = running.subscribed(certified, node).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains(needs), "{refused}");
    }
    let unknown = running.watched((Role::Balancer, "one"), "one").await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unavailable);
    for (certified, needs) in [
        (
            (Role::Balancer, "two"),
            "needs O=anyport:balancer and CN=one",
        ),
        ((Role::Edge, "one"), "needs balancer"),
    ] {
        let refused = running.watched(certified, "one").await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains(needs), "{refused}");
    }
    running.stop().await;
}
