//! The side of the agent that serves.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyport_proto::{
    convert::write_duration,
    v1::{
        self, edge_service_client::EdgeServiceClient,
        finishing_service_client::FinishingServiceClient,
    },
};
use futures_util::future::join_all;
use tokio::{sync::watch, time::timeout};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::sockets;
use crate::live::{NamedWindows, Ordered};

/// How often each is asked what it still has.
const LOOK: Duration = Duration::from_secs(1);
/// They are on this host and have little to do.
const PATIENCE: Duration = Duration::from_secs(5);

/// Those that still run. Clones share them.
#[derive(Clone, Default)]
pub struct Earlier(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Not found yet: the one before still serves, or this one has just started.
    expected: bool,
    agents: BTreeMap<u32, Agent>,
}

struct Agent {
    path: PathBuf,
    channel: Channel,
    /// What it last said that it has; none: it has not said it.
    has: Option<Has>,
    /// What it was last told.
    told: Option<Ordered>,
    /// It did not answer last, which was said.
    is_silent: bool,
}

#[derive(Clone, Copy)]
struct Has {
    open: u64,
    transparent: u64,
}

impl Earlier {
    /// Of an agent that does not know them yet.
    pub fn expected() -> Self {
        let state = State {
            expected: true,
            ..State::default()
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections that they have; one that does not say counts as one.
    pub fn open(&self) -> u64 {
        let state = self.lock();
        let has = state.agents.values().map(|agent| agent.has);
        has.map(|has| has.map_or(1, |has| has.open)).sum()
    }

    /// Whether one of them may have a connection that its origin sees as the
    /// client's own.
    pub fn may_be_transparent(&self) -> bool {
        let state = self.lock();
        let mut has = state.agents.values().map(|agent| agent.has);
        state.expected || has.any(|has| has.is_none_or(|has| has.transparent > 0))
    }

    /// The first of those after this one.
    pub fn next(&self, after: u32) -> Option<u32> {
        let state = self.lock();
        let mut later = state.agents.range(after.saturating_add(1)..);
        later.next().map(|(number, _)| *number)
    }

    /// A page of the connections of one of them; none where it cannot be asked,
    /// which it may have ended over.
    pub async fn list(
        &self,
        number: u32,
        request: v1::ListConnectionsRequest,
    ) -> Option<v1::ListConnectionsResponse> {
        let channel = self.lock().agents.get(&number)?.channel.clone();
        let mut client = EdgeServiceClient::new(channel);
        match limited(client.list_connections(request)).await {
            Ok(page) => Some(page),
            Err(status) => {
                tracing::warn!(
                    agent = number,
                    reason = status.message(),
                    "its connections are not listed"
                );
                None
            }
        }
    }

    /// The events of one of them, in the same way.
    pub async fn events(
        &self,
        number: u32,
        request: v1::StreamEventsRequest,
    ) -> Option<Streaming<v1::StreamEventsResponse>> {
        let channel = self.lock().agents.get(&number)?.channel.clone();
        let mut client = EdgeServiceClient::new(channel);
        match limited(client.stream_events(request)).await {
            Ok(stream) => Some(stream),
            Err(status) => {
                tracing::warn!(
                    agent = number,
                    reason = status.message(),
                    "its events are missing"
                );
                None
            }
        }
    }

    /// Finds those in `directory` that there are now, then asks them what they
    /// have and tells them what is ordered, until the last has ended. To be
    /// called once everything is this agent's.
    pub async fn follow(self, directory: PathBuf, mut ordered: watch::Receiver<Ordered>) {
        if let Err(error) = self.find(&directory) {
            tracing::error!(%error, "earlier agents are not found: what they still have is neither listed nor closed");
        }
        loop {
            let wanted = ordered.borrow_and_update().clone();
            let numbers: Vec<u32> = self.lock().agents.keys().copied().collect();
            if numbers.is_empty() {
                return;
            }
            join_all(numbers.iter().map(|number| self.visit(*number, &wanted))).await;
            tokio::select! {
                changed = ordered.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn find(&self, directory: &Path) -> io::Result<()> {
        let mut agents = BTreeMap::new();
        for (number, path) in sockets(directory)? {
            if is_gone(&path) {
                continue;
            }
            let agent = Agent {
                channel: channel(&path)?,
                path,
                has: None,
                told: None,
                is_silent: false,
            };
            agents.insert(number, agent);
        }
        *self.lock() = State {
            expected: false,
            agents,
        };
        Ok(())
    }

    async fn visit(&self, number: u32, wanted: &Ordered) {
        let Some((channel, path, obeys)) = self.lock().agents.get(&number).map(|agent| {
            let obeys = agent.told.as_ref() == Some(wanted);
            (agent.channel.clone(), agent.path.clone(), obeys)
        }) else {
            return;
        };
        let visited = visit(channel, (!obeys).then_some(wanted)).await;
        let is_gone = visited.is_err() && is_gone(&path);
        let mut state = self.lock();
        if is_gone {
            state.agents.remove(&number);
        }
        let Some(agent) = state.agents.get_mut(&number) else {
            return;
        };
        match &visited {
            Ok(has) => {
                agent.told = Some(wanted.clone());
                agent.has = Some(*has);
            }
            Err(status) if !agent.is_silent => tracing::warn!(
                agent = number,
                reason = status.message(),
                "an earlier agent cannot be asked; it is asked again"
            ),
            Err(_) => {}
        }
        agent.is_silent = visited.is_err();
    }
}

/// Tells an agent what is ordered, if that is new to it, and asks it what it has.
async fn visit(channel: Channel, order: Option<&Ordered>) -> Result<Has, Status> {
    if let Some(ordered) = order {
        let mut client = FinishingServiceClient::new(channel.clone());
        limited(client.obey(write_orders(ordered))).await?;
    }
    let mut client = EdgeServiceClient::new(channel);
    let status = limited(client.get_status(v1::GetStatusRequest {})).await?;
    Ok(Has {
        open: status.open_connections,
        transparent: status.transparent_connections,
    })
}

async fn limited<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    let answer = timeout(PATIENCE, call).await;
    let answer = answer.map_err(|_| Status::deadline_exceeded("it does not answer"))?;
    Ok(answer?.into_inner())
}

fn channel(path: &Path) -> io::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", path.display()));
    Ok(endpoint.map_err(io::Error::other)?.connect_lazy())
}

/// Nobody listens there any more, and then it is no longer there.
fn is_gone(path: &Path) -> bool {
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let _ = fs::remove_file(path);
            true
        }
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(_) => false,
    }
}

fn write_orders(ordered: &Ordered) -> v1::ObeyRequest {
    v1::ObeyRequest {
        close: ordered.close.iter().map(ToString::to_string).collect(),
        drain: ordered.drain.as_ref().map(write_windows),
    }
}

fn write_windows(windows: &NamedWindows) -> v1::DrainWindows {
    let apps = windows.of_apps.iter();
    v1::DrainWindows {
        apps: apps
            .map(|(name, window)| (name.to_string(), write_duration(*window)))
            .collect(),
        limit: windows.limit.map(write_duration),
    }
}
