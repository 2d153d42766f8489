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
use anyport_node::identity::Identity;
use etcd_client::{Client, ConnectOptions};
use tokio::time::Instant;
use tonic::Code;

use crate::store::{EtcdUrl, StoreError};

/// Of one request at one member. A member that is cut off from the others, or
/// lost its power, says nothing at all.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(2);
/// Of one request at all of them: an election takes a second or two.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two rounds.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Watches are quiet for hours; without the question a member that lost its
/// power would never be missed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

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
    /// The client cannot be made of them.
    #[error("--store etcd://{}: cannot be used: {source}", members.join(","))]
    Unusable {
        /// As given.
        members: Vec<String>,
        /// What the client said.
        source: etcd_client::Error,
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
    client: Client,
}

/// One of the members.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(usize);

/// The members of the cluster; each is dialled with its first request. TLS where
/// the identity has it.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(url: &EtcdUrl, identity: &Identity) -> Result<Members, ConnectError> {
    let all = || url.members().to_vec();
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT)
        .with_keep_alive_while_idle(true)
        // A member that lost its leader says so, and ends its watches, so that
        // another member can be asked.
        .with_require_leader(true);
    match identity.client_tls() {
        Some(tls) => options = options.with_tls(tls),
        None if url.is_loopback() || identity.is_insecure() => {}
        None => return Err(ConnectError::ClearText { members: all() }),
    }
    let mut members = Vec::new();
    for name in all() {
        let client = Client::connect([&name], Some(options.clone())).await;
        let client = client.map_err(|source| ConnectError::Unusable {
            members: all(),
            source,
        })?;
        members.push(Member { name, client });
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
    fn silent(&self, action: &'static str, limit: Duration) -> StoreError {
        let said = format!("etcd at {} did not answer within {limit:.1?}", self.name);
        StoreError::unavailable(action, said)
    }

    fn failed(&self, action: &'static str, error: etcd_client::Error) -> StoreError {
        let said = format!("etcd at {}: {}", self.name, said_by(&error));
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
    match innermost {
        Some(cause) => format!("{}: {cause}", status.message()),
        None => status.message().to_owned(),
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
