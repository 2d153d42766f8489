//! What balancers tell edges, written down: every update of every balancer, with when it came.
//!
//! What goes wrong is a panic: a test that needs it has failed.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyport_netns::Namespace;
use anyport_proto::v1::{
    WatchWeightsRequest, WeightsUpdate, balancer_service_client::BalancerServiceClient,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

/// A balancer that says nothing for so long is asked anew.
const SILENT: Duration = Duration::from_secs(1);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Follows one balancer, whenever it can be followed, until this is dropped.
#[derive(Debug)]
pub struct Watch {
    said: Arc<Mutex<Vec<Said>>>,
    stop: CancellationToken,
}

/// One update.
#[derive(Clone, Debug)]
pub struct Said {
    pub at: Instant,
    pub epoch: u64,
    /// All weights that hold from then on, by pool and origin.
    pub weights: BTreeMap<(String, String), f64>,
}

impl Said {
    /// The weight of an origin, by `pool/origin`; none: it has not been told.
    pub fn of(&self, origin: &str) -> Option<f64> {
        let (pool, origin) = origin.split_once('/').unwrap();
        let key = (pool.to_owned(), origin.to_owned());
        self.weights.get(&key).copied()
    }
}

impl Watch {
    /// As an edge of this name that is in `namespace`. `url`: of the balancer.
    pub fn start(namespace: &Namespace, edge: &str, url: String) -> Self {
        let watch = Self {
            said: Arc::default(),
            stop: CancellationToken::new(),
        };
        let (said, stop) = (Arc::clone(&watch.said), watch.stop.clone());
        let edge = edge.to_owned();
        // Ends when this is dropped.
        let thread = namespace.spawn_thread(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            let follow = stop.run_until_cancelled(follow(url, edge, &said));
            runtime.block_on(follow);
        });
        drop(thread.unwrap());
        watch
    }

    /// All updates until now.
    pub fn said(&self) -> Vec<Said> {
        let said = self.said.lock();
        said.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The latest.
    pub fn latest(&self) -> Option<Said> {
        self.said().pop()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn follow(url: String, edge: String, said: &Mutex<Vec<Said>>) {
    let endpoint = Endpoint::try_from(url).unwrap();
    let endpoint = endpoint
        .connect_timeout(SILENT)
        .http2_keep_alive_interval(SILENT)
        .keep_alive_timeout(SILENT);
    loop {
        // Whatever ended it, the next attempt may do better.
        let _ = follow_once(&endpoint, &edge, said).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow_once(
    endpoint: &Endpoint,
    edge: &str,
    said: &Mutex<Vec<Said>>,
) -> Result<(), Status> {
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let request = WatchWeightsRequest {
        edge: edge.to_owned(),
    };
    let mut client = BalancerServiceClient::new(channel);
    let mut updates: Streaming<WeightsUpdate> = client.watch_weights(request).await?.into_inner();
    let mut weights = BTreeMap::new();
    while let Some(update) = updates.message().await? {
        let epoch = update.epoch;
        change(&mut weights, update);
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.push(Said {
            at: Instant::now(),
            epoch,
            weights: weights.clone(),
        });
    }
    Ok(())
}

fn change(weights: &mut BTreeMap<(String, String), f64>, update: WeightsUpdate) {
    let told = |pool: &str| {
        let is_told = update.pools.iter().any(|told| told.pool == pool);
        is_told || update.removed_pools.iter().any(|removed| removed == pool)
    };
    weights.retain(|(pool, _), _| !update.full && !told(pool));
    for pool in &update.pools {
        for origin in &pool.origins {
            let key = (pool.pool.clone(), origin.origin.clone());
            weights.insert(key, origin.weight);
        }
    }
}
