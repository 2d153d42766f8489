//! One accepted connection, as the server lets it live.
//!
//! It may not sit there without ever speaking, and it ends when the drain runs out
//! of patience, whatever streams it carries. tonic leaves both to the socket.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{net::TcpStream, sync::OwnedSemaphorePermit, time::Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::watched::{Watch, Watched};

/// The HTTP/2 preface. A TLS hello is longer.
const FIRST_WORDS: usize = 24;

pub(super) type Connection = Watched<TcpStream, Guard>;

/// Ends it, and holds its place.
pub(super) struct Guard {
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    silence: Option<Silence>,
    _permit: OwnedSemaphorePermit,
}

/// Until the peer has said its first words.
struct Silence {
    deadline: Pin<Box<Sleep>>,
    heard: usize,
}

impl Connection {
    /// Ends when `cut` is cancelled, or when the peer is silent for `patience`.
    /// Gives the `permit` back with its end.
    pub(super) fn new(
        stream: TcpStream,
        cut: CancellationToken,
        patience: Duration,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let silence = Silence {
            deadline: Box::pin(tokio::time::sleep(patience)),
            heard: 0,
        };
        let watch = Guard {
            cut: Box::pin(cut.cancelled_owned()),
            silence: Some(silence),
            _permit: permit,
        };
        Self { stream, watch }
    }

    /// Who is at the other end.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }
}

impl Watch for Guard {
    fn may_go_on(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the server is stopping",
            )),
            Poll::Pending => Ok(()),
        }
    }

    fn read(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<()>>,
        bytes: usize,
    ) -> Poll<io::Result<()>> {
        if let Some(silence) = &mut self.silence {
            silence.heard += bytes;
            if silence.heard >= FIRST_WORDS {
                self.silence = None;
            } else if outcome.is_pending() && silence.deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::Semaphore,
        time::Instant,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    struct Ends {
        client: TcpStream,
        server: Connection,
        places: Arc<Semaphore>,
        cut: CancellationToken,
    }

    async fn connected(patience: Duration) -> Ends {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).await.expect("it listens");
        let (stream, _) = listener.accept().await.expect("connected");
        let places = Arc::new(Semaphore::new(1));
        let permit = places.clone().try_acquire_owned().expect("one is free");
        let cut = CancellationToken::new();
        let server = Connection::new(stream, cut.clone(), patience, permit);
        Ends {
            client,
            server,
            places,
            cut,
        }
    }

    #[tokio::test]
    async fn a_peer_that_never_speaks_is_given_up_and_its_place_is_free_again() {
        let patience = Duration::from_millis(50);
        let started = Instant::now();
        let mut ends = connected(patience).await;
        // Almost the preface is not the preface.
        ends.client
            .write_all(&[0; FIRST_WORDS - 1])
            .await
            .expect("sent");
        let mut heard = Vec::new();
        let error = ends
            .server
            .read_to_end(&mut heard)
            .await
            .expect_err("silent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(heard.len(), FIRST_WORDS - 1);
        assert!(started.elapsed() >= patience);
        assert_eq!(ends.places.available_permits(), 0);
        drop(ends.server);
        assert_eq!(ends.places.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_peer_that_has_spoken_may_be_silent() {
        let patience = Duration::from_millis(10);
        let mut ends = connected(patience).await;
        ends.client
            .write_all(&[0; FIRST_WORDS])
            .await
            .expect("sent");
        let mut heard = [0; FIRST_WORDS];
        ends.server.read_exact(&mut heard).await.expect("heard");
        let more = tokio::time::timeout(20 * patience, ends.server.read_u8()).await;
        more.expect_err("still waiting");
    }

    #[tokio::test]
    async fn cutting_wakes_a_reader() {
        let mut ends = connected(PATIENCE).await;
        let (read, ()) = tokio::join!(ends.server.read_u8(), async { ends.cut.cancel() });
        let error = read.expect_err("cut");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
