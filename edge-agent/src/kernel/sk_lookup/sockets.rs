//! The agent's sockets, as they are put into the map from which the program
//! takes them.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use libbpf_rs::{MapCore, MapFlags, MapHandle, Result};

/// The sockets that are to be given what is claimed. Of each kind, TCP or UDP
/// over IPv4 or IPv6, one is put into the map, and the kernel spreads over all
/// that share its port (`SO_REUSEPORT`).
///
/// They are not kept open by this: what is closed takes part no longer, and if
/// it was the one in the map, another of its kind takes its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SteeredSockets(Vec<SteeredSocket>);

/// A socket by its number in this process. The number may be another's by the
/// time that it is used; the cookie, which the kernel never gives twice, tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SteeredSocket {
    kind: SocketKind,
    fd: RawFd,
    cookie: u64,
}

/// Index in the map, as in `bpf/steer.bpf.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketKind {
    TcpV4,
    TcpV6,
    UdpV4,
    UdpV6,
}

impl SocketKind {
    pub(super) const ALL: [Self; 4] = [Self::TcpV4, Self::TcpV6, Self::UdpV4, Self::UdpV6];

    fn of(family: u64, protocol: u64) -> Option<Self> {
        let is = |number: u64, constant: i32| i32::try_from(number) == Ok(constant);
        let v4 = is(family, libc::AF_INET);
        let v6 = is(family, libc::AF_INET6);
        let tcp = is(protocol, libc::IPPROTO_TCP);
        let udp = is(protocol, libc::IPPROTO_UDP);
        match (v4, v6, tcp, udp) {
            (true, _, true, _) => Some(Self::TcpV4),
            (_, true, true, _) => Some(Self::TcpV6),
            (true, _, _, true) => Some(Self::UdpV4),
            (_, true, _, true) => Some(Self::UdpV6),
            _ => None,
        }
    }
}

impl SteeredSockets {
    /// Adds a TCP listener, or an unconnected UDP socket. Whether it is
    /// transparent does not matter.
    ///
    /// # Errors
    ///
    /// Where the socket cannot be asked what it is, or is of another kind.
    pub fn add(&mut self, socket: &impl AsFd) -> io::Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        let family = option(fd, libc::SO_DOMAIN)?;
        let protocol = option(fd, libc::SO_PROTOCOL)?;
        let kind = SocketKind::of(family, protocol)
            .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        let cookie = option(fd, libc::SO_COOKIE)?;
        self.0.push(SteeredSocket { kind, fd, cookie });
        Ok(())
    }

    fn of(&self, kind: SocketKind) -> impl Iterator<Item = &SteeredSocket> {
        self.0.iter().filter(move |socket| socket.kind == kind)
    }

    /// Whether `cookie` is what the map should hold; true, too, where no socket
    /// of the kind is left that could take its place.
    pub(super) fn fits(&self, kind: SocketKind, cookie: Option<u64>) -> bool {
        let mut sockets = self.of(kind).peekable();
        if sockets.peek().is_none() {
            return cookie.is_none();
        }
        let alive: Vec<_> = sockets.filter(|socket| socket.is_open()).collect();
        alive.is_empty() || alive.iter().any(|socket| Some(socket.cookie) == cookie)
    }

    /// Puts a socket of the kind into the map, or takes away what is there if
    /// none is to be.
    pub(super) fn put(&self, kind: SocketKind, map: &MapHandle) -> Result<()> {
        let index = (kind as u32).to_ne_bytes();
        if self.of(kind).next().is_none() {
            return map.delete(&index);
        }
        for socket in self.of(kind).filter(|socket| socket.is_open()) {
            let fd = u64::try_from(socket.fd).unwrap_or(u64::MAX);
            map.update(&index, &fd.to_ne_bytes(), MapFlags::ANY)?;
            if cookie_in(map, kind)? == Some(socket.cookie) {
                return Ok(());
            }
            // It was closed just now, and its number given to another.
            map.delete(&index)?;
        }
        Ok(())
    }
}

impl SteeredSocket {
    fn is_open(&self) -> bool {
        option(self.fd, libc::SO_COOKIE).is_ok_and(|cookie| cookie == self.cookie)
    }
}

/// The socket in the map, by its cookie.
pub(super) fn cookie_in(map: &MapHandle, kind: SocketKind) -> Result<Option<u64>> {
    let value = map.lookup(&(kind as u32).to_ne_bytes(), MapFlags::ANY)?;
    Ok(value.and_then(|value| Some(u64::from_ne_bytes(value.try_into().ok()?))))
}

/// An option of level `SOL_SOCKET`, of four or eight bytes.
fn option(fd: RawFd, name: libc::c_int) -> io::Result<u64> {
    let mut value = [0; 8];
    let mut length: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `length` bytes to `value`. A number
    // that is no open socket is refused by it.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    match (result, length) {
        (0, 8) => Ok(u64::from_ne_bytes(value)),
        (0, _) => {
            let [a, b, c, d, ..] = value;
            Ok(u32::from_ne_bytes([a, b, c, d]).into())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_socket_knows_its_kind() {
        let mut sockets = SteeredSockets::default();
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        sockets.add(&tcp).expect("TCP");
        sockets.add(&udp).expect("UDP");
        let kinds: Vec<_> = sockets.0.iter().map(|socket| socket.kind).collect();
        assert_eq!(kinds, [SocketKind::TcpV4, SocketKind::UdpV4]);
        let (unix, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert!(sockets.add(&unix).is_err());
    }

    #[test]
    fn a_number_that_was_given_to_another_socket_is_noticed() {
        let mut sockets = SteeredSockets::default();
        let first = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let mut first = std::os::fd::OwnedFd::from(first);
        sockets.add(&first).expect("TCP");
        let cookie = sockets.0[0].cookie;
        assert!(sockets.fits(SocketKind::TcpV4, Some(cookie)));
        assert!(!sockets.fits(SocketKind::TcpV4, None));
        assert!(!sockets.fits(SocketKind::TcpV4, Some(cookie + 1)));
        let other = TcpListener::bind("127.0.0.1:0").expect("a listener");
        nix::unistd::dup2(&other, &mut first).expect("dup2");
        // Nobody is left to take its place.
        assert!(sockets.fits(SocketKind::TcpV4, None));
        assert!(!sockets.0[0].is_open());
    }
}
