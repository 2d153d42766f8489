//! Manifests: what users write, and what `get -o yaml` writes for them.
//!
//! A manifest is a YAML mapping with the lists `prefixes`, `monitors`, `pools`,
//! `certificates` and `apps`, whose entries have the fields of `anyport/v1/resources.proto`.
//! Reading finds every fault at once and keeps for each value its path and
//! line, so that a fault that only the config service can see is shown at the
//! place where the user wrote it. What is well-formed but wrong (a port above
//! 65535, an address outside the prefixes) is the config service's to say: it
//! says it to every client alike.

mod bytes;
mod fields;
mod near;
mod node;
mod place;
mod read;
mod words;
mod write;

pub use anyport_model::duration::{parse_duration, write_duration};
pub use place::{ManifestFault, Place};
pub use read::{Declared, Manifest};
pub use words::{Word, word};
pub use write::{Document, Entry, write_wire_duration};

#[cfg(test)]
mod tests;
