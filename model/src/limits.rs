//! How much of an app its clients may have, and who a client is to a limit.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
};

/// What an app allows; `None`: as much as there is. Flows of UDP are
/// connections too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Open at a time, on one edge.
    pub connections: Option<NonZeroU32>,
    /// Of one source, open at a time.
    pub connections_per_source: Option<NonZeroU32>,
    /// Of one source, begun in a second: a [`Bucket`](crate::bucket::Bucket) of
    /// this rate.
    pub new_connections_per_source: Option<NonZeroU32>,
    /// In each direction by itself: a [`Bucket`](crate::bucket::Bucket) of
    /// bytes.
    pub bytes_per_second_per_connection: Option<NonZeroU32>,
}

impl Limits {
    /// Whether it matters where a connection comes from.
    pub fn are_by_source(&self) -> bool {
        self.connections_per_source.is_some() || self.new_connections_per_source.is_some()
    }
}

/// A limit that a new connection can run into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    Connections,
    ConnectionsPerSource,
    NewConnectionsPerSource,
}

impl Limit {
    pub const ALL: [Limit; 3] = [
        Limit::Connections,
        Limit::ConnectionsPerSource,
        Limit::NewConnectionsPerSource,
    ];

    /// The name of its field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Limit::Connections => "connections",
            Limit::ConnectionsPerSource => "connections_per_source",
            Limit::NewConnectionsPerSource => "new_connections_per_source",
        }
    }
}

/// A connection would have been one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    pub limit: Limit,
    pub value: NonZeroU32,
    pub source: Source,
}

impl std::error::Error for Reached {}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            limit,
            value,
            source,
        } = self;
        let name = limit.as_str();
        match limit {
            Limit::Connections => write!(f, "limits.{name}: {value} are open"),
            Limit::ConnectionsPerSource => {
                write!(f, "limits.{name}: {value} are open from {source}")
            }
            Limit::NewConnectionsPerSource => {
                write!(f, "limits.{name}: more than {value} a second from {source}")
            }
        }
    }
}

/// Whom limits count as one: an IPv4 address, or an IPv6 /64, of which whoever
/// has one address has all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    V4(Ipv4Addr),
    /// The upper half of the address.
    V6(u64),
}

impl From<IpAddr> for Source {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Source::V4(ip),
            IpAddr::V6(ip) => Source::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

/// `203.0.113.5`, `2001:db8:7::/64`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::V4(ip) => fmt::Display::fmt(ip, f),
            Source::V6(upper) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(*upper) << 64)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_64() {
        let source = |ip: &str| Source::from(ip.parse::<IpAddr>().unwrap());
        assert_eq!(source("203.0.113.5"), source("::ffff:203.0.113.5"));
        assert_ne!(source("203.0.113.5"), source("203.0.113.6"));
        assert_eq!(source("2001:db8:7::1"), source("2001:db8:7::ffff:0:0:1"));
        assert_ne!(source("2001:db8:7::1"), source("2001:db8:7:1::1"));
        assert_eq!(source("203.0.113.5").to_string(), "203.0.113.5");
        assert_eq!(source("2001:db8:7::1").to_string(), "2001:db8:7::/64");
    }

    #[test]
    fn who_is_turned_away_learns_the_limit_and_its_value() {
        let said = |limit| {
            let reached = Reached {
                limit,
                value: NonZeroU32::new(2).unwrap(),
                source: Source::from(IpAddr::from([203, 0, 113, 5])),
            };
            reached.to_string()
        };
        assert_eq!(
            Limit::ALL.map(said),
            [
                "limits.connections: 2 are open",
                "limits.connections_per_source: 2 are open from 203.0.113.5",
                "limits.new_connections_per_source: more than 2 a second from 203.0.113.5",
            ]
        );
    }
}
