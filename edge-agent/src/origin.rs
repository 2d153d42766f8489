//! The way to an origin: choose, dial, and on failure the next one.

mod dial;
mod rest;

pub use dial::{NoOrigin, choose, dial};
pub use rest::Rest;
