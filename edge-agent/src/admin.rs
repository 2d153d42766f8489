//! `EdgeService`: what one agent says of itself.

use std::{sync::Arc, time::Instant};

use anyport_proto::{
    convert::write_duration,
    v1::{self, edge_service_server::EdgeService},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::{
    control::{Balancer, Progress},
    stats::Stats,
};

/// Answers of one agent.
pub struct Admin {
    pub name: String,
    pub region: String,
    pub steering: &'static str,
    pub workers: usize,
    pub started: Instant,
    pub stats: Arc<Stats>,
    pub progress: watch::Receiver<Progress>,
    pub balancer: watch::Receiver<Balancer>,
}

#[tonic::async_trait]
impl EdgeService for Admin {
    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let progress = self.progress.borrow().clone();
        Ok(Response::new(v1::GetStatusResponse {
            name: self.name.clone(),
            region: self.region.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            steering: self.steering.to_owned(),
            workers: u32::try_from(self.workers).unwrap_or(u32::MAX),
            applied_revision: progress.revision.0,
            applied_hash: progress.state_hash,
            rejections: progress.rejections,
            source: progress.source.as_str().to_owned(),
            config_service_connected: progress.connected,
            balancer_connected: self.balancer.borrow().is_some(),
            open_connections: self.stats.open_connections(),
            uptime: Some(write_duration(self.started.elapsed())),
        }))
    }
}
