//! What is done around every call that is served.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

/// The answer to a call, in time.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// What answers calls of gRPC.
pub(crate) trait Answers:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
{
}

impl<S> Answers for S where
    S: Service<
            Request<Body>,
            Response = Response<Body>,
            Error = Infallible,
            Future: Send + 'static,
        >
{
}

/// Something that is done around a call: before it, after it, or in its place.
pub(crate) trait Around {
    /// `inner` is ready for one call.
    fn call(&self, inner: &mut impl Answers, request: Request<Body>) -> Answer;
}

/// Does it around every call of a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AroundLayer<A>(pub(crate) A);

#[derive(Clone, Debug)]
pub(crate) struct Surrounded<A, S> {
    around: A,
    inner: S,
}

impl<A: Clone, S> Layer<S> for AroundLayer<A> {
    type Service = Surrounded<A, S>;

    fn layer(&self, inner: S) -> Self::Service {
        let around = self.0.clone();
        Surrounded { around, inner }
    }
}

impl<A: Around, S: Answers> Service<Request<Body>> for Surrounded<A, S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        self.around.call(&mut self.inner, request)
    }
}
