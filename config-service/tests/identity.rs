//! Who wrote, by the certificate and not by what was said.

#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, net::SocketAddr, path::PathBuf};

use anyport_config_service::{Config, ConfigService};
use anyport_node::{
    drain::Drain,
    identity::TlsArgs,
    rpc::{Channel, ServerUrl},
};
use anyport_proto::v1::{self, config_service_client::ConfigServiceClient};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use support::{eventually, resources::many, service::embedded};
use tempfile::TempDir;

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

    fn issue(&self, common_name: &str) -> TlsArgs {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
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

#[tokio::test]
async fn the_history_names_the_certificate_and_not_what_the_client_says() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let any_port: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let config = Config {
        listen: any_port,
        admin: any_port,
        store: embedded(directory.path()),
        tls: authority.issue("config-service"),
    };
    let service = ConfigService::bind(&config).await.unwrap();
    let url: ServerUrl = format!("https://{}", service.address()).parse().unwrap();
    let drain = Drain::new();
    let serving = tokio::spawn({
        let drain = drain.clone();
        async move { service.serve(&drain).await }
    });

    let identity = authority.issue("ana").load().unwrap();
    let mut client = ConfigServiceClient::new(Channel::lazy(&url, &identity).unwrap());
    eventually("ready", || {
        let mut client = client.clone();
        async move { client.list(v1::ListRequest::default()).await.ok() }
    })
    .await;
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
    assert_eq!(history.revisions[0].author, "ana");

    drop(client);
    drain.begin();
    serving.await.unwrap().unwrap();
}
