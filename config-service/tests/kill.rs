//! A config service that is killed at random moments, again and again.

#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyport_config_service::{
    state::{
        Keeper, Retention,
        history::{self, Forgotten},
    },
    store::{
        Store, StoreUrl,
        etcd::{Etcd, connect},
    },
};
use anyport_model::names::Revision;
use anyport_node::identity::Identity;
use anyport_proto::v1::{self, change::Action};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use support::{
    etcd::{EtcdServer, etcd_url, url},
    eventually,
    link::Link,
    program::{Program, client},
    resources::{app_on, many, prefix},
    service::embedded,
    soon,
};
use tokio::sync::watch;
use tonic::Code;

const WRITES: u16 = 500;
const KILLS: u16 = 25;
/// Clients that give up when the program dies under them, of 100.
const IMPATIENT: u32 = 20;

/// Three apps that change together, so that half of it would show.
fn request(n: u16) -> v1::ApplyRequest {
    let apps = (0..3).map(|index| {
        let mut app = app_on(
            &format!("app-{n}-{index}"),
            "198.51.100.0/24",
            1 + 3 * n + index,
        );
        if let Some(v1::resource::Kind::App(app)) = &mut app.kind {
            app.origin_direct = vec![format!("tcp://10.0.2.2:{}", n + 1)];
        }
        app
    });
    v1::ApplyRequest {
        resources: [prefix("198.51.100.0/24")]
            .into_iter()
            .chain(apps)
            .collect(),
        request_id: format!("write {n}"),
        message: n.to_string(),
        ..Default::default()
    }
}

/// What the client of each write knows.
#[derive(Default)]
struct Known {
    answered: BTreeMap<u16, v1::ApplyResponse>,
    given_up: Vec<u16>,
}

/// Writes one after the other, and repeats each until it is answered, unless its client gives up.
/// Says which one it is at.
async fn write_all(port: u16, mut random: SmallRng, at: watch::Sender<u16>) -> Known {
    let mut client = client(port);
    let mut known = Known::default();
    for n in 0..WRITES {
        at.send_replace(n);
        let patient = random.random_range(0..100) >= IMPATIENT;
        loop {
            let call = client.apply(request(n));
            match soon("an answer, or the end of the program", call).await {
                Ok(answer) => {
                    known.answered.insert(n, answer.into_inner());
                    break;
                }
                // A connection that breaks is one of the first two.
                Err(status) => {
                    let codes = [Code::Unavailable, Code::Unknown, Code::Cancelled];
                    assert!(codes.contains(&status.code()), "write {n}: {status:?}");
                }
            }
            if !patient {
                known.given_up.push(n);
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    known
}

async fn every_acknowledged_write_is_there_and_every_other_is_whole_or_absent(store: &StoreUrl) {
    let seed: u64 = match std::env::var("SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => rand::random(),
    };
    // Shown where the test fails.
    eprintln!("SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut program = Program::start(store);
    let port = program.port();
    program.client().await;
    let (at, mut writes) = watch::channel(0);
    let of_writer = SmallRng::seed_from_u64(random.random());
    let mut writing = tokio::spawn(write_all(port, of_writer, at));
    let mut kills = 0;
    let known = loop {
        let pause = Duration::from_millis(random.random_range(0..250));
        // However quick the writes are, kills are spread over all of them.
        let at_the_latest = (kills + 1) * WRITES / (KILLS + 1);
        let late = async {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = writes.wait_for(|at| *at >= at_the_latest) => {}
            }
        };
        tokio::select! {
            known = &mut writing => break known.unwrap(),
            () = late, if kills < KILLS => {
                program.kill();
                kills += 1;
                program.start_again(store);
                program.client().await;
            }
        }
    };
    eprintln!("{kills} kills, {} given up", known.given_up.len());
    assert!(
        kills >= KILLS / 2,
        "too few kills to show anything: {kills}"
    );
    let mut client = program.client().await;
    let history = client.history(v1::HistoryRequest {
        page_size: 1000,
        ..Default::default()
    });
    let history = history.await.unwrap().into_inner().revisions;
    let mut revisions: BTreeMap<u16, &v1::RevisionRecord> = BTreeMap::new();
    for record in &history {
        let again = revisions.insert(record.message.parse().unwrap(), record);
        assert!(again.is_none(), "write {} was done twice", record.message);
    }
    for (n, answer) in &known.answered {
        let record = revisions.get(n);
        let record = record.unwrap_or_else(|| panic!("write {n} was acknowledged and is lost"));
        assert_eq!(record.revision, answer.revision, "write {n}");
        assert_eq!(record.state_hash, answer.state_hash, "write {n}");
        let created = |change: &&v1::Change| change.action() == Action::Created;
        let created = answer.changes.iter().filter(created).count();
        assert!(created >= 3, "write {n}: {:?}", answer.changes);
    }
    let absent = known
        .given_up
        .iter()
        .filter(|n| !revisions.contains_key(*n));
    let absent: Vec<u16> = absent.copied().collect();
    assert_eq!(revisions.len() + absent.len(), usize::from(WRITES));

    let mut apps: BTreeMap<u16, usize> = BTreeMap::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListRequest {
            kind: v1::Kind::App.into(),
            page_size: 1000,
            page_token,
        };
        let page = client.list(request).await.unwrap().into_inner();
        for resource in page.resources {
            let Some(v1::resource::Kind::App(app)) = resource.kind else {
                panic!("only apps were asked for");
            };
            let n = app.name.split('-').nth(1).unwrap().parse().unwrap();
            *apps.entry(n).or_default() += 1;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    for n in 0..WRITES {
        let whole = if absent.contains(&n) { None } else { Some(&3) };
        assert_eq!(apps.get(&n), whole, "write {n}");
    }
    // The same request again is answered as it was, by a process that did not do it.
    program.kill();
    program.start_again(store);
    let mut client = program.client().await;
    for (n, answer) in known.answered.iter().rev().take(50) {
        let again = client.apply(request(*n)).await.unwrap().into_inner();
        assert_eq!(&again, answer, "write {n}");
    }
}

#[tokio::test]
async fn embedded_survives_being_killed() {
    let directory = tempfile::tempdir().unwrap();
    let store = embedded(directory.path());
    every_acknowledged_write_is_there_and_every_other_is_whole_or_absent(&store).await;
}

#[tokio::test]
async fn etcd_survives_its_writer_being_killed() {
    let server = EtcdServer::start().await;
    let store = server.url("fleet");
    every_acknowledged_write_is_there_and_every_other_is_whole_or_absent(&store).await;
}

/// A whole state, or nothing of it.
async fn ten_thousand_or_none(store: &StoreUrl) -> u64 {
    let program = Program::start(store);
    let mut client = program.client().await;
    let listed = client.list(v1::ListRequest::default()).await.unwrap();
    let revision = listed.into_inner().revision;
    let mut count = 0;
    let mut page_token = String::new();
    loop {
        let request = v1::ListRequest {
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let page = client.list(request).await.unwrap().into_inner();
        count += page.resources.len();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let whole = if revision == 0 { 0 } else { 10_001 };
    assert_eq!(count, whole, "at revision {revision}");
    revision
}

#[tokio::test]
async fn a_large_write_that_is_killed_on_a_file_is_whole_or_absent() {
    let [mut absent, mut answered] = [false, false];
    let mut after = Duration::from_millis(50);
    // From before the end of the write to after it. Where this process was held up
    // meanwhile, a kill comes later than it was to.
    while !(absent && answered) {
        let directory = tempfile::tempdir().unwrap();
        let store = embedded(directory.path());
        let mut program = Program::start(&store);
        let mut client = program.client().await;
        let writing = tokio::spawn(async move { client.apply(many_request()).await });
        tokio::time::sleep(after).await;
        program.kill();
        let is_answered = writing.await.unwrap().is_ok();
        let revision = ten_thousand_or_none(&store).await;
        assert!(revision == 1 || !is_answered, "acknowledged and lost");
        absent |= revision == 0;
        answered |= is_answered;
        after = match is_answered {
            true => after.div_f64(2.0),
            false => after.mul_f64(1.4),
        };
    }
}

/// Far less than the requests of [`many_request`] to etcd take together, in bytes.
const PART_OF_MANY: usize = 300_000;

fn many_request() -> v1::ApplyRequest {
    v1::ApplyRequest {
        resources: many(10_000),
        request_id: "many".to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_large_write_that_is_killed_on_etcd_is_absent_and_what_it_left_is_collected() {
    let server = EtcdServer::start().await;
    let store = server.url("fleet");
    let etcd = {
        let url = etcd_url(&store);
        let members = connect(url, &Identity::none()).await.unwrap();
        Arc::new(Etcd::new(&members, url))
    };
    let link = Link::to(server.port()).await;
    let mut program = Program::start(&url(link.port(), "fleet"));
    let mut client = program.client().await;
    // In the middle of it: some objects are there, and the head cannot be.
    link.hold_after(PART_OF_MANY);
    let writing = tokio::spawn(async move { client.apply(many_request()).await });
    eventually("the first objects", || async {
        (etcd.stored().await.unwrap().len() > 50).then_some(())
    })
    .await;
    program.kill();
    writing.await.unwrap().unwrap_err();
    assert_eq!(ten_thousand_or_none(&store).await, 0);

    // The next revision, of somebody else, needs two objects.
    let mut program = Program::start(&store);
    let mut client = program.client().await;
    let little = v1::ApplyRequest {
        resources: vec![prefix("203.0.113.0/24")],
        ..Default::default()
    };
    client.apply(little).await.unwrap();
    let left = etcd.stored().await.unwrap().len() - 2;
    assert!(left > 50, "{left}");
    let keeper = Keeper::new(Arc::clone(&etcd) as Arc<dyn Store>);
    let gone = history::forget(&keeper, Retention::default(), std::time::SystemTime::now());
    let wanted = Forgotten {
        oldest: Revision(1),
        objects: left,
    };
    assert_eq!(gone.await.unwrap(), Some(wanted));
    assert_eq!(etcd.stored().await.unwrap().len(), 2);
    // And the client that was killed under is served at last.
    let answer = client.apply(many_request()).await.unwrap().into_inner();
    assert_eq!((answer.revision, answer.changes.len()), (2, 10_001));
    program.kill();
    let program = Program::start(&store);
    let again = program.client().await.apply(many_request()).await.unwrap();
    assert_eq!(again.into_inner(), answer);
}
