//! An edge that has one connection open, and nothing else to tell.

use std::net::SocketAddr;

use anyport_proto::v1::{
    self,
    edge_service_server::{EdgeService, EdgeServiceServer},
};
use tokio::net::TcpListener;
use tokio_stream::{Empty, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

pub struct FakeEdge {
    name: &'static str,
}

impl FakeEdge {
    /// Serves on a port of its own until the test's runtime ends.
    pub async fn start(name: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let server = tonic::transport::Server::builder()
            .add_service(EdgeServiceServer::new(Self { name }))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        address
    }
}

#[tonic::async_trait]
impl EdgeService for FakeEdge {
    type StreamEventsStream = Empty<Result<v1::StreamEventsResponse, Status>>;

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn list_connections(
        &self,
        _: Request<v1::ListConnectionsRequest>,
    ) -> Result<Response<v1::ListConnectionsResponse>, Status> {
        Ok(Response::new(v1::ListConnectionsResponse {
            connections: vec![v1::Connection {
                edge: self.name.to_owned(),
                application: "minecraft".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        }))
    }

    async fn stream_events(
        &self,
        _: Request<v1::StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn drain(
        &self,
        _: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}
