//! Holds every call to the table, before a service sees it.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::{AUDIT, caller::Caller, table::judge};

/// Lets through what the caller may call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AccessLayer;

#[derive(Clone, Debug)]
pub(crate) struct Guarded<S>(S);

impl<S> Layer<S> for AccessLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded(inner)
    }
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let unknown = Caller::default();
        let caller = request.extensions().get::<Caller>().unwrap_or(&unknown);
        if let Err(status) = judge(path, caller) {
            let certified = caller.certified.as_deref();
            tracing::warn!(
                target: AUDIT,
                method = path,
                outcome = "denied",
                author = certified.map(|certified| &*certified.name),
                subject = certified.map(|certified| &*certified.subject),
                serial = certified.map(|certified| &*certified.serial),
                peer = caller.address.map(tracing::field::display),
                "{}",
                status.message()
            );
            return Box::pin(async move { Ok(status.into_http()) });
        }
        Box::pin(self.0.call(request))
    }
}
