//! `ConfigService` on the wire.
//!
//! Around the generated server, for what it cannot do: the state is encoded once for all
//! who watch it, only requests that carry resources may be large, and these together
//! take as much memory as there is for them.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use anyport_proto::{
    sync::UPDATE_MAX,
    v1::{
        WatchRequest,
        config_service_server::{ConfigServiceServer, SERVICE_NAME},
    },
};
use tokio::sync::mpsc;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

use super::{
    config::{ConfigApi, kinds},
    intake::{Intake, SMALL, may_be_large},
    watch::Watches,
};
use crate::wire::{Coding, call_of, respond};

const WATCH: &str = "/anyport.v1.ConfigService/Watch";

/// Longest request of a watcher, in bytes.
const WATCH_MAX: usize = 1 << 10;
/// Parts of an answer on their way to a watcher; more would be old when they are read.
const UNREAD: usize = 1;

/// The service, to be offered.
#[derive(Debug, Clone)]
pub struct ConfigServer {
    api: ConfigServiceServer<ConfigApi>,
    /// The same, for what may be large.
    large: ConfigServiceServer<ConfigApi>,
    watches: Watches,
    intake: Intake,
}

impl ConfigServer {
    pub fn new(api: ConfigApi, intake: Intake) -> Self {
        let watches = Watches::new(api.keeper.clone(), api.drain.clone());
        let api = Arc::new(api);
        let serving = |longest| {
            ConfigServiceServer::from_arc(Arc::clone(&api)).max_decoding_message_size(longest)
        };
        Self {
            watches,
            api: serving(SMALL),
            large: serving(UPDATE_MAX),
            intake,
        }
    }
}

impl NamedService for ConfigServer {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for ConfigServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.api, cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (request, taken) = self.intake.admit(request);
        let path = request.uri().path();
        let answer: Self::Future = if path == WATCH {
            let watches = self.watches.clone();
            Box::pin(async move {
                let answer = watch(watches, request).await;
                Ok(answer.unwrap_or_else(Status::into_http))
            })
        } else if may_be_large(path) {
            self.large.call(request)
        } else {
            self.api.call(request)
        };
        Box::pin(async move {
            let answer = answer.await;
            // Not before the request was worked on.
            drop(taken);
            answer
        })
    }
}

async fn watch(
    watches: Watches,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, Status> {
    let mut requests = call_of::<WatchRequest>(request, WATCH_MAX)?;
    let asked = requests.message().await?;
    let asked = asked.ok_or_else(|| Status::invalid_argument("there is no request"))?;
    let kinds = kinds(asked.kinds)?;
    let (parts, receiver) = mpsc::channel(UNREAD);
    tokio::spawn(async move { watches.follow(kinds, parts).await });
    Ok(respond(receiver, Coding::Identity))
}
