//! The edge agent: owns the kernel set-up of its host and carries connections.
//!
//! - [`kernel`] makes every port of the prefixes arrive at the agent's sockets;
//! - [`listen`] accepts, on worker threads with an event loop each;
//! - [`tcp`] serves a connection and [`udp`] the flows of a worker, [`tls`]
//!   routes a connection by name or ends its TLS, [`origin`] finds and dials
//!   origins, all by the immutable snapshot of [`table`];
//! - [`shield`] says whom an app lets in;
//! - [`events`] knows what is open and what happened;
//! - [`control`] keeps the snapshot and the kernel as the config service and
//!   the balancer say, on a runtime of its own.

pub mod kernel;
pub mod proxy_protocol;

mod admin;
mod app;
mod bpf;
mod config;
mod control;
mod descriptors;
mod disk;
mod drain;
mod earlier;
mod endings;
mod events;
mod handover;
mod listen;
mod live;
mod origin;
mod protect;
mod shield;
mod stats;
mod table;
mod tcp;
mod tls;
mod udp;

pub use app::run;
pub use config::{Config, Steering};
pub use origin::NameServers;
