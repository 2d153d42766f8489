//! `DiscoveryService` on the wire.
//!
//! In place of the generated server, which would encode every update once per
//! subscriber: for a thousand edges that is the same megabytes a thousand times
//! over. Here the answer is bytes that were encoded before.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use anyport_proto::v1::{SyncRequest, discovery_service_server::SERVICE_NAME};
use prost::bytes::{BufMut, Bytes};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, StreamingService},
};
use tonic_prost::ProstDecoder;

use super::session::Push;

const SYNC: &str = "/anyport.v1.DiscoveryService/Sync";

/// Largest message from a subscriber, in bytes: a balancer reports the health
/// of some ten thousand origins at once.
const REQUEST_MAX: usize = 16 << 20;

/// The service, to be offered.
#[derive(Debug, Clone)]
pub struct DiscoveryServer {
    push: Push,
}

impl DiscoveryServer {
    pub fn new(push: Push) -> Self {
        Self { push }
    }
}

impl NamedService for DiscoveryServer {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for DiscoveryServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let push = self.push.clone();
        Box::pin(async move {
            if request.uri().path() != SYNC {
                return Ok(Status::unimplemented("DiscoveryService has only Sync").into_http());
            }
            let mut grpc = Grpc::new(SharedBytes).max_decoding_message_size(REQUEST_MAX);
            Ok(grpc.streaming(Sync { push }, request).await)
        })
    }
}

struct Sync {
    push: Push,
}

impl StreamingService<SyncRequest> for Sync {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<SyncRequest>>) -> Self::Future {
        let updates = self.push.sync(request.into_inner());
        Box::pin(async move { Ok(Response::new(ReceiverStream::new(updates))) })
    }
}

/// Sends bytes as they are; reads messages as ever.
struct SharedBytes;

impl Codec for SharedBytes {
    type Encode = Bytes;
    type Decode = SyncRequest;
    type Encoder = Self;
    type Decoder = ProstDecoder<SyncRequest>;

    fn encoder(&mut self) -> Self {
        SharedBytes
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::default())
    }
}

impl Encoder for SharedBytes {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, bytes: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(bytes);
        Ok(())
    }
}
