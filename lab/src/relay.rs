//! A relay with nothing to it: what any proxy that has a socket on each side costs at the least.
//!
//! It accepts, connects, reads, writes, carries a half-close over, and closes, in one event loop a
//! thread and as few system calls as that takes. It knows no deadline, no count, no log and no second
//! origin. What a proxy costs more than this is its own; what this costs is the kernel's.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::thread;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, Socket, Type};

/// Asked of the kernel, which cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 65535;
/// What is read at once, in bytes.
const SCRATCH: usize = 256 << 10;
/// Events that one system call brings.
const EVENTS: usize = 256;

/// Relays what comes to each of `ways`' first addresses to its second, with so many threads, without
/// end.
///
/// # Errors
///
/// Where an address cannot be listened on or a thread cannot be started.
pub fn relay(ways: &[(SocketAddr, SocketAddr)], threads: usize) -> io::Result<()> {
    let mut loops = Vec::with_capacity(threads);
    for _ in 0..threads {
        let mut events = Loop::new(ways)?;
        loops.push(thread::Builder::new().spawn(move || events.run())?);
    }
    for ended in loops {
        ended
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread of the relay panicked")))?;
    }
    Ok(())
}

struct Loop {
    epoll: Epoll,
    /// The first of the tokens.
    listeners: Vec<(Socket, SocketAddr)>,
    /// The other tokens. The two sides of a connection are neighbours: an even one and the next.
    sides: Vec<Option<Side>>,
    free: Vec<usize>,
    scratch: Vec<u8>,
}

struct Side {
    socket: Socket,
    connected: bool,
    /// Came from here and is not written to the other side yet.
    rest: Vec<u8>,
    /// Its end is there to be read.
    hung_up: bool,
    ended: bool,
}

impl Loop {
    fn new(ways: &[(SocketAddr, SocketAddr)]) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut listeners = Vec::with_capacity(ways.len());
        for (token, (from, to)) in ways.iter().enumerate() {
            let socket = open(*from)?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.bind(&(*from).into())?;
            socket.listen(BACKLOG)?;
            epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, token as u64))?;
            listeners.push((socket, *to));
        }
        Ok(Self {
            epoll,
            listeners,
            sides: Vec::new(),
            free: Vec::new(),
            scratch: vec![0; SCRATCH],
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                count => count?,
            };
            for event in &events[..count] {
                let token = event.data() as usize;
                match token.checked_sub(self.listeners.len()) {
                    None => self.accept(token),
                    Some(side) => self.serve(side, event.events()),
                }
            }
        }
    }

    /// What fails here concerns one client, which sees it.
    fn accept(&mut self, listener: usize) {
        let (listener, to) = &self.listeners[listener];
        let to = *to;
        let Ok((client, _)) = listener.accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) else {
            return;
        };
        let Ok(origin) = open(to) else { return };
        match origin.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return,
            _ => {}
        }
        let first = self.free.pop().unwrap_or_else(|| {
            self.sides.extend([None, None]);
            self.sides.len() - 2
        });
        for (at, socket, connected) in [(first, client, true), (first + 1, origin, false)] {
            let moves = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
            let flags = moves | EpollFlags::EPOLLET;
            let token = (self.listeners.len() + at) as u64;
            let added = self
                .epoll
                .add(socket.as_fd(), EpollEvent::new(flags, token));
            self.sides[at] = added.is_ok().then_some(Side {
                socket,
                connected,
                rest: Vec::new(),
                hung_up: false,
                ended: false,
            });
        }
        if self.sides[first].is_none() || self.sides[first + 1].is_none() {
            self.close(first);
        }
    }

    fn serve(&mut self, at: usize, events: EpollFlags) {
        let Some(Some(side)) = self.sides.get_mut(at) else {
            return;
        };
        let writable = events.contains(EpollFlags::EPOLLOUT);
        side.connected |= writable;
        side.hung_up |=
            events.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        let mut moved = self.pump(at);
        if writable && moved.is_ok() {
            moved = self.pump(at ^ 1);
        }
        let done = [at, at ^ 1].iter().all(|at| {
            let side = self.sides[*at].as_ref();
            side.is_none_or(|side| side.ended && side.rest.is_empty())
        });
        if moved.is_err() || done {
            self.close(at & !1);
        }
    }

    /// Moves what came from the side at `from` to the other one.
    fn pump(&mut self, from: usize) -> io::Result<()> {
        let (low, high) = self.sides.split_at_mut(from | 1);
        let (Some(Some(low)), Some(Some(high))) = (low.last_mut(), high.first_mut()) else {
            return Ok(());
        };
        let (from, to) = if from & 1 == 0 {
            (low, high)
        } else {
            (high, low)
        };
        if !to.connected || from.ended && from.rest.is_empty() {
            return Ok(());
        }
        loop {
            if !from.rest.is_empty() {
                let written = blocks((&to.socket).write(&from.rest))?.unwrap_or(0);
                from.rest.drain(..written);
                if !from.rest.is_empty() {
                    return Ok(());
                }
                if from.ended {
                    return to.socket.shutdown(Shutdown::Write);
                }
            }
            let Some(count) = blocks((&from.socket).read(&mut self.scratch))? else {
                return Ok(());
            };
            if count == 0 {
                from.ended = true;
                // The close that follows says it as well.
                return if to.ended {
                    Ok(())
                } else {
                    to.socket.shutdown(Shutdown::Write)
                };
            }
            let written = blocks((&to.socket).write(&self.scratch[..count]))?.unwrap_or(0);
            from.rest.extend_from_slice(&self.scratch[written..count]);
            // A short read was the last: more makes another event.
            if written == count && count < self.scratch.len() && !from.hung_up {
                return Ok(());
            }
        }
    }

    fn close(&mut self, first: usize) {
        self.sides[first] = None;
        self.sides[first + 1] = None;
        self.free.push(first);
    }
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    // A listener's is inherited by what it accepts.
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// None where it would have to wait.
fn blocks(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        done => done.map(Some),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_is_sent_comes_back_and_a_half_close_is_one() {
        let origin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = origin.local_addr().unwrap();
        // The relay goes on as long as the process; its port is one that was free, of an address at
        // which no other test takes one.
        let free = TcpListener::bind((Ipv4Addr::new(127, 77, 0, 1), 0)).unwrap();
        let from = free.local_addr().unwrap();
        drop(free);
        let mut events = Loop::new(&[(from, to)]).unwrap();
        thread::spawn(move || events.run());
        thread::spawn(move || {
            for client in origin.incoming() {
                let mut client = client.unwrap();
                let mut all = Vec::new();
                client.read_to_end(&mut all).unwrap();
                client.write_all(&all).unwrap();
            }
        });
        for size in [1, 100_000, 20_000_000] {
            let sent: Vec<u8> = (0..size).map(|place: u32| (place % 251) as u8).collect();
            let mut client = TcpStream::connect(from).unwrap();
            client.write_all(&sent).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            assert!(got == sent, "{} of {size} bytes", got.len());
        }
    }
}
