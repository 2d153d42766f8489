//! The side of the agent that serves.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyport_proto::v1::{self, edge_service_client::EdgeServiceClient};
use tokio::{sync::watch, task::JoinSet};
use tonic::{Status, Streaming, transport::Channel};

use super::{
    ask::{Has, channel, has, is_gone, limited, order},
    socket_of, sockets,
};
use crate::{handover::Generations, live::Ordered};

/// How often they are looked for, and each is asked what it still has.
const LOOK: Duration = Duration::from_secs(1);

/// Those that still run. Clones share them.
#[derive(Clone, Default)]
pub struct Earlier(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Not looked for yet: the one before still serves, or this one has just
    /// started.
    expected: bool,
    /// The processes of those that handed over to this one or to one before it.
    generations: Generations,
    agents: BTreeMap<u32, Agent>,
    /// They were heard and listen no more; their processes end in a moment.
    ended: BTreeSet<u32>,
}

struct Agent {
    path: PathBuf,
    channel: Channel,
    /// What it last said that it has; none: it has not said it.
    has: Option<Has>,
    /// It did not answer last, which was said.
    is_silent: bool,
}

/// What one of them says.
pub enum Answer<T> {
    Said(T),
    /// It has nothing any more.
    Ended,
    /// It has, and does not say what.
    Missing(v1::MissingAgent),
}

impl State {
    /// It listens no more. One that was never heard may be yet to, as long as its
    /// process runs.
    fn has_ended(&self, number: u32) -> bool {
        self.agents.get(&number).is_none_or(|agent| {
            let may_listen_yet =
                agent.has.is_none() && self.generations.processes().contains(&number);
            !may_listen_yet && is_gone(&agent.path)
        })
    }
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

    /// A page of the connections of one of them.
    pub async fn list(
        &self,
        number: u32,
        request: v1::ListConnectionsRequest,
    ) -> Answer<v1::ListConnectionsResponse> {
        let Some(channel) = self.channel(number) else {
            return Answer::Ended;
        };
        let mut client = EdgeServiceClient::new(channel);
        self.answer(number, limited(client.list_connections(request)).await)
    }

    /// The events of one of them.
    pub async fn events(
        &self,
        number: u32,
        request: v1::StreamEventsRequest,
    ) -> Answer<Streaming<v1::StreamEventsResponse>> {
        let Some(channel) = self.channel(number) else {
            return Answer::Ended;
        };
        let mut client = EdgeServiceClient::new(channel);
        self.answer(number, limited(client.stream_events(request)).await)
    }

    fn answer<T>(&self, number: u32, said: Result<T, Status>) -> Answer<T> {
        match said {
            Ok(said) => Answer::Said(said),
            Err(status) => self.missing(number, status.message()),
        }
    }

    /// What stands for an answer that one of them did not give, or not whole.
    pub fn missing<T>(&self, number: u32, reason: &str) -> Answer<T> {
        if self.lock().has_ended(number) {
            return Answer::Ended;
        }
        tracing::warn!(
            agent = number,
            reason,
            "what an earlier agent has is not told"
        );
        Answer::Missing(v1::MissingAgent {
            pid: number,
            reason: reason.to_owned(),
        })
    }

    /// Finds those that listen in `directory`, whenever they begin to, and those
    /// of `generations`, which will. Asks each what it has and tells it what is
    /// ordered, until it has ended; one that hangs holds up no other. To be
    /// called once everything is this agent's.
    pub async fn follow(
        self,
        directory: PathBuf,
        generations: Generations,
        ordered: watch::Receiver<Ordered>,
    ) {
        self.lock().generations = generations;
        let mut followed = JoinSet::new();
        let mut is_blind = false;
        loop {
            let found = self.find(&directory);
            if let (Err(error), false) = (&found, is_blind) {
                tracing::error!(%error, "earlier agents are not found: what they still have is neither listed nor closed");
            }
            is_blind = found.is_err();
            for number in found.unwrap_or_default() {
                let one = self.clone().follow_one(number, ordered.clone());
                followed.spawn(one);
            }
            tokio::time::sleep(LOOK).await;
            while followed.try_join_next().is_some() {}
        }
    }

    /// Those that are new.
    fn find(&self, directory: &Path) -> io::Result<Vec<u32>> {
        let listening = sockets(directory)?;
        let mut state = self.lock();
        let running = state.generations.processes();
        state.ended.retain(|number| running.contains(number));
        let mut found: BTreeMap<u32, PathBuf> = BTreeMap::new();
        for number in running.difference(&state.ended) {
            found.insert(*number, socket_of(directory, *number));
        }
        for (number, path) in listening {
            if !state.agents.contains_key(&number) && !is_gone(&path) {
                found.insert(number, path);
            }
        }
        found.retain(|number, _| !state.agents.contains_key(number));
        for (number, path) in &found {
            let agent = Agent {
                channel: channel(path)?,
                path: path.clone(),
                has: None,
                is_silent: false,
            };
            state.agents.insert(*number, agent);
        }
        state.expected = false;
        Ok(found.into_keys().collect())
    }

    /// An order is repeated until it is acknowledged, or there is a newer one,
    /// which waits for nothing.
    async fn follow_one(self, number: u32, mut ordered: watch::Receiver<Ordered>) {
        let Some(channel) = self.channel(number) else {
            return;
        };
        let mut obeyed = None;
        loop {
            let wanted = ordered.borrow_and_update().clone();
            let visit = async {
                if obeyed != Some(wanted.id) {
                    order(channel.clone(), &wanted).await?;
                    obeyed = Some(wanted.id);
                }
                has(channel.clone()).await
            };
            let changed = tokio::select! {
                visited = visit => {
                    if !self.hear(number, visited) {
                        return;
                    }
                    tokio::select! {
                        changed = ordered.changed() => changed,
                        () = tokio::time::sleep(LOOK) => Ok(()),
                    }
                }
                changed = ordered.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    fn channel(&self, number: u32) -> Option<Channel> {
        let state = self.lock();
        state.agents.get(&number).map(|agent| agent.channel.clone())
    }

    /// False where it has ended.
    fn hear(&self, number: u32, said: Result<Has, Status>) -> bool {
        let mut state = self.lock();
        if said.is_err() && state.has_ended(number) {
            state.agents.remove(&number);
            state.ended.insert(number);
        }
        let Some(agent) = state.agents.get_mut(&number) else {
            return false;
        };
        match said {
            Ok(has) => {
                agent.has = Some(has);
                agent.is_silent = false;
            }
            // It is slow to let go, or about to end.
            Err(_) if is_gone(&agent.path) => {}
            Err(status) if !agent.is_silent => {
                agent.is_silent = true;
                tracing::warn!(
                    agent = number,
                    reason = status.message(),
                    "an earlier agent cannot be asked; it is asked again"
                );
            }
            Err(_) => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    fn pass(earlier: &Earlier, number: u32) -> bool {
        earlier.hear(number, Err(Status::unavailable("nobody is there")))
    }

    #[tokio::test]
    async fn one_that_is_slow_to_let_go_is_expected_until_it_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut slow = Command::new("sleep").arg("60").spawn().unwrap();
        let number = slow.id();
        let earlier = Earlier::expected();
        assert!(earlier.may_be_transparent());
        let generations = Generations::default();
        generations.add_peer(number.try_into().unwrap()).unwrap();
        earlier.lock().generations = generations.clone();
        assert_eq!(earlier.find(directory.path()).unwrap(), [number]);
        assert!(earlier.find(directory.path()).unwrap().is_empty());
        for _ in 0..2 {
            assert!(pass(&earlier, number));
            assert_eq!((earlier.open(), earlier.may_be_transparent()), (1, true));
        }
        // Once it was heard, that it listens no more is its end.
        let has = Has {
            open: 7,
            transparent: 0,
        };
        assert!(earlier.hear(number, Ok(has)));
        assert_eq!((earlier.open(), earlier.may_be_transparent()), (7, false));
        assert!(!pass(&earlier, number));
        assert!(earlier.find(directory.path()).unwrap().is_empty());
        assert_eq!(earlier.open(), 0);
        // Another one that ends without ever having listened.
        earlier.lock().ended.clear();
        assert_eq!(earlier.find(directory.path()).unwrap(), [number]);
        slow.kill().unwrap();
        slow.wait().unwrap();
        while !generations.processes().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!pass(&earlier, number));
        assert_eq!(earlier.next(0), None);
    }
}
