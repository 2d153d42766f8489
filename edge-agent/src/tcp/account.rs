//! What a connection is accounted for with: in the metrics, in the list of those
//! that are open, in the event log, and in its span.

use std::{
    net::SocketAddr,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyport_model::{
    access::Verdict,
    outcome::Status,
    resource::{App, Transport},
};
use tracing::Span;

use super::{
    connection::Service,
    relay::{Moved, Observer},
};
use crate::{
    events::{Connection, Connections, Details, EventKind, EventLog, Firewall, Open, Reason, rtt},
    live::{Closing, Place},
    origin::Held,
    shield::{self, Inside, Refusal},
    stats::AppStats,
};

/// A connection that an app has taken, as it is accounted: closed once, also
/// where its task is dropped.
pub(super) struct Account<'a> {
    // Before `app`, which it names.
    place: Place,
    events: &'a EventLog,
    app: Arc<AppStats>,
    open: Open<&'a Connections>,
    start: Instant,
    /// None: it is dropped before its end.
    end: Option<(EventKind, Status)>,
    inside: Option<Inside>,
}

impl<'a> Account<'a> {
    pub(super) fn open(
        service: &'a Service,
        app: &Arc<AppStats>,
        place: Place,
        edge: SocketAddr,
        known: Details,
    ) -> Self {
        app.opened();
        place.belongs_to(app);
        Self {
            place,
            events: &service.events,
            app: Arc::clone(app),
            open: Open::new(&service.connections, Transport::Tcp, edge, known),
            start: Instant::now(),
            end: None,
            inside: None,
        }
    }

    /// What is known of the connection.
    pub(super) fn connection(&self) -> &Connection {
        &self.open
    }

    /// Asks the access rules and limits of its app about the client.
    pub(super) fn admit(&mut self, app: &App, client: SocketAddr) -> Result<(), Refusal> {
        let verdict = self.ask(app, client);
        let admitted = shield::admit(verdict, &app.limits, &self.app, client.ip());
        self.inside = Some(admitted?);
        Ok(())
    }

    /// Turns away a client that the access rules of its app are against.
    pub(super) fn deny(&self, app: &App, client: SocketAddr) -> Refusal {
        let refusal = Refusal::Access(self.ask(app, client));
        self.app.refused(refusal.cause());
        refusal
    }

    fn ask(&self, app: &App, client: SocketAddr) -> Verdict {
        let verdict = app.access.decide(client.ip());
        self.open.learn(|details| {
            details.client = client;
            details.firewall = Firewall::of(&app.access, verdict);
        });
        verdict
    }

    /// Both legs are up.
    pub(super) fn connected(&self, client: BorrowedFd<'_>, origin: BorrowedFd<'_>) {
        let rtts = self.rtts(client, origin);
        self.open.learn(|details| {
            details.connected_at = Some(SystemTime::now());
            rtts.note(details);
        });
        let connection = self.open.shared();
        self.events.record(EventKind::Connect, None, connection);
    }

    fn rtts(&self, client: BorrowedFd<'_>, origin: BorrowedFd<'_>) -> Rtts {
        if self.events.is_followed() {
            Rtts(rtt(client), rtt(origin))
        } else {
            Rtts(None, None)
        }
    }

    /// Whether the event log is told that it was turned away.
    fn is_news(&self) -> bool {
        let client = self.open.learn(|details| details.client.ip());
        let (app, now) = (self.app.name(), Instant::now());
        self.events.is_news(app, client.into(), now)
    }

    pub(super) fn close(mut self, kind: EventKind, status: Status, reason: Reason) {
        if !reason.is_none() {
            self.open.learn(|details| details.reason = reason);
        }
        self.end = Some((kind, status));
    }
}

/// Both accounts of a connection that is relayed: its own and its origin's.
pub(super) struct Relayed<'a> {
    pub(super) account: Account<'a>,
    pub(super) held: Held,
}

impl Observer for Relayed<'_> {
    fn stands_at(&mut self, total: Moved) {
        let open = &self.account.open;
        open.moved(total.from_client, total.from_origin);
    }

    fn moved(&mut self, moved: Moved) {
        let Moved {
            from_client,
            from_origin,
        } = moved;
        self.held.moved(from_client, from_origin);
        self.account.app.moved(from_client, from_origin);
    }

    fn ends(&mut self, client: BorrowedFd<'_>, origin: BorrowedFd<'_>) {
        let rtts = self.account.rtts(client, origin);
        self.account.open.learn(|details| rtts.note(details));
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        let (kind, status) = self.end.unwrap_or_else(|| {
            let (status, why) = if std::thread::panicking() {
                (Status::Internal, "the edge agent's own fault: see its log")
            } else {
                let why = self.place.closing().map_or("", Closing::as_str);
                (Status::Closed, why)
            };
            record(status, why);
            self.open
                .learn(|details| details.reason = Reason::Word(why));
            (EventKind::Disconnect, status)
        });
        self.app.closed(status, self.start.elapsed());
        if kind != EventKind::ClientFiltered || self.is_news() {
            self.events.record(kind, Some(status), self.open.shared());
        }
    }
}

/// Round trip times to the client and to the origin, where they were measured.
struct Rtts(Option<Duration>, Option<Duration>);

impl Rtts {
    fn note(self, details: &mut Details) {
        let Rtts(client, origin) = self;
        details.client_rtt = client.unwrap_or(details.client_rtt);
        details.origin_rtt = origin.unwrap_or(details.origin_rtt);
    }
}

/// Notes in the span how the connection ended.
pub(super) fn record(status: Status, reason: &str) {
    let span = Span::current();
    span.record("status", status.code());
    if !reason.is_empty() {
        span.record("reason", reason);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{descriptors::Budget, events::Connections, stats::Stats, table::TableWriter};
    use anyport_model::names::Revision;
    use prometheus::{IntCounter, Registry};

    fn service() -> Arc<Service> {
        let stats = Arc::new(Stats::new(&Registry::new()).unwrap());
        let lost = IntCounter::new("lost", "lost").unwrap();
        Arc::new(Service {
            table: TableWriter::new(Arc::clone(&stats)).reader(),
            stats,
            connections: Arc::new(Connections::default()),
            events: Arc::new(EventLog::new(lost)),
            descriptors: Arc::new(Budget::of_process(1)),
            drained: Default::default(),
        })
    }

    /// Of a connection from `client` to the app of this name.
    fn account<'a>(service: &'a Service, app: &str, client: &str) -> Account<'a> {
        let name: anyport_model::names::AppName = app.parse().unwrap();
        let edge = "198.51.100.1:80".parse().unwrap();
        let known = Details::new(name.clone(), Revision(1), client.parse().unwrap());
        let app = service.stats.app(&name);
        Account::open(service, &app, Place::take(), edge, known)
    }

    #[tokio::test]
    async fn a_panic_is_told_as_our_own_fault() {
        let service = service();
        let serving = Arc::clone(&service);
        let served = tokio::spawn(async move {
            let _account = account(&serving, "app", "203.0.113.1:1000");
            tokio::task::yield_now().await;
            panic!("as planned");
        });
        assert!(served.await.unwrap_err().is_panic());
        let [event] = &service.events.recent()[..] else {
            panic!("one event");
        };
        assert_eq!(event.status, Some(Status::Internal));
    }

    #[test]
    fn who_is_turned_away_again_is_not_told_of_again() {
        let service = service();
        let turn_away = |app: &str, client: &str| {
            let account = account(&service, app, client);
            account.close(EventKind::ClientFiltered, Status::Denied, Reason::None);
        };
        for (app, client) in [
            ("a", "203.0.113.1:1000"),
            ("a", "203.0.113.1:1001"),
            ("a", "203.0.113.2:1000"),
            ("b", "203.0.113.1:1000"),
            ("a", "[2001:db8::1]:1000"),
            ("a", "[2001:db8::2]:1000"),
        ] {
            turn_away(app, client);
        }
        let told = service.events.recent();
        let told: Vec<_> = told
            .iter()
            .map(|event| event.connection.details())
            .collect();
        let told: Vec<_> = told
            .iter()
            .map(|details| (details.app.as_str(), details.client.to_string()))
            .collect();
        let expected = [
            ("a", "203.0.113.1:1000"),
            ("a", "203.0.113.2:1000"),
            ("b", "203.0.113.1:1000"),
            ("a", "[2001:db8::1]:1000"),
        ];
        assert_eq!(told, expected.map(|(app, client)| (app, client.to_owned())));
        // Other ends are told of however often they come.
        for _ in 0..2 {
            let account = account(&service, "a", "203.0.113.1:1000");
            account.close(EventKind::Disconnect, Status::Closed, Reason::None);
        }
        assert_eq!(service.events.recent().len(), expected.len() + 2);
    }
}
