//! TCP connections from accept to close.

mod buffers;
mod connection;
mod identity;
mod relay;

pub use connection::{Service, serve};
