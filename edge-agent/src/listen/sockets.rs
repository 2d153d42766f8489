//! Listeners that the kernel steers connections to.
//!
//! They are bound to loopback, on a port that the kernel chooses and that the
//! steering rules are then written for: a fixed port could be taken by an
//! outgoing connection at the moment of a restart. All workers share the port
//! by `SO_REUSEPORT`, so the kernel spreads connections over them.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    num::NonZeroU16,
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

/// Asked of the kernel, which cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 65535;

/// A peer whose host is gone is noticed within three minutes. Accepted sockets
/// inherit this, so it costs them no system call.
pub const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(90))
    .with_interval(Duration::from_secs(15))
    .with_retries(6);

/// The listeners of one worker.
#[derive(Debug)]
pub struct WorkerListeners {
    pub v4: TcpListener,
    /// None on a host without IPv6.
    pub v6: Option<TcpListener>,
}

/// The listeners of all workers.
#[derive(Debug)]
pub struct Listeners {
    pub workers: Vec<WorkerListeners>,
    pub port_v4: NonZeroU16,
    pub port_v6: Option<NonZeroU16>,
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
        let (v4, port_v4) = group(workers, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let (mut v6, port_v6) = match group(workers, SocketAddr::from((Ipv6Addr::LOCALHOST, 0))) {
            Ok((listeners, port)) => (listeners, Some(port)),
            Err(error) if no_ipv6(&error.source) => (Vec::new(), None),
            Err(error) => return Err(error),
        };
        v6.reverse();
        let workers = v4
            .into_iter()
            .map(|v4| WorkerListeners { v4, v6: v6.pop() });
        Ok(Self {
            workers: workers.collect(),
            port_v4,
            port_v6,
        })
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

/// `count` listeners on one port, which the first of them is given.
fn group(
    count: usize,
    mut address: SocketAddr,
) -> Result<(Vec<TcpListener>, NonZeroU16), ListenerError> {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let failed = |doing| {
        move |source| ListenerError {
            doing,
            family,
            source,
        }
    };
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        let socket = transparent(address).map_err(failed("open"))?;
        socket
            .bind(&SockAddr::from(address))
            .map_err(failed("bind"))?;
        socket.listen(BACKLOG).map_err(failed("listen on"))?;
        let listener = TcpListener::from(socket);
        address = listener.local_addr().map_err(failed("read the port of"))?;
        listeners.push(listener);
    }
    let no_port = || failed("read the port of")(io::ErrorKind::AddrNotAvailable.into());
    let port = NonZeroU16::new(address.port()).ok_or_else(no_port)?;
    Ok((listeners, port))
}

fn transparent(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    // Inherited by what is accepted.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    Ok(socket)
}
