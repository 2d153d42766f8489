//! The agent's side of the control plane: configuration in, weights in, what
//! real dials showed out. None of it is needed to carry connections; all of it
//! comes back by itself.

mod cache;
mod configuration;
#[cfg(test)]
mod fake_balancer;
mod in_use;
mod report;
mod trial;
mod weights;

pub use cache::{Cache, CacheError};
pub use configuration::{Applier, SharedTable};
#[cfg(test)]
pub(crate) use in_use::{Configured, Source};
pub use in_use::{InUse, Progress};
pub use report::report;
pub use trial::tell_trial;
pub use weights::follow_weights;
