//! Asks the config service which balancers there are, and each of them what it says.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyport_model::{backoff::Backoff, fence::Fence, names::NodeName};
use anyport_node::{
    access::Role,
    identity::Identity,
    rpc::{Endpoint, ServerUrl},
};
use anyport_proto::{
    convert::read_balancer_set,
    v1::{
        self, balancer_service_client::BalancerServiceClient,
        discovery_service_client::DiscoveryServiceClient,
    },
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tonic::Status;

use super::{Heard, Set};
use crate::driver::Handle;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A balancer says at least once a second that it is there. One that has not for
/// so long may have been stopped, and what it said last is not believed any more.
const SILENT_MAX: Duration = Duration::from_secs(5);
/// To be connected and to say the first thing.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// 100,000 origins.
const UPDATE_MAX: usize = 64 << 20;

/// Keeps the driver told of who takes part, and of what they say. Without end, and
/// without a config service with what it said last.
pub(crate) async fn follow(
    replicas: Vec<Endpoint>,
    me: NodeName,
    identity: Identity,
    (driver, superseded): (Handle, watch::Receiver<Option<u64>>),
) -> &'static str {
    let mut following = Following {
        me,
        identity,
        driver,
        superseded,
        fence: Fence::default(),
        tasks: JoinSet::new(),
        followed: BTreeMap::new(),
    };
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    for replica in replicas.iter().cycle() {
        let mut was_told = false;
        let status = following.ask(replica, &mut was_told).await;
        tracing::debug!(
            reason = status.message(),
            "not told any more which balancers there are"
        );
        if was_told {
            following.fence.left(Instant::now());
        }
        if was_told && following.superseded.borrow().is_none() {
            backoff.reset();
        }
        tokio::time::sleep(backoff.pause(rand::random())).await;
    }
    "the list of balancers"
}

struct Following {
    me: NodeName,
    identity: Identity,
    driver: Handle,
    superseded: watch::Receiver<Option<u64>>,
    /// A replica that is cut off from its store knows an older set only.
    fence: Fence,
    /// Tasks end with this.
    tasks: JoinSet<()>,
    followed: BTreeMap<NodeName, (String, AbortHandle)>,
}

impl Following {
    /// Why it ended: a list of balancers has no end of its own.
    async fn ask(&mut self, replica: &Endpoint, was_told: &mut bool) -> Status {
        let request = v1::WatchBalancersRequest {
            name: self.me.to_string(),
        };
        let asked = timeout(FIRST_WORD, async {
            let mut client = DiscoveryServiceClient::new(replica.connect().await?);
            Ok::<_, Status>(client.watch_balancers(request).await?.into_inner())
        });
        let mut sets = match asked.await {
            Ok(Ok(sets)) => sets,
            Ok(Err(status)) => return status,
            Err(_) => return Status::deadline_exceeded("it does not answer"),
        };
        loop {
            let next = tokio::select! {
                next = sets.message() => next,
                () = left_behind(&mut self.superseded) => {
                    return Status::unavailable("other balancers were told of a later set");
                }
            };
            match next {
                Ok(Some(set)) => {
                    if let Err(older) = self.fence.offer(set.epoch, Instant::now()) {
                        return Status::failed_precondition(older.to_string());
                    }
                    let set = match read_balancer_set(set) {
                        Ok(set) => Set::from(set),
                        Err(fault) => {
                            return Status::internal(format!("the set is unreadable: {fault}"));
                        }
                    };
                    *was_told = true;
                    self.driver.take_part(self.me.clone(), set.clone()).await;
                    self.follow(&set).await;
                }
                Ok(None) => return Status::unavailable("the stream ended"),
                Err(status) => return status,
            }
        }
    }

    /// Follows exactly the others of the set.
    async fn follow(&mut self, set: &Set) {
        let wanted: BTreeMap<_, _> = set.peers(&self.me).collect();
        let left: Vec<_> = self
            .followed
            .extract_if(.., |name, (url, _)| wanted.get(name) != Some(&url.as_str()))
            .collect();
        for (name, (_, task)) in left {
            self.end(&task).await;
            // What it said elsewhere counts no more; the task cannot say so.
            self.driver.unheard(name).await;
        }
        while self.tasks.try_join_next().is_some() {}
        for (name, url) in wanted {
            if self.followed.contains_key(name) {
                continue;
            }
            let endpoint = url.parse::<ServerUrl>().map_err(|error| error.to_string());
            let endpoint = endpoint.and_then(|url| {
                let endpoint = Endpoint::new(&url, &self.identity, Role::Balancer);
                endpoint.map_err(|error| error.to_string())
            });
            let peer = match endpoint {
                Ok(endpoint) => Peer {
                    name: name.clone(),
                    me: self.me.clone(),
                    endpoint,
                    driver: self.driver.clone(),
                },
                Err(error) => {
                    tracing::warn!(balancer = %name, "cannot be asked what it sees: {error}");
                    continue;
                }
            };
            let task = self.tasks.spawn(peer.follow());
            self.followed.insert(name.clone(), (url.to_owned(), task));
        }
    }

    /// Returns when the task is gone: until then another thread may be at it, and pass
    /// on what was heard.
    async fn end(&mut self, task: &AbortHandle) {
        task.abort();
        while !task.is_finished() && self.tasks.join_next().await.is_some() {}
    }
}

/// Returns when others know a later set, and this replica has had the time to tell.
async fn left_behind(superseded: &mut watch::Receiver<Option<u64>>) {
    loop {
        // Cannot end: the driver lives as long as its handles.
        let _ = superseded.wait_for(Option::is_some).await;
        tokio::time::sleep(LONGEST_PAUSE).await;
        if superseded.borrow().is_some() {
            return;
        }
    }
}

struct Peer {
    name: NodeName,
    me: NodeName,
    endpoint: Endpoint,
    driver: Handle,
}

impl Peer {
    async fn follow(self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut is_known_gone = false;
        loop {
            let mut was_heard = false;
            let status = self.hear(&mut was_heard).await;
            if was_heard {
                backoff.reset();
                self.driver.unheard(self.name.clone()).await;
            }
            if was_heard || !is_known_gone {
                let reason = status.message();
                tracing::warn!(balancer = %self.name, reason, "does not say what it sees");
            }
            is_known_gone = true;
            tokio::time::sleep(backoff.pause(rand::random())).await;
        }
    }

    /// Why it ended.
    async fn hear(&self, was_heard: &mut bool) -> Status {
        let request = v1::WatchVerdictsRequest {
            balancer: self.me.to_string(),
        };
        let asked = timeout(FIRST_WORD, async {
            let channel = self.endpoint.connect().await?;
            let client = BalancerServiceClient::new(channel);
            let mut client = client.max_decoding_message_size(UPDATE_MAX);
            Ok::<_, Status>(client.watch_verdicts(request).await?.into_inner())
        });
        let mut updates = match asked.await {
            Ok(Ok(updates)) => updates,
            Ok(Err(status)) => return status,
            Err(_) => return Status::deadline_exceeded("it does not answer"),
        };
        loop {
            let next = timeout(
                if *was_heard { SILENT_MAX } else { FIRST_WORD },
                updates.message(),
            );
            let update = match next.await {
                Ok(Ok(Some(update))) => update,
                Ok(Ok(None)) => return Status::unavailable("the stream ended"),
                Ok(Err(status)) => return status,
                Err(_) => return Status::deadline_exceeded("it is silent"),
            };
            if update.balancer != self.name.as_str() {
                let other = update.balancer;
                return Status::failed_precondition(format!("another one is there: {other:?}"));
            }
            match Heard::read(update) {
                Ok(heard) => self.driver.heard(self.name.clone(), heard).await,
                Err(fault) => return Status::internal(format!("it is unreadable: {fault}")),
            }
            if !std::mem::replace(was_heard, true) {
                tracing::info!(balancer = %self.name, "says what it sees");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;

    use anyport_node::{metrics::Registry, ready::Readiness};
    use futures_util::FutureExt;
    use tokio::{pin, sync::oneshot};

    use super::*;
    use crate::{driver::Driver, metrics::Metrics, probe::Opener};

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_a_peer_is_heard_to_say_while_its_task_is_ended_does_not_stay() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let (mut driver, handle, published) =
            Driver::new(Opener::new().unwrap(), metrics, &Readiness::new());
        let [me, peer]: [NodeName; 2] = ["me", "peer"].map(|name| name.parse().unwrap());
        // It takes part, but can be asked nowhere any more.
        let set = Set {
            epoch: 1,
            members: [&me, &peer]
                .map(|name| (name.clone(), String::new()))
                .into(),
        };
        handle.take_part(me.clone(), set.clone()).await;
        let mut following = Following {
            me,
            identity: Identity::none(),
            driver: handle.clone(),
            superseded: published.superseded,
            fence: Fence::default(),
            tasks: JoinSet::new(),
            followed: BTreeMap::new(),
        };
        let (polled, is_polled) = oneshot::channel();
        let (go_on, goes_on) = mpsc::channel();
        let name = peer.clone();
        let task = following.tasks.spawn(async move {
            polled.send(()).unwrap();
            // Held up by the system, so to speak, on its thread.
            goes_on.recv().unwrap();
            handle.heard(name, Heard::default()).await;
        });
        let before = "http://peer:7410".to_owned();
        following.followed.insert(peer, (before, task));
        is_polled.await.unwrap();
        {
            let ending = following.follow(&set);
            pin!(ending);
            let was_early = ending.as_mut().now_or_never().is_some();
            go_on.send(()).unwrap();
            if !was_early {
                ending.await;
            }
        }
        while following.tasks.join_next().await.is_some() {}
        assert_eq!(driver.peers_heard(), 0);
    }
}
