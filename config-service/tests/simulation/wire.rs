//! The network between an edge and a replica: slow, and cut at any moment.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use anyport_config_service::push::DiscoveryServer;
use http_body::{Body as HttpBody, Frame};
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
};

use crate::{chance::Chance, gate::Gate};

/// A connection to the service of a replica.
#[derive(Clone)]
pub struct Wire {
    pub server: DiscoveryServer,
    pub chance: Chance,
    /// Shut: it is cut, for good.
    pub whole: Gate,
}

impl Service<http::Request<Body>> for Wire {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut wire = self.clone();
        Box::pin(async move {
            tokio::time::sleep(wire.chance.milliseconds(100)).await;
            let request = request.map(|body| wire.carried(body));
            let answer = wire.server.call(request).await.unwrap();
            Ok(answer.map(|body| wire.carried(body)))
        })
    }
}

impl Wire {
    /// What comes out at the other end, a while later.
    fn carried(&self, mut body: Body) -> Body {
        let (frames, carried) = mpsc::channel(4);
        let (chance, whole) = (self.chance.clone(), self.whole.clone());
        tokio::spawn(async move {
            loop {
                let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
                let frame = tokio::select! {
                    biased;
                    () = whole.becomes(false) => None,
                    frame = frame => frame,
                    () = frames.closed() => return,
                };
                tokio::time::sleep(chance.milliseconds(100)).await;
                let broken = || Err(Status::unavailable("the connection is cut"));
                let frame = match frame {
                    Some(frame) if whole.is_open() => frame,
                    None if whole.is_open() => return,
                    _ => broken(),
                };
                let last = frame.is_err();
                if frames.send(frame).await.is_err() || last {
                    return;
                }
            }
        });
        Body::new(Carried(carried))
    }
}

struct Carried(mpsc::Receiver<Result<Frame<Bytes>, Status>>);

impl HttpBody for Carried {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_recv(cx)
    }
}
