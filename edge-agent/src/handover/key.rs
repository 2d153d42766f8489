//! The names of what is handed over. Each descriptor has one of its own, so
//! that none is taken for another, owned twice or lost.

use std::{fmt, str::FromStr};

/// What a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The lock on the state directory: whoever holds it owns the directory.
    StateLock,
    /// The listener of gRPC.
    Grpc,
    /// The listener of the admin pages.
    Admin,
    /// A listener for connections, by its number among those of its family.
    Tcp(Family, usize),
    /// A socket for the first datagrams of flows, in the same way.
    Udp(Family, usize),
    /// An earlier agent that still finishes its connections, by process id.
    Generation(i32),
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// `state-lock`, `grpc`, `tcp/v4/0`, `generation/4711`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::StateLock => f.write_str("state-lock"),
            Key::Grpc => f.write_str("grpc"),
            Key::Admin => f.write_str("admin"),
            Key::Tcp(family, number) => write!(f, "tcp/{family}/{number}"),
            Key::Udp(family, number) => write!(f, "udp/{family}/{number}"),
            Key::Generation(pid) => write!(f, "generation/{pid}"),
        }
    }
}

/// Something is handed over that this version has no use for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing that this version of the agent can take over")]
pub struct UnknownKey(String);

impl FromStr for Key {
    type Err = UnknownKey;

    fn from_str(text: &str) -> Result<Self, UnknownKey> {
        let key = match *text.split('/').collect::<Vec<_>>() {
            ["state-lock"] => Some(Key::StateLock),
            ["grpc"] => Some(Key::Grpc),
            ["admin"] => Some(Key::Admin),
            ["tcp", family, number] => numbered(family, number, Key::Tcp),
            ["udp", family, number] => numbered(family, number, Key::Udp),
            ["generation", pid] => pid.parse().ok().map(Key::Generation),
            _ => None,
        };
        key.ok_or_else(|| UnknownKey(text.to_owned()))
    }
}

fn numbered(family: &str, number: &str, key: fn(Family, usize) -> Key) -> Option<Key> {
    let families = [Family::V4, Family::V6];
    let family = families.into_iter().find(|one| one.to_string() == family)?;
    Some(key(family, number.parse().ok()?))
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "v4",
            Family::V6 => "v6",
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_key_is_read_as_it_is_written() {
        let keys = [
            Key::StateLock,
            Key::Grpc,
            Key::Admin,
            Key::Tcp(Family::V4, 0),
            Key::Tcp(Family::V6, 70_000),
            Key::Udp(Family::V6, 1),
            Key::Generation(4711),
        ];
        for key in keys {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        for unknown in ["", "quic/v4/0", "tcp/v4/", "udp/v5/0", "generation/x"] {
            assert!(unknown.parse::<Key>().is_err(), "{unknown}");
        }
    }
}
