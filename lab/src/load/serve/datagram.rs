//! An echo for datagrams.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use socket2::{Domain, Protocol, Socket, Type};
use tokio_util::sync::CancellationToken;

use super::ServeError;
use crate::load::who::{self, Tag, Who};

/// Larger than any datagram.
const BUFFER: usize = 64 * 1024;

/// Asked of the kernel for what waits at a socket, in bytes.
const WAITING: usize = 4 << 20;

/// What to serve.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to listen. Port 0 lets the kernel choose; see [`Server::addresses`].
    pub listen: Vec<SocketAddr>,
    /// What to answer to a datagram `who\n`: a [`Who`] line with this name. Everything else is sent
    /// back as it came.
    pub tag: Option<Tag>,
    /// How many threads, each with sockets of its own.
    pub threads: NonZeroUsize,
}

/// A running server. It stops when this is dropped.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    answered: Arc<AtomicU64>,
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

/// Starts to serve. When this returns, datagrams are answered.
///
/// # Errors
///
/// Where an address cannot be listened on or a thread cannot be started; nothing is served then.
pub fn start(plan: &Plan) -> Result<Server, ServeError> {
    if plan.listen.is_empty() {
        return Err(ServeError::NowhereToListen);
    }
    let mut server = Server {
        addresses: plan.listen.clone(),
        answered: Arc::default(),
        stop: CancellationToken::new(),
        threads: Vec::with_capacity(plan.threads.get()),
    };
    for _ in 0..plan.threads.get() {
        let sockets = server.addresses.iter_mut().map(|address| {
            let socket = open(*address).and_then(|socket| {
                *address = socket.local_addr()?;
                Ok(socket)
            });
            socket.map_err(|source| ServeError::Listen {
                address: *address,
                source,
            })
        });
        let sockets = sockets.collect::<Result<Vec<_>, _>>()?;
        let thread = server.thread(sockets, plan.tag.clone());
        server.threads.push(thread.map_err(ServeError::Thread)?);
    }
    Ok(server)
}

impl Server {
    /// Where it listens, in the order of the plan, with the ports that the kernel chose.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How many datagrams were answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    fn thread(&self, sockets: Vec<UdpSocket>, tag: Option<Tag>) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let sockets = {
            let _entered = runtime.enter();
            let sockets = sockets.into_iter().map(tokio::net::UdpSocket::from_std);
            sockets.collect::<io::Result<Vec<_>>>()?
        };
        let (answered, stop) = (self.answered.clone(), self.stop.clone());
        std::thread::Builder::new()
            .name("server".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    for socket in sockets {
                        tokio::spawn(answer(socket, tag.clone(), answered.clone()));
                    }
                    stop.cancelled().await;
                });
            })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            // A panic has been reported by its own thread; here it must not become a second one.
            let _ = thread.join();
        }
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(WAITING)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

async fn answer(socket: tokio::net::UdpSocket, tag: Option<Tag>, answered: Arc<AtomicU64>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        // An error is that of an earlier answer: its client is gone.
        let Ok((count, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let request = &buffer[..count];
        let who = (request == who::REQUEST)
            .then(|| tag.clone())
            .flatten()
            .zip(socket.local_addr().ok())
            .map(|(tag, local)| Who { tag, peer, local }.to_string());
        let reply = who.as_ref().map_or(request, |line| line.as_bytes());
        // What cannot be sent is lost, as on any network.
        if socket.send_to(reply, peer).await.is_ok() {
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}
