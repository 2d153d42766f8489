//! What a flow is accounted for with: in the metrics, in the list of what is
//! open, in the event log, and in its span.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyport_model::{access::Verdict, names::Revision, outcome::Status, resource::Transport};
use anyport_node::telemetry::{TRACE_ONLY, current_trace_id};
use tracing::{Span, field};

use super::sessions::Key;
use crate::{
    descriptors::Pair,
    events::{Connections, Details, EventKind, Firewall, Open, Reason},
    live::AppKey,
    shield::Inside,
    stats::{AppStats, PoolId, Stats},
    table::Target,
    tcp::Service,
};

/// A flow that an app has taken, as it is accounted: closed once, however it
/// ends.
pub(super) struct Account {
    app: Arc<AppStats>,
    open: Open<Arc<Connections>>,
    since: Instant,
    from_client: u64,
    from_origin: u64,
    end: (EventKind, Status),
    span: Span,
    /// None: it was not let in.
    _inside: Option<Inside>,
    /// With the descriptors of the flow's sockets.
    service: Pair<Service>,
}

impl Account {
    pub(super) fn open(
        target: Target<'_>,
        config_revision: Revision,
        key: &Key,
        (verdict, inside): (Verdict, Option<Inside>),
        service: Pair<Service>,
    ) -> Self {
        let app = Arc::clone(&target.app.stats);
        app.opened();
        app.session_opened();
        let span = span(target, config_revision, key);
        let mut known = Details::new(app.name().clone(), config_revision, key.client);
        known.firewall = Firewall::of(&target.app.app.access, verdict);
        known.pool = Some(target.pool.id.clone());
        if !span.is_disabled() {
            known.trace_id = span.in_scope(current_trace_id).map(Into::into);
        }
        let all = Arc::clone(&service.connections);
        Self {
            app,
            open: Open::new(all, Transport::Udp, key.edge, known),
            since: Instant::now(),
            from_client: 0,
            from_origin: 0,
            end: (EventKind::Disconnect, Status::Closed),
            span,
            _inside: inside,
            service,
        }
    }

    pub(super) fn app(&self) -> AppKey {
        AppKey::of(&self.app)
    }

    pub(super) fn stats(&self) -> &Stats {
        &self.service.stats
    }

    /// What is sent goes to origin `name` of `pool` from now on.
    pub(super) fn has_origin(&self, pool: &PoolId, name: &Arc<str>, address: SocketAddr) {
        self.span.record("origin", name.as_ref());
        let origin = Some((Arc::clone(name), address));
        self.open.learn(|details| {
            if details.pool.as_ref() != Some(pool) {
                self.span.record("pool", pool.label());
                details.pool = Some(pool.clone());
            }
            details.origin = origin;
        });
    }

    /// Both sockets are there.
    pub(super) fn connected(&self, proxy_protocol: &'static str) {
        self.open.learn(|details| {
            details.proxy_protocol = proxy_protocol;
            details.connected_at = Some(SystemTime::now());
        });
        let connection = self.open.shared();
        self.service
            .events
            .record(EventKind::Connect, None, connection);
    }

    pub(super) fn moved(&mut self, from_client: u64, from_origin: u64) {
        self.from_client += from_client;
        self.from_origin += from_origin;
        self.open.moved(self.from_client, self.from_origin);
        self.app.moved(from_client, from_origin);
    }

    /// It was not let in, or there is no origin to begin with.
    pub(super) fn refuse(mut self, status: Status, reason: String) {
        self.end = (EventKind::of_refusal(status), status);
        self.ends(Reason::Text(reason.into()));
    }

    pub(super) fn close(mut self, status: Status, reason: Reason) {
        self.end.1 = status;
        self.ends(reason);
    }

    fn ends(&self, reason: Reason) {
        if !reason.is_none() {
            self.span.record("reason", field::display(&reason));
            self.open.learn(|details| details.reason = reason);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let (kind, status) = self.end;
        self.span.record("client_bytes", self.from_client);
        self.span.record("origin_bytes", self.from_origin);
        self.span.record("status", status.code());
        self.app.session_closed();
        self.app.closed(status, self.since.elapsed());
        let connection = self.open.shared();
        self.service.events.record(kind, Some(status), connection);
    }
}

fn span(target: Target<'_>, config_revision: Revision, key: &Key) -> Span {
    tracing::debug_span!(
        target: TRACE_ONLY,
        "flow",
        otel.kind = "server",
        network.transport = "udp",
        app = target.app.app.name.as_str(),
        pool = target.pool.id.label(),
        origin = field::Empty,
        client.address = %key.client.ip(),
        client.port = key.client.port(),
        server.address = %key.edge.ip(),
        server.port = key.edge.port(),
        config_revision = config_revision.0,
        client_bytes = field::Empty,
        origin_bytes = field::Empty,
        status = field::Empty,
        reason = field::Empty,
    )
}
