//! A load generator, and the servers it talks to.
//!
//! Six ways to load something, each a module with a `Plan` and a `run`: [`connect`] (open, ask,
//! close), [`paced`] (the same, by the clock), [`pingpong`] (round trips on kept connections), [`bulk`]
//! (streams), [`idle`] (many connections that do nothing) and [`datagram`] (requests and replies over
//! UDP). [`serve`] is the other end.
//!
//! What always holds:
//!
//! - **Bounded.** A run ends after its duration, which has an upper limit, and earlier after a count
//!   of operations where one is given, or by [`Control::stop`].
//! - **Checked.** Every byte received is compared with what must come at that place of that
//!   connection, so that a lost, doubled, mixed up or late byte is a `mismatch` and not a good
//!   number.
//! - **Closed loop.** Each connection starts its next operation when the last has ended, so a slow
//!   server is asked less often; latencies are those of the requests that were made. [`paced`] alone is
//!   open.
//! - **The caller's network namespace.** `run` and [`serve::start`] do their work on threads that they
//!   start, and a new thread is in the namespace of the one that started it. Call them inside
//!   `Namespace::run`.

pub mod bulk;
pub mod connect;
pub mod datagram;
mod failure;
pub mod idle;
pub mod paced;
mod pattern;
pub mod pingpong;
mod plan;
mod report;
pub mod serve;
mod target;
mod who;
mod worker;

pub use failure::Failure;
pub use plan::{Control, LONGEST_RUN, Load, PlanError};
pub use report::{Latency, Report};
pub use target::{TargetError, TargetSet, Targets};
pub use who::{Tag, TagError, Who, WhoError};
pub use worker::RunError;
