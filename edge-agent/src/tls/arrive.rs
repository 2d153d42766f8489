//! Which app takes a connection, where its ClientHello decides.

use std::{io, sync::Arc};

use anyport_model::{client_hello::ClientHello, outcome::Status, route::Candidates};
use tokio::net::TcpStream;

use super::{Begins, Unseen, peek, unrecognized_name};
use crate::{
    stats::AppStats,
    table::{AppEntry, Snapshot, Target},
};

/// A connection that an app takes.
pub struct Arrived<'a> {
    pub target: Target<'a>,
    /// Where it had to be looked at. The bytes are still in the socket.
    pub hello: Option<ClientHello>,
}

/// A connection that is turned away before an app has it.
pub struct Turned {
    /// Of the app that it is counted for: the one that would end its TLS, or
    /// the first of those that share the place.
    pub stats: Arc<AppStats>,
    pub status: Status,
    pub reason: String,
    /// The client was told in TLS; else it should get a reset.
    pub told: bool,
}

/// Finds which of `candidates` takes a connection. Where there is only one,
/// whose TLS does not end here, its bytes are not looked at.
pub async fn arrive<'a>(
    table: &'a Snapshot,
    candidates: Candidates<'a>,
    only: Option<Target<'a>>,
    first: &AppEntry,
    client: &TcpStream,
) -> Result<Arrived<'a>, Turned> {
    if let Some(target) = only.filter(|only| only.app.tls.is_none()) {
        return Ok(Arrived {
            target,
            hello: None,
        });
    }
    let turned = |status, reason: String| Turned {
        stats: Arc::clone(&first.stats),
        status,
        reason,
        told: false,
    };
    // Boxed: other connections do not carry its memory.
    let peeked = Box::pin(peek(client, first.app.timeouts.tls_handshake));
    let begins = match peeked.await {
        Ok(begins) => begins,
        Err(unseen) => return Err(turned(unseen.status(), unseen.to_string())),
    };
    let taken_by = match &begins {
        Begins::Hello(hello) => candidates.of_name(hello.server_name.as_ref()),
        Begins::Other(_) => candidates.any(),
    };
    let target = taken_by.and_then(|route| table.target_of(route));
    match (target, begins) {
        (Some(target), Begins::Hello(hello)) => Ok(Arrived {
            target,
            hello: Some(hello),
        }),
        (Some(target), Begins::Other(_)) if target.app.tls.is_none() => Ok(Arrived {
            target,
            hello: None,
        }),
        (_, Begins::Other(why)) => Err(turned(Status::TlsHandshake, why.to_string())),
        (None, Begins::Hello(hello)) => {
            unrecognized_name(client);
            let reason = match hello.server_name {
                Some(name) => format!("no app has the name {name}"),
                None => "the client asks for no name, and every app there has one".to_owned(),
            };
            Err(Turned {
                told: true,
                ..turned(Status::InvalidSni, reason)
            })
        }
    }
}

impl Unseen {
    fn status(&self) -> Status {
        match self {
            Unseen::Failed(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Status::ClientReset
            }
            Unseen::TimedOut | Unseen::Ended | Unseen::Failed(_) => Status::TlsHandshake,
        }
    }
}
