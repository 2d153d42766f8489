//! Headers for origins.

use super::{Endpoints, Protocol, V2_FIXED, V2_SIGNATURE, tlv_type};

/// What version 2 says beyond the addresses. Printable, so that an origin can
/// log it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tlv {
    /// PP2_TYPE_UNIQUE_ID (0x05): the connection's id, 32 hexadecimal digits.
    UniqueId(u128),
    /// Type 0xE0, one of those that are free for applications: the trace that
    /// the connection belongs to, 32 hexadecimal digits as in a `traceparent`
    /// (W3C Trace Context).
    TraceId(u128),
}

impl Tlv {
    fn kind(self) -> u8 {
        match self {
            Tlv::UniqueId(_) => tlv_type::UNIQUE_ID,
            Tlv::TraceId(_) => tlv_type::TRACE_ID,
        }
    }

    fn value(self) -> String {
        match self {
            Tlv::UniqueId(id) | Tlv::TraceId(id) => format!("{id:032x}"),
        }
    }
}

/// `PROXY TCP4 203.0.113.5 198.51.100.10 40000 25565`, CRLF: 56 bytes at most
/// for IPv4, 104 for IPv6.
pub fn encode_v1(endpoints: Endpoints) -> Vec<u8> {
    let family = match endpoints {
        Endpoints::V4 { .. } => "TCP4",
        Endpoints::V6 { .. } => "TCP6",
    };
    let (source, destination) = (endpoints.source(), endpoints.destination());
    format!(
        "PROXY {family} {} {} {} {}\r\n",
        source.ip(),
        destination.ip(),
        source.port(),
        destination.port()
    )
    .into_bytes()
}

/// 28 bytes for IPv4, 52 for IPv6, and 35 for each TLV.
pub fn encode_v2(protocol: Protocol, endpoints: Endpoints, tlvs: &[Tlv]) -> Vec<u8> {
    let family = match endpoints {
        Endpoints::V4 { .. } => 0x10,
        Endpoints::V6 { .. } => 0x20,
    };
    let protocol = match protocol {
        Protocol::Stream => 0x1,
        Protocol::Datagram => 0x2,
    };
    let mut rest = Vec::with_capacity(36 + 35 * tlvs.len());
    match endpoints {
        Endpoints::V4 {
            source,
            destination,
        } => {
            rest.extend(source.ip().octets());
            rest.extend(destination.ip().octets());
        }
        Endpoints::V6 {
            source,
            destination,
        } => {
            rest.extend(source.ip().octets());
            rest.extend(destination.ip().octets());
        }
    }
    rest.extend(endpoints.source().port().to_be_bytes());
    rest.extend(endpoints.destination().port().to_be_bytes());
    for tlv in tlvs {
        let value = tlv.value();
        rest.push(tlv.kind());
        rest.extend((value.len() as u16).to_be_bytes());
        rest.extend(value.into_bytes());
    }
    let mut header = Vec::with_capacity(V2_FIXED + rest.len());
    header.extend(V2_SIGNATURE);
    header.extend([0x21, family | protocol]);
    header.extend((rest.len() as u16).to_be_bytes());
    header.extend(rest);
    header
}
