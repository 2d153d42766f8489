//! Where connections arrive: transparent listeners, one per worker and family,
//! and the threads that accept from them.

mod accept;
mod sockets;
mod worker;

pub use sockets::Listeners;
pub use worker::{Phases, Workers};
