//! Where it happens: the control plane as real processes, and the fleet.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyport_model::names::Revision;
use anyport_model::replica::Replica;
use anyport_model::state::Resources;
use anyport_netns::Namespace;
use anyport_node::access::Role;
use anyport_node::identity::Identity;
use anyport_node::rpc::{Endpoint, ServerUrl};
use anyport_proto::convert::read_resource;
use anyport_proto::sync::{UPDATE_MAX, follow};
use anyport_proto::v1::{self, config_service_client::ConfigServiceClient};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::book::Book;
use super::edge::{Holding, SimulatedEdge, locked};
use crate::cluster::{Cluster, Plan, Replica as Service, Result, Store, eventually};

/// One edge of so many is a witness: it holds all that it is told, to be looked at.
const ONE_WITNESS_OF: usize = 100;

/// For anything that the whole fleet does.
const PATIENCE: Duration = Duration::from_secs(300);

/// The control plane, without nodes.
pub struct Stage {
    /// Real processes.
    pub cluster: Cluster,
}

/// What an edge holds when it comes: a revision and its hash.
pub type Held = (Revision, Vec<u8>);

/// A fleet that is connected, until this is dropped.
pub struct Fleet {
    /// What the edges write down.
    pub book: Arc<Book>,
    witnesses: Vec<Arc<Mutex<Replica>>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<anyport_netns::Result<()>>>,
}

impl Stage {
    /// etcd and two replicas, ready, with nothing declared.
    ///
    /// # Errors
    ///
    /// As [`Cluster::start`].
    pub fn start() -> Result<Self> {
        let plan = Plan {
            origins: 0,
            without_nodes: true,
            ..Plan::on(Store::Etcd)
        };
        Ok(Self {
            cluster: Cluster::start(plan)?,
        })
    }

    /// Where the edges are.
    pub fn outside(&self) -> &Namespace {
        self.cluster.topology().client()
    }

    /// Applies resources at the first replica; gives what an edge holds that has all of it.
    ///
    /// # Panics
    ///
    /// Where it is refused.
    pub fn apply(&self, resources: Vec<v1::Resource>) -> Held {
        let request = v1::ApplyRequest {
            resources,
            ..Default::default()
        };
        let applied = self.call(async |mut client| client.apply(request).await);
        (Revision(applied.revision), applied.state_hash)
    }

    /// The edges that the first replica knows of.
    ///
    /// # Panics
    ///
    /// Where it does not say.
    pub fn listed(&self) -> Vec<v1::NodeStatus> {
        let request = v1::ListNodesRequest::default();
        self.call(async |mut client| client.list_nodes(request).await)
            .nodes
    }

    /// What is declared, as the first replica lists it.
    ///
    /// # Panics
    ///
    /// Where it does not.
    pub fn declared(&self) -> Resources {
        let mut resources = Resources::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListRequest {
                page_size: 1000,
                page_token,
                ..Default::default()
            };
            let page = self.call(async |mut client| client.list(request).await);
            for resource in page.resources {
                let resource = read_resource(resource).expect("what is declared is readable");
                resources.insert(resource.reference(), resource);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return resources;
            }
        }
    }

    fn call<T: Send>(
        &self,
        call: impl AsyncFnOnce(
            ConfigServiceClient<Channel>,
        ) -> std::result::Result<tonic::Response<T>, tonic::Status>
        + Send,
    ) -> T {
        let answered = self.outside().block_on(move || async move {
            let channel = endpoint(&Service::First.url_for_clients()).connect().await;
            let channel = channel.expect("the first replica listens");
            let client = ConfigServiceClient::new(channel)
                .max_decoding_message_size(UPDATE_MAX)
                .max_encoding_message_size(UPDATE_MAX);
            call(client).await
        });
        answered
            .expect("the client's namespace is there")
            .expect("it is answered")
            .into_inner()
    }

    /// Starts a fleet, on both replicas. With `held`, its edges come with that already, as after a
    /// restart.
    ///
    /// # Errors
    ///
    /// Where the thread cannot be started.
    pub fn fleet(&self, edges: usize, held: Option<&Held>) -> Result<Fleet> {
        let replicas = [Service::First, Service::Second].map(Service::url_for_clients);
        Fleet::start(self.outside(), &replicas, edges, held)
    }
}

impl Fleet {
    /// Starts a fleet in a namespace, where the replicas are at these URLs. With `held`, its edges
    /// come with that already, as after a restart.
    ///
    /// # Errors
    ///
    /// Where the thread cannot be started.
    pub fn start(
        namespace: &Namespace,
        replicas: &[String],
        edges: usize,
        held: Option<&Held>,
    ) -> Result<Self> {
        let book = Arc::new(Book::new(edges));
        let stop = CancellationToken::new();
        let mut witnesses = Vec::new();
        let fleet: Vec<SimulatedEdge> = (0..edges)
            .map(|index| {
                // A witness holds everything, so it has to be told everything.
                let holding = if index % ONE_WITNESS_OF == 0 {
                    let replica = Arc::<Mutex<Replica>>::default();
                    witnesses.push(Arc::clone(&replica));
                    Holding::All(replica)
                } else {
                    let (revision, hash) = held.cloned().unwrap_or_default();
                    Holding::Mark(revision, hash)
                };
                let book = Arc::clone(&book);
                SimulatedEdge {
                    index,
                    holding,
                    book,
                }
            })
            .collect();
        let (stopped, replicas) = (stop.clone(), replicas.to_vec());
        let thread = namespace.spawn_thread(move || run(fleet, &replicas, &stopped))?;
        Ok(Self {
            book,
            witnesses,
            stop,
            thread: Some(thread),
        })
    }

    /// Waits until every edge is connected and at `revision`.
    ///
    /// # Panics
    ///
    /// Where that takes minutes.
    pub fn reaches(&self, revision: Revision) {
        let all = self.book.standings().len();
        eventually(PATIENCE, "the fleet is at the revision", || {
            let there = self
                .book
                .count(|edge| edge.connected && edge.updates > 0 && edge.revision == revision.0);
            (there == all)
                .then_some(())
                .ok_or_else(|| format!("{there} of {all} at {}", revision.0))
        });
    }

    /// What witnesses hold, each all of it.
    pub fn witnessed(&self) -> Vec<Resources> {
        let witnesses = self.witnesses.iter();
        witnesses
            .map(|replica| locked(replica).resources.clone())
            .collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // Why it ended is told by the tests that look at the book.
            let _ = thread.join();
        }
    }
}

/// All edges on one thread, until they are told to stop.
fn run(fleet: Vec<SimulatedEdge>, replicas: &[String], stop: &CancellationToken) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    runtime.block_on(async {
        let (_report, report) = watch::channel(None);
        for mut edge in fleet {
            let report = report.clone();
            let replicas = replicas.iter().map(|url| endpoint(url));
            let replicas = replicas.map(Endpoint::into_dial).collect();
            tokio::spawn(async move {
                follow(replicas, edge.identity(), report, &mut edge, rand::random).await;
            });
        }
        stop.cancelled().await;
    });
}

/// As an agent dials it.
fn endpoint(url: &str) -> Endpoint {
    let url: ServerUrl = url.parse().expect("the lab's own URLs are right");
    Endpoint::new(&url, &Identity::none(), Role::ConfigService)
        .expect("clear text is allowed there")
}
