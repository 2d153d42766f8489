//! Handshakes with clients.

use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::leg::TlsLeg;
use crate::tcp::Unanswered;

/// Handshakes that a worker has begun and not ended. Each holds some ten
/// kilobytes; those beyond wait in their sockets, within their time.
const AT_ONCE: usize = 2048;

thread_local! {
    static BEGUN: Arc<Semaphore> = Arc::new(Semaphore::new(AT_ONCE));
    static TURN: Arc<Semaphore> = Arc::new(Semaphore::new(1));
}

/// Shakes hands with a client whose ClientHello is in the socket. With
/// `protocol`, that is what the client is told (ALPN).
///
/// # Errors
/// Of kind `TimedOut` where it took longer than `patience`.
pub async fn accept(
    client: Unanswered,
    config: &Arc<ServerConfig>,
    protocol: Option<&[u8]>,
    patience: Duration,
) -> io::Result<Unanswered<TlsLeg>> {
    let config = match protocol {
        None => Arc::clone(config),
        Some(protocol) => {
            let mut config = ServerConfig::clone(config);
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        }
    };
    // Who is in the middle of a handshake cannot take any end for an answer,
    // and a reset would take the alert from one whose handshake failed.
    let shaken = timeout(patience, shake(client.release(), config)).await;
    let shaken = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    shaken.map(Unanswered::new)
}

async fn shake(client: TcpStream, config: Arc<ServerConfig>) -> io::Result<TlsLeg> {
    let _begun = permit(BEGUN.with(Arc::clone)).await?;
    let mut handshake = pin!(TlsAcceptor::from(config).accept(client));
    let turn = permit(TURN.with(Arc::clone)).await?;
    // All that costs, key agreement and signature, is done at the first look,
    // the ClientHello being there. One handshake a round of the worker, and
    // every other connection that has something to do gets its part.
    let first = poll_fn(|cx| Poll::Ready(handshake.as_mut().poll(cx))).await;
    tokio::task::yield_now().await;
    drop(turn);
    let stream = match first {
        Poll::Ready(done) => done?,
        Poll::Pending => handshake.await?,
    };
    Ok(TlsLeg::new(stream.into()))
}

async fn permit(of: Arc<Semaphore>) -> io::Result<tokio::sync::OwnedSemaphorePermit> {
    of.acquire_owned().await.map_err(io::Error::other)
}
