//! TCP connections from accept to close.

mod buffers;
mod connection;
mod identity;
mod leg;
mod relay;

pub use buffers::with_scratch;
pub use connection::{Service, serve};
pub use leg::Leg;
