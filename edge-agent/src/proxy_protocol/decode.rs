//! Headers from senders, versions 1 and 2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    Endpoints, Protocol, V1_MAX, V1_SIGNATURE, V2_FIXED, V2_SIGNATURE, crc32c::crc32c, tlv_type,
};

/// Largest header of version 2 that is read, TLVs included. Its length field
/// could ask for 64 KiB; what load balancers send stays below 1 KiB.
const V2_MAX: usize = 4096;

/// What the bytes that came so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    /// The start of a header, all of it.
    Incomplete,
    /// A header in the first `len` bytes. What follows is the client's.
    Complete { len: usize, header: Header },
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Nothing of the client: the ends of the connection are who they are.
    /// `LOCAL` (the sender's own probe), `UNKNOWN`, or a family without ports.
    Unspecified,
    /// The connection was made by `source` to `destination`.
    Proxied {
        protocol: Protocol,
        endpoints: Endpoints,
    },
}

/// Bytes that are no header, whatever may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the first bytes are no PROXY protocol header")]
    NoHeader,
    #[error("the version 1 header has no CRLF within {V1_MAX} bytes")]
    Endless,
    #[error("the version 1 header is not of the form \"PROXY TCP4 SOURCE DESTINATION PORT PORT\"")]
    Line,
    #[error("the header is of version {0}; right is 1 or 2")]
    Version(u8),
    #[error("the version 2 header has command {0}; right is 0 (LOCAL) or 1 (PROXY)")]
    Command(u8),
    #[error("the version 2 header has address family and protocol {0:#04x}, which there is not")]
    Family(u8),
    #[error("the version 2 header is {0} bytes long; right is at most {V2_MAX}")]
    TooLong(usize),
    #[error("the version 2 header is too short for its addresses")]
    TooShort,
    #[error("the version 2 header has a TLV that goes beyond its end")]
    Tlv,
    #[error("the version 2 header does not have the checksum that it says")]
    Checksum,
}

/// Reads the header at the start of `bytes`.
pub fn decode(bytes: &[u8]) -> Result<Decoded, Malformed> {
    if starts_like(bytes, &V2_SIGNATURE) {
        decode_v2(bytes)
    } else if starts_like(bytes, &V1_SIGNATURE) {
        decode_v1(bytes)
    } else {
        Err(Malformed::NoHeader)
    }
}

/// Whether `bytes` are the start of `signature`, or go on after it.
fn starts_like(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(a, b)| a == b)
}

fn decode_v1(bytes: &[u8]) -> Result<Decoded, Malformed> {
    let Some(end) = bytes.iter().take(V1_MAX).position(|byte| *byte == b'\n') else {
        return if bytes.len() < V1_MAX {
            Ok(Decoded::Incomplete)
        } else {
            Err(Malformed::Endless)
        };
    };
    let line = bytes.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").ok_or(Malformed::Line)?;
    let line = str::from_utf8(line).map_err(|_| Malformed::Line)?;
    Ok(Decoded::Complete {
        len: end + 1,
        header: read_line(line).ok_or(Malformed::Line)?,
    })
}

fn read_line(line: &str) -> Option<Header> {
    let mut words = line.split(' ').skip(1);
    let family = words.next()?;
    if family == "UNKNOWN" {
        // The rest of the line is to be ignored.
        return Some(Header::Unspecified);
    }
    let ip = |word: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (source, destination) = (ip(words.next()?)?, ip(words.next()?)?);
    let (source_port, destination_port) = (port(words.next()?)?, port(words.next()?)?);
    if words.next().is_some() {
        return None;
    }
    Some(Header::Proxied {
        protocol: Protocol::Stream,
        endpoints: Endpoints::new(
            SocketAddr::new(source, source_port),
            SocketAddr::new(destination, destination_port),
        ),
    })
}

/// Decimal digits without a leading zero or a sign.
fn port(word: &str) -> Option<u16> {
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (word == "0" || !word.starts_with('0'));
    plain.then(|| word.parse().ok()).flatten()
}

fn decode_v2(bytes: &[u8]) -> Result<Decoded, Malformed> {
    // Judged as soon as it is there, so that what cannot become a header is
    // not waited for.
    let command = match bytes.get(12) {
        None => return Ok(Decoded::Incomplete),
        Some(byte) if byte >> 4 != 2 => return Err(Malformed::Version(byte >> 4)),
        Some(byte) => byte & 0xf,
    };
    if command > 1 {
        return Err(Malformed::Command(command));
    }
    let Some(fixed) = bytes.first_chunk::<V2_FIXED>() else {
        return Ok(Decoded::Incomplete);
    };
    let [.., family, high, low] = *fixed;
    let len = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if len > V2_MAX {
        return Err(Malformed::TooLong(len));
    }
    let Some(whole) = bytes.get(..len) else {
        return Ok(Decoded::Incomplete);
    };
    let header = if command == 0 {
        // A receiver skips whatever is said with LOCAL.
        Header::Unspecified
    } else {
        read_proxied(whole, family)?
    };
    Ok(Decoded::Complete { len, header })
}

fn read_proxied(whole: &[u8], family: u8) -> Result<Header, Malformed> {
    let protocol = match family & 0xf {
        0 => None,
        1 => Some(Protocol::Stream),
        2 => Some(Protocol::Datagram),
        _ => return Err(Malformed::Family(family)),
    };
    let rest = whole.get(V2_FIXED..).unwrap_or_default();
    let (endpoints, tlvs) = match family >> 4 {
        0 => (None, rest),
        1 => {
            let (endpoints, rest) = read_v4(rest).ok_or(Malformed::TooShort)?;
            (Some(endpoints), rest)
        }
        2 => {
            let (endpoints, rest) = read_v6(rest).ok_or(Malformed::TooShort)?;
            (Some(endpoints), rest)
        }
        // Unix sockets: two paths of 108 bytes.
        3 => (None, rest.get(216..).ok_or(Malformed::TooShort)?),
        _ => return Err(Malformed::Family(family)),
    };
    // Without a family, what follows is not said to be TLVs.
    if family >> 4 != 0 {
        check_tlvs(whole, tlvs)?;
    }
    Ok(match (protocol, endpoints) {
        (Some(protocol), Some(endpoints)) => Header::Proxied {
            protocol,
            endpoints,
        },
        _ => Header::Unspecified,
    })
}

fn read_v4(bytes: &[u8]) -> Option<(Endpoints, &[u8])> {
    let (source, rest) = bytes.split_first_chunk::<4>()?;
    let (destination, rest) = rest.split_first_chunk::<4>()?;
    read_ports((*source).into(), (*destination).into(), rest)
}

fn read_v6(bytes: &[u8]) -> Option<(Endpoints, &[u8])> {
    let (source, rest) = bytes.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    read_ports((*source).into(), (*destination).into(), rest)
}

fn read_ports(source: IpAddr, destination: IpAddr, rest: &[u8]) -> Option<(Endpoints, &[u8])> {
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let (destination_port, rest) = rest.split_first_chunk::<2>()?;
    let endpoints = Endpoints::new(
        SocketAddr::new(source, u16::from_be_bytes(*source_port)),
        SocketAddr::new(destination, u16::from_be_bytes(*destination_port)),
    );
    Some((endpoints, rest))
}

/// TLVs have to fill the header exactly, and a checksum among them has to be
/// right. None of the others is of use here.
fn check_tlvs(whole: &[u8], mut tlvs: &[u8]) -> Result<(), Malformed> {
    while !tlvs.is_empty() {
        let ([kind, high, low], rest) = tlvs.split_first_chunk::<3>().ok_or(Malformed::Tlv)?;
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, after) = rest.split_at_checked(len).ok_or(Malformed::Tlv)?;
        if *kind == tlv_type::CRC32C {
            let said = value.first_chunk::<4>().filter(|_| len == 4);
            let before = whole.len() - rest.len();
            let parts = [whole.get(..before).unwrap_or_default(), &[0; 4], after];
            if said != Some(&crc32c(&parts).to_be_bytes()) {
                return Err(Malformed::Checksum);
            }
        }
        tlvs = after;
    }
    Ok(())
}
