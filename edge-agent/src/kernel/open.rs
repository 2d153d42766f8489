//! Whether something is open at an address of a prefix, or between two ends, as
//! the kernel knows it: connections of this agent, of earlier ones that finish
//! theirs, and flows of UDP alike (sock_diag(7)).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use ipnet::IpNet;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::TimeVal;

/// From linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_S_COND: u8 = 7;

const HEADER: usize = 16;

/// The states in which packets still matter: established, FIN_WAIT1,
/// FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING. A connected socket of UDP is
/// established.
const ESTABLISHED: u8 = 1;
const STATES: u32 = 1 << ESTABLISHED | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Asks in the network namespace that it was opened in.
#[derive(Debug)]
pub(crate) struct OpenSockets {
    netlink: OwnedFd,
}

impl OpenSockets {
    pub(crate) fn open() -> io::Result<Self> {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        // The kernel answers as it is asked; this is for the impossible.
        setsockopt(&netlink, ReceiveTimeout, &TimeVal::new(1, 0))?;
        Ok(Self { netlink })
    }

    /// Whether a TCP or UDP socket that is connected has its own address in
    /// `net`.
    pub(crate) fn any_in(&self, net: IpNet) -> io::Result<bool> {
        for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
            if self.any_of(protocol, net)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a UDP socket is connected from `own` to `peer`. One that is bound
    /// to `own` has to be there.
    pub(crate) fn is_flow(&self, own: SocketAddr, peer: SocketAddr) -> io::Result<bool> {
        send(
            self.netlink.as_raw_fd(),
            &request_for(own, peer)?,
            MsgFlags::empty(),
        )?;
        let mut buffer = [0; 1024];
        let length = recv(self.netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let answer = buffer.get(..length).unwrap_or_default();
        read(answer, |socket| is_connected_to(socket, peer)).map(Answer::found)
    }

    fn any_of(&self, protocol: i32, net: IpNet) -> io::Result<bool> {
        let request = request(protocol, net)?;
        send(self.netlink.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut buffer = vec![0; 64 << 10];
        let mut found = false;
        // All of the answer is read, or it would be in the way of the next.
        loop {
            let length = recv(self.netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            match read(buffer.get(..length).unwrap_or_default(), |_| true)? {
                Answer::Sockets(any) => found |= any,
                Answer::End(any) => return Ok(found | any),
            }
        }
    }
}

enum Answer {
    /// Whether there were some, with more to come.
    Sockets(bool),
    End(bool),
}

impl Answer {
    fn found(self) -> bool {
        match self {
            Answer::Sockets(any) | Answer::End(any) => any,
        }
    }
}

/// A struct inet_diag_msg tells of a socket that is connected to `peer`.
fn is_connected_to(socket: &[u8], peer: SocketAddr) -> bool {
    // Family, state, timer, retransmissions; then the ports and addresses of
    // both ends, its own first.
    let (state, id) = (socket.get(1), socket.get(4..));
    let found = id.and_then(|id| Some((id.get(2..4)?, id.get(20..36)?)));
    state == Some(&ESTABLISHED)
        && found
            .is_some_and(|(port, ip)| (port, ip) == (&peer.port().to_be_bytes(), &words(peer.ip())))
}

fn read(mut messages: &[u8], wanted: impl Fn(&[u8]) -> bool) -> io::Result<Answer> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "a cut off answer of sock_diag");
    let mut found = false;
    while !messages.is_empty() {
        let (length, rest) = messages.split_first_chunk().ok_or_else(short)?;
        let (kind, _) = rest.split_first_chunk().ok_or_else(short)?;
        let length = u32::from_ne_bytes(*length) as usize;
        let message = messages.get(HEADER..length).ok_or_else(short)?;
        match u16::from_ne_bytes(*kind) {
            SOCK_DIAG_BY_FAMILY => found |= wanted(message),
            NLMSG_DONE => return Ok(Answer::End(found)),
            NLMSG_ERROR => {
                let code = message.first_chunk().ok_or_else(short)?;
                return Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(*code)));
            }
            _ => {}
        }
        messages = messages
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(Answer::Sockets(found))
}

/// A dump of sockets of one protocol whose own address is in `net`; the kernel
/// does the matching.
fn request(protocol: i32, net: IpNet) -> io::Result<Vec<u8>> {
    let (family, address) = (family(net.addr())?, octets(net.addr()));

    // struct inet_diag_bc_op and struct inet_diag_hostcond: any port (-1).
    let mut condition = vec![family, net.prefix_len(), 0, 0];
    condition.extend((-1i32).to_ne_bytes());
    condition.extend(address);
    let operation = u8::try_from(4 + condition.len()).map_err(io::Error::other)?;
    // Where it holds, on to the end, which accepts; else past it.
    let mut code = vec![INET_DIAG_BC_S_COND, operation];
    code.extend((u16::from(operation) + 4).to_ne_bytes());
    code.extend(condition);

    // struct inet_diag_sockid is of no meaning here.
    let mut body = header(family, protocol, &[0; 48])?;
    let attribute = u16::try_from(4 + code.len()).map_err(io::Error::other)?;
    body.extend(attribute.to_ne_bytes());
    body.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    body.extend(code);
    message(NLM_F_REQUEST | NLM_F_DUMP, &body)
}

/// The socket that a datagram from `peer` to `own` finds.
fn request_for(own: SocketAddr, peer: SocketAddr) -> io::Result<Vec<u8>> {
    // struct inet_diag_sockid, of any interface and with no cookie. For UDP its
    // source is the sender of the datagram.
    let mut id = Vec::with_capacity(48);
    id.extend(peer.port().to_be_bytes());
    id.extend(own.port().to_be_bytes());
    id.extend(words(peer.ip()));
    id.extend(words(own.ip()));
    id.extend([0; 4]);
    id.extend([0xff; 8]);
    let body = header(family(own.ip())?, libc::IPPROTO_UDP, &id)?;
    message(NLM_F_REQUEST, &body)
}

/// struct inet_diag_req_v2.
fn header(family: u8, protocol: i32, id: &[u8]) -> io::Result<Vec<u8>> {
    let protocol = u8::try_from(protocol).map_err(io::Error::other)?;
    let mut body = vec![family, protocol, 0, 0];
    body.extend(STATES.to_ne_bytes());
    body.extend(id);
    Ok(body)
}

fn message(flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    Ok(message)
}

fn family(ip: IpAddr) -> io::Result<u8> {
    let family = match ip {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    u8::try_from(family).map_err(io::Error::other)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// As an address stands in a struct inet_diag_sockid.
fn words(ip: IpAddr) -> [u8; 16] {
    let mut words = [0; 16];
    words
        .iter_mut()
        .zip(octets(ip))
        .for_each(|(word, octet)| *word = octet);
    words
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    /// Addresses of the loopback that no other test uses.
    #[test]
    fn connections_and_flows_count_and_listeners_do_not() {
        let sockets = OpenSockets::open().unwrap();
        let any = |net: &str| sockets.any_in(net.parse().unwrap()).unwrap();
        let listener = TcpListener::bind("127.77.1.5:0").unwrap();
        let flow = UdpSocket::bind("127.77.2.5:0").unwrap();
        assert!(!any("127.77.1.0/24") && !any("127.77.2.0/24"));
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(any("127.77.1.0/24") && any("127.77.1.5/32"));
        assert!(!any("127.77.1.4/32"));
        flow.connect("127.0.0.1:9").unwrap();
        assert!(any("127.77.2.4/31"));
        // Whoever closes first waits for a while; this is not to be it.
        drop(client);
        drop(accepted);
        drop(flow);
        assert!(!any("127.77.2.0/24"));
        assert!(!any("::/0") || any("::1/128"), "both families can be asked");
    }

    #[test]
    fn a_flow_is_found_by_both_of_its_ends() {
        let sockets = OpenSockets::open().unwrap();
        for (own, peers) in [
            (
                "127.77.3.5:0",
                ["127.0.0.1:9", "127.0.0.1:10", "127.0.0.2:9"],
            ),
            ("[::1]:0", ["[::1]:9", "[::1]:10", "[::2]:9"]),
        ] {
            let flow = UdpSocket::bind(own).unwrap();
            let own = flow.local_addr().unwrap();
            let [peer, port, ip] = peers.map(|peer| peer.parse().unwrap());
            assert!(!sockets.is_flow(own, peer).unwrap(), "only bound");
            flow.connect(peer).unwrap();
            assert!(sockets.is_flow(own, peer).unwrap());
            // No socket takes these.
            assert!(sockets.is_flow(own, port).is_err());
            assert!(sockets.is_flow(own, ip).is_err());
        }
    }
}
