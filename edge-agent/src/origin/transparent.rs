//! Sockets that carry the client's own address to an origin.
//!
//! The client's port comes along where it can be had. It cannot where the very
//! pair of ends is in use or was a moment ago (TIME_WAIT), or where a program
//! on this host listens on that port of every address; then the kernel chooses
//! another port of the same address. What brings the answers back is
//! `kernel/return_path.rs`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
};

use anyport_model::outcome::Status;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::NoOrigin;
use crate::kernel::OpenSockets;

/// Whether an origin could answer to a client of this address.
pub fn can_be_answered(client: IpAddr) -> Result<(), NoOrigin> {
    match unanswerable(client) {
        None => Ok(()),
        Some(why) => Err(NoOrigin {
            status: Status::ConnectSystem,
            reason: format!("client_ip is transparent, and {client} {why}"),
        }),
    }
}

fn unanswerable(client: IpAddr) -> Option<&'static str> {
    let link_local = match client {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if client.is_loopback() {
        Some("is a loopback address, which an origin takes for its own")
    } else if client.is_unspecified() || client.is_multicast() || link_local {
        Some("is no address that an origin could answer to")
    } else {
        None
    }
}

/// Connects to `origin` as `client`.
pub(super) async fn connect(client: SocketAddr, origin: SocketAddr) -> io::Result<TcpStream> {
    let origin = SocketAddr::new(origin.ip().to_canonical(), origin.port());
    let with_its_port = match socket(client) {
        Ok(socket) => socket.connect(origin).await,
        Err(error) => Err(error),
    };
    match with_its_port {
        Err(error) if cannot_be_had(&error) => {
            let any_port = SocketAddr::new(client.ip(), 0);
            socket(any_port)?.connect(origin).await
        }
        done => done,
    }
}

/// A socket that speaks to `origin` by datagrams as `client`, both of one
/// family.
///
/// Of UDP, the kernel lets several sockets have the same pair of ends, and would
/// give what comes from the origin to one of them. So the pair has to be free.
pub fn datagrams(client: SocketAddr, origin: SocketAddr) -> io::Result<Socket> {
    // Between the look whether a pair is free and the taking of it, no other
    // worker takes one.
    static TAKING: Mutex<()> = Mutex::new(());
    let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
    match with_its_port(client, origin) {
        Err(error) if cannot_be_had(&error) => with_any_port(client.ip(), origin),
        done => done,
    }
}

fn with_its_port(client: SocketAddr, origin: SocketAddr) -> io::Result<Socket> {
    let socket = datagram_socket(client)?;
    // One client speaks from one port to several origins at once.
    socket.set_reuse_address(true)?;
    socket.bind(&client.into())?;
    // Where it cannot be told, another port does no harm.
    let asked = OpenSockets::open().and_then(|sockets| sockets.is_flow(client, origin));
    if asked.unwrap_or(true) {
        return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
    }
    socket.connect(&origin.into())?;
    Ok(socket)
}

fn with_any_port(client: IpAddr, origin: SocketAddr) -> io::Result<Socket> {
    let any = SocketAddr::new(client, 0);
    let socket = datagram_socket(any)?;
    socket.bind(&any.into())?;
    // The client may come to use that port itself.
    socket.set_reuse_address(true)?;
    socket.connect(&origin.into())?;
    Ok(socket)
}

fn datagram_socket(source: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(source);
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    set_transparent(&SockRef::from(&socket), source)?;
    Ok(socket)
}

fn set_transparent(socket: &SockRef<'_>, source: SocketAddr) -> io::Result<()> {
    match source {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// Taken, or below 1024 for an agent without CAP_NET_BIND_SERVICE.
fn cannot_be_had(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL | libc::EACCES)
    )
}

/// A socket that is bound to an address which this host does not have.
fn socket(source: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match source {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    set_transparent(&SockRef::from(&socket), source)?;
    if source.port() == 0 {
        // Chosen at the connect, when the origin is known: pairs of ends are
        // what there is to run out of then, and not ports.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    } else {
        // One client has one port at several apps at once.
        socket.set_reuseaddr(true)?;
    }
    socket.set_nodelay(true)?;
    socket.bind(source)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::unanswerable;

    #[test]
    fn only_a_client_that_can_be_answered_is_spoken_for() {
        for bad in [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "169.254.1.1",
            "fe80::1",
            "ff02::1",
        ] {
            let client = bad.parse().expect("an address");
            assert!(unanswerable(client).is_some(), "{bad}");
        }
        for good in ["203.0.113.5", "10.0.1.2", "2001:db8::5", "fd00::1"] {
            let client = good.parse().expect("an address");
            assert!(unanswerable(client).is_none(), "{good}");
        }
    }
}
