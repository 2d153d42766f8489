//! An echo request and its reply, as ping does (RFC 792, RFC 4443).
//!
//! By a datagram socket where the host lets us (`net.ipv4.ping_group_range`),
//! which needs no privilege; else by a raw one, which needs CAP_NET_RAW. A raw
//! socket sees all that the origin's address sends, so a reply is known by the
//! random bytes that it carries back.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::{
    attempt::Progress,
    datagram::{hear_all_errors, receive},
    failure::{Failure, Waiting},
};

const HEADER: usize = 8;
/// Random, so that nobody who has not seen the request can answer it.
const TOKEN: usize = 16;
/// More than a reply and the IP header before it, where that comes along.
const REPLY_MAX: usize = 256;

pub(super) async fn echo(ip: IpAddr, progress: &mut Progress) -> Result<(), Failure> {
    // The IPv4 address that an IPv6 one may stand for has ICMP of its own.
    let ip = ip.to_canonical();
    let socket = open(ip)?;
    socket.set_nonblocking(true).map_err(Failure::Echo)?;
    hear_all_errors(&socket, ip).map_err(Failure::Echo)?;
    let connected = socket.connect(&SocketAddr::new(ip, 0).into());
    connected.map_err(Failure::Echo)?;
    let token: [u8; TOKEN] = rand::random();
    // Of the type, only `send` and `recv` are used, which a socket of any kind has.
    let socket = UdpSocket::from_std(socket.into()).map_err(Failure::Echo)?;
    let request = request(ip, rand::random(), token);
    socket.send(&request).await.map_err(Failure::Echo)?;
    progress.waiting = Waiting::Echo;
    loop {
        let packet = receive(&socket, REPLY_MAX).await.map_err(Failure::Echo)?;
        if is_reply(ip, &packet, token) {
            return Ok(());
        }
    }
}

fn open(ip: IpAddr) -> Result<Socket, Failure> {
    let (domain, protocol) = match ip {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let refused = |error: &io::Error| error.kind() == ErrorKind::PermissionDenied;
    match Socket::new(domain, Type::DGRAM, Some(protocol)) {
        Err(error) if refused(&error) => {}
        opened => return opened.map_err(Failure::Echo),
    }
    let raw = Socket::new(domain, Type::RAW, Some(protocol));
    raw.map_err(|error| match error {
        error if refused(&error) => Failure::NoRight,
        error => Failure::Echo(error),
    })
}

/// The kernel writes the checksum of ICMPv6, and of a datagram socket, and the
/// identifier of the latter.
fn request(ip: IpAddr, identifier: [u8; 2], token: [u8; TOKEN]) -> [u8; HEADER + TOKEN] {
    let mut packet = [0; HEADER + TOKEN];
    packet[0] = match ip {
        IpAddr::V4(_) => 8,
        IpAddr::V6(_) => 128,
    };
    packet[4..6].copy_from_slice(&identifier);
    packet[HEADER..].copy_from_slice(&token);
    if ip.is_ipv4() {
        let checksum = checksum(&packet);
        packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

/// RFC 1071, of an even number of bytes.
fn checksum(packet: &[u8]) -> u16 {
    let (words, _) = packet.as_chunks::<2>();
    let sum: u32 = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    // Folded twice, it has 16 bits.
    !(folded as u16)
}

/// A raw socket of IPv4 brings the IP header along.
fn is_reply(ip: IpAddr, packet: &[u8], token: [u8; TOKEN]) -> bool {
    let (kind, packet) = match (ip, packet.first()) {
        (IpAddr::V4(_), Some(first)) if first >> 4 == 4 => {
            let header = usize::from(first & 0xf) * 4;
            (0, packet.get(header..).unwrap_or_default())
        }
        (IpAddr::V4(_), _) => (0, packet),
        (IpAddr::V6(_), _) => (129, packet),
    };
    packet.first() == Some(&kind) && packet.get(HEADER..).is_some_and(|rest| rest == token)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    fn reply(kind: u8, token: [u8; TOKEN]) -> Vec<u8> {
        let mut packet = vec![kind, 0, 1, 2, 3, 4, 5, 6];
        packet.extend(token);
        packet
    }

    #[test]
    fn a_reply_carries_our_token_and_is_no_request() {
        let token = [7; TOKEN];
        assert!(is_reply(V4, &reply(0, token), token));
        assert!(is_reply(V6, &reply(129, token), token));
        assert!(!is_reply(V4, &reply(0, [8; TOKEN]), token));
        assert!(!is_reply(V4, &reply(8, token), token));
        assert!(!is_reply(V6, &reply(128, token), token));
        let header = |words: u8| {
            let mut packet = vec![0x40 | words];
            packet.resize(usize::from(words) * 4, 0);
            packet.extend(reply(0, token));
            packet
        };
        assert!(is_reply(V4, &header(5), token));
        assert!(is_reply(V4, &header(6), token));
        let unreachable = [3; 8].into_iter().chain(header(5)).collect::<Vec<_>>();
        assert!(!is_reply(V4, &unreachable, token));
    }

    proptest! {
        /// The sum over the whole, the checksum too, is 0: what a receiver looks at.
        #[test]
        fn the_checksum_is_right(identifier: [u8; 2], token: [u8; TOKEN]) {
            let packet = request(V4, identifier, token);
            prop_assert_eq!(checksum(&packet), 0);
        }

        #[test]
        fn no_packet_breaks_the_reader(packet: Vec<u8>, token: [u8; TOKEN]) {
            is_reply(V4, &packet, token);
            is_reply(V6, &packet, token);
        }
    }
}
