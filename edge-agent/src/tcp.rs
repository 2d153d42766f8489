//! TCP connections from accept to close.

mod account;
mod buffers;
mod connection;
mod enter;
mod identity;
mod leg;
mod relay;
mod terminate;
mod unanswered;
mod way;

pub use buffers::{Pending, with_scratch};
pub use connection::{Service, serve};
#[cfg(test)]
pub(crate) use enter::tests::service;
pub use leg::Leg;
pub use unanswered::Unanswered;
