//! Accepting, as fast as connections come. Those for which there are no
//! descriptors are reset: clients learn it at once, and the queue does not fill
//! up with those who have given up.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyport_node::drain::Drain;
use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    descriptors::{Pair, Spare},
    live::Place,
    stats::Shed,
    tcp::{Service, Unanswered, serve},
};

/// Out of memory, accepting again at once would only spin; waiting connections
/// stay in the kernel's queue.
const STARVED_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the drain begins.
pub(super) async fn accept(listener: TcpListener, service: Arc<Service>, drain: Drain) {
    tokio::select! {
        () = drain.started() => {}
        () = accept_all(listener, service, &drain) => {}
    }
}

async fn accept_all(listener: TcpListener, service: Arc<Service>, drain: &Drain) {
    let (mut starved, mut spare) = (false, Spare::new());
    loop {
        match listener.accept().await {
            Ok((client, peer)) => {
                starved = false;
                take(&service, client, peer, drain);
            }
            Err(error)
                if is_out_of_descriptors(&error) && shed(&listener, &service, &mut spare) => {}
            Err(error) if is_starved(&error) => {
                if !starved {
                    tracing::error!(%error, "cannot accept; new connections wait");
                }
                starved = true;
                tokio::time::sleep(STARVED_PAUSE).await;
            }
            // It does not listen: the kernel refused when its turn had come.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::error!(%error, "cannot accept, ever; others have to");
                std::future::pending::<()>().await;
            }
            // The connection was gone before it was accepted (accept(2) lists
            // the errors): the next one is waiting.
            Err(error) => tracing::debug!(%error, "a connection was gone before its accept"),
        }
    }
}

fn take(service: &Arc<Service>, client: TcpStream, peer: SocketAddr, drain: &Drain) {
    let client = Unanswered::new(client);
    if service.is_drained() {
        return service.stats.shed(Shed::Drained);
    }
    let Some(service) = Pair::take(service) else {
        return service.stats.shed(Shed::Descriptors);
    };
    let guard = drain.guard();
    Place::take().spawn(|place| serve(service, client, peer, place, guard));
}

/// Resets the connection that waits, if one does, although there is no
/// descriptor for it. False where not even that can be done.
fn shed(listener: &TcpListener, service: &Service, spare: &mut Spare) -> bool {
    service.descriptors.ran_short();
    // By way of tokio, which then knows when nobody waits any more: the kernel
    // looks for a descriptor before it looks for a connection.
    let accepted = spare.lend(|| {
        let accepted = listener.accept().now_or_never();
        accepted.map(|accepted| accepted.map(|(client, _)| drop(Unanswered::new(client))))
    });
    match accepted {
        Some(Some(Ok(()))) => {
            service.stats.shed(Shed::System);
            true
        }
        Some(None) => true,
        Some(Some(Err(error))) => !is_starved(&error),
        None => false,
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

fn is_starved(error: &io::Error) -> bool {
    let of_memory = matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM));
    of_memory || is_out_of_descriptors(error)
}
