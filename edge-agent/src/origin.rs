//! The way to an origin: choose, dial, and on failure the next one.

mod dial;

pub use dial::{Dialled, NoOrigin, dial};
