//! The present state: read from the store, kept in memory, written back.

pub mod history;
mod keeper;
mod layout;
mod snapshot;

pub use keeper::{Draft, Keeper, Turn, follow};
pub use layout::{Layout, LayoutError};
pub use snapshot::{Remembered, Snapshot, StateAt};
