//! Connections and events as JSON has them: one flat object, with the names of
//! Cloudflare's Logpush dataset `spectrum_events` in snake_case.

use prost_types::Timestamp;
use serde::Serialize;

use crate::v1;

/// A line of the event log.
#[derive(Debug, Serialize)]
pub struct EventLine<'a> {
    event: &'static str,
    /// RFC 3339, as all times.
    timestamp: String,
    status: u32,
    reason: &'a str,
    connect_timestamp: String,
    disconnect_timestamp: String,
    #[serde(flatten)]
    connection: ConnectionFields<'a>,
}

/// A line of the list of open connections.
#[derive(Debug, Serialize)]
pub struct ConnectionLine<'a> {
    connect_timestamp: String,
    #[serde(flatten)]
    connection: ConnectionFields<'a>,
}

/// What both have. A text that is not known is empty, a number 0.
#[derive(Debug, Serialize)]
struct ConnectionFields<'a> {
    connection: u64,
    application: &'a str,
    edge: &'a str,
    region: &'a str,
    edge_ip: &'a str,
    edge_port: u32,
    config_revision: u64,
    trace_id: &'a str,
    accept_timestamp: String,
    client_ip: &'a str,
    client_port: u32,
    client_proto: &'a str,
    client_bytes: u64,
    client_tcp_rtt: u64,
    ip_firewall: bool,
    client_matched_ip_firewall: &'a str,
    client_tls_cipher: &'a str,
    client_tls_client_hello_server_name: &'a str,
    client_tls_protocol: &'a str,
    client_tls_status: &'a str,
    pool: &'a str,
    origin: &'a str,
    origin_ip: &'a str,
    origin_port: u32,
    origin_proto: &'a str,
    origin_bytes: u64,
    origin_tcp_rtt: u64,
    proxy_protocol: &'a str,
    origin_tls_mode: &'a str,
    origin_tls_protocol: &'a str,
    origin_tls_cipher: &'a str,
    origin_tls_status: &'a str,
}

impl<'a> EventLine<'a> {
    /// `None` for an event without a connection, or of a kind that this version
    /// does not know.
    pub fn new(event: &'a v1::Event) -> Option<Self> {
        let connection = event.connection.as_ref()?;
        let ended = event.kind() != v1::EventKind::Connect;
        Some(Self {
            event: event_word(event.kind())?,
            timestamp: time(event.timestamp),
            status: event.status,
            reason: &event.reason,
            connect_timestamp: time(connection.connect_timestamp),
            disconnect_timestamp: time(event.timestamp.filter(|_| ended)),
            connection: ConnectionFields::new(connection),
        })
    }
}

impl<'a> ConnectionLine<'a> {
    pub fn new(connection: &'a v1::Connection) -> Self {
        Self {
            connect_timestamp: time(connection.connect_timestamp),
            connection: ConnectionFields::new(connection),
        }
    }
}

/// Spectrum's word for a kind of event.
pub fn event_word(kind: v1::EventKind) -> Option<&'static str> {
    match kind {
        v1::EventKind::Unspecified => None,
        v1::EventKind::Connect => Some("connect"),
        v1::EventKind::Disconnect => Some("disconnect"),
        v1::EventKind::ClientFiltered => Some("clientFiltered"),
        v1::EventKind::TlsError => Some("tlsError"),
        v1::EventKind::OriginError => Some("originError"),
        v1::EventKind::ResolveOrigin => Some("resolveOrigin"),
    }
}

fn time(time: Option<Timestamp>) -> String {
    time.map(|time| time.to_string()).unwrap_or_default()
}

impl<'a> ConnectionFields<'a> {
    fn new(wire: &'a v1::Connection) -> Self {
        Self {
            connection: wire.id,
            application: &wire.application,
            edge: &wire.edge,
            region: &wire.region,
            edge_ip: &wire.edge_ip,
            edge_port: wire.edge_port,
            config_revision: wire.config_revision,
            trace_id: &wire.trace_id,
            accept_timestamp: time(wire.accept_timestamp),
            client_ip: &wire.client_ip,
            client_port: wire.client_port,
            client_proto: &wire.client_proto,
            client_bytes: wire.client_bytes,
            client_tcp_rtt: wire.client_tcp_rtt,
            ip_firewall: wire.ip_firewall,
            client_matched_ip_firewall: &wire.client_matched_ip_firewall,
            client_tls_cipher: &wire.client_tls_cipher,
            client_tls_client_hello_server_name: &wire.client_tls_client_hello_server_name,
            client_tls_protocol: &wire.client_tls_protocol,
            client_tls_status: &wire.client_tls_status,
            pool: &wire.pool,
            origin: &wire.origin,
            origin_ip: &wire.origin_ip,
            origin_port: wire.origin_port,
            origin_proto: &wire.origin_proto,
            origin_bytes: wire.origin_bytes,
            origin_tcp_rtt: wire.origin_tcp_rtt,
            proxy_protocol: &wire.proxy_protocol,
            origin_tls_mode: &wire.origin_tls_mode,
            origin_tls_protocol: &wire.origin_tls_protocol,
            origin_tls_cipher: &wire.origin_tls_cipher,
            origin_tls_status: &wire.origin_tls_status,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_line_is_one_flat_object_with_the_names_of_spectrum() {
        let event = v1::Event {
            kind: v1::EventKind::Disconnect.into(),
            timestamp: Some(Timestamp::default()),
            status: 499,
            connection: Some(v1::Connection {
                application: "ssh".to_owned(),
                client_bytes: 7,
                ..v1::Connection::default()
            }),
            ..v1::Event::default()
        };
        let line = serde_json::to_value(EventLine::new(&event).unwrap()).unwrap();
        assert!(line.as_object().unwrap().values().all(|v| !v.is_object()));
        for (name, value) in [
            ("event", "\"disconnect\""),
            ("status", "499"),
            ("application", "\"ssh\""),
            ("client_bytes", "7"),
            ("connect_timestamp", "\"\""),
            ("disconnect_timestamp", "\"1970-01-01T00:00:00Z\""),
        ] {
            assert_eq!(line[name].to_string(), value, "{name}");
        }
        let unknown = v1::Event { kind: 99, ..event };
        assert!(EventLine::new(&unknown).is_none());
    }
}
