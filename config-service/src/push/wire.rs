//! `DiscoveryService` on the wire.
//!
//! In place of the generated server, which would encode every update once per
//! subscriber, and keep the buffer that it was encoded into: for a thousand edges
//! that is the same megabytes a thousand times over. Here the body of the answer
//! is bytes that were encoded before and are shared by all who are sent them.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use anyport_node::access::{self, Caller};
use anyport_proto::v1::{
    Subscribe, SyncRequest, discovery_service_server::SERVICE_NAME, sync_request::Message,
};
use http_body::{Body as HttpBody, Frame};
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::{
    Status, Streaming,
    body::Body,
    codec::BufferSettings,
    codegen::{BoxFuture, Service, http},
    metadata::GRPC_CONTENT_TYPE,
    server::NamedService,
};
use tonic_prost::ProstDecoder;

use super::session::Push;
use crate::nodes::Role;

const SYNC: &str = "/anyport.v1.DiscoveryService/Sync";

/// Largest message from a subscriber, in bytes: a balancer reports the health
/// of some ten thousand origins at once.
const REQUEST_MAX: usize = 16 << 20;

/// What a message from a subscriber is read into at first: most are an
/// acknowledgement of a hundred bytes.
const REQUEST_USUAL: usize = 512;

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
        let answer = self.answer(request);
        Box::pin(std::future::ready(Ok(answer)))
    }
}

impl DiscoveryServer {
    fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        if request.uri().path() != SYNC {
            return Status::unimplemented("DiscoveryService has only Sync").into_http();
        }
        if let Some(encoding) = request.headers().get("grpc-encoding")
            && encoding != "identity"
        {
            let said = format!("grpc-encoding: {encoding:?} is not taken; right is identity");
            return Status::unimplemented(said).into_http();
        }
        // The second is for those who encode.
        let buffer = BufferSettings::new(REQUEST_USUAL, 0);
        let decoder = ProstDecoder::<SyncRequest>::new(buffer);
        let caller = Caller::of(request.extensions());
        let body = request.into_body();
        let requests = Streaming::new_request(decoder, body, None, Some(REQUEST_MAX));
        let requests = requests.map(move |request| {
            let request = request?;
            if let Some(Message::Subscribe(subscribe)) = &request.message {
                check(&caller, subscribe)?;
            }
            Ok(request)
        });
        let updates = Updates {
            updates: self.push.sync(requests),
            ended: false,
        };
        let mut response = http::Response::new(Body::new(updates));
        let headers = response.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        response
    }
}

/// Who subscribes has to be who the certificate says: an edge is sent private keys.
fn check(caller: &Caller, subscribe: &Subscribe) -> Result<(), Status> {
    let role = match Role::read(subscribe.role) {
        Some(Role::Edge) => access::Role::Edge,
        Some(Role::Balancer) => access::Role::Balancer,
        // The subscription is refused for it, with the name of the field.
        None => return Ok(()),
    };
    caller.check_is(role, &subscribe.name)
}

/// The body of an answer: updates as they come, then how it ended.
struct Updates {
    updates: mpsc::Receiver<Result<Bytes, Status>>,
    ended: bool,
}

impl HttpBody for Updates {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let end = match ready!(self.updates.poll_recv(cx)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = http::HeaderMap::new();
        end.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
