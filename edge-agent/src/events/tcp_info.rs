//! What the kernel knows of a TCP connection.

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

/// The smoothed round trip time (RFC 6298). `None` where there is none, as on a
/// socket that is not TCP.
pub fn rtt(socket: BorrowedFd<'_>) -> Option<Duration> {
    info(socket).map(|info| Duration::from_micros(info.tcpi_rtt.into()))
}

/// Bytes that the peer's kernel has not acknowledged yet (`SIOCOUTQ` of tcp(7)).
/// None where it never will, since the connection is over.
pub fn undelivered(socket: BorrowedFd<'_>) -> u32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes an int to `bytes`, which lives until the call is
    // over; the descriptor is open while it is borrowed.
    let failed = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    const CLOSED: u8 = 7; // TCP_CLOSE of linux/tcp_states.h
    let is_over = || info(socket).is_none_or(|info| info.tcpi_state == CLOSED);
    if failed != 0 || bytes == 0 || is_over() {
        return 0;
    }
    bytes.unsigned_abs()
}

/// Whether the connection was reset, or given up. What had come before can still
/// be read, and then why, which this does not take (`POLLERR` of poll(2)).
pub fn has_failed(socket: BorrowedFd<'_>) -> bool {
    let mut polled = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: the kernel writes to `polled`, the one entry, which lives until the
    // call is over; the descriptor is open while it is borrowed.
    let ready = unsafe { libc::poll(&raw mut polled, 1, 0) };
    ready > 0 && polled.revents & libc::POLLERR != 0
}

fn info(socket: BorrowedFd<'_>) -> Option<libc::tcp_info> {
    // SAFETY: all zeroes is a value of this plain structure.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which lives
    // until the call is over; the descriptor is open while it is borrowed.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    (failed == 0).then_some(info)
}

/// Segments that the socket has sent (`tcpi_segs_out` of linux/tcp.h).
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub fn segments_sent(socket: &impl std::os::fd::AsFd) -> u32 {
    let mut info = [0u8; 140];
    let mut size = libc::socklen_t::try_from(info.len()).unwrap();
    // SAFETY: the kernel writes at most `size` bytes to `info`.
    let got = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    assert_eq!((got, size), (0, 140));
    u32::from_ne_bytes(info[136..].try_into().unwrap())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream, UdpSocket},
        os::fd::AsFd,
        time::Instant,
    };

    #[test]
    fn a_connection_has_a_round_trip_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let rtt = rtt(stream.as_fd()).unwrap();
        assert!(
            rtt > Duration::ZERO && rtt < Duration::from_secs(1),
            "{rtt:?}"
        );
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(super::rtt(udp.as_fd()), None);
    }

    #[test]
    fn what_a_peer_does_not_take_is_undelivered_until_it_does_or_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        let delivered = |near: &TcpStream| {
            let start = Instant::now();
            while undelivered(near.as_fd()) > 0 {
                assert!(start.elapsed() < Duration::from_secs(10));
                std::thread::yield_now();
            }
        };
        let mut sent = 0;
        while let Ok(count) = near.write(&[7; 1 << 16]) {
            sent += count;
        }
        assert!(undelivered(near.as_fd()) > 0);
        far.read_exact(&mut vec![0; sent]).unwrap();
        delivered(&near);
        while near.write(&[7; 1 << 16]).is_ok() {}
        assert!(undelivered(near.as_fd()) > 0);
        // What is unread makes it a reset.
        drop(far);
        delivered(&near);
    }
}
