//! From an accepted connection to the app that lets it in.

use std::{fmt, net::SocketAddr, sync::Arc};

use anyport_model::{outcome::Status, route::Candidates};
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
    shield::wait_for_name,
    stats::AppStats,
    table::{AppEntry, Snapshot, Target},
    tls::{self, Arrived, Turned},
};

/// Why a client that waited for too long is turned away.
const GONE: &str = "the app was deleted";

/// A connection on its way to an app.
pub(super) struct Arriving<'s, 't> {
    pub(super) service: &'s Service,
    pub(super) table: &'t Snapshot,
    pub(super) peer: SocketAddr,
    /// What the client dialled.
    pub(super) destination: SocketAddr,
}

/// The apps of which one takes a connection, and the first of them.
#[derive(Clone, Copy)]
struct First<'t> {
    app: &'t AppEntry,
    candidates: Candidates<'t>,
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
        Span::current().record("config_revision", self.table.revision.0);
        let (candidates, first, only) = self.table.apps_at(self.destination)?;
        let first = First {
            app: first,
            candidates,
        };
        Some(match only {
            Some(only) => {
                let mut account = self.account(first.app, &first.app.stats, place);
                let inside = self.into(only, first, &mut account, client).await;
                (account, inside)
            }
            None => self.enter_by_name(first, client, place).await,
        })
    }

    /// Into the one app that there is.
    async fn into(
        &self,
        only: Target<'t>,
        first: First<'t>,
        account: &mut Account<'_>,
        client: &TcpStream,
    ) -> Result<Entered<'t>, Turned> {
        let identity = self.receive(first.app, client).await?;
        // Of who is not let in, nothing more is waited for.
        self.admit(account, only.app, &identity)?;
        let arrived = self.arrive(Some(only), first, client).await?;
        Ok((arrived, identity))
    }

    /// Where the name in the ClientHello decides, the app is not known before.
    async fn enter_by_name(
        &self,
        first: First<'t>,
        client: &TcpStream,
        place: Place,
    ) -> (Account<'s>, Result<Entered<'t>, Turned>) {
        let received = self.receive(first.app, client).await;
        if let Ok(identity) = &received
            && let Some(app) = self.denied(first.candidates, identity)
        {
            let account = self.account(app, &app.stats, place);
            let refusal = account.deny(&app.app, self.client(identity));
            return (account, Err(denied(app, refusal)));
        }
        let arrived = match received {
            Ok(identity) => self.wait(first, identity, client).await,
            Err(turned) => Err(turned),
        };
        let stats = match &arrived {
            Ok((arrived, _)) => &arrived.target.app.stats,
            Err(turned) => &turned.stats,
        };
        let mut account = self.account(first.app, stats, place);
        let inside = arrived.and_then(|(arrived, identity)| {
            let app = arrived.target.app;
            self.is_in_time(app)?;
            self.admit(&mut account, app, &identity)?;
            Ok((arrived, identity))
        });
        (account, inside)
    }

    /// Waits for the name, among those of the client's source that do.
    async fn wait(
        &self,
        first: First<'t>,
        identity: Option<Identity>,
        client: &TcpStream,
    ) -> Result<Entered<'t>, Turned> {
        let most = first.candidates.waiting_per_source();
        let source = self.client(&identity).ip();
        let waiting = most.map(|most| wait_for_name(&first.app.stats, most, source));
        let _waiting = waiting
            .transpose()
            .map_err(|crowded| denied(first.app, crowded))?;
        let arrived = self.arrive(None, first, client).await?;
        Ok((arrived, identity))
    }

    async fn arrive(
        &self,
        only: Option<Target<'t>>,
        First { app, candidates }: First<'t>,
        client: &TcpStream,
    ) -> Result<Arrived<'t>, Turned> {
        tls::arrive(self.table, candidates, only, app, client).await
    }

    /// One of the apps, where each turns the client away.
    fn denied(
        &self,
        candidates: Candidates<'t>,
        identity: &Option<Identity>,
    ) -> Option<&'t AppEntry> {
        let denied = candidates.denied(self.client(identity).ip())?;
        self.table.target_of(denied).map(|target| target.app)
    }

    /// Who the connection is from, where somebody else has to say so. Apps that
    /// share a place have the same trusted senders, so `first` stands for all.
    async fn receive(
        &self,
        first: &AppEntry,
        client: &TcpStream,
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
        let received = Box::pin(identity::receive(client, peer, self.destination, trusted)).await;
        match received {
            Ok(identity) => {
                let claimed = field::display(identity.client());
                Span::current().record("claimed_client", claimed);
                Ok(Some(identity))
            }
            Err(refused) => {
                let count = &self.service.stats.headers_refused;
                count.with_label_values(&[refused.label()]).inc();
                Err(turned(first, refused.status(), refused.to_string()))
            }
        }
    }

    fn client(&self, identity: &Option<Identity>) -> SocketAddr {
        identity.as_ref().map_or(self.peer, Identity::client)
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
        let client = self.client(identity);
        // By the rules of now: the client may have let us wait through a change.
        let now = self.service.table.load();
        let declared = if now.revision == self.table.revision {
            Some(app.app.as_ref())
        } else {
            now.declared(app)
        };
        // Its counters may be forgotten by now, and whoever counts or closes what
        // is open would miss the connection.
        let gone = || turned(app, Status::Closed, GONE.to_owned());
        let admitted = account.admit(declared.ok_or_else(gone)?, client);
        admitted.map_err(|refusal| denied(app, refusal))
    }

    /// Before its name was known, no order to close the app's connections could
    /// find the connection.
    fn is_in_time(&self, app: &AppEntry) -> Result<(), Turned> {
        let ordered = self.service.table.load();
        let late = ordered.revision != self.table.revision
            && ordered.to_close().contains_key(&AppKey::of(&app.stats));
        if late || app.stats.is_closed_by_order() {
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

fn denied(app: &AppEntry, why: impl fmt::Display) -> Turned {
    turned(app, Status::Denied, why.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use anyport_model::{
        names::Revision,
        resource::{App, OriginChoice, Resource},
        tls::Tls,
    };
    use prometheus::{IntCounter, Registry};
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;
    use crate::{
        descriptors::Budget,
        events::{Connections, EventLog},
        stats::Stats,
        table::TableWriter,
    };

    const NAME: &str = "web.example.com";

    /// An app of that name.
    fn web() -> Resource {
        let origin = OriginChoice::Direct(vec![]);
        let nets = vec!["127.0.0.0/8".parse().unwrap()];
        let ports = "1-65535".parse().unwrap();
        Resource::App(Arc::new(App {
            tls: Tls::Off {
                sni: vec![NAME.parse().unwrap()],
            },
            ..App::new("web".parse().unwrap(), ports, nets, origin)
        }))
    }

    fn publish(table: &mut TableWriter, revision: u64, all: impl IntoIterator<Item = Resource>) {
        let all = all.into_iter().map(|one| (one.reference(), one));
        let prepared = table.prepare(Revision(revision), &all.collect());
        table.publish(prepared);
    }

    /// With that app, and what changes its table.
    pub(crate) fn service() -> (TableWriter, Service) {
        let stats = Arc::new(Stats::new(&Registry::new()).unwrap());
        let mut table = TableWriter::new(Arc::clone(&stats));
        publish(&mut table, 1, [web()]);
        let service = Service {
            table: table.reader(),
            stats,
            connections: Arc::new(Connections::default()),
            events: Arc::new(EventLog::new(IntCounter::new("lost", "lost").unwrap())),
            descriptors: Arc::new(Budget::of_process(1)),
            drained: Default::default(),
        };
        (table, service)
    }

    /// Why a client is turned away that was accepted by the table of `accepted`
    /// and says only now which app it wants.
    async fn turned_away(service: &Service, accepted: &Snapshot) -> Option<String> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let destination = listener.local_addr().unwrap();
        let client = TcpStream::connect(destination);
        let (client, accept) = tokio::join!(client, listener.accept());
        let (mut client, (stream, peer)) = (client.unwrap(), accept.unwrap());
        client.write_all(&tls::hello_of(NAME)).await.unwrap();
        let arriving = Arriving {
            service,
            table: accepted,
            peer,
            destination,
        };
        let (account, inside) = arriving.enter(&stream, Place::take()).await.unwrap();
        assert_eq!(account.connection().details().app.as_str(), "web");
        inside.err().map(|turned| turned.reason)
    }

    #[tokio::test]
    async fn who_names_an_app_that_was_deleted_meanwhile_is_turned_away() {
        let (mut table, service) = service();
        let accepted = service.table.load_full();
        assert_eq!(turned_away(&service, &accepted).await, None);
        publish(&mut table, 2, [web()]);
        assert_eq!(turned_away(&service, &accepted).await, None);
        publish(&mut table, 3, []);
        let why = turned_away(&service, &accepted).await;
        assert_eq!(why.as_deref(), Some(GONE));
    }

    #[tokio::test]
    async fn who_names_an_app_that_a_later_agent_has_closed_is_turned_away() {
        let (_table, service) = service();
        let accepted = service.table.load_full();
        let order = |closed| {
            let apps = accepted.app_stats();
            apps.for_each(|app| app.set_closed_by_order(closed));
        };
        order(true);
        let why = turned_away(&service, &accepted).await;
        assert_eq!(why.as_deref(), Some(Closing::Disabled.as_str()));
        order(false);
        assert_eq!(turned_away(&service, &accepted).await, None);
    }
}
