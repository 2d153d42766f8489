//! `DiscoveryService` on the wire.
//!
//! In place of the generated server, so that a whole state that goes to a thousand
//! edges is in memory once, compressed once for all who take it.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use anyport_node::access::{self, Caller};
use anyport_proto::v1::{
    Subscribe, SyncRequest, discovery_service_server::SERVICE_NAME, sync_request::Message,
};
use tokio_stream::StreamExt;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

use super::session::Push;
use crate::{
    nodes::Role,
    wire::{Coding, call_of, respond},
};

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
        let answer = self.answer(request);
        Box::pin(std::future::ready(Ok(answer)))
    }
}

impl DiscoveryServer {
    fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        if request.uri().path() != SYNC {
            return Status::unimplemented("DiscoveryService has only Sync").into_http();
        }
        let coding = Coding::accepted(request.headers());
        let caller = Caller::of(request.extensions());
        let requests = match call_of::<SyncRequest>(request, REQUEST_MAX) {
            Ok(requests) => requests,
            Err(refused) => return refused.into_http(),
        };
        let requests = requests.map(move |request| {
            let request = request?;
            if let Some(Message::Subscribe(subscribe)) = &request.message {
                check(&caller, subscribe)?;
            }
            Ok(request)
        });
        respond(self.push.sync(requests, coding), coding)
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
