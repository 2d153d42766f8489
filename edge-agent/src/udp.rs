//! Flows of UDP from the first datagram to the last.
//!
//! A flow is what passes between one client address and port and one edge
//! address and port. Its first datagram arrives on a socket of the worker's
//! that the kernel steers to; the flow then gets two sockets of its own. One is
//! bound to the edge address and port and connected to the client, so that the
//! kernel hands it every further datagram, past the steering rules, and answers
//! leave from where the client expects them. The other is connected to an
//! origin.
//!
//! [`sessions`] decides, and knows no socket; [`worker`] moves the datagrams.
//!
//! What happens to a datagram that is special:
//!
//! - **Fragments** are put together by the kernel before they are steered, and
//!   what is sent on and is larger than the path takes is cut anew, to a
//!   client as to an origin. So a datagram of any size that UDP has (65,507
//!   bytes over IPv4) passes where the path carries fragments.
//! - **Empty datagrams** pass.
//! - **ICMP "port unreachable"** from an origin that never answered moves the
//!   flow to the next origin; from one that did, it ends the flow, and so does
//!   one from the client. No other ICMP message ends anything.
//! - **What cannot be sent at once** is dropped and counted, never kept.

mod account;
mod batch;
mod flow;
mod header;
mod poll;
mod sessions;
mod sockets;
mod worker;

pub use worker::{Limits, Taking, serve};
