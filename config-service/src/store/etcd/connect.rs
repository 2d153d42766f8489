//! One etcd client for everything, and what its errors mean to us.

use std::{error::Error, future::Future, time::Duration};

use anyport_node::identity::Identity;
use etcd_client::{Client, ConnectOptions};

use crate::store::{EtcdUrl, StoreError};

/// Of one request with its answer. The client would wait for a member to come
/// back for as long as it takes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
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

/// A client for the cluster; it dials with the first request. TLS where the
/// identity has it.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(url: &EtcdUrl, identity: &Identity) -> Result<Client, ConnectError> {
    let members = url.members().to_vec();
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT)
        .with_keep_alive_while_idle(true)
        // A member that lost its leader ends its watches, so that another
        // member can be asked.
        .with_require_leader(true);
    match identity.client_tls() {
        Some(tls) => options = options.with_tls(tls),
        None if url.is_loopback() || identity.is_insecure() => {}
        None => return Err(ConnectError::ClearText { members }),
    }
    let client = Client::connect(&members, Some(options)).await;
    client.map_err(|source| ConnectError::Unusable { members, source })
}

/// Waits for an answer, but not for ever.
pub(super) async fn answered<T>(
    action: &'static str,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failed(action, error)),
        Err(_) => Err(StoreError::unavailable(
            action,
            format!("etcd did not answer within {} s", REQUEST_TIMEOUT.as_secs()),
        )),
    }
}

/// An error of the client. Its own text is a dump of all its parts; what helps
/// is the innermost cause.
pub(super) fn failed(action: &'static str, error: etcd_client::Error) -> StoreError {
    let said = match &error {
        etcd_client::Error::GRpcStatus(status) => format!("etcd: {}", said_by(status)),
        other => format!("etcd: {other}"),
    };
    StoreError::unavailable(
        action,
        EtcdError {
            said,
            source: error,
        },
    )
}

#[derive(Debug, thiserror::Error)]
#[error("{said}")]
struct EtcdError {
    said: String,
    source: etcd_client::Error,
}

fn said_by(status: &tonic::Status) -> String {
    let mut innermost: Option<&dyn Error> = status.source();
    while let Some(source) = innermost.and_then(Error::source) {
        innermost = Some(source);
    }
    match innermost {
        Some(cause) => format!("{}: {cause}", status.message()),
        None => status.message().to_owned(),
    }
}
