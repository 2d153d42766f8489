//! Cloudflare's Simple Proxy Protocol: 38 bytes before the payload of each
//! datagram, in both directions, in network byte order.
//!
//! ```text
//!  0  2  0x56EC
//!  2 16  client's address, IPv4 as IPv4-mapped IPv6
//! 18 16  edge's address, to which the client sent, likewise
//! 34  2  client's port
//! 36  2  edge's port
//! 38  …  payload
//! ```

use std::net::{Ipv6Addr, SocketAddr};

use super::{Endpoints, as_v6};

const MAGIC: [u8; 2] = [0x56, 0xec];
const LEN: usize = 38;

/// A datagram that does not start with a Simple Proxy Protocol header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the datagram does not start with a Simple Proxy Protocol header")]
pub struct NotSimple;

/// What goes before the payload: source is the client, destination the edge.
pub fn encode_simple(endpoints: Endpoints) -> [u8; LEN] {
    let (client, edge) = (as_v6(endpoints.source()), as_v6(endpoints.destination()));
    let mut header = [0; LEN];
    let parts: [&[u8]; 5] = [
        &MAGIC,
        &client.ip().octets(),
        &edge.ip().octets(),
        &client.port().to_be_bytes(),
        &edge.port().to_be_bytes(),
    ];
    for (to, from) in header.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
    header
}

/// The header of a datagram, and its payload.
pub fn decode_simple(datagram: &[u8]) -> Result<(Endpoints, &[u8]), NotSimple> {
    let rest = datagram.strip_prefix(&MAGIC).ok_or(NotSimple)?;
    let (client, rest) = rest.split_first_chunk::<16>().ok_or(NotSimple)?;
    let (edge, rest) = rest.split_first_chunk::<16>().ok_or(NotSimple)?;
    let (client_port, rest) = rest.split_first_chunk::<2>().ok_or(NotSimple)?;
    let (edge_port, payload) = rest.split_first_chunk::<2>().ok_or(NotSimple)?;
    let address = |ip: [u8; 16], port: [u8; 2]| {
        let ip = Ipv6Addr::from(ip).to_canonical();
        SocketAddr::new(ip, u16::from_be_bytes(port))
    };
    let (client, edge) = (address(*client, *client_port), address(*edge, *edge_port));
    Ok((Endpoints::new(client, edge), payload))
}
