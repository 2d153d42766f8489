//! The present state: read from the store, kept in memory, written back.

pub mod history;
mod keeper;
mod layout;
mod rewind;
mod snapshot;

pub use history::Retention;
pub use keeper::{Draft, Keeper, Turn, follow};
pub use layout::{Layout, LayoutError};
pub use rewind::{Rewind, Rewinds};
pub use snapshot::{Remembered, Snapshot, StateAt};
