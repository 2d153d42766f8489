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
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

/// Why no origin could answer to a client of this address.
pub(super) fn unanswerable(client: IpAddr) -> Option<&'static str> {
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
    let options = SockRef::from(&socket);
    match source {
        SocketAddr::V4(_) => options.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => options.set_ip_transparent_v6(true),
    }?;
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
