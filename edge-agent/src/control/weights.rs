//! Follows the balancer's weights; without a balancer the last ones stay.

use std::{collections::BTreeSet, time::Duration};

use anyport_model::{backoff::Backoff, names::PoolName};
use anyport_node::rpc::Channel;
use anyport_proto::{
    convert::read_pool_weights,
    v1::{self, balancer_service_client::BalancerServiceClient},
};
use tokio::sync::watch;
use tonic::Status;

use super::configuration::SharedTable;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// 10,000 pools of 100 origins.
const UPDATE_MAX: usize = 64 << 20;

/// The balancer that this edge follows now; reports go to the same one.
pub type Balancer = Option<BalancerServiceClient<Channel>>;

/// Follows one balancer after the other, without end. Each is known by a
/// channel that connects when it is used.
pub async fn follow_weights(
    balancers: Vec<Channel>,
    edge: String,
    table: SharedTable,
    followed: watch::Sender<Balancer>,
) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    for channel in balancers.iter().cycle() {
        let client =
            BalancerServiceClient::new(channel.clone()).max_decoding_message_size(UPDATE_MAX);
        let mut session = Session {
            table: &table,
            followed: &followed,
            following: false,
        };
        let status = session.follow(client, &edge).await;
        if session.following {
            tracing::warn!(
                reason = status.message(),
                "the balancer is gone; its last weights stay"
            );
            backoff.reset();
        }
        followed.send_replace(None);
        tokio::time::sleep(backoff.pause(rand::random())).await;
    }
}

struct Session<'a> {
    table: &'a SharedTable,
    followed: &'a watch::Sender<Balancer>,
    following: bool,
}

impl Session<'_> {
    /// Why it ended: a stream of weights has no end of its own.
    async fn follow(&mut self, mut client: BalancerServiceClient<Channel>, edge: &str) -> Status {
        let request = v1::WatchWeightsRequest {
            edge: edge.to_owned(),
        };
        let mut updates = match client.watch_weights(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return status,
        };
        loop {
            match updates.message().await {
                Ok(Some(update)) => {
                    self.take(update);
                    if !self.following {
                        self.following = true;
                        tracing::info!("following the balancer's weights");
                        self.followed.send_replace(Some(client.clone()));
                    }
                }
                Ok(None) => return Status::unavailable("the stream ended"),
                Err(status) => return status,
            }
        }
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
