//! Holds every call to the table, before a service sees it.

use http::Request;
use tonic::body::Body;

use super::{AUDIT, caller::Caller, table::judge};
use crate::layer::{Answer, Answers, Around};

/// Lets through what the caller may call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access;

impl Around for Access {
    fn call(&self, inner: &mut impl Answers, request: Request<Body>) -> Answer {
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
        Box::pin(inner.call(request))
    }
}
