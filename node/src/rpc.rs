//! gRPC between the services: one way to serve it and one way to dial it.
//!
//! [`Server`] adds what every service must have (health that follows readiness,
//! reflection, limits, keepalives, a span per call, an end that is bounded);
//! [`Channel`] is the other side of it, a tonic channel that carries the trace along.

mod channel;
mod connection;
mod deadline;
mod dial;
mod server;
mod span;
mod stream;
mod urls;
mod watched;

pub use channel::{Channel, Endpoint, EndpointError, Limits};
pub use server::{ServeError, Server};
pub use urls::{ServerUrl, UrlError, Urls, advertised};
