//! The agent's side of the control plane: configuration in, weights in, what
//! real dials showed out. None of it is needed to carry connections; all of it
//! comes back by itself.

mod cache;
mod configuration;
mod report;
mod weights;

pub use cache::{Cache, CacheError};
pub use configuration::{Applier, ListenerPorts, Progress, SharedTable};
pub use report::report;
pub use weights::{Balancer, follow_weights};
