//! The config service: where apps are declared.
//!
//! - [`store`]: where revisions live (a file, or etcd)
//! - [`state`]: the present state, in memory, true to the store
//! - [`admit`]: what may become a revision
//! - [`push`]: how edges and balancers get it
//! - `rollout`: what some edges try goes to all, or back
//! - `reseal`: private keys are sealed anew where the store key was changed
//! - [`nodes`]: who is connected, and what each has applied
//! - [`serve`]: all of it on the wire
//! - `wire`: messages that are encoded once for many
//!
//! A change goes through them in this order: `serve` reads the request, `admit`
//! holds it against the state and has it stored, `state` moves, `push` sends the
//! difference to every subscriber and takes the acknowledgements to `nodes`,
//! where `apply --wait` sees them. Several replicas share one etcd; each watches
//! it, and no edge does.

#![forbid(unsafe_code)]

pub mod admit;
mod app;
mod config;
mod metrics;
pub mod nodes;
mod offload;
pub mod push;
mod random;
mod reseal;
mod rollout;
pub mod serve;
pub mod state;
pub mod store;
mod trouble;
mod wire;

pub use app::{ConfigService, RunError, run};
pub use config::Config;
pub use metrics::Metrics;
pub use random::Random;
