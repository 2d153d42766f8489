//! TLS on the way through: routed by name untouched, or ended here and carried
//! on as the app says.
//!
//! Which app a connection belongs to, and what its client offers, is seen in a
//! ClientHello that stays in the socket ([`peek`]). Where TLS ends here,
//! handshakes take their turns ([`turn`]), so that a flood of them does not hold
//! up a worker's other connections; the origin's comes first where it is
//! in TLS too, so that the client is answered with the protocol (ALPN) that the
//! origin chose.

mod accept;
mod arrive;
mod configs;
mod leg;
mod origin;
mod peek;
mod refuse;
mod session;
mod turn;

pub use accept::accept;
pub use arrive::{Arrived, Turned, arrive};
pub use configs::{Configs, Termination, ToOrigin};
pub use leg::{ClientLeg, OriginLeg};
pub use origin::connect;
#[cfg(test)]
pub(crate) use peek::tests::hello_of;
use peek::{Begins, Unseen, peek};
use refuse::unrecognized_name;
