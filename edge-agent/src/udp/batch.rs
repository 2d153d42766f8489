//! Many datagrams for one system call: recvmmsg(2) into buffers that a worker
//! has once, and sendmmsg(2) out of them. Nothing is allocated or copied on the
//! way through.

use std::{
    io, mem,
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    ops::AddAssign,
    os::fd::{AsFd, AsRawFd, RawFd},
    ptr,
};

/// Datagrams in one go. What arrives one at a time costs no more for it.
pub(super) const BATCH: usize = 32;

/// Room for the largest datagram, which has less than 64 KiB. A little more,
/// so that the starts of the buffers do not all compete for one set of the
/// processor's cache.
const BUFFER: usize = (64 << 10) + 192;

/// Room for one control message with an IPv6 socket address.
const CONTROL: usize = 64;

/// Buffers, and the datagrams that were received into them last.
pub(super) struct Batch {
    buffers: Box<[u8]>,
    lengths: [usize; BATCH],
    from: [Option<SocketAddr>; BATCH],
    to: [Option<SocketAddr>; BATCH],
    received: usize,
}

/// What came of sending.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) datagrams: u64,
    pub(super) bytes: u64,
    /// Larger than the path, or than UDP, takes.
    pub(super) too_large: u64,
    /// The socket's buffer is full, or the system refuses.
    pub(super) refused_here: u64,
    /// The other end has no socket there: an ICMP message said so.
    pub(super) refused_there: bool,
}

impl AddAssign for Sent {
    fn add_assign(&mut self, more: Self) {
        self.datagrams += more.datagrams;
        self.bytes += more.bytes;
        self.too_large += more.too_large;
        self.refused_here += more.refused_here;
        self.refused_there |= more.refused_there;
    }
}

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            buffers: vec![0; BUFFER * BATCH].into_boxed_slice(),
            lengths: [0; BATCH],
            from: [None; BATCH],
            to: [None; BATCH],
            received: 0,
        }
    }

    /// Datagrams that are held.
    pub(super) fn len(&self) -> usize {
        self.received
    }

    /// There may be more where these came from.
    pub(super) fn is_full(&self) -> bool {
        self.received == BATCH
    }

    pub(super) fn payload(&self, index: usize) -> &[u8] {
        let start = index * BUFFER;
        &self.buffers[start..start + self.lengths[index]]
    }

    /// Who sent datagram `index`.
    pub(super) fn from(&self, index: usize) -> Option<SocketAddr> {
        self.from[index]
    }

    /// What datagram `index` was sent to, if it was received by
    /// [`receive_steered`](Self::receive_steered).
    pub(super) fn to(&self, index: usize) -> Option<SocketAddr> {
        self.to[index]
    }

    /// Receives what is there.
    pub(super) fn receive(&mut self, socket: &impl AsFd) -> io::Result<()> {
        self.receive_with(socket, None)
    }

    /// Receives from a socket that says where each datagram was sent to.
    pub(super) fn receive_steered(&mut self, socket: &impl AsFd) -> io::Result<()> {
        let mut controls = [Control([0; CONTROL]); BATCH];
        self.receive_with(socket, Some(&mut controls))
    }

    fn receive_with(
        &mut self,
        socket: &impl AsFd,
        controls: Option<&mut [Control; BATCH]>,
    ) -> io::Result<()> {
        // SAFETY: the all-zero pattern is a valid socket address of no family.
        let mut names: [libc::sockaddr_storage; BATCH] = unsafe { mem::zeroed() };
        let mut vectors = self.vectors();
        let mut headers = headers();
        let buffers = vectors.iter_mut().zip(&mut names);
        for (header, (vector, name)) in headers.iter_mut().zip(buffers) {
            let header = &mut header.msg_hdr;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_name = ptr::from_mut(name).cast();
            header.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as u32;
        }
        let steered = controls.is_some();
        for (header, control) in headers.iter_mut().zip(controls.into_iter().flatten()) {
            header.msg_hdr.msg_control = ptr::from_mut(control).cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
        }
        self.received = 0;
        let count = recvmmsg(socket.as_fd().as_raw_fd(), &mut headers)?;
        for index in 0..count {
            let header = &headers[index];
            self.lengths[index] = (header.msg_len as usize).min(BUFFER);
            self.from[index] = address(&names[index]);
            self.to[index] = steered.then(|| sent_to(&header.msg_hdr)).flatten();
        }
        self.received = count;
        Ok(())
    }

    fn vectors(&mut self) -> [libc::iovec; BATCH] {
        let base = self.buffers.as_mut_ptr();
        std::array::from_fn(|index| libc::iovec {
            // Within the allocation: there are BATCH buffers.
            iov_base: base.wrapping_add(index * BUFFER).cast(),
            iov_len: BUFFER,
        })
    }

    /// Sends the datagrams of `which`, in their order, as `shape` says.
    pub(super) fn send(&self, socket: &impl AsFd, which: &[usize], shape: &Shape) -> Sent {
        let fd = socket.as_fd().as_raw_fd();
        let mut sent = Sent::default();
        let payload = |index: usize| self.payload(index).get(shape.skip..).unwrap_or_default();
        if let [index] = *which
            && shape.header.is_empty()
        {
            send_one(fd, payload(index), &mut sent);
            return sent;
        }
        let which = &which[..which.len().min(BATCH)];
        let mut vectors: [[libc::iovec; 2]; BATCH] = std::array::from_fn(|at| {
            let payload = which.get(at).map_or(&[][..], |&index| payload(index));
            [shape.header, payload].map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            })
        });
        let mut headers = headers();
        for (header, vectors) in headers.iter_mut().zip(&mut vectors) {
            // Without a header there is one part.
            let parts = match vectors {
                [first, second] if first.iov_len == 0 => std::slice::from_mut(second),
                both => &mut both[..],
            };
            header.msg_hdr.msg_iov = parts.as_mut_ptr();
            header.msg_hdr.msg_iovlen = parts.len() as _;
        }
        let mut next = 0;
        // An error may be that of an earlier datagram, and is told instead of
        // sending this one; so it is tried once more.
        let mut tried_again = false;
        while next < which.len() {
            let left = &mut headers[next..which.len()];
            // SAFETY: the headers point to buffers that live until after the
            // call, which only reads them.
            let count = unsafe {
                libc::sendmmsg(fd, left.as_mut_ptr(), left.len() as u32, libc::MSG_DONTWAIT)
            };
            if let Ok(count) = usize::try_from(count) {
                for header in &left[..count.min(left.len())] {
                    sent.datagrams += 1;
                    sent.bytes += u64::from(header.msg_len);
                }
                next += count.max(1);
                tried_again = false;
            } else if sent.failed(&io::Error::last_os_error(), &mut tried_again) == Next::Datagram {
                next += 1;
            }
        }
        sent
    }
}

/// How datagrams leave that differ from how they came.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shape<'a> {
    /// Bytes that are left out from their start.
    pub(super) skip: usize,
    /// What goes before the rest of each.
    pub(super) header: &'a [u8],
}

/// What to do after a failure.
#[derive(PartialEq, Eq)]
enum Next {
    Datagram,
    SameAgain,
}

impl Sent {
    fn failed(&mut self, error: &io::Error, tried_again: &mut bool) -> Next {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => {
                self.refused_there = true;
                if !mem::replace(tried_again, true) {
                    return Next::SameAgain;
                }
            }
            Some(libc::EINTR) => return Next::SameAgain,
            Some(libc::EMSGSIZE) => self.too_large += 1,
            _ => self.refused_here += 1,
        }
        *tried_again = false;
        Next::Datagram
    }
}

/// Sends one datagram that is in no batch.
pub(super) fn send_alone(socket: &impl AsFd, payload: &[u8]) -> Sent {
    let mut sent = Sent::default();
    send_one(socket.as_fd().as_raw_fd(), payload, &mut sent);
    sent
}

fn send_one(fd: RawFd, payload: &[u8], sent: &mut Sent) {
    let mut tried_again = false;
    loop {
        let start = payload.as_ptr().cast();
        // SAFETY: the slice is readable for its length.
        let count = unsafe { libc::send(fd, start, payload.len(), libc::MSG_DONTWAIT) };
        if count >= 0 {
            sent.datagrams += 1;
            sent.bytes += payload.len() as u64;
            return;
        }
        if sent.failed(&io::Error::last_os_error(), &mut tried_again) == Next::Datagram {
            return;
        }
    }
}

/// Headers of nothing.
fn headers() -> [libc::mmsghdr; BATCH] {
    // SAFETY: null pointers and zero lengths are a valid header of nothing.
    unsafe { mem::zeroed() }
}

fn recvmmsg(fd: RawFd, headers: &mut [libc::mmsghdr; BATCH]) -> io::Result<usize> {
    let (start, count) = (headers.as_mut_ptr(), BATCH as u32);
    // SAFETY: the headers point to buffers that are writable for as much as
    // they say and outlive the call.
    let count = unsafe { libc::recvmmsg(fd, start, count, libc::MSG_DONTWAIT, ptr::null_mut()) };
    match usize::try_from(count) {
        Ok(count) => Ok(count.min(BATCH)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// The original destination, from the control message that carries it.
fn sent_to(header: &libc::msghdr) -> Option<SocketAddr> {
    // SAFETY: the kernel filled in the control buffer that the header points
    // to and set its length; the macros keep within that.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::SOL_IP, libc::IP_ORIGDSTADDR) => {
                    return Some(read_v4(data.cast()));
                }
                (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR) => {
                    return Some(read_v6(data.cast()));
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let start = ptr::from_ref(storage);
    match i32::from(storage.ss_family) {
        // SAFETY: of this family, and the storage is large enough for any.
        libc::AF_INET => Some(unsafe { read_v4(start.cast()) }),
        // SAFETY: as above.
        libc::AF_INET6 => Some(unsafe { read_v6(start.cast()) }),
        _ => None,
    }
}

/// # Safety
/// `from` is readable for the size of a `sockaddr_in`.
unsafe fn read_v4(from: *const libc::sockaddr_in) -> SocketAddr {
    // SAFETY: the caller's promise.
    let raw = unsafe { ptr::read_unaligned(from) };
    let ip = u32::from_be(raw.sin_addr.s_addr).into();
    SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into()
}

/// # Safety
/// `from` is readable for the size of a `sockaddr_in6`.
unsafe fn read_v6(from: *const libc::sockaddr_in6) -> SocketAddr {
    // SAFETY: the caller's promise.
    let raw = unsafe { ptr::read_unaligned(from) };
    let ip = raw.sin6_addr.s6_addr.into();
    // Not the flow label, which may differ from datagram to datagram.
    SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, raw.sin6_scope_id).into()
}
