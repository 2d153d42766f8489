//! Who writes to the control plane without end, and who follows it and writes down all that comes.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyport_model::{
    names::Revision,
    replica::{Gap, Replica, Update},
    resource::Resource,
};
use anyport_netns::Namespace;
use anyport_node::rpc::Endpoint;
use anyport_proto::{
    sync::{Applied, Identity, Origin, Subscriber, UPDATE_MAX, follow},
    v1::{self, config_service_client::ConfigServiceClient},
};
use tokio::sync::watch;
use tonic::{Code, Status, transport::Channel};

use super::{ControlPlane, REPLICAS, authority};
use crate::cluster::{PATIENCE, eventually};

/// Apps of one write. They all go to the same origin, which tells the writes apart; a state in
/// which they differ was half applied.
const APPS: usize = 5;
/// Writes at one replica before it is the other's turn.
const AT_ONE: u64 = 7;
/// No write waits longer for one replica, which answers within 6 s, also on a busy machine.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// The state that the write number `n` makes.
fn resources(n: u64) -> Vec<v1::Resource> {
    let prefix = v1::resource::Kind::Prefix(v1::Prefix {
        cidr: "198.51.100.0/24".to_owned(),
    });
    let app = |index: usize| {
        v1::resource::Kind::App(v1::App {
            name: format!("app-{index}"),
            protocol: format!("tcp/{}", index + 1),
            edge_ips: vec!["198.51.100.0/24".to_owned()],
            origin_direct: vec![format!("tcp://10.9.0.1:{n}")],
            ..Default::default()
        })
    };
    let kinds = [prefix].into_iter().chain((0..APPS).map(app));
    kinds
        .map(|kind| v1::Resource { kind: Some(kind) })
        .collect()
}

/// Of which write a state is; `None` before the first.
fn write_of<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> Option<String> {
    let mut origins: Vec<String> = resources
        .into_iter()
        .filter_map(|resource| match resource {
            Resource::App(app) => Some(origin_of(&app.origin)),
            _ => None,
        })
        .collect();
    let count = origins.len();
    origins.dedup();
    match &origins[..] {
        [] => None,
        [one] if count == APPS => Some(one.clone()),
        half => panic!("a state was half applied: {count} apps, to {half:?}"),
    }
}

fn origin_of(choice: &impl Debug) -> String {
    format!("{choice:?}")
}

/// Calls of one replica.
pub struct Client {
    namespace: Namespace,
    endpoint: Endpoint,
}

impl Client {
    pub(super) fn new(namespace: &Namespace, endpoint: Endpoint) -> Self {
        Self {
            namespace: namespace.clone(),
            endpoint,
        }
    }

    /// One call, within [`PATIENCE`].
    pub fn call<T, F>(
        &self,
        call: impl FnOnce(ConfigServiceClient<Channel>) -> F + Send,
    ) -> Result<T, Status>
    where
        T: Send,
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let made = self.namespace.block_on(|| async {
            let answer = tokio::time::timeout(PATIENCE, call(client(&self.endpoint))).await;
            answer.map_err(|_| Status::deadline_exceeded("no answer"))?
        });
        made.unwrap().map(tonic::Response::into_inner)
    }

    /// A write that this one replica is asked for once.
    pub fn apply(&self, n: u64) -> Result<v1::ApplyResponse, Status> {
        let request = request(n, "by hand");
        self.call(|mut client| async move { client.apply(request).await })
    }

    /// The latest revision.
    pub fn revision(&self) -> Result<u64, Status> {
        let request = v1::ListRequest::default();
        let listed = self.call(|mut client| async move { client.list(request).await });
        listed.map(|listed| listed.revision)
    }

    /// Every revision that is kept, with the hash of its state.
    pub fn history(&self) -> BTreeMap<u64, Vec<u8>> {
        let mut all = BTreeMap::new();
        let mut page_token = String::new();
        loop {
            let request = v1::HistoryRequest {
                page_size: 1000,
                page_token,
            };
            let page = self.call(|mut client| async move { client.history(request).await });
            let page = page.unwrap();
            all.extend(
                page.revisions
                    .into_iter()
                    .map(|r| (r.revision, r.state_hash)),
            );
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return all;
            }
        }
    }
}

fn client(endpoint: &Endpoint) -> ConfigServiceClient<Channel> {
    ConfigServiceClient::new(endpoint.lazy()).max_decoding_message_size(UPDATE_MAX)
}

fn request(n: u64, by: &str) -> v1::ApplyRequest {
    v1::ApplyRequest {
        resources: resources(n),
        request_id: format!("{by} {n}"),
        author: by.to_owned(),
        message: n.to_string(),
        ..Default::default()
    }
}

/// A write that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub revision: u64,
    pub state_hash: Vec<u8>,
    /// From the first attempt to the answer.
    pub took: Duration,
}

/// A state that a follower was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub revision: u64,
    pub state_hash: Vec<u8>,
}

/// A writer, and a follower for each replica. What a follower is given half applied is a panic.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    /// The writer stands still while this is set.
    pause: watch::Sender<bool>,
    answered: Arc<Mutex<Vec<Answered>>>,
    seen: Vec<Arc<Mutex<Vec<Record>>>>,
    threads: Vec<JoinHandle<anyport_netns::Result<()>>>,
}

impl Traffic {
    pub fn start(plane: &ControlPlane) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (pause, paused) = watch::channel(false);
        let answered = Arc::new(Mutex::new(Vec::new()));
        let mut threads = Vec::new();
        let writer = Writer {
            endpoints: (0..REPLICAS)
                .map(|replica| plane.endpoint(replica, authority::WRITER))
                .collect(),
            stop: Arc::clone(&stop),
            paused,
            answered: Arc::clone(&answered),
        };
        threads.push(on_thread(plane.edge(), writer.run()));
        let mut seen = Vec::new();
        for replica in 0..REPLICAS {
            let name = authority::follower(replica);
            let records = Arc::new(Mutex::new(Vec::new()));
            let recorder = Recorder {
                replica: Replica::default(),
                seen: Arc::clone(&records),
            };
            let endpoint = plane.endpoint(replica, &name);
            let follower = followed(name, endpoint, recorder, Arc::clone(&stop));
            threads.push(on_thread(plane.edge(), follower));
            seen.push(records);
        }
        let traffic = Self {
            stop,
            pause,
            answered,
            seen,
            threads,
        };
        traffic.goes_on();
        traffic
    }

    pub fn answered(&self) -> Vec<Answered> {
        self.answered.lock().unwrap().clone()
    }

    /// All states that the follower of a replica was given.
    pub fn seen(&self, replica: usize) -> Vec<Record> {
        self.seen[replica].lock().unwrap().clone()
    }

    /// A good deal more is written, and every follower has the last of it.
    pub fn goes_on(&self) {
        self.goes_on_at(&[0, 1]);
    }

    /// As [`goes_on`](Self::goes_on), where only these replicas can be followed.
    pub fn goes_on_at(&self, replicas: &[usize]) {
        let before = self.answered().len();
        eventually(PATIENCE, "writes go on", || {
            self.panics_if_one_did();
            let more = self.answered().len() - before;
            (more >= 10).then_some(()).ok_or(format!("{more} of 10"))
        });
        let last = self.answered().last().cloned().unwrap();
        for replica in replicas {
            eventually(PATIENCE, "the follower has what was written", || {
                self.panics_if_one_did();
                let seen = self.seen[*replica].lock().unwrap();
                let latest = seen.last().map_or(0, |record| record.revision);
                (latest >= last.revision)
                    .then_some(())
                    .ok_or(format!("{latest}"))
            });
        }
    }

    /// The writer's present write is its last until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.pause.send_replace(true);
        let mut before = self.answered().len();
        // What is under way ends.
        eventually(PATIENCE, "the writer stands still", || {
            std::thread::sleep(Duration::from_millis(300));
            let now = self.answered().len();
            let still = now == std::mem::replace(&mut before, now);
            still.then_some(()).ok_or(now)
        });
    }

    pub fn resume(&self) {
        self.pause.send_replace(false);
    }

    fn panics_if_one_did(&self) {
        assert!(
            self.threads.iter().all(|thread| !thread.is_finished()),
            "the writer or a follower has ended"
        );
    }

    /// What came after this revision is not expected to be there any more.
    pub fn lost_after(&self, revision: u64) {
        let mut answered = self.answered.lock().unwrap();
        answered.retain(|answer| answer.revision <= revision);
        for seen in &self.seen {
            seen.lock()
                .unwrap()
                .retain(|record| record.revision <= revision);
        }
    }

    /// Ends it and gives the longest that a write took: every acknowledged write is in the history,
    /// and nobody was given anything that is not.
    pub fn all_was_well(self, plane: &ControlPlane) -> Duration {
        self.goes_on();
        self.pause();
        let answered = self.answered();
        let last = answered.last().cloned().unwrap();
        let histories = [0, 1].map(|replica| plane.client(replica).history());
        assert_eq!(histories[0], histories[1], "replicas agree");
        let [history, _] = histories;
        for answer in &answered {
            let known = history.get(&answer.revision);
            let revision = answer.revision;
            assert_eq!(
                known,
                Some(&answer.state_hash),
                "revision {revision} was acknowledged"
            );
        }
        for replica in [0, 1] {
            for pair in self.seen(replica).windows(2) {
                assert!(
                    pair[0].revision <= pair[1].revision,
                    "the follower of replica {replica} was led back: {pair:?}"
                );
            }
            eventually(PATIENCE, "the follower is in step", || {
                let latest = self.seen(replica).pop().unwrap();
                let wanted = (last.revision, &last.state_hash);
                let has = (latest.revision, &latest.state_hash);
                (has == wanted).then_some(()).ok_or(latest.revision)
            });
            for record in self
                .seen(replica)
                .iter()
                .filter(|record| record.revision > 0)
            {
                let known = history.get(&record.revision);
                let revision = record.revision;
                assert_eq!(
                    known,
                    Some(&record.state_hash),
                    "revision {revision} was pushed"
                );
            }
        }
        self.stop.store(true, Ordering::SeqCst);
        self.resume();
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
        let took = answered.iter().map(|answer| answer.took).max();
        took.unwrap_or_default()
    }
}

fn on_thread(
    namespace: &Namespace,
    work: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<anyport_netns::Result<()>> {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(work);
    };
    namespace.spawn_thread(run).unwrap()
}

struct Writer {
    endpoints: Vec<Endpoint>,
    stop: Arc<AtomicBool>,
    paused: watch::Receiver<bool>,
    answered: Arc<Mutex<Vec<Answered>>>,
}

impl Writer {
    /// Writes without end, some at one replica, then some at the other. What is not answered is
    /// asked for again elsewhere, as the same request.
    async fn run(mut self) {
        let clients: Vec<_> = self.endpoints.iter().map(client).collect();
        let mut turn = 0;
        for n in 1.. {
            if n % AT_ONE == 0 {
                turn += 1;
            }
            // Only a test that failed drops the sender.
            if self.paused.wait_for(|paused| !paused).await.is_err() {
                return;
            }
            let began = Instant::now();
            loop {
                if self.stop.load(Ordering::SeqCst) {
                    return;
                }
                let mut client = clients[turn % clients.len()].clone();
                let call = client.apply(request(n, "writer"));
                let status = match tokio::time::timeout(CALL_LIMIT, call).await {
                    Ok(Ok(answer)) => {
                        let answer = answer.into_inner();
                        self.answered.lock().unwrap().push(Answered {
                            revision: answer.revision,
                            state_hash: answer.state_hash,
                            took: began.elapsed(),
                        });
                        break;
                    }
                    Ok(Err(status)) => status,
                    Err(_) => panic!("a write was not answered within {CALL_LIMIT:?}"),
                };
                let refused = [Code::Unavailable, Code::Aborted].contains(&status.code());
                assert!(refused, "write {n}: {status:?}");
                turn += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

struct Recorder {
    replica: Replica,
    seen: Arc<Mutex<Vec<Record>>>,
}

impl Subscriber for Recorder {
    fn held(&self) -> (Revision, Vec<u8>) {
        self.replica.held()
    }

    async fn apply(&mut self, update: Update, _: Origin) -> Result<Applied, Gap> {
        self.replica.apply(update)?;
        write_of(self.replica.resources.values());
        self.seen.lock().unwrap().push(Record {
            revision: self.replica.revision.0,
            // What follows names the store.
            state_hash: self.replica.state_hash[..32].to_vec(),
        });
        Ok(Applied::default())
    }

    fn connection(&mut self, _: Result<(), &Status>) {}
}

async fn followed(name: String, endpoint: Endpoint, mut recorder: Recorder, stop: Arc<AtomicBool>) {
    let identity = Identity {
        role: v1::NodeRole::Edge,
        name,
        region: "lab".to_owned(),
        version: "0".to_owned(),
        steering: String::new(),
        address: String::new(),
    };
    let dial = endpoint.into_dial();
    let (_report, reports) = watch::channel(None);
    let stopped = async {
        while !stop.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = follow(vec![dial], identity, reports, &mut recorder, rand::random) => {}
        () = stopped => {}
    }
}
