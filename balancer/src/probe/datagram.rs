//! What sockets for datagrams and for echoes have in common: errors matter.

use std::{
    io::{self, Read},
    net::IpAddr,
    os::fd::AsFd,
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};
use socket2::{SockRef, Socket};
use tokio::{io::Interest, net::UdpSocket};

/// By default the kernel keeps to itself what may pass: "host unreachable" too.
pub(super) fn hear_all_errors(socket: &impl AsFd, ip: IpAddr) -> io::Result<()> {
    let set = match ip {
        IpAddr::V4(_) => setsockopt(socket, Ipv4RecvErr, &true),
        IpAddr::V6(_) => setsockopt(socket, Ipv6RecvErr, &true),
    };
    set.map_err(io::Error::from)
}

/// The next datagram, up to `most` bytes of it, or the next error. For the latter
/// alone, tokio's own `recv` is not woken. While nothing has come, there is no
/// buffer for it.
pub(super) async fn receive(socket: &UdpSocket, most: usize) -> io::Result<Vec<u8>> {
    let read = || {
        let mut datagram = vec![0; most];
        let socket = SockRef::from(socket);
        let mut socket: &Socket = &socket;
        let received = socket.read(&mut datagram)?;
        datagram.truncate(received);
        Ok(datagram)
    };
    let any = Interest::READABLE | Interest::ERROR;
    socket.async_io(any, read).await
}
