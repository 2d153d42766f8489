//! Follows the balancer's weights; without a balancer the last ones stay.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyport_model::{
    backoff::Backoff,
    fence::{Fence, Older},
    names::PoolName,
};
use anyport_node::rpc::Channel;
use anyport_proto::{
    convert::read_pool_weights,
    v1::{self, balancer_service_client::BalancerServiceClient},
};
use tokio::sync::watch;
use tonic::Status;

use super::configuration::SharedTable;
use crate::stats::Stats;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A balancer holds its weights back for up to 60 s after its start, until it
/// has verdicts. One that is silent for longer has nothing to tell.
const FIRST_UPDATE: Duration = Duration::from_secs(75);
/// 10,000 pools of 100 origins.
const UPDATE_MAX: usize = 64 << 20;

/// Follows one balancer after the other, without end. Each is known by a
/// channel that connects when it is used. `followed` says whether there is one.
pub async fn follow_weights(
    balancers: Vec<Channel>,
    edge: String,
    (table, stats): (SharedTable, Arc<Stats>),
    followed: watch::Sender<bool>,
) {
    let follower = Follower {
        edge,
        table,
        stats,
        followed,
        fence: Fence::default(),
        first_update: FIRST_UPDATE,
    };
    follower.follow_in_turn(balancers).await;
}

struct Follower {
    edge: String,
    table: SharedTable,
    stats: Arc<Stats>,
    followed: watch::Sender<bool>,
    fence: Fence,
    /// How long a balancer may take to answer at first.
    first_update: Duration,
}

impl Follower {
    async fn follow_in_turn(mut self, balancers: Vec<Channel>) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        for channel in balancers.iter().cycle() {
            let client =
                BalancerServiceClient::new(channel.clone()).max_decoding_message_size(UPDATE_MAX);
            let status = self.follow(client).await;
            if self.followed.send_replace(false) {
                self.fence.left(Instant::now());
                tracing::warn!(
                    reason = status.message(),
                    "the balancer is gone; its last weights stay"
                );
                backoff.reset();
            }
            tokio::time::sleep(backoff.pause(rand::random())).await;
        }
    }

    /// Why it ended: a stream of weights has no end of its own.
    async fn follow(&mut self, mut client: BalancerServiceClient<Channel>) -> Status {
        let request = v1::WatchWeightsRequest {
            edge: self.edge.clone(),
        };
        let first = tokio::time::timeout(self.first_update, async {
            let mut updates = client.watch_weights(request).await?.into_inner();
            let first = updates.message().await?;
            Ok((updates, first))
        });
        let (mut updates, mut next) = match first.await {
            Ok(Ok((updates, first))) => (updates, first),
            Ok(Err(status)) => return status,
            Err(_) => return Status::deadline_exceeded("the balancer sends no weights"),
        };
        while let Some(update) = next {
            if let Err(older) = self.fence.offer(update.epoch, Instant::now()) {
                return self.refuse(&update.balancer, older);
            }
            let balancer = update.balancer.clone();
            self.take(update);
            if !self.followed.send_replace(true) {
                tracing::info!(balancer, "following the balancer's weights");
            }
            next = match updates.message().await {
                Ok(next) => next,
                Err(status) => return status,
            };
        }
        Status::unavailable("the stream ended")
    }

    fn refuse(&self, balancer: &str, older: Older) -> Status {
        self.stats.weights_refused.inc();
        if older.is_news {
            tracing::warn!(balancer, %older, "the balancer is left for the next");
        }
        Status::failed_precondition(older.to_string())
    }

    fn take(&self, update: v1::WeightsUpdate) {
        let mut weights = Vec::with_capacity(update.pools.len());
        for pool in update.pools {
            match read_pool_weights(pool) {
                Ok(read) => weights.push(read),
                Err(fault) => tracing::warn!(%fault, "weights of a pool are not used"),
            }
        }
        let removed = update
            .removed_pools
            .iter()
            .filter_map(|name| name.parse().ok());
        let removed: BTreeSet<PoolName> = removed.collect();
        let mut table = self.table.lock();
        if update.full {
            let named: BTreeSet<_> = weights.iter().map(|(name, _)| name.clone()).collect();
            table.retain_weights(|name| named.contains(name));
        } else {
            table.retain_weights(|name| !removed.contains(name));
        }
        table.weigh(weights);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyport_node::metrics::Registry;

    use super::{super::fake_balancer::FakeBalancer, *};
    use crate::table::TableWriter;

    /// Follows these, one after the other; the senders' other ends.
    async fn following(says: Vec<Vec<v1::WeightsUpdate>>) -> (Arc<Stats>, watch::Receiver<bool>) {
        let mut balancers = Vec::new();
        for says in says {
            balancers.push(FakeBalancer::start(says).await.channel());
        }
        let stats = Arc::new(Stats::new(&Registry::new()).unwrap());
        let (followed, follows) = watch::channel(false);
        let follower = Follower {
            edge: "edge-1".to_owned(),
            table: SharedTable::new(TableWriter::new(Arc::clone(&stats))),
            stats: Arc::clone(&stats),
            followed,
            fence: Fence::default(),
            first_update: Duration::from_millis(200),
        };
        tokio::spawn(follower.follow_in_turn(balancers));
        (stats, follows)
    }

    fn update(epoch: u64) -> v1::WeightsUpdate {
        v1::WeightsUpdate {
            full: true,
            epoch,
            ..Default::default()
        }
    }

    async fn within<T>(what: &str, done: impl Future<Output = T>) -> T {
        let done = tokio::time::timeout(Duration::from_secs(10), done);
        done.await.expect(what)
    }

    #[tokio::test]
    async fn a_balancer_that_never_says_anything_is_left_for_the_next() {
        let (_, mut follows) = following(vec![Vec::new(), vec![update(0)]]).await;
        let found = follows.wait_for(|following| *following);
        within("the second balancer is found", found).await.unwrap();
    }

    #[tokio::test]
    async fn a_balancer_of_an_older_epoch_is_left_for_the_next() {
        // The first falls behind, and the second always was.
        let says = [&[9, 8][..], &[7], &[9]];
        let says = says.map(|epochs| epochs.iter().copied().map(update).collect());
        let (stats, mut follows) = following(says.into()).await;
        let left = async {
            while stats.weights_refused.get() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("both are left", left).await;
        let found = follows.wait_for(|following| *following);
        within("the third is followed", found).await.unwrap();
        assert_eq!(stats.weights_refused.get(), 2);
    }
}
