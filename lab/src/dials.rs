//! Who dials a server, also one that answers nothing any more: the SYNs that reach its host.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyport_netns::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

/// Between two looks at whether to stop.
const STEP: Duration = Duration::from_millis(20);

/// Bytes of packets that may wait to be looked at: of a host under load, for many seconds.
const ROOM: libc::c_int = 256 << 20;

/// Listens on every link of a host, ahead of its firewall.
#[derive(Debug)]
pub struct Dials {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyport_netns::Result<io::Result<Vec<Instant>>>>,
}

impl Dials {
    /// Begins to note TCP connections that are tried over IPv4 to this port.
    ///
    /// # Errors
    ///
    /// Without CAP_NET_RAW, or where no thread can be started.
    pub fn watch(host: &Namespace, port: u16) -> io::Result<Self> {
        let socket = host.run(|| -> io::Result<_> {
            let ipv4 = Protocol::from(i32::from((libc::ETH_P_IP as u16).to_be()));
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(ipv4))?;
            make_room(&socket)?;
            socket.set_read_timeout(Some(STEP))?;
            Ok(socket)
        });
        let socket = socket.map_err(io::Error::other)??;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let thread = host.spawn_thread(move || note(&socket, port, &stopped));
        let thread = thread.map_err(io::Error::other)?;
        Ok(Self { stop, thread })
    }

    /// When each was tried, in order. A SYN that is sent again is no new one.
    ///
    /// # Errors
    ///
    /// Where packets could not be read, or came faster than they were: then some are missing.
    pub fn end(self) -> io::Result<Vec<Instant>> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        let ended = ended.map_err(|_| io::Error::other("the thread that notes dials panicked"))?;
        ended.map_err(io::Error::other)?
    }
}

fn note(mut socket: &Socket, port: u16, stop: &AtomicBool) -> io::Result<Vec<Instant>> {
    let (mut seen, mut dials) = (BTreeSet::new(), Vec::new());
    let mut packet = [0; 128];
    loop {
        match io::Read::read(&mut socket, &mut packet) {
            Ok(length) => {
                let fresh = Syn::read(&packet[..length])
                    .is_some_and(|syn| syn.to_port == port && seen.insert(syn));
                dials.extend(fresh.then(Instant::now));
            }
            // What waits is looked at first.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    match dropped(socket)? {
        0 => Ok(dials),
        some => Err(io::Error::other(format!(
            "{some} packets were lost before they were looked at, so dials may be missing"
        ))),
    }
}

/// More than the host's limit for sockets of anybody (`SO_RCVBUFFORCE` of socket(7)).
fn make_room(socket: &Socket) -> io::Result<()> {
    // SAFETY: the kernel reads an int, which is alive during the call.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            std::ptr::from_ref(&ROOM).cast(),
            size_of_val(&ROOM) as libc::socklen_t,
        )
    };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Packets for which there was no room (`PACKET_STATISTICS` of packet(7)).
fn dropped(socket: &Socket) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `statistics`, and `length`; both are
    // alive during the call.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            std::ptr::from_mut(&mut statistics).cast(),
            &raw mut length,
        )
    };
    match failed {
        0 => Ok(statistics.tp_drops),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What tells one attempt from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Syn {
    from: [u8; 4],
    from_port: u16,
    to_port: u16,
    sequence: u32,
}

impl Syn {
    /// Of a packet of IPv4, where it begins a connection.
    fn read(packet: &[u8]) -> Option<Self> {
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let is_tcp = *packet.get(9)? == libc::IPPROTO_TCP as u8;
        let tcp = packet.get(header..).filter(|_| is_tcp)?;
        let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        let syn = Self {
            from: packet.get(12..16)?.try_into().ok()?,
            from_port: port(0)?,
            to_port: port(2)?,
            sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        };
        (tcp.get(13)? & (SYN | ACK) == SYN).then_some(syn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From 10.0.2.1:4660 to port 7000, with 20 bytes of IPv4 header.
    fn packet(flags: u8) -> [u8; 40] {
        let mut packet = [0; 40];
        packet[0] = 0x45;
        packet[9] = 6;
        packet[12..16].copy_from_slice(&[10, 0, 2, 1]);
        packet[20..28].copy_from_slice(&[0x12, 0x34, 0x1b, 0x58, 0, 0, 0, 7]);
        packet[33] = flags;
        packet
    }

    #[test]
    fn a_syn_is_read_and_nothing_else_is_one() {
        let expected = Syn {
            from: [10, 0, 2, 1],
            from_port: 4660,
            to_port: 7000,
            sequence: 7,
        };
        assert_eq!(Syn::read(&packet(0x02)), Some(expected));
        for other in [0x12, 0x10, 0x11, 0x04] {
            assert_eq!(Syn::read(&packet(other)), None);
        }
        let mut datagram = packet(0x02);
        datagram[9] = 17;
        assert_eq!(Syn::read(&datagram), None);
        for length in 0..34 {
            assert_eq!(Syn::read(&packet(0x02)[..length]), None);
        }
    }
}
