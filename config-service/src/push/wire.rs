//! `DiscoveryService` on the wire.
//!
//! In place of the generated server, so that a whole state that goes to a thousand
//! edges is in memory once, compressed once for all who take it.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use anyport_model::names::NodeName;
use anyport_node::{
    access::{self, Caller},
    drain::Drain,
};
use anyport_proto::{
    convert::write_balancer_set,
    v1::{
        Subscribe, SyncRequest, WatchBalancersRequest, discovery_service_server::SERVICE_NAME,
        sync_request::Message,
    },
};
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

use super::{session::Push, subscriber::FIRST_WORD};
use crate::{
    nodes::{Balancers, Role},
    serve::{Intake, status},
    store::etcd::presence::LEASE_TTL,
    wire::{Coding, call_of, message, respond},
};

const SYNC: &str = "/anyport.v1.DiscoveryService/Sync";
const WATCH_BALANCERS: &str = "/anyport.v1.DiscoveryService/WatchBalancers";

/// Largest message from a subscriber, in bytes: a balancer reports the health
/// of some ten thousand origins at once.
const REQUEST_MAX: usize = 16 << 20;
/// Longest request of who asks for balancers, in bytes.
const NAME_MAX: usize = 1 << 10;

/// The service, to be offered.
#[derive(Debug, Clone)]
pub struct DiscoveryServer {
    push: Push,
    balancers: Balancers,
    drain: Drain,
    intake: Intake,
}

impl DiscoveryServer {
    pub fn new(push: Push, balancers: Balancers, drain: Drain, intake: Intake) -> Self {
        Self {
            push,
            balancers,
            drain,
            intake,
        }
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
        match request.uri().path() {
            SYNC => Box::pin(std::future::ready(Ok(self.sync(request)))),
            WATCH_BALANCERS => {
                let server = self.clone();
                Box::pin(async move {
                    let answer = server.watch_balancers(request).await;
                    Ok(answer.unwrap_or_else(Status::into_http))
                })
            }
            _ => {
                let unknown = Status::unimplemented("DiscoveryService has no such method");
                Box::pin(std::future::ready(Ok(unknown.into_http())))
            }
        }
    }
}

impl DiscoveryServer {
    fn sync(&self, request: http::Request<Body>) -> http::Response<Body> {
        let coding = Coding::accepted(request.headers());
        let caller = Caller::of(request.extensions());
        let (request, letters) = self.intake.admit_stream(request);
        let requests = match call_of::<SyncRequest>(request, REQUEST_MAX) {
            Ok(requests) => requests,
            Err(refused) => return refused.into_http(),
        };
        let requests = requests.map(move |request| {
            letters.read();
            let request = request?;
            if let Some(Message::Subscribe(subscribe)) = &request.message {
                check(&caller, subscribe)?;
            }
            Ok(request)
        });
        respond(self.push.sync(requests, coding), coding)
    }

    async fn watch_balancers(
        self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Status> {
        let caller = Caller::of(request.extensions());
        let mut requests = call_of::<WatchBalancersRequest>(request, NAME_MAX)?;
        let asked = tokio::time::timeout(FIRST_WORD, requests.message()).await;
        let asked = asked.map_err(|_| Status::deadline_exceeded("no request in time"))??;
        let asked = asked.ok_or_else(|| Status::invalid_argument("there is no request"))?;
        let name = asked.name.parse::<NodeName>();
        let name = name.map_err(|problem| status::invalid_field("name", problem))?;
        caller.check_is(access::Role::Balancer, name.as_str())?;
        if self.balancers.subscribe().borrow().is_none() {
            return Err(status::no_balancers());
        }
        // One place: a slow one gets the latest set and none in between.
        let (sets, receiver) = mpsc::channel(1);
        tokio::spawn(tell_sets(self.balancers, self.drain, sets));
        Ok(respond(receiver, Coding::Identity))
    }
}

/// Sends the set and then each later one, until the other side is gone or the drain
/// begins.
async fn tell_sets(balancers: Balancers, drain: Drain, sets: mpsc::Sender<Result<Bytes, Status>>) {
    let mut latest = balancers.subscribe();
    loop {
        let set = latest.borrow_and_update().clone();
        let Some(set) = set else {
            // Another replica may know.
            let _ = sets.send(Err(status::no_balancers())).await;
            return;
        };
        let set = message(&write_balancer_set(&set, LEASE_TTL), Coding::Identity);
        if sets.send(Ok(set)).await.is_err() {
            return;
        }
        tokio::select! {
            // Cannot fail: `balancers` holds the sender.
            _ = latest.changed() => {}
            () = sets.closed() => return,
            () = drain.started() => {
                // Only one that is gone does not take it.
                let _ = sets.send(Err(status::stopping())).await;
                return;
            }
        }
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
