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
/// A balancer holds its weights back for up to 60 s after its start, until it
/// has verdicts. One that is silent for longer has nothing to tell.
const FIRST_UPDATE: Duration = Duration::from_secs(75);
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
    follow_in_turn(balancers, edge, table, followed, FIRST_UPDATE).await;
}

async fn follow_in_turn(
    balancers: Vec<Channel>,
    edge: String,
    table: SharedTable,
    followed: watch::Sender<Balancer>,
    first_update: Duration,
) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    for channel in balancers.iter().cycle() {
        let client =
            BalancerServiceClient::new(channel.clone()).max_decoding_message_size(UPDATE_MAX);
        let mut session = Session {
            table: &table,
            followed: &followed,
            following: false,
            first_update,
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
    /// How long the balancer may take to answer at first.
    first_update: Duration,
}

impl Session<'_> {
    /// Why it ended: a stream of weights has no end of its own.
    async fn follow(&mut self, mut client: BalancerServiceClient<Channel>, edge: &str) -> Status {
        let request = v1::WatchWeightsRequest {
            edge: edge.to_owned(),
        };
        let watched = client.clone();
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
            self.take(update);
            if !self.following {
                self.following = true;
                tracing::info!("following the balancer's weights");
                self.followed.send_replace(Some(watched.clone()));
            }
            next = match updates.message().await {
                Ok(next) => next,
                Err(status) => return status,
            };
        }
        Status::unavailable("the stream ended")
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
    use std::{pin::Pin, sync::Arc};

    use anyport_node::{access::Role, identity::Identity, metrics::Registry, rpc::Urls};
    use anyport_proto::v1::balancer_service_server::{BalancerService, BalancerServiceServer};
    use tokio::net::TcpListener;
    use tokio_stream::{Stream, StreamExt, wrappers::TcpListenerStream};
    use tonic::{Request, Response, async_trait};

    use super::*;
    use crate::{stats::Stats, table::TableWriter};

    /// Answers, and then says this much.
    struct Speaker(Vec<v1::WeightsUpdate>);

    #[async_trait]
    impl BalancerService for Speaker {
        type WatchWeightsStream =
            Pin<Box<dyn Stream<Item = Result<v1::WeightsUpdate, Status>> + Send>>;

        async fn watch_weights(
            &self,
            _: Request<v1::WatchWeightsRequest>,
        ) -> Result<Response<Self::WatchWeightsStream>, Status> {
            let said = tokio_stream::iter(self.0.clone()).map(Ok);
            Ok(Response::new(Box::pin(said.chain(tokio_stream::pending()))))
        }

        async fn report_origins(
            &self,
            _: Request<v1::ReportOriginsRequest>,
        ) -> Result<Response<v1::ReportOriginsResponse>, Status> {
            Err(Status::unimplemented("not asked for"))
        }

        async fn get_health(
            &self,
            _: Request<v1::GetHealthRequest>,
        ) -> Result<Response<v1::GetHealthResponse>, Status> {
            Err(Status::unimplemented("not asked for"))
        }
    }

    async fn balancer(says: Vec<v1::WeightsUpdate>) -> Channel {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(BalancerServiceServer::new(Speaker(says)))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let urls: Urls = url.parse().unwrap();
        Channel::lazy(
            urls.iter().next().unwrap(),
            &Identity::none(),
            Role::Balancer,
        )
        .unwrap()
    }

    #[tokio::test]
    async fn a_balancer_that_never_says_anything_is_left_for_the_next() {
        let update = v1::WeightsUpdate {
            full: true,
            ..Default::default()
        };
        let balancers = vec![balancer(Vec::new()).await, balancer(vec![update]).await];
        let stats = Arc::new(Stats::new(&Registry::new()).unwrap());
        let table = SharedTable::new(TableWriter::new(stats));
        let (followed, mut follows) = watch::channel(None);
        let following = tokio::spawn(follow_in_turn(
            balancers,
            "edge-1".to_owned(),
            table,
            followed,
            Duration::from_millis(200),
        ));
        let found = follows.wait_for(Option::is_some);
        tokio::time::timeout(Duration::from_secs(10), found)
            .await
            .expect("the second balancer is found")
            .unwrap();
        following.abort();
    }
}
