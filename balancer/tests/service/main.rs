//! A whole balancer between a scripted config service, origins on real sockets,
//! and an edge that watches.
#![allow(clippy::unwrap_used)]

mod admin;
mod config_stream;
mod isolation;
mod many;
mod peers;
mod probing;
mod rights;
mod support;
mod weights_stream;
