//! Sockets that the kernel steers connections, and the first datagrams of flows
//! of UDP, to.
//!
//! They are bound to loopback, on a port that the kernel chooses and that the
//! steering rules are then written for: a fixed port could be taken by an
//! outgoing connection at the moment of a restart. All workers share the port
//! by `SO_REUSEPORT`, so the kernel spreads connections and flows over them.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    num::NonZeroU16,
    os::fd::AsFd,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::kernel::{FamilyPorts, ListenerPorts};

/// Asked of the kernel, which cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 65535;

/// Bytes of first datagrams that may wait for a worker, with the kernel's own.
/// Known flows have buffers of their own.
const FIRST_DATAGRAMS: usize = 4 << 20;

/// A peer whose host is gone is noticed within three minutes. Accepted sockets
/// inherit this, so it costs them no system call.
pub const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(90))
    .with_interval(Duration::from_secs(15))
    .with_retries(6);

/// The listeners of one worker.
#[derive(Debug)]
pub struct WorkerListeners {
    pub v4: FamilyListeners,
    /// None on a host without IPv6.
    pub v6: Option<FamilyListeners>,
}

/// The listeners of one worker on one loopback address.
#[derive(Debug)]
pub struct FamilyListeners {
    pub tcp: TcpListener,
    /// Not connected, and says of each datagram where it was sent to.
    pub udp: UdpSocket,
}

/// The listeners of all workers.
#[derive(Debug)]
pub struct Listeners {
    pub workers: Vec<WorkerListeners>,
    pub ports: ListenerPorts,
}

/// A listener could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} the {family} listener: {source}{}", hint(source))]
pub struct ListenerError {
    doing: &'static str,
    family: &'static str,
    source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        " (a transparent listener needs CAP_NET_ADMIN; run as root or grant it)"
    } else {
        ""
    }
}

impl Listeners {
    /// Binds `workers` listeners per family.
    pub fn bind(workers: usize) -> Result<Self, ListenerError> {
        let (v4, ports_v4) = family(workers, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let (mut v6, ports_v6) = match family(workers, SocketAddr::from((Ipv6Addr::LOCALHOST, 0))) {
            Ok((listeners, ports)) => (listeners, Some(ports)),
            Err(error) if no_ipv6(&error.source) => (Vec::new(), None),
            Err(error) => return Err(error),
        };
        v6.reverse();
        let workers = v4
            .into_iter()
            .map(|v4| WorkerListeners { v4, v6: v6.pop() });
        Ok(Self {
            workers: workers.collect(),
            ports: ListenerPorts {
                v4: ports_v4,
                v6: ports_v6,
            },
        })
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

/// `count` listeners for each transport on one loopback address.
fn family(
    count: usize,
    address: SocketAddr,
) -> Result<(Vec<FamilyListeners>, FamilyPorts), ListenerError> {
    let (tcp, tcp_port) = group(count, address, tcp_listener)?;
    let (udp, udp_port) = group(count, address, udp_socket)?;
    let pairs = tcp.into_iter().zip(udp);
    let listeners = pairs.map(|(tcp, udp)| FamilyListeners { tcp, udp });
    let ports = FamilyPorts {
        tcp: tcp_port,
        udp: udp_port,
    };
    Ok((listeners.collect(), ports))
}

/// `count` sockets on one port, which the first of them is given.
fn group<S: AsFd>(
    count: usize,
    mut address: SocketAddr,
    open: impl Fn(SocketAddr) -> Result<S, ListenerError>,
) -> Result<(Vec<S>, NonZeroU16), ListenerError> {
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        let socket = open(address)?;
        let bound = SockRef::from(&socket).local_addr();
        let bound = bound.map_err(failed("read the port of", address))?;
        address = bound.as_socket().unwrap_or(address);
        sockets.push(socket);
    }
    let no_port = || failed("read the port of", address)(io::ErrorKind::AddrNotAvailable.into());
    let port = NonZeroU16::new(address.port()).ok_or_else(no_port)?;
    Ok((sockets, port))
}

fn failed(doing: &'static str, address: SocketAddr) -> impl Fn(io::Error) -> ListenerError {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    move |source| ListenerError {
        doing,
        family,
        source,
    }
}

fn tcp_listener(address: SocketAddr) -> Result<TcpListener, ListenerError> {
    let open = || {
        let socket = transparent(address, Type::STREAM, Protocol::TCP)?;
        // Inherited by what is accepted.
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&KEEPALIVE)?;
        Ok(socket)
    };
    let socket = open().map_err(failed("open", address))?;
    let bound = socket.bind(&SockAddr::from(address));
    bound.map_err(failed("bind", address))?;
    let listening = socket.listen(BACKLOG);
    listening.map_err(failed("listen on", address))?;
    Ok(socket.into())
}

fn udp_socket(address: SocketAddr) -> Result<UdpSocket, ListenerError> {
    let open = || {
        let socket = transparent(address, Type::DGRAM, Protocol::UDP)?;
        if address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?;
        }
        // Beyond what the host allows others: the privilege is there.
        setsockopt(&socket, sockopt::RcvBufForce, &FIRST_DATAGRAMS)?;
        Ok(socket)
    };
    let socket = open().map_err(failed("open", address))?;
    let bound = socket.bind(&SockAddr::from(address));
    bound.map_err(failed("bind", address))?;
    Ok(socket.into())
}

fn transparent(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, kind.nonblocking(), Some(protocol))?;
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    Ok(socket)
}
