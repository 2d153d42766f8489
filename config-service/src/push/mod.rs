//! How edges and balancers get the state.
//!
//! One task per subscriber, with at most one update on its way: what comes
//! meanwhile is not queued, since the next update leads from what the subscriber
//! has to what is then the latest. Updates are encoded once and shared.

mod frames;
mod session;
mod subscriber;
mod wire;

pub use frames::Frames;
pub use session::Push;
pub use subscriber::Subscriber;
pub use wire::DiscoveryServer;
