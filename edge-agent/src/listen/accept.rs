//! Accepting, as fast as connections come and as long as there are
//! descriptors.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyport_node::drain::Drain;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    live::Place,
    tcp::{Service, serve},
};

/// Out of descriptors or memory, accepting again at once would only spin;
/// waiting connections stay in the kernel's queue.
const STARVED_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the drain begins.
pub(super) async fn accept(listener: TcpListener, service: Arc<Service>, drain: Drain) {
    tokio::select! {
        () = drain.started() => {}
        () = accept_all(listener, service, &drain) => {}
    }
}

async fn accept_all(listener: TcpListener, service: Arc<Service>, drain: &Drain) {
    let mut starved = false;
    loop {
        match listener.accept().await {
            Ok((client, peer)) => {
                starved = false;
                take(&service, client, peer, drain);
            }
            Err(error) if is_starved(&error) => {
                if !starved {
                    tracing::error!(%error, "cannot accept; new connections wait");
                }
                starved = true;
                tokio::time::sleep(STARVED_PAUSE).await;
            }
            // The connection was gone before it was accepted (accept(2) lists
            // the errors): the next one is waiting.
            Err(error) => tracing::debug!(%error, "a connection was gone before its accept"),
        }
    }
}

fn take(service: &Arc<Service>, client: TcpStream, peer: SocketAddr, drain: &Drain) {
    let (service, guard) = (Arc::clone(service), drain.guard());
    Place::take().spawn(|place| serve(service, client, peer, place, guard));
}

fn is_starved(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
