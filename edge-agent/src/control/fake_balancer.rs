//! A balancer for tests: says what it is given and keeps what it is told.

#![allow(clippy::unwrap_used)]

use std::pin::Pin;

use anyport_node::{access::Role, identity::Identity, rpc::Channel, rpc::Urls};
use anyport_proto::v1::{
    self,
    balancer_service_server::{BalancerService, BalancerServiceServer},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{Stream, StreamExt, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, async_trait};

pub(super) struct FakeBalancer {
    url: Urls,
    reports: mpsc::UnboundedReceiver<v1::ReportOriginsRequest>,
}

impl FakeBalancer {
    /// Answers who follows it, says this much, and then nothing more.
    pub(super) async fn start(says: Vec<v1::WeightsUpdate>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (told, reports) = mpsc::unbounded_channel();
        let speaker = Speaker { says, told };
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(BalancerServiceServer::new(speaker))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let url = url.parse().unwrap();
        Self { url, reports }
    }

    pub(super) fn channel(&self) -> Channel {
        let url = self.url.iter().next().unwrap();
        Channel::lazy(url, &Identity::none(), Role::Balancer).unwrap()
    }

    /// The next report of an edge.
    pub(super) async fn reported(&mut self) -> v1::ReportOriginsRequest {
        self.reports.recv().await.unwrap()
    }
}

struct Speaker {
    says: Vec<v1::WeightsUpdate>,
    told: mpsc::UnboundedSender<v1::ReportOriginsRequest>,
}

#[async_trait]
impl BalancerService for Speaker {
    type WatchWeightsStream = Pin<Box<dyn Stream<Item = Result<v1::WeightsUpdate, Status>> + Send>>;

    async fn watch_weights(
        &self,
        _: Request<v1::WatchWeightsRequest>,
    ) -> Result<Response<Self::WatchWeightsStream>, Status> {
        let said = tokio_stream::iter(self.says.clone()).map(Ok);
        Ok(Response::new(Box::pin(said.chain(tokio_stream::pending()))))
    }

    async fn report_origins(
        &self,
        request: Request<v1::ReportOriginsRequest>,
    ) -> Result<Response<v1::ReportOriginsResponse>, Status> {
        // A test that is done listens no more.
        let _ = self.told.send(request.into_inner());
        Ok(Response::new(v1::ReportOriginsResponse::default()))
    }

    async fn get_health(
        &self,
        _: Request<v1::GetHealthRequest>,
    ) -> Result<Response<v1::GetHealthResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type WatchVerdictsStream = tokio_stream::Empty<Result<v1::VerdictsUpdate, Status>>;

    async fn watch_verdicts(
        &self,
        _: Request<v1::WatchVerdictsRequest>,
    ) -> Result<Response<Self::WatchVerdictsStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}
