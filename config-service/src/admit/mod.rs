//! What may become a revision.
//!
//! Reading a request, planning and judging are pure ([`intent`]); [`write`] does
//! them in turn with the store: once for a repeated request, again where another
//! replica was first, and without the store for a dry run.

mod deletion;
mod intent;
mod limits;
mod read;
mod write;

pub use deletion::MassDeletion;
pub use intent::{ApplyRead, Change, Intent, Plan, Refusal, User, Violation};
pub use limits::{RESOURCE_MAX, RESOURCES_MAX};
pub use read::read_apply;
pub use write::{Conditions, Outcome, STATE_MAX, WriteError, Writer, Written};
