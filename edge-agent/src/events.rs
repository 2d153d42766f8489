//! What is known of each connection, and what happened to it.
//!
//! A [`Connection`] is made once an app has taken a connection, is listed as
//! long as it is open ([`Live`]), and is what its events are about
//! ([`EventLog`]): one when both legs are up, one at the end. Whoever learns
//! something about it says so with [`Connection::learn`]. All of it is numbers,
//! fixed words and shared names: nothing is formatted before somebody reads it.

mod connection;
mod file;
mod log;
mod open;
mod shard;
mod tcp_info;
mod told;
mod wire;

pub use connection::{ClientTls, Connection, Details, Firewall, OriginTls, Reason};
pub use file::EventFile;
pub use log::{EventKind, EventLog, Next};
pub use open::{Connections, Open};
#[cfg(test)]
pub use tcp_info::segments_sent;
pub use tcp_info::{has_failed, rtt, undelivered};
pub use told::Told;
pub use wire::Writer;
