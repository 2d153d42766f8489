//! What `ConfigService` does.

use std::{sync::Arc, time::SystemTime};

use anyport_model::{
    fault::Fault,
    names::Revision,
    resource::{Kind, ResourceRef},
    rollout::Canary,
};
use anyport_node::{access::Caller, drain::Drain};
use anyport_proto::{
    convert::{read_canary, read_kind, read_reference, write_redacted, write_reference},
    v1::{self, config_service_server::ConfigService},
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    audit::Entry,
    nodes,
    page::{Token, page},
    status, watch,
};
use crate::{
    admit::{Change, Conditions, Intent, Writer, Written, read_apply},
    metrics::Metrics,
    nodes::{Nodes, Role},
    state::{Keeper, Rewind, Snapshot, StateAt},
    store::{Author, ObjectId, Record, RequestMark, StoreError},
};

/// Longest texts, in bytes.
const REQUEST_ID_MAX: usize = 128;
const AUTHOR_MAX: usize = 256;
const MESSAGE_MAX: usize = 4096;
/// Revisions of a page.
const HISTORY: usize = 50;
const HISTORY_MAX: usize = 1_000;
/// Answers on their way to a watcher of nodes; more would be old when they are read.
const UNREAD: usize = 1;

/// `ConfigService`, on the state of one replica; all but `Watch`.
#[derive(Debug, Clone)]
pub struct ConfigApi {
    pub writer: Writer,
    pub keeper: Keeper,
    pub nodes: Nodes,
    pub metrics: Metrics,
    pub drain: Drain,
}

/// What every write request has.
struct Asked {
    expected: Option<u64>,
    request_id: String,
    author: String,
    message: String,
    allow_mass_deletion: bool,
    canary: Option<v1::Canary>,
    /// Of the whole request, its method with it.
    digest: ObjectId,
}

impl Asked {
    /// Who asks, by the certificate where there is one.
    fn author(&self, caller: &Caller) -> Author {
        let certified = caller.certified.as_deref();
        Author {
            name: caller.name().unwrap_or(&self.author).to_owned(),
            roles: certified.map_or_else(String::new, |c| c.roles.to_string()),
            serial: certified.map_or_else(String::new, |c| c.serial.clone()),
            peer: caller
                .address
                .map_or_else(String::new, |peer| peer.to_string()),
        }
    }

    fn conditions(self, author: Author) -> Result<Conditions, Status> {
        let faults: Vec<_> = [
            ("request_id", &self.request_id, REQUEST_ID_MAX),
            ("author", &author.name, AUTHOR_MAX),
            ("message", &self.message, MESSAGE_MAX),
        ]
        .into_iter()
        .filter(|(_, text, most)| text.len() > *most)
        .map(|(field, text, most)| {
            let len = text.len();
            (
                field,
                format!("is {len} bytes long; right is at most {most}"),
            )
        })
        .collect();
        if !faults.is_empty() {
            return Err(status::invalid(faults));
        }
        let request = (!self.request_id.is_empty()).then_some(RequestMark {
            id: self.request_id,
            digest: self.digest,
        });
        Ok(Conditions {
            dry_run: false,
            expected: self.expected.map(Revision),
            request,
            author,
            message: self.message,
            allow_mass_deletion: self.allow_mass_deletion,
            canary: None,
        })
    }
}

fn digest(method: &str, request: &impl Message) -> ObjectId {
    let mut bytes = method.as_bytes().to_vec();
    bytes.push(0);
    bytes.extend(request.encode_to_vec());
    ObjectId::of(&bytes)
}

impl ConfigApi {
    fn present(&self) -> Result<Arc<Snapshot>, Status> {
        self.keeper.present().ok_or_else(status::not_loaded)
    }

    /// Does a write, or says why not, and leaves a line for the audit either way.
    async fn write(
        &self,
        method: &'static str,
        asked: Asked,
        caller: &Caller,
        dry_run: bool,
        intent: impl Future<Output = Result<Intent, Status>>,
    ) -> Result<Written, Status> {
        let author = asked.author(caller);
        let entry = Entry::new(method, author.clone(), &asked.message);
        let written = async {
            let canary = asked.canary.as_ref();
            let canary = canary.map(|canary| self.canary(canary, &asked.request_id));
            let conditions = Conditions {
                dry_run,
                canary: canary.transpose()?,
                ..asked.conditions(author)?
            };
            self.commit(method, intent.await?, conditions).await
        };
        let written = written.await;
        entry.log(&written);
        written
    }

    async fn commit(
        &self,
        method: &str,
        intent: Intent,
        conditions: Conditions,
    ) -> Result<Written, Status> {
        let written = self.writer.write(intent, conditions, SystemTime::now).await;
        let result = match &written {
            Ok(written) => written.outcome.label(),
            Err(error) => error.label(),
        };
        self.metrics.wrote(method, result);
        written.map_err(status::of_write)
    }

    async fn rollback_to(&self, revision: Revision) -> Result<Intent, Status> {
        if revision == Revision::EMPTY {
            // Also what a request says that leaves the field out.
            return Err(status::invalid_field(
                "revision",
                "is 0 or not set; right is a revision of the history. Revision 0 would delete \
                 everything, and that has to be asked for by name: delete the resources, or \
                 apply with prune",
            ));
        }
        let kept = self.kept_at(revision).await;
        let Some(state) = kept.map_err(|error| status::of_store(&error))? else {
            return Err(self.not_kept(revision).await);
        };
        Ok(Intent::Rollback {
            revision,
            resources: state.resources.clone(),
        })
    }

    /// Who tries a revision: each of them has to be there.
    fn canary(&self, wire: &v1::Canary, request_id: &str) -> Result<Canary, Status> {
        let canary = read_canary(wire).map_err(|faults| {
            let path = |fault: Fault| (format!("canary.{}", fault.field), fault.problem);
            status::invalid(faults.into_iter().map(path))
        })?;
        // What was done before is answered as it was then.
        let present = self.keeper.present();
        if present.is_some_and(|present| present.written_by(request_id).is_some()) {
            return Ok(canary);
        }
        let connected: Vec<String> = self.nodes.names(Role::Edge);
        let missing = wire.edges.iter().enumerate();
        let missing = missing.filter(|(_, name)| !connected.contains(name));
        let faults: Vec<_> = missing
            .map(|(index, name)| {
                let right = match &connected[..] {
                    [] => "no edge is".to_owned(),
                    some => format!("those that are: {}", some.join(", ")),
                };
                let problem = format!("edge {name} is not connected; {right}");
                (format!("canary.edges[{index}]"), problem)
            })
            .collect();
        if faults.is_empty() {
            Ok(canary)
        } else {
            Err(status::invalid(faults))
        }
    }

    async fn state_at(&self, field: &str, revision: Revision) -> Result<Arc<StateAt>, Status> {
        let state = self.keeper.at(revision).await;
        let state = state.map_err(|error| status::of_store(&error))?;
        state.ok_or_else(|| {
            let problem = format!("revision {revision} is not kept (any more)");
            status::invalid_field(field, problem)
        })
    }
}

impl ConfigApi {
    /// The state of a revision that is kept, and not merely still in the memory of
    /// this replica.
    async fn kept_at(&self, revision: Revision) -> Result<Option<Arc<StateAt>>, StoreError> {
        match self.keeper.store().record(revision).await? {
            Some(_) => self.keeper.at(revision).await,
            None => Ok(None),
        }
    }

    /// As the history shows it; of the latest revision, why it is stuck with it.
    fn record(&self, record: &Record) -> v1::RevisionRecord {
        let mut wire = record.to_wire();
        if let Some(present) = self.keeper.present()
            && present.head().record.as_ref() == Some(record)
            && let (Some(rollout), Some(stuck)) = (&mut wire.rollout, present.stuck())
        {
            rollout.stuck = stuck.to_owned();
        }
        wire
    }

    /// Why there is no state of a revision.
    async fn not_kept(&self, revision: Revision) -> Status {
        let (latest, oldest) = match (self.present(), self.keeper.store().oldest().await) {
            (Ok(present), Ok(oldest)) => (present.revision(), oldest),
            (Err(status), _) => return status,
            (_, Err(error)) => return status::of_store(&error),
        };
        let oldest = oldest.map_or(latest, |oldest| oldest.revision);
        Status::not_found(if revision > latest {
            format!("there is no revision {revision} yet; the latest is {latest}")
        } else {
            format!("revision {revision} is not kept any more; the oldest that is kept is {oldest}")
        })
    }
}

#[tonic::async_trait]
impl ConfigService for ConfigApi {
    async fn apply(
        &self,
        request: Request<v1::ApplyRequest>,
    ) -> Result<Response<v1::ApplyResponse>, Status> {
        let caller = Caller::of(request.extensions());
        let wire = request.into_inner();
        let asked = Asked {
            digest: digest("Apply", &wire),
            expected: wire.expected_revision,
            request_id: wire.request_id,
            author: wire.author,
            message: wire.message,
            allow_mass_deletion: wire.allow_mass_deletion,
            canary: wire.canary,
        };
        let intent = async {
            Ok(Intent::Apply {
                request: read_apply(wire.resources),
                prune: wire.prune,
            })
        };
        let written = self.write("apply", asked, &caller, wire.dry_run, intent);
        let written = written.await?;
        Ok(Response::new(v1::ApplyResponse {
            revision: written.revision.0,
            changes: written.changes.iter().map(write_change).collect(),
            state_hash: written.state_hash.to_vec(),
            mass_deletion: written
                .mass_deletion
                .map(|mass| mass.to_string())
                .unwrap_or_default(),
        }))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let reference = reference(request.into_inner().resource)?;
        let present = self.present()?;
        let Some(resource) = present.resources().get(&reference) else {
            return Err(Status::not_found(format!("there is no {reference}")));
        };
        Ok(Response::new(v1::GetResponse {
            resource: Some(write_redacted(resource)),
            revision: present.revision().0,
        }))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        let wire = request.into_inner();
        let kind = kind("kind", wire.kind)?;
        let token = token(&wire.page_token)?;
        let state = match &token {
            Some(token) => self.state_at("page_token", token.revision).await?,
            None => Arc::clone(self.present()?.state()),
        };
        let page = page(
            state.revision,
            &state.resources,
            kind,
            token.as_ref(),
            wire.page_size,
        );
        Ok(Response::new(v1::ListResponse {
            resources: page.resources,
            next_page_token: page.next.map(|token| token.write()).unwrap_or_default(),
            revision: state.revision.0,
        }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let caller = Caller::of(request.extensions());
        let wire = request.into_inner();
        let asked = Asked {
            digest: digest("Delete", &wire),
            expected: wire.expected_revision,
            request_id: wire.request_id,
            author: wire.author,
            message: wire.message,
            // What is deleted is named.
            allow_mass_deletion: true,
            canary: None,
        };
        let intent = async { Ok(Intent::Delete(reference(wire.resource)?)) };
        let written = self.write("delete", asked, &caller, false, intent).await?;
        Ok(Response::new(v1::DeleteResponse {
            revision: written.revision.0,
        }))
    }

    type WatchStream = tokio_stream::Empty<Result<v1::WatchResponse, Status>>;

    async fn watch(
        &self,
        _: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("is answered by `ConfigServer`"))
    }

    async fn history(
        &self,
        request: Request<v1::HistoryRequest>,
    ) -> Result<Response<v1::HistoryResponse>, Status> {
        let wire = request.into_inner();
        let below = match wire.page_token.as_str() {
            "" => Revision(u64::MAX),
            token => Revision(token.parse().map_err(|_| {
                let problem = format!("{token:?} did not come from a response before");
                status::invalid_field("page_token", problem)
            })?),
        };
        let size = match wire.page_size as usize {
            0 => HISTORY,
            size => size.min(HISTORY_MAX),
        };
        let store = self.keeper.store();
        let read = async {
            let records = store.records_below(below, size).await?;
            Ok((records, store.oldest().await?))
        };
        let read: Result<_, StoreError> = read.await;
        let (mut records, oldest) = read.map_err(|error| status::of_store(&error))?;
        let oldest = oldest.map_or(Revision::EMPTY, |oldest| oldest.revision);
        let next = records
            .last()
            .filter(|last| records.len() == size && last.revision > oldest);
        let next_page_token = next
            .map(|last| last.revision.to_string())
            .unwrap_or_default();
        // Some may have been forgotten meanwhile.
        records.retain(|record| record.revision >= oldest);
        Ok(Response::new(v1::HistoryResponse {
            next_page_token,
            revisions: records.iter().map(|record| self.record(record)).collect(),
            oldest_revision: oldest.0,
        }))
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackRequest>,
    ) -> Result<Response<v1::RollbackResponse>, Status> {
        let caller = Caller::of(request.extensions());
        let wire = request.into_inner();
        let asked = Asked {
            digest: digest("Rollback", &wire),
            expected: wire.expected_revision,
            request_id: wire.request_id,
            author: wire.author,
            message: wire.message,
            allow_mass_deletion: wire.allow_mass_deletion,
            canary: None,
        };
        let intent = self.rollback_to(Revision(wire.revision));
        let written = self
            .write("rollback", asked, &caller, false, intent)
            .await?;
        Ok(Response::new(v1::RollbackResponse {
            revision: written.revision.0,
            changes: written.changes.iter().map(write_change).collect(),
        }))
    }

    async fn promote(
        &self,
        request: Request<v1::PromoteRequest>,
    ) -> Result<Response<v1::PromoteResponse>, Status> {
        let caller = Caller::of(request.extensions());
        let wire = request.into_inner();
        let asked = Asked {
            digest: digest("Promote", &wire),
            expected: wire.expected_revision,
            request_id: wire.request_id,
            author: wire.author,
            message: wire.message,
            allow_mass_deletion: false,
            canary: None,
        };
        let revision = (wire.revision != 0).then_some(Revision(wire.revision));
        let intent = async { Ok(Intent::Promote(revision)) };
        let written = self.write("promote", asked, &caller, false, intent);
        Ok(Response::new(v1::PromoteResponse {
            revision: written.await?.revision.0,
        }))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let role = role(request.into_inner().role)?;
        let present = self.present()?;
        Ok(Response::new(v1::ListNodesResponse {
            store_rewind: self.keeper.rewinds().borrow().last.map(write_rewind),
            nodes: nodes::list(&self.nodes, role, Some(&present)),
            revision: present.revision().0,
            rollout: nodes::rollout(&self.nodes, &present),
            state_hash: present.hash().to_vec(),
            gone: nodes::gone(&self.nodes, role),
        }))
    }

    type WatchNodesStream = ReceiverStream<Result<v1::WatchNodesResponse, Status>>;

    async fn watch_nodes(
        &self,
        request: Request<v1::WatchNodesRequest>,
    ) -> Result<Response<Self::WatchNodesStream>, Status> {
        let role = role(request.into_inner().role)?;
        let (answers, stream) = mpsc::channel(UNREAD);
        let (keeper, nodes, drain) = (self.keeper.clone(), self.nodes.clone(), self.drain.clone());
        tokio::spawn(watch::nodes(keeper, nodes, role, drain, answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn reference(wire: Option<v1::ResourceRef>) -> Result<ResourceRef, Status> {
    let wire = wire.ok_or_else(|| {
        status::invalid_field("resource", "is not set; name a resource by kind and name")
    })?;
    let field = |fault: Fault| (format!("resource.{}", fault.field), fault.problem);
    read_reference(&wire).map_err(|fault| status::invalid([field(fault)]))
}

fn kind(field: &str, wire: i32) -> Result<Option<Kind>, Status> {
    read_kind(wire).map_err(|fault| status::invalid_field(field, fault.problem))
}

/// Those that are named; none: all of them.
pub(super) fn kinds(wire: Vec<i32>) -> Result<Vec<Kind>, Status> {
    let mut kinds = Vec::new();
    for (index, wire) in wire.into_iter().enumerate() {
        kinds.extend(kind(&format!("kinds[{index}]"), wire)?);
    }
    Ok(kinds)
}

fn token(text: &str) -> Result<Option<Token>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let token = Token::read(text);
    token
        .map(Some)
        .map_err(|error| status::invalid_field("page_token", error))
}

/// `None`: both.
fn role(wire: i32) -> Result<Option<Role>, Status> {
    match v1::NodeRole::try_from(wire) {
        Ok(v1::NodeRole::Unspecified) => Ok(None),
        Ok(v1::NodeRole::Edge) => Ok(Some(Role::Edge)),
        Ok(v1::NodeRole::Balancer) => Ok(Some(Role::Balancer)),
        Err(unknown) => Err(status::invalid_field("role", unknown)),
    }
}

fn write_rewind(rewind: Rewind) -> v1::StoreRewind {
    v1::StoreRewind {
        lost_revision: rewind.lost.0,
        latest_revision: rewind.latest.0,
        noticed_at: Some(rewind.noticed_at.into()),
    }
}

fn write_change(change: &Change) -> v1::Change {
    use v1::change::Action;
    let (action, before, after) = match change {
        Change::Created(after) => (Action::Created, None, Some(after)),
        Change::Updated { before, after } => (Action::Updated, Some(before), Some(after)),
        Change::Unchanged(_) => (Action::Unchanged, None, None),
        Change::Deleted(before) => (Action::Deleted, Some(before), None),
    };
    v1::Change {
        resource: Some(write_reference(&change.reference())),
        action: action.into(),
        before: before.map(write_redacted),
        after: after.map(write_redacted),
    }
}
