//! The config service that a command talks to.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyport_model::{backoff::Backoff, resource::Kind};
use anyport_node::{
    access::Role,
    identity::{Identity, TlsArgs},
    rpc::{Channel, ServerUrl, Urls},
};
use anyport_proto::{
    convert::write_kind,
    v1::{self, config_service_client::ConfigServiceClient},
};
use tonic::{Code, ConnectError, Request, Response, Status};

use crate::failure::{Exit, Failure};

/// Of one unary call.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How long after its first failure a write is still tried again: as long as a
/// server that restarts needs.
const RETRY_LIMIT: Duration = Duration::from_secs(3);
const PAGE: u32 = 1000;

pub type Client = ConfigServiceClient<Channel>;

/// To a config service: one of its replicas, and the next one where that is away.
#[derive(Clone)]
pub struct Connection {
    identity: Identity,
    /// At least one.
    replicas: Arc<[Replica]>,
    /// How many were left so far, which says whose turn it is.
    left: Arc<AtomicUsize>,
}

/// Dialled by the first call.
struct Replica {
    url: ServerUrl,
    client: Client,
}

/// A write that was not confirmed.
#[derive(Debug)]
pub struct Unwritten {
    /// How it was last answered.
    pub status: Status,
    /// It reached the server, perhaps, and was never answered: it may be stored.
    pub outcome_unknown: bool,
}

/// Resources as they are listed: all of one revision.
#[derive(Debug, Default)]
pub struct Listed {
    pub resources: Vec<v1::Resource>,
    pub revision: u64,
}

impl Connection {
    pub fn new(urls: &Urls, tls: &TlsArgs) -> Result<Self, Failure> {
        let identity = tls
            .load()
            .map_err(|error| Failure::new(Exit::Usage, error))?;
        let expired = identity
            .certified()
            .filter(|_| identity.is_expired(SystemTime::now()));
        if let Some(certified) = expired {
            return Err(Failure::refused(format_args!(
                "the certificate of --tls-cert, `{}`, has expired",
                certified.subject
            ))
            .remedy(
                "`anyport certs issue` makes a new one; `anyport certs show` says until when",
            ));
        }
        let replica = |url: &ServerUrl| {
            let channel = Channel::lazy(url, &identity, Role::ConfigService)
                .map_err(|error| Failure::new(Exit::Usage, error))?;
            let client = ConfigServiceClient::new(channel)
                .max_decoding_message_size(anyport_proto::sync::UPDATE_MAX);
            let url = url.clone();
            Ok(Replica { url, client })
        };
        let replicas: Result<_, Failure> = urls.iter().map(replica).collect();
        Ok(Self {
            replicas: replicas?,
            identity,
            left: Arc::default(),
        })
    }

    /// To an edge, by the same identity; dialled by the first call.
    pub fn edge(&self, url: &ServerUrl) -> Result<Channel, Failure> {
        Channel::lazy(url, &self.identity, Role::Edge)
            .map_err(|error| Failure::new(Exit::Usage, error))
    }

    fn replica(&self) -> (usize, &Replica) {
        let left = self.left.load(Ordering::Relaxed);
        #[expect(clippy::indexing_slicing, reason = "a remainder of their number")]
        let replica = &self.replicas[left % self.replicas.len()];
        (left, replica)
    }

    /// Of the replica that is asked.
    pub fn url(&self) -> &ServerUrl {
        &self.replica().1.url
    }

    /// For streams; unary calls go through [`read`](Self::read) and
    /// [`write`](Self::write).
    pub fn client(&self) -> Client {
        self.replica().1.client.clone()
    }

    /// From now on the next replica is asked.
    pub fn turn_to_next(&self) {
        self.turn_from(self.replica().0);
    }

    /// Of several calls that a replica fails at a time, one turns from it.
    fn turn_from(&self, left: usize) {
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let next = left.wrapping_add(1);
        let _ = self.left.compare_exchange(left, next, set, fetch);
    }

    /// What an answer that is a failure means for a command that was to do `what`.
    pub fn failure(&self, what: &str, status: &Status) -> Failure {
        Failure::of_call(what, self.url(), status)
    }

    /// One call that changes nothing.
    pub async fn read<Q: Clone, A>(
        &self,
        what: &str,
        request: Q,
        call: impl AsyncFn(Client, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Failure> {
        let mut failed = Vec::new();
        loop {
            let (left, Replica { url, client }) = self.replica();
            let answer = limited(call(client.clone(), timed(request.clone()))).await;
            let status = match answer {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            let failure = Failure::of_call(what, url, &status);
            if !leaves_open(&status) {
                return Err(failure);
            }
            failed.push(failure);
            self.turn_from(left);
            if failed.len() >= self.replicas.len() {
                return Err(Failure::of_all(failed));
            }
        }
    }

    /// What a write that was not confirmed means for a command that was to do `what`.
    pub fn write_failure(&self, what: &str, unwritten: &Unwritten) -> Failure {
        if unwritten.outcome_unknown {
            Failure::of_unknown_outcome(what, self.url(), &unwritten.status)
        } else {
            self.failure(what, &unwritten.status)
        }
    }

    /// A call that is repeated for a few seconds, and at each replica once at least,
    /// while the server is away or does not answer in time. The request holds a
    /// request id, so that it is done once all the same.
    pub async fn write<Q: Clone, A>(
        &self,
        request: Q,
        call: impl AsyncFn(Client, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Unwritten> {
        let mut first_failure = None;
        let (mut sent, mut tried) = (false, 0);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        loop {
            let (left, Replica { client, .. }) = self.replica();
            let answer = limited(call(client.clone(), timed(request.clone()))).await;
            let status = match answer {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            if !leaves_open(&status) {
                return Err(Unwritten {
                    outcome_unknown: sent && !knows_outcome(&status),
                    status,
                });
            }
            sent |= !is_unsent(&status);
            tried += 1;
            let since = first_failure.get_or_insert_with(Instant::now);
            let pause = backoff.pause(rand::random());
            if tried >= self.replicas.len() && since.elapsed() + pause > RETRY_LIMIT {
                return Err(Unwritten {
                    status,
                    outcome_unknown: sent,
                });
            }
            self.turn_from(left);
            tokio::time::sleep(pause).await;
        }
    }

    /// All resources of a kind, or of all kinds.
    pub async fn list(&self, kind: Option<Kind>) -> Result<Listed, Failure> {
        let what = match kind {
            Some(kind) => format!("list {}", kind.plural()),
            None => "list what is declared".to_owned(),
        };
        let mut listed = Listed::default();
        let mut page_token = String::new();
        loop {
            let request = v1::ListRequest {
                kind: kind.map_or(0, |kind| write_kind(kind).into()),
                page_size: PAGE,
                page_token,
            };
            let call = async |mut client: Client, request| client.list(request).await;
            let page = self.read(&what, request, call).await?;
            listed.resources.extend(page.resources);
            listed.revision = page.revision;
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(listed);
            }
        }
    }

    /// The nodes of a role, or of both.
    pub async fn nodes(&self, role: v1::NodeRole) -> Result<v1::ListNodesResponse, Failure> {
        let request = v1::ListNodesRequest { role: role.into() };
        let call = async |mut client: Client, request| client.list_nodes(request).await;
        self.read("list edges and balancers", request, call).await
    }
}

pub fn timed<Q>(message: Q) -> Request<Q> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}

/// The deadline in the request is the server's to honour; a server that is
/// stuck does not.
pub async fn limited<A>(
    call: impl Future<Output = Result<Response<A>, Status>>,
) -> Result<A, Status> {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(answer) => answer.map(Response::into_inner).map_err(broken_off),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

/// A connection that breaks in the middle of a call is told as `Unknown`, and one
/// that breaks before the call's turn comes as `Cancelled`. To the user and to a
/// repetition it is a server that cannot be reached. What a server itself answers
/// has no source.
fn broken_off(status: Status) -> Status {
    let broke = match status.code() {
        Code::Unknown => status.source().is_some(),
        Code::Cancelled => is_unsent(&status),
        _ => false,
    };
    if !broke {
        return status;
    }
    let mut unreachable = Status::unavailable(status.message());
    unreachable.set_source(Arc::new(status));
    unreachable
}

/// Whether who answers a repetition with this would have known of the write, had
/// it been stored: it looked at the state. Others may just not let it in.
fn knows_outcome(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::Aborted | Code::FailedPrecondition | Code::NotFound
    )
}

/// Whether a write may be stored although it was answered with this.
fn leaves_open(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
    )
}

/// Whether there was no connection to send the request over: none could be had, or
/// it was lost before the request's turn came, which hyper tells as cancelled.
fn is_unsent(status: &Status) -> bool {
    causes(status).any(|error| {
        let http = error.downcast_ref::<hyper::Error>();
        error.is::<ConnectError>() || http.is_some_and(hyper::Error::is_canceled)
    })
}

/// The source of a status, and the source of that, and so on.
pub fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |&error| error.source())
}

/// Says that several requests are one write.
pub fn request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Who writes, for the history: the user and the machine.
pub fn author() -> String {
    let uid = nix::unistd::getuid();
    let named = || Some(nix::unistd::User::from_uid(uid).ok()??.name);
    let user = std::env::var("USER").ok().or_else(named);
    let user = user.unwrap_or_else(|| uid.to_string());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host
        .as_deref()
        .map(str::trim)
        .filter(|host| !host.is_empty());
    match host {
        Some(host) => format!("{user}@{host}"),
        None => user,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http::Request;
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_request_whose_connection_was_lost_before_its_turn_is_unsent() {
        let (ours, theirs) = tokio::io::duplex(1);
        let connected = http1::handshake::<_, String>(TokioIo::new(ours)).await;
        let (mut sender, connection) = connected.unwrap();
        drop((connection, theirs));
        let lost = sender.send_request(Request::default()).await.unwrap_err();
        let lost = broken_off(Status::from_error(lost.into()));
        assert_eq!(lost.code(), Code::Unavailable);
        assert!(is_unsent(&lost));

        let (ours, mut theirs) = tokio::io::duplex(1024);
        let connected = http1::handshake::<_, String>(TokioIo::new(ours)).await;
        let (mut sender, connection) = connected.unwrap();
        tokio::spawn(connection);
        let sent = tokio::spawn(sender.send_request(Request::default()));
        theirs.read_u8().await.unwrap();
        drop(theirs);
        let lost = sent.await.unwrap().unwrap_err();
        assert!(!is_unsent(&Status::from_error(lost.into())));
    }

    #[test]
    fn a_connection_that_breaks_is_a_server_that_cannot_be_reached() {
        let broken = Status::from_error("broken pipe".into());
        assert_eq!(
            (broken.code(), broken.source().is_some()),
            (Code::Unknown, true)
        );
        let told = broken_off(broken);
        assert_eq!(told.code(), Code::Unavailable);
        assert!(
            told.source().is_some(),
            "or it would be the server's own answer"
        );
        let answered = broken_off(Status::unknown("out of memory"));
        assert_eq!(answered.code(), Code::Unknown);
    }
}
