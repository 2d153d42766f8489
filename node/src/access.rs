//! Who calls, and what they may: roles come with the certificate, and one table
//! says which of them a method is for.
//!
//! Where the transport knows nobody, in clear text, everybody may everything: such
//! a listener is on loopback, or was opened with `--insecure`.

mod caller;
mod layer;
mod role;
mod table;

pub use caller::{Caller, Certified};
pub(crate) use layer::Access;
pub use role::{Role, RoleError, Roles};
pub use table::{TABLE, allowed};

/// Target of the log lines that say who wrote what, or was not allowed to.
pub const AUDIT: &str = "audit";
