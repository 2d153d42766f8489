//! The way to an origin: choose, dial, and on failure the next one.

mod candidates;
mod dial;
mod dns;
#[cfg(test)]
mod fake_edge;
mod first_byte;
mod resolver;
mod rest;
pub mod transparent;

pub use candidates::{Candidate, Candidates};
pub use dial::{Dialled, Dialling, Incoming, NoOrigin, Unbegun, nothing_to_try};
pub use dns::{DnsStats, Failed, Names, Standing, follow_dns, resolved};
pub use first_byte::Held;
pub use resolver::{NameServers, Resolver};
pub use rest::{Rest, Unheard};
