//! Sockets that the kernel steers connections, and the first datagrams of flows
//! of UDP, to.
//!
//! They are bound to loopback, on a port that the kernel chooses and that the
//! rules of TPROXY are then written for: a fixed port could be taken by an
//! outgoing connection at the moment of a restart. With TPROXY they have to be
//! transparent, with sk_lookup not. All workers share the port by
//! `SO_REUSEPORT`, so the kernel spreads flows over them, and connections as it is
//! told to (see `spread`).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    num::NonZeroU16,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::{
    handover::{Estate, Family, Key},
    kernel::{FamilyPorts, ListenerPorts, SteeredSockets, Steering},
};

/// Asked of the kernel, which cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 65535;

/// Bytes of first datagrams that may wait for a worker, with the kernel's own.
/// Known flows have buffers of their own.
const FIRST_DATAGRAMS: usize = 4 << 20;

/// The listeners of one worker: those of each family, one or, after a hand-over
/// from an agent that had more workers, several.
#[derive(Debug, Default)]
pub struct WorkerListeners {
    pub v4: Vec<FamilyListeners>,
    /// None on a host without IPv6.
    pub v6: Vec<FamilyListeners>,
}

/// A listener for each transport on one loopback address.
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
    /// Those of them that no client reaches before its turn has come.
    pub joining: Joining,
}

/// Sockets of a successor that has more workers than the agent before it. From the
/// moment that they take part the kernel gives them a share of what is new, which
/// nobody serves as long as it is the other agent's turn.
#[derive(Debug, Default)]
pub struct Joining {
    tcp: Vec<(Socket, SocketAddr)>,
    udp: Vec<(Socket, SocketAddr)>,
}

impl Joining {
    /// From now on they are given connections.
    pub fn take_connections(&mut self) {
        for (socket, address) in self.tcp.drain(..) {
            joined(listen(&socket, address));
        }
    }

    /// From now on they are given first datagrams.
    pub fn take_datagrams(&mut self) {
        for (socket, address) in self.udp.drain(..) {
            joined(bind(&socket, address));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty()
    }

    /// Opens another pair, for one worker more.
    fn open(
        &mut self,
        tcp: SocketAddr,
        udp: SocketAddr,
        steering: Steering,
    ) -> Result<(TcpListener, UdpSocket), ListenerError> {
        let (listener, steered) = (tcp_socket(tcp, steering)?, udp_socket(udp, steering)?);
        // Bound, a listener is given nothing; a socket of UDP is.
        bind(&listener, tcp)?;
        let copy = |socket: &Socket, at| socket.try_clone().map_err(failed("duplicate", at));
        self.tcp.push((copy(&listener, tcp)?, tcp));
        self.udp.push((copy(&steered, udp)?, udp));
        Ok((listener.into(), steered.into()))
    }
}

/// It is too late to go back; the kernel gives what is new to the others.
fn joined(done: Result<(), ListenerError>) {
    if let Err(error) = done {
        tracing::error!(%error, "a worker has a listener less");
    }
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

/// A socket that was handed over is none that this agent can use.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    #[error("the socket that came as {key} {what}")]
    Unfit { key: Key, what: &'static str },
    #[error("reading the socket that came as {key}: {source}")]
    Unreadable { key: Key, source: io::Error },
    #[error("no {family} listeners came")]
    Missing { family: &'static str },
    #[error("{tcp} listeners of TCP and {udp} of UDP came")]
    Unpaired { tcp: usize, udp: usize },
    #[error(transparent)]
    More(#[from] ListenerError),
}

impl Listeners {
    /// Binds `workers` listeners per family and transport.
    pub fn bind(workers: usize, steering: Steering) -> Result<Self, ListenerError> {
        let v4 = FamilyGroup::bind(workers, steering, Ipv4Addr::LOCALHOST.into())?;
        let v6 = bind_v6(workers, steering)?;
        Ok(Self::spread(workers, v4, v6, Joining::default()))
    }

    /// Takes over the listeners of another agent, all of them: clients may wait
    /// in the queue of each. Where there are fewer than `workers`, more are
    /// opened for the same ports, which are to join them later.
    pub fn inherit(
        workers: usize,
        steering: Steering,
        estate: &mut Estate,
    ) -> Result<Self, InheritError> {
        let mut joining = Joining::default();
        let mut inherit =
            |family| FamilyGroup::inherit(workers, steering, family, estate, &mut joining);
        let v4 = inherit(Family::V4)?;
        let v4 = v4.ok_or(InheritError::Missing { family: "IPv4" })?;
        let v6 = match inherit(Family::V6)? {
            Some(v6) => Some(v6),
            // The host had no IPv6 when that agent started.
            None => bind_v6(workers, steering)?,
        };
        Ok(Self::spread(workers, v4, v6, joining))
    }

    fn spread(workers: usize, v4: FamilyGroup, v6: Option<FamilyGroup>, joining: Joining) -> Self {
        let count = workers.max(1);
        let ports = ListenerPorts {
            v4: v4.ports,
            v6: v6.as_ref().map(|v6| v6.ports),
        };
        let mut workers: Vec<_> = (0..count).map(|_| WorkerListeners::default()).collect();
        for (number, pair) in v4.pairs.into_iter().enumerate() {
            workers[number % count].v4.push(pair);
        }
        for (number, pair) in v6.into_iter().flat_map(|v6| v6.pairs).enumerate() {
            workers[number % count].v6.push(pair);
        }
        Self {
            workers,
            ports,
            joining,
        }
    }

    /// All of them, as the kernel steers to them.
    pub fn steered(&self) -> io::Result<SteeredSockets> {
        let mut sockets = SteeredSockets::default();
        for WorkerListeners { v4, v6 } in &self.workers {
            for FamilyListeners { tcp, udp } in v4.iter().chain(v6) {
                sockets.add(tcp)?;
                sockets.add(udp)?;
            }
        }
        Ok(sockets)
    }

    /// A descriptor of each, for a successor.
    pub fn duplicates(&self) -> io::Result<Vec<(Key, OwnedFd)>> {
        let of_v4 = self.workers.iter().flat_map(|worker| &worker.v4);
        let of_v6 = self.workers.iter().flat_map(|worker| &worker.v6);
        let of_v4 = of_v4.enumerate().map(|(n, pair)| (Family::V4, n, pair));
        let of_v6 = of_v6.enumerate().map(|(n, pair)| (Family::V6, n, pair));
        let mut all = Vec::new();
        for (family, number, FamilyListeners { tcp, udp }) in of_v4.chain(of_v6) {
            all.push((Key::Tcp(family, number), tcp.as_fd().try_clone_to_owned()?));
            all.push((Key::Udp(family, number), udp.as_fd().try_clone_to_owned()?));
        }
        Ok(all)
    }
}

/// All listeners on one loopback address.
struct FamilyGroup {
    pairs: Vec<FamilyListeners>,
    ports: FamilyPorts,
}

impl FamilyGroup {
    fn bind(count: usize, steering: Steering, ip: IpAddr) -> Result<Self, ListenerError> {
        let any_port = SocketAddr::new(ip, 0);
        let (tcp, tcp_port) = group(count, any_port, |at| tcp_listener(at, steering))?;
        let (udp, udp_port) = group(count, any_port, |at| {
            let socket = udp_socket(at, steering)?;
            bind(&socket, at)?;
            Ok(socket.into())
        })?;
        let ports = FamilyPorts {
            tcp: tcp_port,
            udp: udp_port,
        };
        let pairs = pairs(tcp, udp);
        Ok(Self { pairs, ports })
    }

    /// None where none of the family came.
    fn inherit(
        count: usize,
        steering: Steering,
        family: Family,
        estate: &mut Estate,
        joining: &mut Joining,
    ) -> Result<Option<Self>, InheritError> {
        let ip = match family {
            Family::V4 => IpAddr::from(Ipv4Addr::LOCALHOST),
            Family::V6 => IpAddr::from(Ipv6Addr::LOCALHOST),
        };
        let tcp = estate.take_all(|key| matches!(key, Key::Tcp(of, _) if of == family));
        let udp = estate.take_all(|key| matches!(key, Key::Udp(of, _) if of == family));
        if tcp.len() != udp.len() {
            let (tcp, udp) = (tcp.len(), udp.len());
            return Err(InheritError::Unpaired { tcp, udp });
        }
        let (tcp, tcp_port) = inherited(ip, steering, Type::STREAM, tcp)?;
        let (udp, udp_port) = inherited(ip, steering, Type::DGRAM, udp)?;
        let (Some(tcp_port), Some(udp_port)) = (tcp_port, udp_port) else {
            return Ok(None);
        };
        let mut tcp: Vec<TcpListener> = tcp.into_iter().map(Into::into).collect();
        let mut udp: Vec<UdpSocket> = udp.into_iter().map(Into::into).collect();
        let [tcp_at, udp_at] = [tcp_port, udp_port].map(|port| SocketAddr::new(ip, port.get()));
        for _ in tcp.len()..count {
            let (listener, steered) = joining.open(tcp_at, udp_at, steering)?;
            tcp.push(listener);
            udp.push(steered);
        }
        let ports = FamilyPorts {
            tcp: tcp_port,
            udp: udp_port,
        };
        let pairs = pairs(tcp, udp);
        Ok(Some(Self { pairs, ports }))
    }
}

fn pairs(tcp: Vec<TcpListener>, udp: Vec<UdpSocket>) -> Vec<FamilyListeners> {
    let pairs = tcp.into_iter().zip(udp);
    pairs
        .map(|(tcp, udp)| FamilyListeners { tcp, udp })
        .collect()
}

/// None on a host without IPv6.
fn bind_v6(workers: usize, steering: Steering) -> Result<Option<FamilyGroup>, ListenerError> {
    match FamilyGroup::bind(workers, steering, Ipv6Addr::LOCALHOST.into()) {
        Ok(group) => Ok(Some(group)),
        Err(error) if no_ipv6(&error.source) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Checks that these are what they came as, and gives the port that they share.
fn inherited(
    ip: IpAddr,
    steering: Steering,
    kind: Type,
    fds: Vec<(Key, OwnedFd)>,
) -> Result<(Vec<Socket>, Option<NonZeroU16>), InheritError> {
    let mut port = None;
    let mut sockets = Vec::with_capacity(fds.len());
    for (key, fd) in fds {
        let unreadable = |source| InheritError::Unreadable { key, source };
        let unfit = |what| InheritError::Unfit { key, what };
        let socket = Socket::from(fd);
        if socket.r#type().map_err(unreadable)? != kind {
            return Err(unfit("is of another kind"));
        }
        if kind == Type::STREAM && !socket.is_listener().map_err(unreadable)? {
            return Err(unfit("does not listen"));
        }
        let address = socket.local_addr().map_err(unreadable)?.as_socket();
        let address = address.filter(|address| address.ip() == ip);
        let own = address.and_then(|address| NonZeroU16::new(address.port()));
        let own = own.ok_or_else(|| unfit("is bound to another address"))?;
        if *port.get_or_insert(own) != own {
            return Err(unfit("is bound to another port than the others"));
        }
        // The agent that it comes from may have steered the other way.
        let suited = suit(&socket, SocketAddr::new(ip, own.get()), steering);
        suited.map_err(unreadable)?;
        if kind == Type::STREAM {
            answer_with_acknowledgements(&socket);
        }
        sockets.push(socket);
    }
    Ok((sockets, port))
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
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

fn tcp_listener(address: SocketAddr, steering: Steering) -> Result<TcpListener, ListenerError> {
    let socket = tcp_socket(address, steering)?;
    bind(&socket, address)?;
    listen(&socket, address)?;
    Ok(socket.into())
}

fn tcp_socket(address: SocketAddr, steering: Steering) -> Result<Socket, ListenerError> {
    let open = || {
        let socket = unbound(address, steering, Type::STREAM, Protocol::TCP)?;
        // Inherited by what is accepted.
        socket.set_tcp_nodelay(true)?;
        Ok(socket)
    };
    open().map_err(failed("open", address))
}

fn bind(socket: &Socket, address: SocketAddr) -> Result<(), ListenerError> {
    let bound = socket.bind(&SockAddr::from(address));
    bound.map_err(failed("bind", address))
}

fn listen(socket: &Socket, address: SocketAddr) -> Result<(), ListenerError> {
    let listening = socket.listen(BACKLOG);
    listening.map_err(failed("listen on", address))?;
    answer_with_acknowledgements(socket);
    Ok(())
}

/// Has the kernel acknowledge a client's first bytes with the answer to them,
/// one packet for two, as it does on connections that have been a conversation
/// for a while. A client that waits for the acknowledgement before it sends the
/// rest (Nagle's algorithm, RFC 896) would wait 40 ms for it, so this is only
/// asked for where the kernel can be told not to wait that long.
///
/// What is accepted inherits it, so it costs connections no system call.
fn answer_with_acknowledgements(listener: &Socket) {
    if bound_acknowledgement_delay(listener) {
        // A kernel that refuses acknowledges at once, as ever.
        let _ = listener.set_tcp_quickack(false);
    }
}

/// Whether the kernel knows of such a bound.
fn bound_acknowledgement_delay(socket: &Socket) -> bool {
    /// `TCP_DELACK_MAX_US` of linux/tcp.h, since Linux 6.15.
    const DELACK_MAX_US: libc::c_int = 46;
    /// In microseconds. Two ticks of the slowest usual clock are the least that
    /// it takes.
    const PATIENCE: libc::c_int = 8_000;
    set_int(socket, libc::IPPROTO_TCP, DELACK_MAX_US, PATIENCE).is_ok()
}

/// An option of sockets that neither nix nor socket2 knows.
pub(super) fn set_int(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the value is an int of that size, alive during the call.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Unbound.
fn udp_socket(address: SocketAddr, steering: Steering) -> Result<Socket, ListenerError> {
    let open = || {
        let socket = unbound(address, steering, Type::DGRAM, Protocol::UDP)?;
        if address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?;
        }
        // Beyond what the host allows others: the privilege is there.
        setsockopt(&socket, sockopt::RcvBufForce, &FIRST_DATAGRAMS)?;
        Ok(socket)
    };
    open().map_err(failed("open", address))
}

fn unbound(
    address: SocketAddr,
    steering: Steering,
    kind: Type,
    protocol: Protocol,
) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, kind.nonblocking(), Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    suit(&socket, address, steering)?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}

/// Makes it a socket that the kernel can steer to.
fn suit(socket: &Socket, address: SocketAddr, steering: Steering) -> io::Result<()> {
    match (steering, address) {
        (Steering::SkLookup, _) => Ok(()),
        (Steering::Tproxy, SocketAddr::V4(_)) => socket.set_ip_transparent_v4(true),
        (Steering::Tproxy, SocketAddr::V6(_)) => socket.set_ip_transparent_v6(true),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        net::TcpStream,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn what_is_accepted_answers_with_acknowledgements_where_the_wait_is_bounded() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = tcp_listener(address, Steering::SkLookup).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        let bounded = bound_acknowledgement_delay(&accepted);
        assert_eq!(accepted.tcp_quickack().unwrap(), !bounded);
    }

    /// How many of 100 connections and of 100 first datagrams each worker is given.
    fn shares(listeners: &Listeners) -> (Vec<usize>, Vec<usize>) {
        let FamilyPorts { tcp, udp } = listeners.ports.v4;
        let clients = [(); 100].map(|()| {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, tcp.get())).unwrap();
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let sent = socket.send_to(b"first", (Ipv4Addr::LOCALHOST, udp.get()));
            assert_eq!(sent.unwrap(), 5);
            (stream, socket)
        });
        let pairs: Vec<_> = listeners.workers.iter().flat_map(|of| &of.v4).collect();
        let mut given = (vec![0; pairs.len()], vec![0; pairs.len()]);
        // The last packets may come a moment after the client knows.
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline
            && [&given.0, &given.1].map(|counts| counts.iter().sum::<usize>()) != [clients.len(); 2]
        {
            for (worker, pair) in pairs.iter().enumerate() {
                given.0[worker] += usize::from(pair.tcp.accept().is_ok());
                given.1[worker] += usize::from(pair.udp.recv(&mut [0; 8]).is_ok());
            }
        }
        given
    }

    #[test]
    fn who_has_more_workers_than_the_agent_before_takes_nothing_before_its_turn() {
        let before = Listeners::bind(1, Steering::SkLookup).unwrap();
        let mut estate = Estate::from_iter(before.duplicates().unwrap());
        let mut now = Listeners::inherit(3, Steering::SkLookup, &mut estate).unwrap();
        assert_eq!(now.workers.len(), 3);
        assert_eq!(shares(&now), (vec![100, 0, 0], vec![100, 0, 0]));
        now.joining.take_connections();
        let (connections, datagrams) = shares(&now);
        // Each is left out by chance once in (3/2)^100.
        assert!(
            connections.iter().all(|&count| count > 0),
            "{connections:?}"
        );
        assert_eq!(datagrams, [100, 0, 0]);
        now.joining.take_datagrams();
        let (connections, datagrams) = shares(&now);
        assert_eq!(connections.iter().sum::<usize>(), 100);
        assert_eq!(datagrams.iter().sum::<usize>(), 100);
        assert!(datagrams.iter().all(|&count| count > 0), "{datagrams:?}");
        // What it leaves to the next one is whole.
        let mut estate = Estate::from_iter(now.duplicates().unwrap());
        let next = Listeners::inherit(3, Steering::SkLookup, &mut estate).unwrap();
        assert_eq!(next.ports, now.ports);
    }
}
