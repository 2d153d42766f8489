//! The servers that a load is put on, and that play the origins in tests.

mod conversation;
pub mod datagram;
mod http;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use super::who::Tag;
use conversation::Scratch;

/// The answer of a [`Mode::Sink`] is at most this long, in bytes: the digits of a `u64`, and a
/// newline.
pub(super) const LONGEST_COUNT: usize = 21;

/// Asked of the kernel for each listener, which takes it down to its own `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// How long to wait when a connection cannot be accepted, which is when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// What to serve.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to listen. Port 0 lets the kernel choose; see [`Server::addresses`].
    pub listen: Vec<SocketAddr>,
    /// What to do with a connection.
    pub mode: Mode,
    /// How many threads, each with listeners of its own.
    pub threads: NonZeroUsize,
}

/// What is done with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Sends everything back, and ends when the client has. With a tag, a request `who\n` that comes
    /// alone is answered by a [`Who`](super::Who) line instead.
    Echo {
        /// Who to say that one is, if asked.
        tag: Option<Tag>,
    },
    /// Takes everything, and when the client has ended says how many bytes that were, as a decimal
    /// number and a newline.
    Sink,
    /// Sends without end, until the client closes.
    Source,
    /// Answers HTTP/1.1 requests of any path with 200. With a tag the body is a
    /// [`Who`](super::Who) line.
    Http {
        /// Who to say that one is.
        tag: Option<Tag>,
    },
    /// Says nothing, and closes when the client does: the cheapest partner of a load of connections.
    Connect,
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is nothing to listen on.
    #[error("listen: at least one address is needed")]
    NowhereToListen,
    /// An address cannot be listened on.
    #[error("listening on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// A thread or its runtime could not be made.
    #[error("starting a server thread")]
    Thread(#[source] io::Error),
}

/// A running server. It stops, and closes every connection, when this is dropped.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    counts: Arc<Counts>,
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    open: AtomicU64,
}

/// Starts to serve. When this returns, connections are accepted.
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
        counts: Arc::default(),
        stop: CancellationToken::new(),
        threads: Vec::with_capacity(plan.threads.get()),
    };
    for _ in 0..plan.threads.get() {
        // The first round turns port 0 into the port that the others then share.
        let listeners = server
            .addresses
            .iter_mut()
            .map(|address| {
                let listener = listen(*address).and_then(|listener| {
                    *address = listener.local_addr()?;
                    Ok(listener)
                });
                listener.map_err(|source| ServeError::Listen {
                    address: *address,
                    source,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        server
            .add_thread(listeners, &plan.mode)
            .map_err(ServeError::Thread)?;
    }
    Ok(server)
}

impl Server {
    /// Where it listens, in the order of the plan, with the ports that the kernel chose.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How many connections were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.counts.accepted.load(Ordering::Relaxed)
    }

    /// How many connections are open now.
    pub fn open(&self) -> u64 {
        self.counts.open.load(Ordering::Relaxed)
    }

    fn add_thread(&mut self, listeners: Vec<TcpListener>, mode: &Mode) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listeners = {
            let _entered = runtime.enter();
            listeners
                .into_iter()
                .map(tokio::net::TcpListener::from_std)
                .collect::<io::Result<Vec<_>>>()?
        };
        let (mode, counts, stop) = (mode.clone(), self.counts.clone(), self.stop.clone());
        let thread = std::thread::Builder::new()
            .name("server".to_owned())
            .spawn(move || serve(&runtime, listeners, mode, counts, stop))?;
        self.threads.push(thread);
        Ok(())
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

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        // Else [::] would take the IPv4 address of the same port as well.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn serve(
    runtime: &Runtime,
    listeners: Vec<tokio::net::TcpListener>,
    mode: Mode,
    counts: Arc<Counts>,
    stop: CancellationToken,
) {
    let scratch = Scratch::new();
    let mode = Rc::new(mode);
    LocalSet::new().block_on(runtime, async move {
        for listener in listeners {
            tokio::task::spawn_local(accept(
                listener,
                mode.clone(),
                counts.clone(),
                scratch.clone(),
            ));
        }
        stop.cancelled().await;
    });
}

async fn accept(
    listener: tokio::net::TcpListener,
    mode: Rc<Mode>,
    counts: Arc<Counts>,
    scratch: Scratch,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let open = Open::new(&counts);
        let (mode, scratch) = (mode.clone(), scratch.clone());
        tokio::task::spawn_local(async move {
            // How a connection ends is the client's to judge; the server goes on either way.
            let _ = converse(&stream, &mode, &scratch).await;
            drop(stream);
            drop(open);
        });
    }
}

async fn converse(stream: &TcpStream, mode: &Mode, scratch: &Scratch) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match mode {
        Mode::Echo { tag } => conversation::echo(stream, tag.as_ref(), scratch).await,
        Mode::Sink => conversation::sink(stream, scratch).await,
        Mode::Source => conversation::source(stream).await,
        Mode::Http { tag } => http::serve(stream, tag.as_ref(), scratch).await,
        Mode::Connect => conversation::wait_for_end(stream, scratch).await.map(drop),
    }
}

/// Counts a connection for as long as it is open.
struct Open {
    counts: Arc<Counts>,
}

impl Open {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.accepted.fetch_add(1, Ordering::Relaxed);
        counts.open.fetch_add(1, Ordering::Relaxed);
        Self {
            counts: counts.clone(),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
    }
}
