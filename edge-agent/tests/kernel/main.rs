//! The kernel room against a real kernel: a client and an edge, each in a
//! network namespace of its own, joined by a cable. `ip` and `nft` are the
//! oracle; the code under test runs neither. Needs root.

#![allow(clippy::unwrap_used)]

mod agreement;
mod change;
mod cost;
mod doctor;
mod neighbours;
mod program;
mod repair;
mod return_path;
mod sk_lookup;
mod steering;
mod support;
