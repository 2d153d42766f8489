//! The kernel set-up: what makes this host answer for whole prefixes and hand
//! every claimed port to one listener.
//!
//! This is the only part of the agent that changes the host, and it changes
//! few things, all marked as ours: routes of type `local` under a protocol
//! number of our own, and what steers, which is one nftables table or one BPF
//! program, pinned in a directory of our own ([`Steering`]). Only while an app
//! wants its origins to see the client's own address, there is also what brings
//! their answers back here: another nftables table, a rule of policy routing
//! and a routing table. Everything else is read at most. No program is run for
//! any of it.
//!
//! [`Reconciler`] owns the work. [`KernelHandle::apply`](Kernel::apply) is how
//! the agent says what it wants; [`undo`] takes everything back; [`doctor`]
//! only looks.
//!
//! What always holds:
//!
//! - What was there before and is not marked as ours is left as it is.
//! - A claim that stays is steered at every instant while others come and go.
//! - The host takes the packets of a connection for its own until it has ended,
//!   also when its prefix is removed.
//! - Steering outlives the agent. Without a listener, the kernel answers RST.

mod anyip;
mod choose;
mod desired;
mod doctor;
mod error;
#[cfg(test)]
mod fake;
mod handle;
mod observed;
mod open;
mod plan;
mod reconcile;
mod return_path;
mod sk_lookup;
mod sole;
mod table;
mod undo;

pub use choose::choose;
pub use desired::{Desired, FamilyPorts, ListenerPorts, Steering};
pub use doctor::{Finding, Severity, doctor};
pub use error::KernelError;
#[cfg(test)]
pub(crate) use fake::FakeKernel;
pub use handle::{Applied, Conflict, Drift, Kernel, KernelHandle, Standing};
pub(crate) use open::OpenSockets;
pub use reconcile::Reconciler;
pub use sk_lookup::{Dropped, SteeredSockets};
pub use sole::{NotSole, Sole};
pub use undo::{Undone, undo};
