//! Hot upgrade: a new agent takes over from the one that runs, on the same
//! state directory, without a connection refused or reset.
//!
//! The sockets themselves are handed over, not their addresses: what waits in
//! the accept queue of a listener is served by whoever accepts from it next,
//! and what the kernel steers to a socket stays steered to it. The order, in
//! which exactly one of the two owns configuration, kernel and disk at any
//! moment:
//!
//! 1. The successor asks ([`begin`]). The agent stands still ([`Offering`]):
//!    it goes on serving, and leaves its configuration, the kernel and the
//!    disk as they are. It offers what it has.
//! 2. The successor adopts the sockets and takes the last known good
//!    configuration into use, which finds the kernel as wanted. It says that it
//!    is ready, and accepts nothing yet.
//! 3. The agent says "yours", stops accepting, gives everything up, and closes
//!    the connection. It goes on with the connections that it has and ends with
//!    the last. Who comes meanwhile waits in the queue for a moment.
//! 4. The successor accepts, owns the directory, listens for its own successor,
//!    and connects to the control plane.
//!
//! Where the successor ends before it said that it is ready, in whatever way,
//! the agent goes on as if it had not been asked.

mod estate;
mod generations;
mod key;
mod notify;
mod offer;
mod sys;
mod take;
mod wire;

pub use estate::{Estate, StateLock};
pub use generations::Generations;
pub use key::{Family, Key};
pub use notify::{Notice, notify};
pub use offer::{HandedOver, Offering, Standstill};
pub use take::{Start, begin};

/// Where successors ask, in the state directory.
const SOCKET: &str = "handover.sock";
