//! Private keys in the store, sealed and not.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyport_config_service::store::StoreUrl;
use anyport_proto::v1::{self, resource::Kind};
use support::{
    etcd::EtcdServer,
    eventually,
    resources::{certificate, prefix},
    service::{Service, embedded},
    subscriber::{self, Subscriber},
};
use tempfile::TempDir;
use tonic::Code;

const ONE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const TWO: &str = "2222222222222222222222222222222222222222222222222222222222222222";

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn keys(&self, name: &str, keys: &[&str]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, keys.join("\n")).unwrap();
        path
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }
}

fn private_key(resource: &v1::Resource) -> &str {
    match &resource.kind {
        Some(Kind::Certificate(certificate)) => &certificate.key,
        other => panic!("{other:?} is no certificate"),
    }
}

/// Is a line of the private key in any file below?
fn lies_about(directory: &Path, key: &str) -> bool {
    let line = key.lines().nth(1).unwrap().as_bytes();
    fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return lies_about(&path, key);
        }
        let bytes = fs::read(&path).unwrap();
        bytes.windows(line.len()).any(|window| window == line)
    })
}

/// The private key of a certificate as an edge is sent it.
async fn sent(service: &Service, name: &str) -> String {
    let mut edge = Subscriber::connect(service, subscriber::edge("e1")).await;
    let update = edge.take().await;
    let found = update.upserts.iter().find(|resource| match &resource.kind {
        Some(Kind::Certificate(certificate)) => certificate.name == name,
        _ => false,
    });
    private_key(found.unwrap()).to_owned()
}

/// Waits until this is what the service lacks.
async fn says(service: &Service, words: &str) {
    eventually("what is missing is said", || async {
        let report = service.readiness.report();
        report
            .waiting
            .iter()
            .any(|waiting| waiting.reason.contains(words))
            .then_some(())
    })
    .await;
}

async fn is_sealed(store: StoreUrl, files: &Files, everything: &Path) {
    let key = files.keys("one", &[ONE]);
    let service = Service::ready_with(store.clone(), Some(key.clone())).await;
    let mail = certificate("mail");
    service.apply(vec![mail.clone()]).await.unwrap();
    assert_eq!(sent(&service, "mail").await, private_key(&mail));
    // What is equal is nothing new, and a rollback leads back to the same state.
    let again = service.apply(vec![mail.clone()]).await.unwrap();
    assert_eq!(again.revision, 1);
    let web = service
        .apply(vec![certificate("web"), certificate("mail")])
        .await
        .unwrap();
    service.roll_back(1).await.unwrap();
    let back = service.apply(vec![mail.clone()]).await.unwrap();
    assert_eq!((back.revision, &back.state_hash), (3, &again.state_hash));
    assert_ne!(web.state_hash, again.state_hash);
    service.stop().await;
    assert!(!lies_about(everything, private_key(&mail)));

    let service = Service::ready_with(store.clone(), Some(key)).await;
    assert_eq!(sent(&service, "mail").await, private_key(&mail));
    service.stop().await;

    for (wrong, words) in [
        (None, "which --store-key does not hold: it is not given"),
        (
            Some(files.keys("two", &[TWO])),
            "which --store-key does not hold: it holds",
        ),
    ] {
        let service = Service::start_with(store.clone(), wrong).await;
        says(&service, words).await;
        service.stop().await;
    }

    let both = files.keys("both", &[TWO, ONE]);
    key_is_changed(store, both, files.keys("two", &[TWO]), &mail).await;
}

/// What was sealed with the old key is sealed with the new one, and the old one can go. The
/// history that needs it stays, and says so.
async fn key_is_changed(store: StoreUrl, both: PathBuf, new: PathBuf, mail: &v1::Resource) {
    let written = v1::ApplyRequest {
        resources: vec![prefix("198.51.100.0/24")],
        request_id: "written before".to_owned(),
        ..Default::default()
    };
    let one = both.with_file_name("one");
    let service = Service::ready_with(store.clone(), Some(one)).await;
    let before = service.apply_request(written.clone()).await.unwrap();
    service.stop().await;

    let service = Service::ready_with(store.clone(), Some(both)).await;
    let sealed = eventually("private keys are sealed anew", || async {
        let history = service.history().await;
        let newest = history.into_iter().next().unwrap();
        (newest.revision > before.revision).then_some(newest)
    })
    .await;
    assert_eq!(sealed.revision, before.revision + 1);
    assert_eq!((sealed.created, sealed.updated, sealed.deleted), (0, 0, 0));
    assert_eq!(sealed.author, "config-service");
    let (words, key) = sealed.message.rsplit_once(' ').unwrap();
    assert_eq!(words, "private keys are sealed anew, with the store key");
    service.stop().await;

    let service = Service::ready_with(store, Some(new)).await;
    assert_eq!(sent(&service, "mail").await, private_key(mail));
    let history = service.history().await;
    assert_eq!(history.first(), Some(&sealed), "nothing more is written");
    assert_eq!(history.last().unwrap().revision, 1, "it is there");
    let refused = service.roll_back(1).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let held = format!("which --store-key does not hold: it holds {key}");
    for words in [
        "revision 1: the private key of certificate mail is sealed",
        &held,
    ] {
        assert!(refused.message().contains(words), "{words}: {refused}");
    }
    // A write of before is still told as done.
    let repeated = service.apply_request(written).await.unwrap();
    assert_eq!(repeated.revision, before.revision);
    let web = service.apply(vec![certificate("web")]).await.unwrap();
    assert_eq!(web.revision, sealed.revision + 1);
    service.stop().await;
}

#[tokio::test]
async fn an_embedded_store_holds_no_private_key_in_the_clear() {
    let files = Files::new();
    let store = embedded(&files.store());
    Box::pin(is_sealed(store, &files, &files.store())).await;
}

#[tokio::test]
async fn etcd_holds_no_private_key_in_the_clear() {
    let files = Files::new();
    let etcd = EtcdServer::start().await;
    Box::pin(is_sealed(etcd.url("sealed"), &files, etcd.directory())).await;
}

#[tokio::test]
async fn what_was_in_the_clear_is_sealed_by_a_key_that_comes_later_and_history_is_not() {
    let files = Files::new();
    let store = embedded(&files.store());
    let service = Service::ready(store.clone()).await;
    let mail = certificate("mail");
    service
        .apply(vec![prefix("198.51.100.0/24"), mail.clone()])
        .await
        .unwrap();
    service.stop().await;
    // So would the tests above find it.
    assert!(lies_about(&files.store(), private_key(&mail)));
    let key = files.keys("one", &[ONE]);
    let service = Service::ready_with(store.clone(), Some(key)).await;
    eventually("it is sealed", || async {
        (service.history().await[0].revision == 2).then_some(())
    })
    .await;
    assert_eq!(sent(&service, "mail").await, private_key(&mail));
    let renewed = certificate("mail");
    service.apply(vec![renewed.clone()]).await.unwrap();
    assert_eq!(sent(&service, "mail").await, private_key(&renewed));
    service.stop().await;
    assert!(!lies_about(&files.store(), private_key(&renewed)));
    let service = Service::start_with(store, None).await;
    says(
        &service,
        "revision 3: the private key of certificate mail is sealed",
    )
    .await;
    service.stop().await;
    // Of the first revision.
    assert!(lies_about(&files.store(), private_key(&mail)));
}
