//! From an accepted connection to the app that lets it in.

use std::{net::SocketAddr, sync::Arc};

use anyport_model::outcome::Status;
use anyport_node::telemetry::current_trace_id;
use tokio::net::TcpStream;
use tracing::{Span, field};

use super::{
    account::Account,
    connection::Service,
    identity::{self, Identity},
};
use crate::{
    events::{Details, Firewall},
    live::{AppKey, Closing, Place},
    stats::AppStats,
    table::{AppEntry, Snapshot},
    tls::{self, Arrived, Turned},
};

/// A connection on its way to an app.
pub(super) struct Arriving<'s, 't> {
    pub(super) service: &'s Service,
    pub(super) table: &'t Snapshot,
    pub(super) peer: SocketAddr,
    /// What the client dialled.
    pub(super) destination: SocketAddr,
}

/// A connection that an app has let in, and what a trusted sender said of it.
pub(super) type Entered<'t> = (Arrived<'t>, Option<Identity>);

impl<'s, 't> Arriving<'s, 't> {
    /// Finds out who the client is and which app it is for, and asks the app to
    /// let it in; `None` if no app takes it.
    pub(super) async fn enter(
        &self,
        client: &TcpStream,
        place: Place,
    ) -> Option<(Account<'s>, Result<Entered<'t>, Turned>)> {
        let table = self.table;
        Span::current().record("config_revision", table.revision.0);
        let (candidates, first, only) = table.apps_at(self.destination)?;
        // Where the name in the ClientHello decides, the app is not known yet.
        let mut account = match only {
            Some(_) => Ok(self.account(first, &first.stats, place)),
            None => Err(place),
        };
        let mut received = receive(self.service, first, client, self.destination).await;
        // Of who is not let in, nothing more is waited for.
        if let (Ok(account), Ok(identity)) = (&mut account, &received)
            && let Err(turned) = self.admit(account, first, identity)
        {
            received = Err(turned);
        }
        let arrived = match received {
            Ok(identity) => tls::arrive(table, candidates, only, first, client)
                .await
                .map(|arrived| (arrived, identity)),
            Err(turned) => Err(turned),
        };
        let stats = match &arrived {
            Ok((arrived, _)) => &arrived.target.app.stats,
            Err(turned) => &turned.stats,
        };
        let mut account = account.unwrap_or_else(|place| self.account(first, stats, place));
        let inside = arrived.and_then(|(arrived, identity)| {
            if only.is_none() {
                let app = arrived.target.app;
                self.is_in_time(app)?;
                self.admit(&mut account, app, &identity)?;
            }
            Ok((arrived, identity))
        });
        Some((account, inside))
    }

    /// Of a connection to one of the apps that share a place, of which `first`
    /// is one.
    fn account(&self, first: &AppEntry, stats: &Arc<AppStats>, place: Place) -> Account<'s> {
        let mut known = Details::new(stats.name().clone(), self.table.revision, self.peer);
        if !first.app.access.is_open() {
            known.firewall = Firewall::Unasked;
        }
        if !Span::current().is_disabled() {
            known.trace_id = current_trace_id().map(Into::into);
        }
        Account::open(self.service, stats, place, self.destination, known)
    }

    fn admit(
        &self,
        account: &mut Account<'_>,
        app: &AppEntry,
        identity: &Option<Identity>,
    ) -> Result<(), Turned> {
        let client = identity.as_ref().map_or(self.peer, Identity::client);
        // By the rules of now: the client may have let us wait through a change.
        let now = self.service.table.load();
        let newer = (now.revision != self.table.revision).then(|| now.declared(app));
        let admitted = account.admit(newer.flatten().unwrap_or(&app.app), client);
        admitted.map_err(|refusal| turned(app, Status::Denied, refusal.to_string()))
    }

    /// Before its name was known, no order to close the app's connections could
    /// find the connection.
    fn is_in_time(&self, app: &AppEntry) -> Result<(), Turned> {
        let ordered = self.service.table.load();
        let late = ordered.revision != self.table.revision
            && ordered.to_close().contains_key(&AppKey::of(&app.stats));
        if late {
            let why = Closing::Disabled.as_str().to_owned();
            return Err(turned(app, Status::Closed, why));
        }
        Ok(())
    }
}

/// Turned away by an app, which has not told the client.
fn turned(app: &AppEntry, status: Status, reason: String) -> Turned {
    Turned {
        stats: Arc::clone(&app.stats),
        status,
        reason,
        told: false,
    }
}

/// Who the connection is from, where somebody else has to say so. Apps that
/// share a place have the same trusted senders, so `first` stands for all.
async fn receive(
    service: &Service,
    first: &AppEntry,
    client: &TcpStream,
    edge: SocketAddr,
) -> Result<Option<Identity>, Turned> {
    let Some(trusted) = &first.trusted_senders else {
        return Ok(None);
    };
    // Asked for here, so that other connections do not carry it for hours.
    let peer = client.peer_addr().map_err(|error| {
        let status = Status::of_client_error(error.kind());
        turned(first, status, error.to_string())
    })?;
    // Boxed: apps of other kinds do not carry its memory.
    let received = Box::pin(identity::receive(client, peer, edge, trusted)).await;
    match received {
        Ok(identity) => {
            let claimed = field::display(identity.client());
            Span::current().record("claimed_client", claimed);
            Ok(Some(identity))
        }
        Err(refused) => {
            let count = &service.stats.headers_refused;
            count.with_label_values(&[refused.label()]).inc();
            Err(turned(first, refused.status(), refused.to_string()))
        }
    }
}
