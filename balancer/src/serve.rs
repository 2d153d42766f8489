//! `BalancerService`: what edges and the command line ask the balancer.

mod request;
mod watch;

use std::{pin::Pin, time::Duration};

use anyport_model::names::NodeName;
use anyport_node::{
    access::{Caller, Role},
    drain::Drain,
};
use anyport_proto::{convert::write_duration, v1};
use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, async_trait};

use crate::{
    driver::{Handle, Publications, Stopped},
    serve::watch::{Speaker, updates, verdicts},
};

/// How long an edge waits before its next report.
const NEXT_REPORT: Duration = Duration::from_secs(1);

type Updates = Pin<Box<dyn Stream<Item = Result<v1::WeightsUpdate, Status>> + Send>>;

/// A balancer says at least so often to others that it is there.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

type Verdicts = Pin<Box<dyn Stream<Item = Result<v1::VerdictsUpdate, Status>> + Send>>;

pub(crate) struct Service {
    speaker: Speaker,
    driver: Handle,
    published: Publications,
    drain: Drain,
}

impl Service {
    pub(crate) fn new(
        balancer: NodeName,
        driver: Handle,
        published: Publications,
        drain: Drain,
    ) -> Self {
        Self {
            speaker: Speaker { balancer },
            driver,
            published,
            drain,
        }
    }

    fn superseded(epoch: u64) -> Status {
        Status::unavailable(format!(
            "other balancers go by set {epoch}, of which this one has not been told"
        ))
    }
}

#[async_trait]
impl v1::balancer_service_server::BalancerService for Service {
    type WatchWeightsStream = Updates;

    async fn watch_weights(
        &self,
        request: Request<v1::WatchWeightsRequest>,
    ) -> Result<Response<Updates>, Status> {
        let edge: NodeName = request::field("edge", &request.get_ref().edge)?;
        Caller::of(request.extensions()).check_is(Role::Edge, edge.as_str())?;
        if !self.driver.has_configuration() {
            // One that has is better, and the edge finds it by asking on.
            return Err(Status::unavailable(
                "this balancer has no configuration: it has not reached its config service yet",
            ));
        }
        let superseded = self.published.superseded.clone();
        if let Some(epoch) = *superseded.borrow() {
            return Err(Self::superseded(epoch));
        }
        tracing::debug!(%edge, "watches weights");
        let drain = self.drain.clone();
        // Ends well when the balancer is asked to stop: the edge turns to another
        // one without an error.
        let stopped = async move { drain.started().await };
        let superseded_meanwhile = {
            let mut superseded = superseded.clone();
            async move { superseded.wait_for(Option::is_some).await.is_ok() }
        };
        let last_word = stream::once(async move { *superseded.borrow() })
            .filter_map(async |epoch| epoch.map(Self::superseded).map(Err));
        let updates = updates(self.speaker.clone(), self.published.tables.clone())
            .map(Ok)
            .take_until(superseded_meanwhile)
            .chain(last_word);
        Ok(Response::new(Box::pin(updates.take_until(stopped))))
    }

    type WatchVerdictsStream = Verdicts;

    async fn watch_verdicts(
        &self,
        request: Request<v1::WatchVerdictsRequest>,
    ) -> Result<Response<Verdicts>, Status> {
        let balancer: NodeName = request::field("balancer", &request.get_ref().balancer)?;
        Caller::of(request.extensions()).check_is(Role::Balancer, balancer.as_str())?;
        tracing::debug!(%balancer, "watches verdicts");
        let drain = self.drain.clone();
        let stopped = async move { drain.started().await };
        let speaker = self.speaker.clone();
        let updates = verdicts(speaker, self.published.verdicts.clone(), SIGN_OF_LIFE);
        Ok(Response::new(Box::pin(updates.map(Ok).take_until(stopped))))
    }

    async fn report_origins(
        &self,
        request: Request<v1::ReportOriginsRequest>,
    ) -> Result<Response<v1::ReportOriginsResponse>, Status> {
        let edge: NodeName = request::field("edge", &request.get_ref().edge)?;
        Caller::of(request.extensions()).check_is(Role::Edge, edge.as_str())?;
        let reports = request::reports(request.into_inner())?;
        // An edge with nothing to say is there all the same.
        self.driver.reported(edge, reports).await?;
        Ok(Response::new(v1::ReportOriginsResponse {
            next_report: Some(write_duration(NEXT_REPORT)),
        }))
    }

    async fn get_health(
        &self,
        request: Request<v1::GetHealthRequest>,
    ) -> Result<Response<v1::GetHealthResponse>, Status> {
        let wanted = request.into_inner().pool;
        let pool = match wanted.as_str() {
            "" => None,
            name => Some(request::field("pool", name)?),
        };
        let holdings = self.driver.health(pool).await?;
        if !wanted.is_empty() && holdings.pools.is_empty() {
            return Err(Status::not_found(format!(
                "there is no pool {wanted:?} at revision {}",
                holdings.revision
            )));
        }
        Ok(Response::new(v1::GetHealthResponse {
            pools: holdings.pools,
            revision: holdings.revision.0,
        }))
    }
}

impl From<Stopped> for Status {
    fn from(stopped: Stopped) -> Self {
        Status::unavailable(stopped.to_string())
    }
}
