//! Old revisions go, beside writers and readers on several replicas, and nothing
//! that is needed goes with them.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::HashSet,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyport_config_service::{
    Config,
    admit::{Conditions, Intent, WriteError, Writer, read_apply},
    state::{Keeper, Layout, Retention, history},
    store::{
        ObjectId, Store, StoreUrl,
        embedded::Embedded,
        etcd::{Etcd, connect},
    },
};
use anyport_model::names::Revision;
use anyport_node::identity::Identity;
use anyport_proto::v1;
use clap::Parser;
use support::{
    etcd::{EtcdServer, etcd_url},
    eventually,
    resources::{app, prefix},
    service::{Service, embedded},
    soon,
};
use tonic::Code;

const WRITERS: u16 = 3;
const WRITES: u16 = 100;
const KEPT: u64 = 10;
/// Objects that are collected while others write, at least.
const COLLECTED: usize = 20;

fn keep(revisions: u64) -> Retention {
    Retention {
        revisions: NonZeroU64::new(revisions).unwrap(),
        time: None,
    }
}

/// A replica's view of a store.
async fn replica(store: Arc<dyn Store>) -> Keeper {
    let keeper = Keeper::new(store);
    keeper.turn().await.unwrap().refresh().await.unwrap();
    keeper
}

/// What goes on beside the writers, who write until there was enough of it.
#[derive(Debug, Default)]
struct Beside {
    collected: AtomicUsize,
    read: AtomicUsize,
    is_over: AtomicBool,
}

impl Beside {
    fn is_enough(&self) -> bool {
        let counted = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        counted(&self.collected) > COLLECTED && counted(&self.read) > 0
    }

    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::SeqCst)
    }
}

/// Each writes one app, whose few versions come again and again: so does a chunk
/// that no kept revision needed a moment before. Returns how often.
async fn write(keeper: Keeper, number: u16, beside: Arc<Beside>) -> u64 {
    let writer = Writer::new(keeper);
    let mut written = 0;
    for round in 0.. {
        if round >= WRITES && beside.is_enough() {
            break;
        }
        assert!(round < 50 * WRITES, "not enough beside it: {beside:?}");
        let port = 1000 * (number + 1) + round % 4;
        let resources = vec![
            prefix("198.51.100.0/24"),
            app(&format!("app-{number}"), port),
        ];
        let intent = Intent::Apply {
            request: read_apply(resources),
            prune: false,
        };
        loop {
            let write = writer.write(intent.clone(), Conditions::default(), SystemTime::now);
            match soon("a write", write).await {
                Ok(_) => break,
                // The other replica writes without end: its client would try again.
                Err(WriteError::Contended) => {}
                Err(error) => panic!("{error}"),
            }
        }
        written += 1;
    }
    written
}

async fn collect(keeper: Keeper, beside: Arc<Beside>) {
    while beside.goes_on() {
        let forgotten = history::forget(&keeper, keep(KEPT), SystemTime::now()).await;
        let objects = forgotten.unwrap().map_or(0, |forgotten| forgotten.objects);
        beside.collected.fetch_add(objects, Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
}

/// What is kept can be read; what is not is said to be gone, and never damaged.
async fn read(store: Arc<dyn Store>, beside: Arc<Beside>) {
    while beside.goes_on() {
        let keeper = replica(Arc::clone(&store)).await;
        let present = keeper.present().unwrap().revision().0;
        for revision in present.saturating_sub(KEPT + 2)..present {
            let is_kept = keeper.at(Revision(revision)).await.unwrap().is_some();
            beside
                .read
                .fetch_add(usize::from(is_kept), Ordering::SeqCst);
        }
    }
}

/// Two replicas, each with a store of its own.
async fn nothing_that_is_needed_goes(stores: [Arc<dyn Store>; 2]) {
    let beside = Arc::new(Beside::default());
    let mut keepers = Vec::new();
    for store in &stores {
        keepers.push(replica(Arc::clone(store)).await);
    }
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let keeper = keepers[usize::from(number) % 2].clone();
            tokio::spawn(write(keeper, number, Arc::clone(&beside)))
        })
        .collect();
    let collectors = keepers.clone().into_iter();
    let collectors: Vec<_> = collectors
        .map(|keeper| tokio::spawn(collect(keeper, Arc::clone(&beside))))
        .collect();
    let reader = tokio::spawn(read(Arc::clone(&stores[0]), Arc::clone(&beside)));
    let mut all = 0;
    for writer in writers {
        all += writer.await.unwrap();
    }
    beside.is_over.store(true, Ordering::SeqCst);
    for collector in collectors {
        collector.await.unwrap();
    }
    reader.await.unwrap();

    let [store, _] = stores;
    let keeper = replica(Arc::clone(&store)).await;
    assert_eq!(keeper.present().unwrap().revision(), Revision(all));
    let last = history::forget(&keeper, keep(KEPT), SystemTime::now()).await;
    assert_eq!(last.unwrap().unwrap().oldest, Revision(all - KEPT + 1));
    let mut needed: HashSet<ObjectId> = HashSet::new();
    let records = store.records_below(Revision(u64::MAX), 1000).await.unwrap();
    assert_eq!(records.len() as u64, KEPT);
    for record in records {
        let reader = replica(Arc::clone(&store)).await;
        let state = reader.at(record.revision).await.unwrap().unwrap();
        assert_eq!(state.hash(), record.state_hash);
        needed.extend(state.layout.objects());
    }
    assert!(!needed.contains(&Layout::empty().id()));
    let stored: HashSet<ObjectId> = store.stored().await.unwrap().into_iter().collect();
    assert_eq!(stored, needed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_writers_on_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Embedded::open(directory.path()).unwrap());
    nothing_that_is_needed_goes([Arc::clone(&store), store]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_writers_on_etcd() {
    let server = EtcdServer::start().await;
    let url = server.url("fleet");
    let open = async || {
        let url = etcd_url(&url);
        let members = connect(url, &Identity::none()).await.unwrap();
        Arc::new(Etcd::new(&members, url)) as Arc<dyn Store>
    };
    nothing_that_is_needed_goes([open().await, open().await]).await;
}

/// The service itself does it, says where the history begins, and knows nothing of
/// what is before.
async fn the_history_begins_where_it_is_said_to(store: StoreUrl) {
    let service = Service::start_keeping(store, None, keep(KEPT)).await;
    eventually("ready", || async { service.loaded().await.then_some(()) }).await;
    for port in 1..=30 {
        let resources = vec![prefix("198.51.100.0/24"), app("app", port)];
        service.apply(resources).await.unwrap();
    }
    let mut client = service.client();
    let history = eventually("the old ones are gone", || {
        let mut client = client.clone();
        async move {
            let history = client.history(v1::HistoryRequest::default()).await;
            let history = history.unwrap().into_inner();
            (history.oldest_revision >= 20).then_some(history)
        }
    })
    .await;
    let oldest = history.revisions.last().unwrap().revision;
    assert_eq!(history.oldest_revision, oldest);
    assert!(oldest <= 21, "{oldest}: so many are kept, and a tenth more");
    assert_eq!(history.next_page_token, "");
    let rollback = |revision| v1::RollbackRequest {
        revision,
        ..Default::default()
    };
    let refused = client.rollback(rollback(oldest - 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    let said = format!(
        "revision {} is not kept any more; the oldest that is kept is {oldest}",
        oldest - 1
    );
    assert_eq!(refused.message(), said);
    let back = client
        .rollback(rollback(oldest))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(back.revision, 31);
    service.stop().await;
}

#[tokio::test]
async fn a_history_on_a_file_is_trimmed() {
    let directory = tempfile::tempdir().unwrap();
    the_history_begins_where_it_is_said_to(embedded(directory.path())).await;
}

#[tokio::test]
async fn a_history_on_etcd_is_trimmed() {
    let server = EtcdServer::start().await;
    the_history_begins_where_it_is_said_to(server.url("fleet")).await;
}

#[derive(Debug, Parser)]
struct Flags {
    #[command(flatten)]
    config: Config,
}

#[test]
fn how_long_revisions_are_kept_is_said_by_flags() {
    let parsed = |flags: &[&str]| Flags::try_parse_from([&["config-service"], flags].concat());
    let retention = |flags: &[&str]| parsed(flags).unwrap().config.retention;
    assert_eq!(retention(&[]), keep(1000));
    assert_eq!(retention(&[]), Retention::default());
    let month = Retention {
        revisions: NonZeroU64::new(50).unwrap(),
        time: Some(Duration::from_secs(30 * 86_400)),
    };
    assert_eq!(retention(&["--keep-revisions=50", "--keep-for=30d"]), month);
    for (flag, right) in [
        ("--keep-revisions=9", "right is a whole number from 10"),
        ("--keep-for=30", "right is 500ms, 2s, 5m, 1h or 30d"),
    ] {
        let refused = parsed(&[flag]).unwrap_err().to_string();
        assert!(refused.contains(right), "{refused}");
    }
}
