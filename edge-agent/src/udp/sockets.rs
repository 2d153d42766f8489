//! The two sockets of a flow.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::sessions::Key;
use crate::origin::transparent;

fn datagrams(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))
}

/// A socket that speaks to the client from where it was spoken to.
///
/// A datagram of another client that the kernel looks up while this socket is
/// bound and not yet connected can end in its queue: the lookup finds the socket
/// by its address and port, and asks only in the end whether it is connected by
/// now. So whoever reads from it has to look who sent what.
pub(super) fn towards_client(key: &Key) -> io::Result<Socket> {
    let socket = datagrams(key.edge)?;
    // Each client of one edge address and port has a socket there.
    socket.set_reuse_address(true)?;
    if key.edge.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
    }
    socket.bind(&SockAddr::from(key.edge))?;
    socket.connect(&SockAddr::from(key.client))?;
    Ok(socket)
}

/// A socket that speaks to an origin, as the edge or as `shown`. As above, others
/// may be heard on it.
pub(super) fn towards_origin(origin: SocketAddr, shown: Option<SocketAddr>) -> io::Result<Socket> {
    if let Some(client) = shown {
        return transparent::datagrams(client, origin);
    }
    let socket = datagrams(origin)?;
    socket.connect(&SockAddr::from(origin))?;
    Ok(socket)
}
