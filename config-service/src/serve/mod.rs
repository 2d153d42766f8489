//! `ConfigService` on the wire: wire in, one call, wire out.

mod audit;
mod config;
mod nodes;
mod page;
pub(crate) mod status;
mod watch;

pub use config::ConfigApi;
