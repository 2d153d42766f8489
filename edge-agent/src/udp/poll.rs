//! A set of sockets to wait for at once: epoll(7), edge-triggered, one for each
//! worker. It stands in tokio's own set as a single member, so that a flow
//! costs no task, no waker and no lock.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

pub(super) struct Poll {
    epoll: AsyncFd<OwnedFd>,
}

/// Sockets that were found ready in one go.
pub(super) const EVENTS: usize = 256;

/// Room for what a wait finds.
pub(super) struct Events {
    found: Box<[libc::epoll_event]>,
    count: usize,
}

impl Events {
    pub(super) fn new() -> Self {
        let none = libc::epoll_event { events: 0, u64: 0 };
        Self {
            found: vec![none; EVENTS].into_boxed_slice(),
            count: 0,
        }
    }

    pub(super) fn tokens(&self) -> impl Iterator<Item = u64> {
        self.found[..self.count].iter().map(|event| event.u64)
    }

    /// There may be more that did not fit.
    pub(super) fn is_full(&self) -> bool {
        self.count == EVENTS
    }
}

impl Poll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an `OwnedFd` is one descriptor, open until it is dropped.
        let epoll = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            .map_err(io::Error::from)?;
        Ok(Self { epoll })
    }

    /// `token` is found whenever something arrives at `socket`, until the
    /// socket is closed.
    pub(super) fn add(&self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET) as u32,
            u64: token,
        };
        let (epoll, socket) = (self.epoll.as_raw_fd(), socket.as_raw_fd());
        // SAFETY: both descriptors are open, and the kernel copies the event.
        let done = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket, &mut event) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// `socket` is no longer watched, also where another process holds it open.
    pub(super) fn remove(&self, socket: BorrowedFd<'_>) {
        let (epoll, socket) = (self.epoll.as_raw_fd(), socket.as_raw_fd());
        // SAFETY: both descriptors are open; there is no event to read. That it
        // is not watched is all that could be wrong.
        unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, socket, std::ptr::null_mut()) };
    }

    /// What is ready now.
    pub(super) fn look(&self, events: &mut Events) {
        let (fd, room) = (self.epoll.as_raw_fd(), events.found.as_mut_ptr());
        // SAFETY: the array is writable and has room for as many as are said.
        let count = unsafe { libc::epoll_wait(fd, room, EVENTS as i32, 0) };
        // Of the errors only EINTR can happen here; then there is a next time.
        events.count = usize::try_from(count).unwrap_or(0);
    }

    /// Waits until [`look`](Self::look) would find something; then `look_at`
    /// is run until it says that nothing is left.
    pub(super) async fn ready(&self, look_at: impl FnOnce() -> Left) -> io::Result<Left> {
        let mut guard = self.epoll.readable().await?;
        let left = look_at();
        if left == Left::Nothing {
            guard.clear_ready();
        }
        Ok(left)
    }
}

/// What a turn of work leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    /// There is or may be more to do right now.
    Something,
}
