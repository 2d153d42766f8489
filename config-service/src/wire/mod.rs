//! Answers without end whose messages are encoded once, and shared by all who are sent
//! them: the generated servers encode each message once per client, and keep the buffer
//! that it was encoded into.

mod body;
mod message;
mod once;

pub(crate) use body::{call_of, respond};
pub(crate) use message::{Coding, PREFIX, message, prefix};
pub(crate) use once::{Once, made};
