//! Wire messages to manifests: what `get -o yaml` and `-o json` print, which
//! `apply` reads again.
//!
//! Fields stand in the order of the proto; texts, lists and mappings that are
//! not set are left out. A value that this version cannot name (an enum value of
//! a newer server) is written as `unknown_7`, so that applying it again is
//! refused rather than wrong.

use anyport_proto::{
    convert,
    v1::{self, resource::Kind},
};
use serde::Serialize;

use super::{bytes, words::word, write_duration};

/// A whole manifest.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Document {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    prefixes: Vec<Prefix>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    monitors: Vec<Monitor>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pools: Vec<Pool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    certificates: Vec<Certificate>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    apps: Vec<App>,
}

/// One entry of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, on its way to the output"
)]
pub enum Entry {
    Prefix(Prefix),
    Monitor(Monitor),
    Pool(Pool),
    Certificate(Certificate),
    App(App),
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prefix {
    cidr: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Monitor {
    name: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
    retries: u32,
    consecutive_up: u32,
    consecutive_down: u32,
    port: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    send: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expect: Option<Bytes>,
    #[serde(skip_serializing_if = "String::is_empty")]
    path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    expected_codes: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    expected_body: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    service: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
enum Bytes {
    Text(String),
    Hex { hex: String },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pool {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    monitor: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    minimum_origins: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    fallback_pool: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    origins: Vec<Origin>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Origin {
    name: String,
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enabled: Option<bool>,
}

/// As the config service shows it: without its key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Certificate {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    cert: String,
    key: &'static str,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct App {
    name: String,
    protocol: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    edge_ips: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    origin_pool: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    origin_direct: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin_dns: Option<OriginDns>,
    #[serde(skip_serializing_if = "String::is_empty")]
    origin_port: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    certificate: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sni: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    origin_ca: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_ip: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    accept_proxy_protocol: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access: Option<Access>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeouts: Option<Timeouts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disable: Option<Disable>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct OriginDns {
    name: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Access {
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<AccessRule>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct AccessRule {
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<String>,
    source: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Limits {
    connections: u32,
    connections_per_source: u32,
    new_connections_per_source: u32,
    bytes_per_second_per_connection: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Timeouts {
    #[serde(skip_serializing_if = "Option::is_none")]
    connect: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_handshake: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    udp_idle: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drain: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Disable {
    #[serde(skip_serializing_if = "Option::is_none")]
    close: Option<String>,
}

impl Document {
    /// A resource of a kind that this version does not know is left out.
    pub fn new<'a>(resources: impl IntoIterator<Item = &'a v1::Resource>) -> Self {
        let mut document = Self::default();
        for entry in resources.into_iter().filter_map(Entry::new) {
            match entry {
                Entry::Prefix(prefix) => document.prefixes.push(prefix),
                Entry::Monitor(monitor) => document.monitors.push(monitor),
                Entry::Pool(pool) => document.pools.push(pool),
                Entry::Certificate(certificate) => document.certificates.push(certificate),
                Entry::App(app) => document.apps.push(app),
            }
        }
        document
    }
}

impl Entry {
    /// `None` for a resource of a kind that this version does not know.
    pub fn new(resource: &v1::Resource) -> Option<Self> {
        Some(match resource.kind.as_ref()? {
            Kind::Prefix(prefix) => Entry::Prefix(Prefix {
                cidr: prefix.cidr.clone(),
            }),
            Kind::Monitor(monitor) => Entry::Monitor(monitor.into()),
            Kind::Pool(pool) => Entry::Pool(pool.into()),
            Kind::Certificate(certificate) => Entry::Certificate(Certificate {
                name: certificate.name.clone(),
                cert: certificate.cert.clone(),
                key: convert::REDACTED,
            }),
            Kind::App(app) => Entry::App(app.into()),
        })
    }
}

impl From<&v1::Monitor> for Monitor {
    fn from(wire: &v1::Monitor) -> Self {
        Self {
            name: wire.name.clone(),
            kind: word::<v1::MonitorType>(wire.r#type),
            interval: wire.interval.map(write_wire_duration),
            timeout: wire.timeout.map(write_wire_duration),
            retries: wire.retries,
            consecutive_up: wire.consecutive_up,
            consecutive_down: wire.consecutive_down,
            port: wire.port,
            send: Bytes::new(&wire.send),
            expect: Bytes::new(&wire.expect),
            path: wire.path.clone(),
            expected_codes: wire.expected_codes.clone(),
            expected_body: wire.expected_body.clone(),
            service: wire.service.clone(),
        }
    }
}

impl Bytes {
    fn new(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        // YAML has no way to write some control characters even in quotes.
        let plain = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
        match std::str::from_utf8(bytes) {
            Ok(text) if text.chars().all(plain) => Some(Self::Text(text.to_owned())),
            _ => Some(Self::Hex {
                hex: bytes::write_hex(bytes),
            }),
        }
    }
}

impl From<&v1::Pool> for Pool {
    fn from(wire: &v1::Pool) -> Self {
        let origin = |origin: &v1::Origin| Origin {
            name: origin.name.clone(),
            address: origin.address.clone(),
            weight: origin.weight,
            enabled: origin.enabled,
        };
        Self {
            name: wire.name.clone(),
            monitor: wire.monitor.clone(),
            policy: word::<v1::Policy>(wire.policy),
            minimum_origins: wire.minimum_origins,
            fallback_pool: wire.fallback_pool.clone(),
            origins: wire.origins.iter().map(origin).collect(),
        }
    }
}

impl From<&v1::App> for App {
    fn from(wire: &v1::App) -> Self {
        Self {
            name: wire.name.clone(),
            protocol: wire.protocol.clone(),
            edge_ips: wire.edge_ips.clone(),
            origin_pool: wire.origin_pool.clone(),
            origin_direct: wire.origin_direct.clone(),
            origin_dns: wire.origin_dns.as_ref().map(|dns| OriginDns {
                name: dns.name.clone(),
                kind: word::<v1::OriginDnsType>(dns.r#type),
                ttl: dns.ttl.map(write_wire_duration),
            }),
            origin_port: wire.origin_port.clone(),
            tls: word::<v1::TlsMode>(wire.tls),
            certificate: wire.certificate.clone(),
            sni: wire.sni.clone(),
            origin_ca: wire.origin_ca.clone(),
            proxy_protocol: word::<v1::ProxyProtocol>(wire.proxy_protocol),
            client_ip: word::<v1::ClientIp>(wire.client_ip),
            accept_proxy_protocol: wire.accept_proxy_protocol.clone(),
            access: wire.access.as_ref().map(Access::from),
            limits: wire.limits.as_ref().map(|limits| Limits {
                connections: limits.connections,
                connections_per_source: limits.connections_per_source,
                new_connections_per_source: limits.new_connections_per_source,
                bytes_per_second_per_connection: limits.bytes_per_second_per_connection,
            }),
            timeouts: wire.timeouts.as_ref().map(|timeouts| Timeouts {
                connect: timeouts.connect.map(write_wire_duration),
                tls_handshake: timeouts.tls_handshake.map(write_wire_duration),
                idle: timeouts.idle.map(write_wire_duration),
                udp_idle: timeouts.udp_idle.map(write_wire_duration),
                drain: timeouts.drain.map(write_wire_duration),
            }),
            disable: wire.disable.map(|disable| Disable {
                close: word::<v1::disable::Close>(disable.close),
            }),
        }
    }
}

impl From<&v1::Access> for Access {
    fn from(wire: &v1::Access) -> Self {
        let rules = wire.rules.iter().map(|rule| AccessRule {
            action: word::<v1::AccessAction>(rule.action),
            source: rule.source.clone(),
        });
        Self {
            default: word::<v1::AccessAction>(wire.default),
            rules: rules.collect(),
        }
    }
}

/// A wire duration as users write it; one that is none, in words.
pub fn write_wire_duration(wire: prost_types::Duration) -> String {
    match convert::read_duration(wire) {
        Ok(duration) => write_duration(duration),
        Err(error) => error.to_string(),
    }
}
