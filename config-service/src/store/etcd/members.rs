//! The members of one cluster, asked in turn until one answers.

use std::{
    error::Error,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyport_model::backoff::Backoff;
use anyport_node::{
    identity::Identity,
    rpc::{Endpoint, Limits, ServerUrl},
};
use etcd_client::{Channel, Client, ConnectOptions};
use tokio::time::Instant;
use tonic::Code;

use crate::store::{EtcdUrl, StoreError};

/// Of one request at one member. A member that is cut off from the others, or
/// lost its power, says nothing at all.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(2);
/// Of one request at all of them: an election takes a second or two.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);
const LIMITS: Limits = Limits {
    connect: MEMBER_TIMEOUT,
    keepalive_interval: Duration::from_secs(5),
    keepalive_timeout: Duration::from_secs(3),
};
/// Between two rounds.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The flags do not make a client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Clear text would leave the host.
    #[error(
        "--store etcd://{}: refusing clear text beyond loopback; give --tls-cert, --tls-key and --tls-ca, or allow it with --insecure", members.join(",")
    )]
    ClearText {
        /// As given.
        members: Vec<String>,
    },
    /// A member cannot be dialled, whatever becomes of it.
    #[error("--store etcd://{member}: cannot be used: {source}")]
    Unusable {
        /// As given.
        member: String,
        /// What is wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Who can be asked. Clones share what is known of them.
#[derive(Clone)]
pub struct Members {
    shared: Arc<Shared>,
}

struct Shared {
    /// At least one; each a client of its own, so that it is known whom an
    /// answer came from.
    members: Vec<Member>,
    /// Who answered last.
    preferred: AtomicUsize,
}

struct Member {
    name: String,
    endpoint: Endpoint,
    client: Client,
}

/// One of the members.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(usize);

/// The members of the cluster; each is dialled with its first request. TLS where
/// the identity has it, with the certificates of the moment of dialling.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(url: &EtcdUrl, identity: &Identity) -> Result<Members, ConnectError> {
    if !identity.is_tls() && !url.is_loopback() && !identity.is_insecure() {
        let members = url.members().to_vec();
        return Err(ConnectError::ClearText { members });
    }
    let mut members = Vec::new();
    for name in url.members() {
        let member = Member::new(name, identity).await;
        members.push(member.map_err(|source| ConnectError::Unusable {
            member: name.clone(),
            source,
        })?);
    }
    // Replicas spread over them.
    let first = rand::random_range(0..members.len().max(1));
    Ok(Members {
        shared: Arc::new(Shared {
            members,
            preferred: AtomicUsize::new(first),
        }),
    })
}

impl Members {
    /// Asks one member after the other. `call` may be done several times, also
    /// where one before was carried out and only its answer was lost.
    ///
    /// # Errors
    /// Where a member refuses for a reason that all of them share; where none
    /// can be reached; where none answers in time.
    pub(super) async fn ask<T, F>(
        &self,
        action: &'static str,
        call: impl Fn(&Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.ask_whom(action, call).await.map(|(answer, _)| answer)
    }

    /// As [`ask`](Self::ask), and says who answered.
    pub(super) async fn ask_whom<T, F>(
        &self,
        action: &'static str,
        call: impl Fn(&Client) -> F,
    ) -> Result<(T, Place), StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut last = None;
        loop {
            let mut all_unreachable = true;
            for _ in &self.shared.members {
                let (place, member) = self.preferred();
                let limit = MEMBER_TIMEOUT.min(deadline - Instant::now());
                let error = match tokio::time::timeout(limit, call(&member.client)).await {
                    Ok(Ok(answer)) => return Ok((answer, place)),
                    Ok(Err(error)) if is_final(&error) => {
                        return Err(member.failed(action, error));
                    }
                    Ok(Err(error)) => {
                        all_unreachable &= is_unreachable(&error);
                        member.failed(action, error)
                    }
                    Err(_) => {
                        all_unreachable = false;
                        member.silent(action, limit)
                    }
                };
                self.distrust(place);
                last = Some(error);
                if Instant::now() >= deadline {
                    break;
                }
            }
            let pause = backoff.pause(rand::random());
            match last.take() {
                Some(error) if all_unreachable || Instant::now() + pause >= deadline => {
                    return Err(error);
                }
                _ => tokio::time::sleep(pause).await,
            }
        }
    }

    fn preferred(&self) -> (Place, &Member) {
        let Shared { members, preferred } = &*self.shared;
        let place = preferred.load(Ordering::Relaxed) % members.len();
        (Place(place), &members[place])
    }

    /// The next one is asked first from now on, unless that is so already.
    pub(super) fn distrust(&self, Place(place): Place) {
        let Shared { members, preferred } = &*self.shared;
        let next = (place + 1) % members.len();
        // Somebody else was first: as good.
        let _ = preferred.compare_exchange(place, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Member {
    async fn new(name: &str, identity: &Identity) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let scheme = if identity.is_tls() { "https" } else { "http" };
        let url: ServerUrl = format!("{scheme}://{name}").parse()?;
        let endpoint = Endpoint::foreign(&url, identity, LIMITS)?;
        // A member that lost its leader says so, and ends its watches, so that
        // another member can be asked.
        let options = ConnectOptions::new().with_require_leader(true);
        let channel = Channel::Tonic(endpoint.lazy());
        Ok(Self {
            name: name.to_owned(),
            client: Client::from_channel(channel, Some(options)).await?,
            endpoint,
        })
    }

    fn silent(&self, action: &'static str, limit: Duration) -> StoreError {
        let said = format!("etcd at {} did not answer within {limit:.1?}", self.name);
        StoreError::unavailable(action, said)
    }

    fn failed(&self, action: &'static str, error: etcd_client::Error) -> StoreError {
        // Of certificates the error itself says no more than that there was one.
        let said = self.endpoint.refusal().unwrap_or_else(|| said_by(&error));
        let said = format!("etcd at {}: {said}", self.name);
        StoreError::unavailable(
            action,
            EtcdError {
                said,
                source: error,
            },
        )
    }
}

/// Its own text is a dump of all its parts; what helps is the innermost cause.
fn said_by(error: &etcd_client::Error) -> String {
    let etcd_client::Error::GRpcStatus(status) = error else {
        return error.to_string();
    };
    if is_out_of_space(status) {
        return OUT_OF_SPACE.to_owned();
    }
    let mut innermost: Option<&dyn Error> = status.source();
    while let Some(source) = innermost.and_then(Error::source) {
        innermost = Some(source);
    }
    let message = status.message();
    match innermost.map(ToString::to_string) {
        Some(cause) if cause != message => format!("{message}: {cause}"),
        _ => message.to_owned(),
    }
}

/// The quota is full, and stays so until somebody does something.
const OUT_OF_SPACE: &str = "its database has reached its quota, so it takes no writes until there \
    is room: `etcdctl compact` a late revision, `etcdctl defrag` every member, then `etcdctl alarm \
    disarm`; or give every member a larger --quota-backend-bytes. With \
    --auto-compaction-retention=1h it stays small";

fn is_out_of_space(status: &tonic::Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message().contains("space exceeded")
}

/// Would every member say the same?
fn is_final(error: &etcd_client::Error) -> bool {
    match error {
        etcd_client::Error::GRpcStatus(status) => match status.code() {
            // "Too many requests" is another matter.
            Code::ResourceExhausted => is_out_of_space(status),
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::OutOfRange
            | Code::Unimplemented => true,
            _ => false,
        },
        etcd_client::Error::TransportError(_) => false,
        _ => true,
    }
}

/// Was there not even a connection?
fn is_unreachable(error: &etcd_client::Error) -> bool {
    let mut cause: Option<&dyn Error> = match error {
        etcd_client::Error::GRpcStatus(status) => status.source(),
        _ => None,
    };
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[derive(Debug, thiserror::Error)]
#[error("{said}")]
struct EtcdError {
    said: String,
    source: etcd_client::Error,
}
