//! The command `anyport`.

#![forbid(unsafe_code)]

pub mod manifest;
