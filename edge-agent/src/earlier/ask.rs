//! Calls to one earlier agent.

use std::{io, path::Path, time::Duration};

use anyport_proto::{
    convert::write_duration,
    v1::{
        self, edge_service_client::EdgeServiceClient,
        finishing_service_client::FinishingServiceClient,
    },
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::timeout;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use crate::live::{Drained, Ordered};

/// They are on this host and have little to do.
const PATIENCE: Duration = Duration::from_secs(5);

/// What an earlier agent has open.
#[derive(Debug, Clone, Copy)]
pub struct Has {
    pub open: u64,
    pub transparent: u64,
}

/// Connects when it is first used.
pub fn channel(path: &Path) -> io::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", path.display()));
    Ok(endpoint.map_err(io::Error::other)?.connect_lazy())
}

pub async fn has(channel: Channel) -> Result<Has, Status> {
    let mut client = EdgeServiceClient::new(channel);
    let status = limited(client.get_status(v1::GetStatusRequest {})).await?;
    Ok(Has {
        open: status.open_connections,
        transparent: status.transparent_connections,
    })
}

/// Returns once it obeys.
pub async fn order(channel: Channel, ordered: &Ordered) -> Result<(), Status> {
    let mut client = FinishingServiceClient::new(channel);
    limited(client.obey(write_orders(ordered))).await?;
    Ok(())
}

pub async fn limited<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    let answer = timeout(PATIENCE, call).await;
    let answer = answer.map_err(|_| Status::deadline_exceeded("it does not answer"))?;
    Ok(answer?.into_inner())
}

/// Nobody listens there any more, and then it is no longer there.
pub fn is_gone(path: &Path) -> bool {
    // The queue of one that hangs may be full, which is no reason to wait.
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    match connect() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let _ = std::fs::remove_file(path);
            true
        }
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(()) => false,
    }
}

fn write_orders(ordered: &Ordered) -> v1::ObeyRequest {
    v1::ObeyRequest {
        close: ordered.close.iter().map(ToString::to_string).collect(),
        drain: ordered.drain.as_ref().map(write_drain),
        id: ordered.id.0,
    }
}

fn write_drain(drain: &Drained) -> v1::DrainWindows {
    let apps = drain.windows.of_apps.iter();
    v1::DrainWindows {
        apps: apps
            .map(|(name, window)| (name.to_string(), write_duration(*window)))
            .collect(),
        limit: drain.windows.limit.map(write_duration),
        since: drain.since.map_or(0, |since| since.0),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn one_that_hangs_is_neither_gone_nor_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(is_gone(&path));
        let hung = UnixListener::bind(&path).unwrap();
        // More than wait in its queue.
        for _ in 0..5000 {
            assert!(!is_gone(&path));
        }
        drop(hung);
        assert!(is_gone(&path));
        assert!(!path.exists(), "it is cleared away");
    }
}
