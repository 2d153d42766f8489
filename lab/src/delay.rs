//! A cable that is long: what is put in at one end comes out at the other after a while. The kernel
//! of the machine may have no netem, so the two ends are TUN devices, and a thread carries the packets.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyport_netns::{Namespace, Topology, link};
use ipnet::{IpNet, Ipv4Net};

/// Longer than any packet of a link with the usual MTU of 1,500 bytes.
const LONGEST_PACKET: usize = 2048;
/// Packets under way in one direction; more are lost, as on any link that is full.
const ROOM: usize = 10_000;

/// One end of a cable.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it is.
    pub namespace: &'a Namespace,
    /// What the link is called there, in at most 15 bytes.
    pub link: &'a str,
    /// Its address and network. Both ends are in one network.
    pub address: IpNet,
}

/// A cable between two namespaces; gone when this is dropped.
#[derive(Debug)]
pub struct Delayed {
    /// Of one direction, in nanoseconds.
    delay: Arc<AtomicU64>,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Delayed {
    /// Lays a cable of this round-trip time; half of it is each direction's.
    ///
    /// # Errors
    ///
    /// Without root, or where a link or an address is taken.
    pub fn lay(ends: [End<'_>; 2], round_trip: Duration) -> io::Result<Self> {
        let [a, b] = ends.map(device);
        let devices = [a?, b?];
        let delay = Arc::new(AtomicU64::new(one_way(round_trip)));
        let (stop, stopped) = UnixStream::pair()?;
        let now = delay.clone();
        let thread = thread::Builder::new()
            .name("cable".to_owned())
            .spawn(move || carry(&devices, &stopped, &now))?;
        Ok(Self {
            delay,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Lays one from the edge to the origin number `index`, from 0, beside its usual link. The origin
    /// is at [`far_end`] by it.
    ///
    /// # Errors
    ///
    /// As [`lay`](Self::lay), or where there is no such origin.
    pub fn to_origin(topology: &Topology, index: usize, round_trip: Duration) -> io::Result<Self> {
        let origin = topology.origins().get(index);
        let origin = origin.ok_or_else(|| io::Error::other(format!("no origin {index}")))?;
        let near = End {
            namespace: topology.edge(),
            link: &format!("cable{index}"),
            address: network(near_end(index)),
        };
        let far = End {
            namespace: &origin.namespace,
            link: "cable",
            address: network(far_end(index)),
        };
        Self::lay([near, far], round_trip)
    }

    /// From now on packets take so long there and back. None overtakes another.
    pub fn set_round_trip(&self, round_trip: Duration) {
        self.delay.store(one_way(round_trip), Ordering::Relaxed);
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by its own thread.
            let _ = thread.join();
        }
    }
}

/// Where the origin number `index`, from 0, is by a cable [to it](Delayed::to_origin).
pub fn far_end(index: usize) -> Ipv4Addr {
    Ipv4Addr::from(near_end(index).to_bits() + 1)
}

/// In a network of its own for each, which nothing else of a topology has.
fn near_end(index: usize) -> Ipv4Addr {
    let network = u32::try_from(index).unwrap_or(u32::MAX) << 2;
    Ipv4Addr::from(Ipv4Addr::new(10, 0, 128, 1).to_bits().wrapping_add(network))
}

fn network(address: Ipv4Addr) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, 30))
}

fn one_way(round_trip: Duration) -> u64 {
    u64::try_from(round_trip.as_nanos() / 2).unwrap_or(u64::MAX)
}

/// The end of a cable, up, with its address.
fn device(end: End<'_>) -> io::Result<File> {
    let made = end.namespace.run(|| tun(end.link));
    let device = made.map_err(io::Error::other)??;
    link::up(end.namespace, end.link).map_err(io::Error::other)?;
    link::add_address(end.namespace, end.link, end.address).map_err(io::Error::other)?;
    Ok(device)
}

/// Makes a TUN device in the thread's namespace. It is there as long as the file is open.
fn tun(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut name_bytes = [0; libc::IFNAMSIZ];
    if name.len() >= name_bytes.len() {
        let why = format!("link name {name:?}: at most 15 bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    for (to, from) in name_bytes.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let request = libc::ifreq {
        ifr_name: name_bytes,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
        },
    };
    // SAFETY: the kernel reads and writes an ifreq, which is alive during the call.
    let failed = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    match failed {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A packet and when it arrives.
type Waiting = VecDeque<(Instant, Vec<u8>)>;

/// Carries packets both ways until `stop` is closed at its other end.
fn carry(ends: &[File; 2], stop: &UnixStream, delay: &AtomicU64) {
    let mut ways: [Waiting; 2] = Default::default();
    let fds = [ends[0].as_raw_fd(), ends[1].as_raw_fd(), stop.as_raw_fd()];
    loop {
        let now = Instant::now();
        for (way, mut to) in ways.iter_mut().zip([&ends[1], &ends[0]]) {
            while let Some((_, packet)) = way.pop_front_if(|(due, _)| *due <= now) {
                // What a link cannot take is lost.
                let _ = to.write(&packet);
            }
        }
        let next = ways.iter().filter_map(|way| Some(way.front()?.0)).min();
        let [_, _, stopped] = readable(fds, next.map(|due| due - now));
        if stopped {
            return;
        }
        let delay = Duration::from_nanos(delay.load(Ordering::Relaxed));
        for (way, from) in ways.iter_mut().zip(ends) {
            take_in(way, from, delay);
        }
    }
}

/// Takes in what has been put into one end.
fn take_in(way: &mut Waiting, mut from: &File, delay: Duration) {
    let mut packet = [0; LONGEST_PACKET];
    while let Ok(length) = from.read(&mut packet) {
        let due = Instant::now() + delay;
        let due = way.back().map_or(due, |(last, _)| due.max(*last));
        if way.len() < ROOM {
            way.push_back((due, packet[..length].to_vec()));
        }
    }
}

/// Waits until one of these can be read, or `limit` is over; says which can.
fn readable<const N: usize>(fds: [libc::c_int; N], limit: Option<Duration>) -> [bool; N] {
    let mut fds = fds.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the kernel reads `limit`, where it is not null, and reads and writes N entries of
    // `fds`; both are alive during the call.
    unsafe { libc::ppoll(fds.as_mut_ptr(), N as libc::nfds_t, limit, std::ptr::null()) };
    fds.map(|fd| fd.revents != 0)
}
