//! Handshakes with clients.

use std::{future::poll_fn, io, sync::Arc, task::Poll, time::Duration};

use rustls::{ServerConfig, server::UnbufferedServerConnection};
use tokio::time::timeout;

use super::{
    leg::{ClientLeg, TlsLeg},
    turn::in_turn,
};
use crate::tcp::Unanswered;

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
) -> io::Result<Unanswered<ClientLeg>> {
    let config = match protocol {
        None => Arc::clone(config),
        Some(protocol) => {
            let mut config = ServerConfig::clone(config);
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        }
    };
    let session = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
    let mut leg = Unanswered::new(TlsLeg::new(client.release(), session));
    let shaken = timeout(patience, shake(&mut leg)).await;
    match shaken.map_err(|_| io::ErrorKind::TimedOut)? {
        Ok(()) => Ok(leg),
        Err(error) => {
            // A reset would take the alert with it.
            drop(leg.release());
            Err(error)
        }
    }
}

/// All that costs, key agreement and signature, is done with the ClientHello,
/// which is there.
async fn shake(leg: &mut ClientLeg) -> io::Result<()> {
    match in_turn(|cx| leg.poll_shake(cx)).await? {
        Poll::Ready(done) => done,
        Poll::Pending => poll_fn(|cx| leg.poll_shake(cx)).await,
    }
}
