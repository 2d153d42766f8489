//! What both back ends must do, and what only etcd can go through.

#![allow(clippy::unwrap_used)]

mod support;

use std::{sync::Arc, time::SystemTime};

use anyport_config_service::store::{
    Author, Committed, Head, Object, ObjectId, Record, RequestMark, Store, StoreError,
    embedded::{Embedded, OpenError},
    etcd::{Etcd, connect},
};
use anyport_model::names::Revision;
use anyport_node::identity::Identity;
use support::{
    etcd::{EtcdServer, etcd_url, url},
    eventually,
    link::Link,
    soon,
};

fn record(revision: u64, state_hash: ObjectId) -> Record {
    Record {
        revision: Revision(revision),
        committed_at: SystemTime::now(),
        author: Author {
            name: "ana".to_owned(),
            ..Default::default()
        },
        message: format!("change {revision}"),
        created: 1,
        updated: 2,
        deleted: 3,
        rollback_of: None,
        rollout: None,
        promotion_of: None,
        state_hash,
        request: Some(RequestMark {
            id: format!("request-{revision}"),
            digest: ObjectId::of(b"request"),
        }),
        traceparent: String::new(),
        store: None,
    }
}

fn object(text: &str) -> Object {
    Object::new(text.as_bytes().to_vec())
}

/// Commits revisions up to `last`, each with one object of its own.
async fn commit_up_to(store: &dyn Store, last: u64) -> Head {
    let mut head = store.head().await.unwrap();
    while head.revision() < Revision(last) {
        let next = head.revision().0 + 1;
        let state = object(&format!("state {next}"));
        let record = record(next, state.id());
        match store.commit(&head, &record, &[state]).await.unwrap() {
            Committed::Done(version) => {
                let record = Some(record);
                head = Head { record, version };
            }
            Committed::Conflict => panic!("nobody else writes"),
        }
    }
    head
}

async fn an_empty_store_has_no_revision(store: &dyn Store) {
    let head = store.head().await.unwrap();
    assert_eq!(head.record, None);
    assert_eq!(head.revision(), Revision::EMPTY);
    assert_eq!(store.record(Revision(1)).await.unwrap(), None);
    assert_eq!(store.oldest().await.unwrap(), None);
    assert_eq!(store.stored().await.unwrap(), []);
    assert_eq!(
        store.records_below(Revision(u64::MAX), 10).await.unwrap(),
        []
    );
}

async fn a_commit_is_read_back_whole(store: &dyn Store) {
    let empty = store.head().await.unwrap();
    let objects: Vec<Object> = (0..300).map(|n| object(&format!("chunk {n}"))).collect();
    let record = record(1, objects[0].id());
    let Committed::Done(done) = store.commit(&empty, &record, &objects).await.unwrap() else {
        panic!("nobody else writes");
    };
    let head = store.head().await.unwrap();
    assert_eq!(head.version.written, done.written);
    assert_eq!(head.record.as_ref(), Some(&record));
    assert_eq!(store.record(Revision(1)).await.unwrap(), Some(record));
    let ids: Vec<ObjectId> = objects.iter().map(Object::id).rev().collect();
    let read = store.objects(&ids).await.unwrap();
    let wanted: Vec<_> = objects
        .iter()
        .map(|object| object.bytes().clone())
        .rev()
        .collect();
    assert_eq!(read, wanted);
}

async fn of_two_commits_on_one_head_one_wins(store: &dyn Store) {
    let seen = commit_up_to(store, 2).await;
    let (one, other) = (object("one"), object("other"));
    let first = store
        .commit(&seen, &record(3, one.id()), &[one])
        .await
        .unwrap();
    assert!(matches!(first, Committed::Done(_)));
    let second = store
        .commit(&seen, &record(3, other.id()), &[other])
        .await
        .unwrap();
    assert_eq!(second, Committed::Conflict);
    let empty = Head {
        record: None,
        version: anyport_config_service::store::Version {
            written: 0,
            read: 0,
        },
    };
    let from_nothing = store
        .commit(&empty, &record(1, object("x").id()), &[])
        .await
        .unwrap();
    assert_eq!(from_nothing, Committed::Conflict);
    assert_eq!(store.head().await.unwrap().revision(), Revision(3));
}

async fn the_history_is_read_newest_first_in_parts(store: &dyn Store) {
    commit_up_to(store, 12).await;
    let numbers = async |below, limit| -> Vec<u64> {
        let records = store.records_below(Revision(below), limit).await.unwrap();
        records.iter().map(|record| record.revision.0).collect()
    };
    assert_eq!(numbers(u64::MAX, 3).await, [12, 11, 10]);
    assert_eq!(numbers(10, 3).await, [9, 8, 7]);
    assert_eq!(numbers(3, 100).await, [2, 1]);
    assert_eq!(numbers(1, 100).await, [0u64; 0]);
}

async fn a_missing_object_is_damage_and_not_silence(store: &dyn Store) {
    let missing = object("never written").id();
    match store.objects(&[missing]).await {
        Err(StoreError::Corrupt { what, .. }) => assert!(what.contains(&missing.to_string())),
        other => panic!("{other:?}"),
    }
}

async fn what_is_forgotten_is_gone_and_what_is_kept_stays(store: &dyn Store) {
    let head = commit_up_to(store, 250).await;
    let named = |revisions: std::ops::RangeInclusive<u64>| -> Vec<ObjectId> {
        let named = revisions.map(|n| object(&format!("state {n}")).id());
        named.collect()
    };
    let mut stored = store.stored().await.unwrap();
    let mut all = named(1..=250);
    stored.sort();
    all.sort();
    assert_eq!(stored, all);
    let oldest = store.oldest().await.unwrap().unwrap();
    assert_eq!(oldest.revision, Revision(1));
    let unused = named(1..=239);
    assert!(store.forget(&head, Revision(240), &unused).await.unwrap());
    let oldest = store.oldest().await.unwrap().unwrap();
    assert_eq!(oldest.revision, Revision(240));
    assert_eq!(store.record(Revision(239)).await.unwrap(), None);
    assert!(store.record(Revision(240)).await.unwrap().is_some());
    assert_eq!(
        store
            .records_below(Revision(u64::MAX), 1000)
            .await
            .unwrap()
            .len(),
        11
    );
    store.objects(&named(240..=250)).await.unwrap();
    assert_eq!(store.stored().await.unwrap().len(), 11);
    store.takes_writes().await.unwrap();
    let unwritten = store.head().await.unwrap();
    assert!(unwritten.is_same_write(&head), "asking writes nothing");
    let lost = object("state 239").id();
    assert!(store.objects(&[lost]).await.is_err());
    // And writing goes on.
    commit_up_to(store, 251).await;
}

async fn who_forgets_by_an_old_head_forgets_nothing(store: &dyn Store) {
    let old = commit_up_to(store, 3).await;
    commit_up_to(store, 4).await;
    let unused = [object("state 1").id()];
    assert!(!store.forget(&old, Revision(3), &unused).await.unwrap());
    assert_eq!(
        store
            .records_below(Revision(u64::MAX), 10)
            .await
            .unwrap()
            .len(),
        4
    );
    store.objects(&[object("state 1").id()]).await.unwrap();
}

async fn a_move_wakes_who_waits_and_one_that_was_before_does_too(store: &dyn Store) {
    let before = commit_up_to(store, 1).await;
    let waiting = store.moved(&before);
    let write = commit_up_to(store, 2);
    let (moved, head) = soon("the move", async { tokio::join!(waiting, write) }).await;
    moved.unwrap();
    soon("a move that was before", store.moved(&before))
        .await
        .unwrap();
    let nothing = std::time::Duration::from_millis(200);
    let early = tokio::time::timeout(nothing, store.moved(&head)).await;
    assert!(early.is_err(), "nothing moved, but {early:?}");
}

macro_rules! conformance {
    ($($scenario:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $scenario() {
                let directory = tempfile::tempdir().unwrap();
                let store = super::Embedded::open(directory.path()).unwrap();
                super::$scenario(&store).await;
            })+
        }

        mod etcd {
            $(#[tokio::test]
            async fn $scenario() {
                let server = super::EtcdServer::start().await;
                let store = super::etcd_store(&server.url(stringify!($scenario))).await;
                super::$scenario(&store).await;
            })+
        }
    };
}

conformance! {
    an_empty_store_has_no_revision,
    a_commit_is_read_back_whole,
    of_two_commits_on_one_head_one_wins,
    the_history_is_read_newest_first_in_parts,
    a_missing_object_is_damage_and_not_silence,
    what_is_forgotten_is_gone_and_what_is_kept_stays,
    who_forgets_by_an_old_head_forgets_nothing,
    a_move_wakes_who_waits_and_one_that_was_before_does_too,
}

async fn etcd_store(url: &anyport_config_service::store::StoreUrl) -> Etcd {
    let url = etcd_url(url);
    let client = connect(url, &Identity::none()).await.unwrap();
    Etcd::new(&client, url)
}

#[tokio::test]
async fn a_second_process_on_one_file_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Embedded::open(directory.path()).unwrap();
    match Embedded::open(directory.path()) {
        Err(error @ OpenError::InUse { .. }) => {
            assert!(
                error.to_string().contains("in use by another process"),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_embedded_store_is_what_it_was_after_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let before = {
        let store = Embedded::open(directory.path()).unwrap();
        commit_up_to(&store, 5).await
    };
    let store = Embedded::open(directory.path()).unwrap();
    let head = store.head().await.unwrap();
    assert!(head.is_same_write(&before));
    store.objects(&[object("state 5").id()]).await.unwrap();
}

#[tokio::test]
async fn a_compaction_while_the_watcher_is_cut_off_loses_nothing() {
    let server = EtcdServer::start().await;
    let writer = etcd_store(&server.url("fleet")).await;
    let link = Link::to(server.port()).await;
    let watcher = Arc::new(etcd_store(&url(link.port(), "fleet")).await);
    let seen = commit_up_to(&writer, 1).await;

    link.cut();
    commit_up_to(&writer, 3).await;
    server.compact().await;
    link.mend();

    // Events since then are gone; what is true is read.
    let head = eventually("the watcher's return", || async {
        watcher.moved(&seen).await.ok()?;
        watcher.head().await.ok()
    })
    .await;
    assert_eq!(head.revision(), Revision(3));
    // And from there it waits, and does not spin on the compacted place.
    server.compact().await;
    let nothing = std::time::Duration::from_millis(300);
    assert!(
        tokio::time::timeout(nothing, watcher.moved(&head))
            .await
            .is_err()
    );
    let (moved, _) = soon("the next move", async {
        tokio::join!(watcher.moved(&head), commit_up_to(&writer, 4))
    })
    .await;
    moved.unwrap();
}

#[tokio::test]
async fn a_commit_that_was_done_and_is_asked_for_again_is_done_once() {
    let server = EtcdServer::start().await;
    let store = etcd_store(&server.url("fleet")).await;
    let seen = commit_up_to(&store, 1).await;
    let state = object("state 2");
    let record = record(2, state.id());
    let done = store
        .commit(&seen, &record, std::slice::from_ref(&state))
        .await;
    // As where the answer was lost with the member that was to give it.
    let again = store
        .commit(&seen, &record, std::slice::from_ref(&state))
        .await;
    assert!(matches!(done, Ok(Committed::Done(_))), "{done:?}");
    let (done, again) = (done.unwrap(), again.unwrap());
    let (Committed::Done(done), Committed::Done(again)) = (done, again) else {
        panic!("{done:?}, then {again:?}");
    };
    assert_eq!(done.written, again.written);
    // Also after somebody has written more; but not for one that was never done.
    commit_up_to(&store, 3).await;
    let late = store
        .commit(&seen, &record, std::slice::from_ref(&state))
        .await;
    assert!(matches!(late, Ok(Committed::Done(late)) if late.written == done.written));
    let other = Record {
        message: "another one".to_owned(),
        ..record
    };
    let other = store.commit(&seen, &other, &[state]).await.unwrap();
    assert_eq!(other, Committed::Conflict);
}

#[tokio::test]
async fn objects_that_are_forgotten_before_the_head_names_them_are_written_again() {
    let server = EtcdServer::start().await;
    let store = etcd_store(&server.url("fleet")).await;
    let link = Link::to(server.port()).await;
    let writer = etcd_store(&url(link.port(), "fleet")).await;
    let seen = commit_up_to(&writer, 3).await;
    // Between a writer's objects and its head, another replica forgets. The
    // writer reads the mark first, so the mark has to decide: here it is moved
    // while the writer is in the middle of many objects.
    let objects: Vec<Object> = (0..5_000).map(|n| object(&format!("chunk {n}"))).collect();
    let record = record(4, objects[0].id());
    // A part of what they take.
    link.hold_after(100_000);
    let forget = async {
        let client = server.client().await;
        let key = format!("/fleet/objects/{}", objects[0].id());
        eventually("the first objects", || {
            let (mut client, key) = (client.clone(), key.clone());
            async move { (!client.get(key, None).await.unwrap().kvs().is_empty()).then_some(()) }
        })
        .await;
        let stored = store.stored().await.unwrap();
        let kept = object("state 3").id();
        let unused: Vec<ObjectId> = stored.into_iter().filter(|id| *id != kept).collect();
        assert!(store.forget(&seen, Revision(3), &unused).await.unwrap());
        link.release();
        unused.len()
    };
    let (committed, gone) = tokio::join!(writer.commit(&seen, &record, &objects), forget);
    assert!(gone > 2, "some of the new ones too: {gone}");
    assert_eq!(
        committed.unwrap(),
        Committed::Conflict,
        "its objects may be gone"
    );
    // Trying again, as the writer does.
    let Committed::Done(_) = writer.commit(&seen, &record, &objects).await.unwrap() else {
        panic!("nobody else writes");
    };
    let ids: Vec<ObjectId> = objects.iter().map(Object::id).collect();
    assert_eq!(store.objects(&ids).await.unwrap().len(), 5_000);
}
