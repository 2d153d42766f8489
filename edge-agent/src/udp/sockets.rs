//! The two sockets of a flow.

use std::{io, net::SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::sessions::Key;
use crate::origin::transparent;

/// Bytes, as the kernel counts them, that may wait in a socket's queue (it takes
/// twice what it is told): 0.2 s of 40 Mbit/s in datagrams of 1,200 bytes, in
/// which a worker that is kept from its processor loses nothing.
const WAITING: usize = 1 << 20;

fn datagrams(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))
}

fn with_room(socket: Socket) -> io::Result<Socket> {
    // Beyond what the host allows others: the privilege is there.
    setsockopt(&socket, sockopt::RcvBufForce, &WAITING)?;
    Ok(socket)
}

/// A socket that speaks to the client from where it was spoken to.
///
/// A datagram of another client that the kernel looks up while this socket is
/// bound and not yet connected can end in its queue: the lookup finds the socket
/// by its address and port, and asks only in the end whether it is connected by
/// now. So whoever reads from it has to look who sent what.
pub(super) fn towards_client(key: &Key) -> io::Result<Socket> {
    let socket = bound(key.edge)?;
    socket.connect(&SockAddr::from(key.client))?;
    with_room(socket)
}

/// A socket at an address that need not be this host's, beside others.
fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = datagrams(address)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

/// Has a datagram steered once more, as it came from the client.
pub(super) fn steer_again(key: &Key, payload: &[u8]) -> io::Result<()> {
    let socket = bound(key.client)?;
    socket.send_to(payload, &SockAddr::from(key.edge))?;
    Ok(())
}

/// A socket that speaks to an origin, as the edge or as `shown`. As above, others
/// may be heard on it.
pub(super) fn towards_origin(origin: SocketAddr, shown: Option<SocketAddr>) -> io::Result<Socket> {
    if let Some(client) = shown {
        return with_room(transparent::datagrams(client, origin)?);
    }
    let socket = datagrams(origin)?;
    socket.connect(&SockAddr::from(origin))?;
    with_room(socket)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::{
        net::{Ipv4Addr, UdpSocket},
        time::{Duration, Instant},
    };

    /// `cargo test -p anyport-edge-agent --lib -- --ignored --nocapture one_place`
    #[test]
    #[ignore = "a measurement"]
    #[allow(clippy::print_stdout)]
    fn what_flows_at_one_place_cost() {
        let probe = UdpSocket::bind((Ipv4Addr::new(127, 66, 1, 1), 0)).unwrap();
        let edge = probe.local_addr().unwrap();
        drop(probe);
        let steered = datagrams(edge).unwrap();
        steered.set_reuse_address(true).unwrap();
        steered.bind(&edge.into()).unwrap();
        let peer = |n: usize| {
            let n = u32::try_from(n).unwrap();
            let ip = Ipv4Addr::from_bits(0x7f42_0200 + n / 1000);
            SocketAddr::from((ip, 10_000 + (n % 1000) as u16))
        };
        let each = |time: Duration, count: usize| time.as_secs_f64() * 1e6 / count as f64;
        let mut flows = Vec::new();
        println!("flows   open (µs)   known client (µs)   unknown client (µs)");
        for thousands in [1, 2, 4, 8, 12, 16] {
            let (start, before) = (Instant::now(), flows.len());
            while flows.len() < thousands * 1000 {
                let client = peer(flows.len());
                flows.push(towards_client(&Key { client, edge }).unwrap());
            }
            let opened = start.elapsed();
            let known = UdpSocket::bind(peer(flows.len() / 2)).unwrap();
            let unknown = UdpSocket::bind(peer(9_000_000)).unwrap();
            let [known, unknown] = [known, unknown].map(|client| {
                let start = Instant::now();
                for _ in 0..100 {
                    client.send_to(b"x", edge).unwrap();
                }
                start.elapsed()
            });
            println!(
                "{:5}   {:9.1}   {:17.1}   {:19.1}",
                flows.len(),
                each(opened, flows.len() - before),
                each(known, 100),
                each(unknown, 100)
            );
        }
        let start = Instant::now();
        let count = flows.len();
        drop(flows);
        println!(
            "closing one of them: {:.1} µs",
            each(start.elapsed(), count)
        );
    }
}
