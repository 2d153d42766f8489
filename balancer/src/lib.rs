//! The balancer: probes the origins of all pools, holds a verdict on each, and
//! publishes the weights that edges balance by. No user's byte passes here.
//!
//! Data flows one way through these modules:
//!
//! ```text
//! config service ─► membership ─┐
//!                    probe ─────┼─► engine (health, schedule, weights) ─► weights::Table ─► serve ─► edges
//! edges' reports ─► serve ──────┤                         └─► peers::Verdicts ─► serve ─► other balancers
//! other balancers ─► peers ─────┘
//! ```
//!
//! `engine` decides and is pure: time, randomness and outcomes are arguments.
//! `driver` is the one task that owns it, and the only place with a clock.
//!
//! What always holds:
//!
//! - Losing the config service changes nothing: probing goes on with what is known.
//! - One edge with a bad network cannot take an origin from the others, and one
//!   balancer of three neither.
//! - A failure that is the balancer's own counts against nobody.

#![forbid(unsafe_code)]

mod balancer;
mod config;
mod driver;
mod engine;
mod health;
mod membership;
mod metrics;
mod pace;
mod peers;
mod probe;
mod serve;
mod weights;

pub use balancer::{Balancer, BalancerError, run};
pub use config::{Args, Config, ConfigError};
