//! The kernel's own list of TCP sockets, `/proc/net/tcp` and `/proc/net/tcp6`.
//!
//! Nobody but the edge's kernel can say what a connection's original destination
//! is there: the client knows what it dialled, and the origin sees the edge.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub state: State,
    inode: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Established,
    Listening,
    /// Opening or closing.
    Other,
}

/// All TCP sockets of the calling thread's network namespace.
pub fn list() -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for file in ["tcp", "tcp6"] {
        let text = match fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(text) => text,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        sockets.extend(text.lines().skip(1).filter_map(read));
    }
    Ok(sockets)
}

/// Those of `sockets` that process `pid` holds.
pub fn held_by(pid: u32, sockets: &[Socket]) -> io::Result<Vec<Socket>> {
    let mut inodes = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed meanwhile.
        let target = fs::read_link(entry?.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        let inode = target
            .strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'));
        inodes.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
    }
    let held = sockets
        .iter()
        .filter(|socket| inodes.contains(&socket.inode));
    Ok(held.copied().collect())
}

/// `  0: 0100007F:1CE8 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1234 …`
fn read(line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace().skip(1);
    Some(Socket {
        local: address(fields.next()?)?,
        remote: address(fields.next()?)?,
        state: match fields.next()? {
            "01" => State::Established,
            "0A" => State::Listening,
            _ => State::Other,
        },
        inode: fields.nth(5)?.parse().ok()?,
    })
}

/// The address is written as words of 32 bits, each as this machine's processor
/// reads it from memory.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words = address.as_bytes().chunks(8).map(|digits| {
        let digits = std::str::from_utf8(digits).ok()?;
        let digits = (digits.len() == 8).then_some(digits)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    let address = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(bytes) => IpAddr::V4(Ipv4Addr::from(bytes)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?)),
    };
    Some(SocketAddr::new(
        address,
        u16::from_str_radix(port, 16).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_sockets_of_this_process_as_the_standard_library_has_them() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(loopback).expect("a port");
            let at = listener.local_addr().expect("bound");
            let client = TcpStream::connect(at).expect("a listener");
            let (served, peer) = listener.accept().expect("a client");
            assert_eq!(client.local_addr().expect("bound"), peer);

            let mine = held_by(std::process::id(), &list().expect("readable")).expect("readable");
            let found = |state, local, remote: Option<SocketAddr>| {
                mine.iter().any(|socket| {
                    (socket.state, socket.local) == (state, local)
                        && remote.is_none_or(|remote| remote == socket.remote)
                })
            };
            assert!(found(State::Listening, at, None), "{mine:?}");
            assert!(found(State::Established, at, Some(peer)), "{mine:?}");
            assert!(found(State::Established, peer, Some(at)), "{mine:?}");
            drop(served);
        }
    }

    #[test]
    fn lines_that_are_no_sockets_are_passed_over() {
        for line in [
            "",
            "sl local_address rem_address st",
            "0: 0100007F:zz 00000000:0000 0A 0 0 0 0 0 1",
            "0: 0100007F 00000000:0000 0A 0 0 0 0 0 1",
            "0: 01007F:0016 00000000:0000 0A 0 0 0 0 0 1",
            "0: é100007F:0016 00000000:0000 0A 0 0 0 0 0 1",
        ] {
            assert_eq!(read(line), None, "{line:?}");
        }
    }
}
