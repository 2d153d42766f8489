//! The present state: read from the store, kept in memory, written back.

pub mod history;
mod keeper;
mod latest;
mod layout;
mod rewind;
mod seal;
mod snapshot;

pub use history::Retention;
pub use keeper::{Draft, Keeper, Turn, follow};
pub use latest::{Latest, News};
pub use layout::{Layout, LayoutError};
pub use rewind::{Rewind, Rewinds};
pub use seal::{SealError, StoreKeyArgs, StoreKeyError, StoreKeys};
pub use snapshot::{Remembered, Snapshot, StateAt, Target};
