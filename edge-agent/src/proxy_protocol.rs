//! PROXY protocol, versions 1 and 2 (HAProxy, `doc/proxy-protocol.txt`), and
//! Cloudflare's Simple Proxy Protocol for datagrams: bytes in, outcome out,
//! without I/O.
//!
//! A header says who the two ends of a connection were before a proxy stood
//! between them. It proves nothing by itself: it is worth as much as the sender
//! that it came from.
//!
//! Own code and no library: a receiver has to know after any number of bytes
//! whether they are the start of a header, the whole of one or none, and must
//! not take a byte too many.

mod crc32c;
mod decode;
mod encode;
mod simple;

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

pub use decode::{Decoded, Header, Malformed, decode};
pub use encode::{Tlv, encode_v1, encode_v2};
pub use simple::{decode_simple, encode_simple};

/// What starts a header of version 2; its first byte is no letter.
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// What starts a header of version 1.
const V1_SIGNATURE: [u8; 6] = *b"PROXY ";

/// Longest line of version 1 with its CRLF.
const V1_MAX: usize = 107;

/// Signature, version and command, family and protocol, length of the rest.
const V2_FIXED: usize = 16;

/// Types of a TLV in version 2.
mod tlv_type {
    pub(super) const CRC32C: u8 = 0x03;
    pub(super) const UNIQUE_ID: u8 = 0x05;
    /// The first of those that are free for applications (0xE0 to 0xEF).
    pub(super) const TRACE_ID: u8 = 0xe0;
}

/// Who talked to whom, both of one family, as headers can say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoints {
    V4 {
        source: SocketAddrV4,
        destination: SocketAddrV4,
    },
    V6 {
        source: SocketAddrV6,
        destination: SocketAddrV6,
    },
}

impl Endpoints {
    /// Two IPv4 addresses are so however they were written. Of two families the
    /// IPv4 one becomes an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2). Flow
    /// label and scope are not carried.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        match (source.ip().to_canonical(), destination.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Self::V4 {
                source: SocketAddrV4::new(from, source.port()),
                destination: SocketAddrV4::new(to, destination.port()),
            },
            _ => Self::V6 {
                source: as_v6(source),
                destination: as_v6(destination),
            },
        }
    }

    pub fn source(self) -> SocketAddr {
        match self {
            Self::V4 { source, .. } => source.into(),
            Self::V6 { source, .. } => source.into(),
        }
    }

    pub fn destination(self) -> SocketAddr {
        match self {
            Self::V4 { destination, .. } => destination.into(),
            Self::V6 { destination, .. } => destination.into(),
        }
    }
}

fn as_v6(address: SocketAddr) -> SocketAddrV6 {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    SocketAddrV6::new(ip, address.port(), 0, 0)
}

/// What the connection was, in the words of version 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Stream,
    /// UDP.
    Datagram,
}

#[cfg(test)]
mod tests;
