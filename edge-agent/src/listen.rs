//! Where connections arrive: transparent listeners, one per worker and family,
//! and the threads that accept from them.

mod accept;
mod sockets;
mod spread;
mod worker;

pub use sockets::Listeners;
pub use spread::{Load, Spread};
pub use worker::{Phases, Workers};
