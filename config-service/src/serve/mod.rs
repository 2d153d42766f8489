//! `ConfigService` on the wire: wire in, one call, wire out.

mod audit;
mod config;
mod fields;
mod intake;
mod nodes;
mod page;
mod server;
pub(crate) mod status;
mod watch;

pub use config::ConfigApi;
pub use intake::Intake;
pub use server::ConfigServer;
