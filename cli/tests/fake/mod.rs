//! A config service in memory: it admits by the real model, keeps no history of
//! states, and lets a test say what the nodes do.

mod edge;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use anyport_model::{resource::ResourceRef, state::Resources, validate};
use anyport_proto::{
    convert::{read_kind, read_reference, read_resource, write_redacted, write_reference},
    v1::{
        self,
        change::Action,
        config_service_server::{ConfigService, ConfigServiceServer},
    },
};
use socket2::{Domain, Socket, Type};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{TcpListenerStream, WatchStream},
};
use tonic::{Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub use edge::FakeEdge;

/// Where nobody listens, and nobody will as long as this process lives: the port is bound.
pub fn nobody() -> SocketAddr {
    let held = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    held.bind(&any.into()).expect("loopback");
    let address = held.local_addr().expect("bound");
    std::mem::forget(held);
    address.as_socket().expect("of IPv4")
}

#[derive(Clone, Default)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    nodes: watch::Sender<Nodes>,
}

#[derive(Clone, Default)]
struct Nodes {
    /// Counts starts of the server: streams of an earlier one break.
    start: u32,
    connected: Vec<v1::NodeStatus>,
    gone: Vec<v1::GoneNode>,
    store_rewind: Option<v1::StoreRewind>,
}

#[derive(Default)]
pub struct State {
    pub resources: Resources,
    pub revisions: Vec<v1::RevisionRecord>,
    /// Of writes, in order, answered or not.
    pub request_ids: Vec<String>,
    /// `traceparent` of every call.
    pub traces: Vec<Option<String>>,
    /// How many nodes were in the list that was last streamed.
    pub streamed: Option<usize>,
    /// So many writes are answered with UNAVAILABLE first.
    pub unavailable: usize,
    /// So many writes are answered with DEADLINE_EXCEEDED first.
    pub late: usize,
    /// Writes are answered with RESOURCE_EXHAUSTED.
    pub full: bool,
    before: Resources,
}

impl Fake {
    /// Serves on a port of its own until the test's runtime ends.
    pub async fn start() -> (Self, SocketAddr) {
        let fake = Fake::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let server = tonic::transport::Server::builder()
            .add_service(ConfigServiceServer::new(fake.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        (fake, address)
    }

    pub fn state<T>(&self, see: impl FnOnce(&mut State) -> T) -> T {
        see(&mut self.state.lock().expect("no panic while locked"))
    }

    pub fn set_rewind(&self, rewind: v1::StoreRewind) {
        self.nodes
            .send_modify(|known| known.store_rewind = Some(rewind));
    }

    pub fn set_nodes(&self, nodes: Vec<v1::NodeStatus>) {
        self.nodes.send_modify(|known| known.connected = nodes);
    }

    pub fn set_gone(&self, nodes: Vec<v1::GoneNode>) {
        self.nodes.send_modify(|known| known.gone = nodes);
    }

    /// Breaks all streams and knows no node afterwards.
    pub fn restart(&self) {
        self.state(|state| state.streamed = None);
        self.nodes.send_modify(|known| {
            known.start += 1;
            known.connected = Vec::new();
        });
    }

    /// A list of so many nodes was streamed.
    pub async fn streamed(&self, count: usize) {
        while self.state(|state| state.streamed) != Some(count) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Someone waits for the nodes.
    pub async fn watched(&self) {
        while self.nodes.receiver_count() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    fn note<T>(&self, request: &Request<T>) {
        let trace = request.metadata().get("traceparent");
        let trace = trace
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        self.state(|state| state.traces.push(trace));
    }

    fn write(&self, request_id: String) -> Result<(), Status> {
        self.state(|state| {
            state.request_ids.push(request_id);
            if let Some(left) = state.late.checked_sub(1) {
                state.late = left;
                return Err(Status::deadline_exceeded("too late"));
            }
            if state.full {
                return Err(Status::resource_exhausted("too many at a time"));
            }
            match state.unavailable.checked_sub(1) {
                Some(left) => {
                    state.unavailable = left;
                    Err(Status::unavailable("the store is out of reach"))
                }
                None => Ok(()),
            }
        })
    }
}

impl State {
    pub fn revision(&self) -> u64 {
        self.revisions.len() as u64
    }

    fn commit(&mut self, resources: Resources, record: v1::RevisionRecord) -> Vec<v1::Change> {
        let changes = changes(&self.resources, &resources);
        let count = |action| {
            let of_action = changes.iter().filter(|c| c.action() == action);
            of_action.count() as u32
        };
        if resources != self.resources {
            self.before = std::mem::replace(&mut self.resources, resources);
            self.revisions.push(v1::RevisionRecord {
                revision: self.revision() + 1,
                committed_at: Some(prost_types::Timestamp {
                    seconds: 1_790_000_000 + self.revision() as i64,
                    nanos: 5,
                }),
                created: count(Action::Created),
                updated: count(Action::Updated),
                deleted: count(Action::Deleted),
                ..record
            });
        }
        changes
    }
}

fn changes(before: &Resources, after: &Resources) -> Vec<v1::Change> {
    let mut all: BTreeMap<&ResourceRef, v1::Change> = BTreeMap::new();
    for (reference, resource) in after {
        let old = before.get(reference);
        let action = match old {
            None => Action::Created,
            Some(old) if old == resource => Action::Unchanged,
            Some(_) => Action::Updated,
        };
        all.insert(
            reference,
            v1::Change {
                resource: Some(write_reference(reference)),
                action: action.into(),
                before: old.map(write_redacted),
                after: Some(write_redacted(resource)),
            },
        );
    }
    for (reference, resource) in before {
        all.entry(reference).or_insert_with(|| v1::Change {
            resource: Some(write_reference(reference)),
            action: Action::Deleted.into(),
            before: Some(write_redacted(resource)),
            after: None,
        });
    }
    all.into_values().collect()
}

fn invalid(details: ErrorDetails) -> Status {
    let count = details
        .bad_request()
        .map_or(0, |bad| bad.field_violations.len());
    Status::with_error_details(
        tonic::Code::InvalidArgument,
        format!("{count} faults"),
        details,
    )
}

type Answer<T> = Result<Response<T>, Status>;
type Updates<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ConfigService for Fake {
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Answer<v1::ApplyResponse> {
        self.note(&request);
        let request = request.into_inner();
        self.write(request.request_id)?;
        let mut details = ErrorDetails::new();
        let mut unreadable = std::collections::BTreeSet::new();
        let mut positions = BTreeMap::new();
        let mut after = if request.prune {
            Resources::new()
        } else {
            self.state(|state| state.resources.clone())
        };
        for (index, resource) in request.resources.into_iter().enumerate() {
            let kind = match &resource.kind {
                Some(v1::resource::Kind::Prefix(_)) => "prefix",
                Some(v1::resource::Kind::Monitor(_)) => "monitor",
                Some(v1::resource::Kind::Pool(_)) => "pool",
                Some(v1::resource::Kind::Certificate(_)) => "certificate",
                Some(v1::resource::Kind::App(_)) => "app",
                None => "none",
            };
            let path = format!("resources[{index}].{kind}");
            match read_resource(resource) {
                Ok(resource) => {
                    positions.insert(resource.reference(), path);
                    after.insert(resource.reference(), resource);
                }
                Err(bad) => {
                    unreadable.extend(bad.reference);
                    for fault in bad.faults {
                        details.add_bad_request_violation(
                            format!("{path}.{}", fault.field),
                            fault.problem,
                        );
                    }
                }
            }
        }
        for fault in validate::faults(&after, &unreadable) {
            let path = positions.get(&fault.resource).cloned();
            let path = path.unwrap_or_else(|| fault.resource.to_string());
            details.add_bad_request_violation(
                format!("{path}.{}", fault.fault.field),
                fault.fault.problem,
            );
        }
        if details.bad_request().is_some() {
            return Err(invalid(details));
        }
        let record = v1::RevisionRecord {
            author: request.author,
            message: request.message,
            ..Default::default()
        };
        let emptied = request.prune && after.is_empty() && !request.allow_mass_deletion;
        if emptied && !request.dry_run {
            return Err(Status::failed_precondition("this would delete everything"));
        }
        self.state(|state| {
            let changes = if request.dry_run {
                changes(&state.resources, &after)
            } else {
                state.commit(after, record)
            };
            Ok(Response::new(v1::ApplyResponse {
                revision: state.revision(),
                changes,
                state_hash: Vec::new(),
                mass_deletion: if emptied { "everything" } else { "" }.to_owned(),
            }))
        })
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::GetResponse> {
        self.note(&request);
        let wanted = request.into_inner().resource.unwrap_or_default();
        let reference =
            read_reference(&wanted).map_err(|fault| Status::invalid_argument(fault.to_string()))?;
        self.state(|state| match state.resources.get(&reference) {
            Some(resource) => Ok(Response::new(v1::GetResponse {
                resource: Some(write_redacted(resource)),
                revision: state.revision(),
            })),
            None => Err(Status::not_found(format!("there is no {reference}"))),
        })
    }

    /// Two to a page, so that paging is seen to.
    async fn list(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListResponse> {
        self.note(&request);
        let request = request.into_inner();
        let kind = read_kind(request.kind).map_err(|f| Status::invalid_argument(f.to_string()))?;
        let from: usize = request.page_token.parse().unwrap_or(0);
        self.state(|state| {
            let all = state.resources.values();
            let of_kind = all.filter(|r| kind.is_none_or(|kind| r.kind() == kind));
            let of_kind: Vec<_> = of_kind.collect();
            let page = of_kind.iter().skip(from).take(2);
            Ok(Response::new(v1::ListResponse {
                resources: page.map(|resource| write_redacted(resource)).collect(),
                next_page_token: if from + 2 < of_kind.len() {
                    (from + 2).to_string()
                } else {
                    String::new()
                },
                revision: state.revision(),
            }))
        })
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        self.note(&request);
        let request = request.into_inner();
        self.write(request.request_id)?;
        let wanted = request.resource.unwrap_or_default();
        let reference =
            read_reference(&wanted).map_err(|fault| Status::invalid_argument(fault.to_string()))?;
        self.state(|state| {
            let mut after = state.resources.clone();
            if after.remove(&reference).is_none() {
                return Err(Status::not_found(format!("there is no {reference}")));
            }
            if let Some(fault) = validate::faults(&after, &Default::default()).first() {
                return Err(Status::failed_precondition(format!(
                    "{reference} is in use: {fault}"
                )));
            }
            let record = v1::RevisionRecord {
                author: request.author,
                message: request.message,
                ..Default::default()
            };
            state.commit(after, record);
            Ok(Response::new(v1::DeleteResponse {
                revision: state.revision(),
            }))
        })
    }

    type WatchStream = Updates<v1::WatchResponse>;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Answer<Self::WatchStream> {
        Err(Status::unimplemented("no command watches"))
    }

    async fn history(&self, request: Request<v1::HistoryRequest>) -> Answer<v1::HistoryResponse> {
        self.note(&request);
        self.state(|state| {
            Ok(Response::new(v1::HistoryResponse {
                revisions: state.revisions.iter().rev().cloned().collect(),
                next_page_token: String::new(),
                oldest_revision: state.revisions.first().map_or(0, |record| record.revision),
            }))
        })
    }

    /// Knows the state before the last change only.
    async fn rollback(
        &self,
        request: Request<v1::RollbackRequest>,
    ) -> Answer<v1::RollbackResponse> {
        self.note(&request);
        let request = request.into_inner();
        self.write(request.request_id)?;
        self.state(|state| {
            if request.revision > state.revision() {
                let mut details = ErrorDetails::new();
                details.add_bad_request_violation("revision", "is not there yet");
                let message = "revision: is not there yet";
                let code = tonic::Code::InvalidArgument;
                return Err(Status::with_error_details(code, message, details));
            }
            if request.revision + 1 != state.revision() {
                let revision = request.revision;
                return Err(Status::not_found(format!(
                    "there is no revision {revision}"
                )));
            }
            let record = v1::RevisionRecord {
                author: request.author,
                message: request.message,
                rollback_of: request.revision,
                ..Default::default()
            };
            let changes = state.commit(state.before.clone(), record);
            Ok(Response::new(v1::RollbackResponse {
                revision: state.revision(),
                changes,
            }))
        })
    }

    async fn promote(&self, _: Request<v1::PromoteRequest>) -> Answer<v1::PromoteResponse> {
        Err(Status::unimplemented("nothing is tried here"))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Answer<v1::ListNodesResponse> {
        self.note(&request);
        let role = request.into_inner().role;
        let mut nodes = self.nodes.borrow().connected.clone();
        nodes.retain(|node| role == 0 || node.role == role);
        let revision = self.state(|state| state.revision());
        Ok(Response::new(v1::ListNodesResponse {
            nodes,
            revision,
            store_rewind: self.nodes.borrow().store_rewind,
            rollout: None,
            state_hash: vec![0x3f, 0xa9, 0x1c, 0x02, 0x77],
            gone: self.nodes.borrow().gone.clone(),
        }))
    }

    type WatchNodesStream = Updates<v1::WatchNodesResponse>;

    async fn watch_nodes(
        &self,
        request: Request<v1::WatchNodesRequest>,
    ) -> Answer<Self::WatchNodesStream> {
        self.note(&request);
        let role = request.into_inner().role;
        let revision = self.state(|state| state.revision());
        let nodes = self.nodes.subscribe();
        let start = nodes.borrow().start;
        let fake = self.clone();
        let updates = WatchStream::new(nodes).map(move |known| {
            if known.start != start {
                return Err(Status::unavailable("restarting"));
            }
            let mut nodes = known.connected;
            nodes.retain(|node| role == 0 || node.role == role);
            fake.state(|state| state.streamed = Some(nodes.len()));
            Ok(v1::WatchNodesResponse {
                nodes,
                revision,
                rollout: None,
            })
        });
        Ok(Response::new(Box::pin(updates)))
    }
}
