//! Events and connections as messages.

use std::{net::SocketAddr, time::Duration};

use anyport_model::outcome::Status;
use anyport_proto::{convert::write_timestamp, v1};

use super::{
    connection::{ClientTls, Connection, Firewall, OriginTls},
    log::{Event, EventKind},
};

/// Writes what one edge tells.
#[derive(Clone)]
pub struct Writer {
    /// Of the edge.
    pub name: String,
    pub region: String,
}

/// What is told where there is no TLS.
const NO_CLIENT_TLS: ClientTls = ClientTls {
    server_name: None,
    protocol: "none",
    cipher: "",
    status: "UNKNOWN",
};
const NO_ORIGIN_TLS: OriginTls = OriginTls {
    mode: "off",
    protocol: "none",
    cipher: "",
    status: "UNKNOWN",
};

impl Writer {
    pub fn event(&self, event: &Event) -> v1::Event {
        let mut connection = self.connection(&event.connection);
        let mut reason = String::new();
        if event.kind == EventKind::Connect {
            // Read later, it would tell what came after it.
            (connection.client_bytes, connection.origin_bytes) = (0, 0);
        } else {
            reason = event.connection.details().reason.to_string();
        }
        v1::Event {
            kind: kind(event.kind).into(),
            timestamp: Some(write_timestamp(event.at)),
            status: event.status.map_or(0, |status| status.code().into()),
            reason,
            connection: Some(connection),
        }
    }

    pub fn connection(&self, connection: &Connection) -> v1::Connection {
        let details = connection.details();
        let (client_bytes, origin_bytes) = connection.bytes();
        let client_tls = details.client_tls.as_deref().unwrap_or(&NO_CLIENT_TLS);
        let origin_tls = details.origin_tls.as_deref().unwrap_or(&NO_ORIGIN_TLS);
        let (origin, address) = match &details.origin {
            Some((name, address)) => (name.to_string(), Some(address)),
            None => (String::new(), None),
        };
        let pool = details.pool.as_ref().map(|pool| pool.label().to_owned());
        v1::Connection {
            id: connection.id,
            application: details.app.to_string(),
            edge: self.name.clone(),
            region: self.region.clone(),
            edge_ip: ip(&connection.edge),
            edge_port: connection.edge.port().into(),
            config_revision: details.config_revision.0,
            trace_id: details.trace_id.map(String::from).unwrap_or_default(),
            accept_timestamp: Some(write_timestamp(connection.accepted_at)),
            connect_timestamp: details.connected_at.map(write_timestamp),
            client_ip: ip(&details.client),
            client_port: details.client.port().into(),
            client_proto: connection.transport.to_string(),
            client_bytes,
            client_tcp_rtt: nanos(details.client_rtt),
            ip_firewall: details.firewall != Firewall::Off,
            client_matched_ip_firewall: details.firewall.as_str().to_owned(),
            client_tls_cipher: client_tls.cipher.to_owned(),
            client_tls_client_hello_server_name: client_tls
                .server_name
                .as_deref()
                .unwrap_or_default()
                .to_owned(),
            client_tls_protocol: client_tls.protocol.to_owned(),
            client_tls_status: client_tls.status.to_owned(),
            pool: pool.unwrap_or_default(),
            origin,
            origin_ip: address.map(ip).unwrap_or_default(),
            origin_port: address.map_or(0, |address| address.port().into()),
            origin_proto: address.map_or_else(String::new, |_| connection.transport.to_string()),
            origin_bytes,
            origin_tcp_rtt: nanos(details.origin_rtt),
            proxy_protocol: details.proxy_protocol.to_owned(),
            origin_tls_mode: origin_tls.mode.to_owned(),
            origin_tls_protocol: origin_tls.protocol.to_owned(),
            origin_tls_cipher: origin_tls.cipher.to_owned(),
            origin_tls_status: origin_tls.status.to_owned(),
        }
    }
}

impl EventKind {
    /// What kind of end one is that came before both legs were up.
    pub fn of_refusal(status: Status) -> Self {
        match status {
            Status::Denied => EventKind::ClientFiltered,
            Status::InvalidSni | Status::TlsHandshake | Status::TlsConfiguration => {
                EventKind::TlsError
            }
            Status::Unresolvable | Status::ResolveFailed => EventKind::ResolveOrigin,
            Status::ClientTls
            | Status::ClientRefused
            | Status::ClientUnreachable
            | Status::ClientTimedOut
            | Status::ClientBrokenPipe
            | Status::ClientReset
            | Status::Closed => EventKind::Disconnect,
            _ => EventKind::OriginError,
        }
    }
}

fn kind(kind: EventKind) -> v1::EventKind {
    match kind {
        EventKind::Connect => v1::EventKind::Connect,
        EventKind::Disconnect => v1::EventKind::Disconnect,
        EventKind::ClientFiltered => v1::EventKind::ClientFiltered,
        EventKind::TlsError => v1::EventKind::TlsError,
        EventKind::OriginError => v1::EventKind::OriginError,
        EventKind::ResolveOrigin => v1::EventKind::ResolveOrigin,
    }
}

fn ip(address: &SocketAddr) -> String {
    address.ip().to_canonical().to_string()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
