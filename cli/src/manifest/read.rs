//! A manifest's text to the wire messages it declares.

use std::sync::Arc;

use anyport_proto::v1::{self, resource::Kind};

use super::{
    fields::{Faults, Fields, is_at},
    node::{Node, Value},
    place::{ManifestFault, Place},
};

/// Largest file in bytes: what the config service takes in one message.
const FILE_MAX: usize = anyport_proto::sync::UPDATE_MAX;

/// What one or several files declare, as far as it could be read, and every
/// fault that was found on the way.
#[derive(Debug, Default)]
pub struct Manifest {
    declared: Vec<Declared>,
    faults: Vec<ManifestFault>,
    spoiled: Vec<(Arc<str>, String)>,
}

/// One entry of a manifest.
#[derive(Debug)]
pub struct Declared {
    pub resource: v1::Resource,
    /// Of the entry: `apps[2]`.
    pub place: Place,
    node: Node,
}

impl Manifest {
    /// Reads one file. `name` is what faults call it.
    pub fn read(name: &str, text: &str) -> Self {
        let file: Arc<str> = name.into();
        let mut faults = Faults::new(Arc::clone(&file));
        let mut declared = Vec::new();
        let whole = if text.len() > FILE_MAX {
            let len = text.len();
            let problem = format!("is {len} bytes long; right is at most {FILE_MAX}");
            faults.add(String::new(), 0, problem);
            None
        } else {
            Node::parse(text)
                .map_err(|error| faults.add(String::new(), error.line, error.problem))
                .ok()
        };
        if let Some(node) = whole.filter(|node| node.value != Value::Null) {
            faults.mapping(&node, String::new(), "a manifest", |fields| {
                declare_all(fields, &file, &mut declared);
            });
        }
        let (found, spoiled) = faults.into_parts();
        Self {
            declared,
            faults: found,
            spoiled: spoiled
                .into_iter()
                .map(|path| (Arc::clone(&file), path))
                .collect(),
        }
    }

    /// Adds what another file declares.
    pub fn append(&mut self, mut other: Manifest) {
        self.declared.append(&mut other.declared);
        self.faults.append(&mut other.faults);
        self.spoiled.append(&mut other.spoiled);
    }

    /// What is declared; an entry with faults holds what could be read of it.
    pub fn declared(&self) -> &[Declared] {
        &self.declared
    }

    pub fn resources(&self) -> Vec<v1::Resource> {
        let resources = self.declared.iter().map(|entry| entry.resource.clone());
        resources.collect()
    }

    pub fn faults(&self) -> &[ManifestFault] {
        &self.faults
    }

    /// Where in the files the field is that the config service names
    /// `resources[7].app.edge_ips[0]`. `None` for a path of another form.
    pub fn place_of(&self, path: &str) -> Option<Place> {
        let (index, rest) = path.strip_prefix("resources[")?.split_once(']')?;
        let entry = self.declared.get(index.parse::<usize>().ok()?)?;
        let (_kind, inner) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_once('.').unwrap_or((rest, "")),
            None => ("", ""),
        };
        let mut place = entry.place.clone();
        let from_file = format!("{inner}_file");
        let inner = if entry.node.has(&from_file) {
            &from_file
        } else {
            inner
        };
        if !inner.is_empty() {
            place.line = line_of(&entry.node, inner);
            place.path = format!("{}.{inner}", place.path);
        }
        Some(place)
    }

    /// Whether a fault at `place` only follows from one that was found here.
    pub fn is_spoiled(&self, place: &Place) -> bool {
        self.spoiled
            .iter()
            .any(|(file, path)| *file == place.file && is_at(&place.path, path))
    }
}

/// The line of `origins[1].weight`, or of the innermost part of it that is there.
fn line_of(entry: &Node, path: &str) -> u64 {
    let mut node = entry;
    for step in path
        .split(['.', '['])
        .map(|step| step.trim_end_matches(']'))
    {
        let inner = match &node.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| key.name == step),
            Value::List(items) => {
                let item = step.parse().ok().and_then(|i: usize| items.get(i));
                match item {
                    Some(item) => {
                        node = item;
                        continue;
                    }
                    None => break,
                }
            }
            _ => break,
        };
        match inner {
            Some((_, value)) => node = value,
            None => break,
        }
    }
    node.line
}

fn declare_all(fields: &mut Fields<'_, '_>, file: &Arc<str>, to: &mut Vec<Declared>) {
    let mut declare = |name, noun, read: fn(&mut Fields<'_, '_>) -> Kind| {
        for (path, node) in fields.items(name) {
            let Some(kind) = fields.item(node, path.clone(), noun, read) else {
                continue;
            };
            to.push(Declared {
                resource: v1::Resource { kind: Some(kind) },
                place: Place {
                    file: Arc::clone(file),
                    line: node.line,
                    path,
                },
                node: node.clone(),
            });
        }
    };
    declare("prefixes", "a prefix", |f| Kind::Prefix(prefix(f)));
    declare("monitors", "a monitor", |f| Kind::Monitor(monitor(f)));
    declare("pools", "a pool", |f| Kind::Pool(pool(f)));
    declare("certificates", "a certificate", |f| {
        Kind::Certificate(certificate(f))
    });
    declare("apps", "an app", |f| Kind::App(app(f)));
}

fn prefix(fields: &mut Fields<'_, '_>) -> v1::Prefix {
    v1::Prefix {
        cidr: fields.text("cidr"),
    }
}

fn monitor(fields: &mut Fields<'_, '_>) -> v1::Monitor {
    v1::Monitor {
        name: fields.text("name"),
        r#type: fields.choice::<v1::MonitorType>("type"),
        interval: fields.duration("interval"),
        timeout: fields.duration("timeout"),
        retries: fields.count("retries"),
        consecutive_up: fields.count("consecutive_up"),
        consecutive_down: fields.count("consecutive_down"),
        port: fields.count("port"),
        send: fields.bytes("send"),
        expect: fields.bytes("expect"),
        path: fields.text("path"),
        expected_codes: fields.text_or_number("expected_codes"),
        expected_body: fields.text("expected_body"),
        service: fields.text("service"),
    }
}

fn pool(fields: &mut Fields<'_, '_>) -> v1::Pool {
    v1::Pool {
        name: fields.text("name"),
        monitor: fields.text("monitor"),
        policy: fields.choice::<v1::Policy>("policy"),
        minimum_origins: fields.count("minimum_origins"),
        fallback_pool: fields.text("fallback_pool"),
        origins: fields.mappings("origins", "an origin", |origin| v1::Origin {
            name: origin.text("name"),
            address: origin.text("address"),
            weight: origin.number("weight"),
            enabled: origin.flag("enabled"),
        }),
    }
}

fn certificate(fields: &mut Fields<'_, '_>) -> v1::Certificate {
    v1::Certificate {
        name: fields.text("name"),
        cert: fields.text_or_file("cert", "cert_file"),
        key: fields.text_or_file("key", "key_file"),
    }
}

fn app(fields: &mut Fields<'_, '_>) -> v1::App {
    let app = v1::App {
        name: fields.text("name"),
        protocol: fields.text("protocol"),
        edge_ips: fields.texts("edge_ips"),
        origin_pool: fields.text("origin_pool"),
        origin_direct: fields.texts("origin_direct"),
        origin_dns: fields.mapping("origin_dns", "origin_dns", |dns| v1::OriginDns {
            name: dns.text("name"),
            r#type: dns.choice::<v1::OriginDnsType>("type"),
            ttl: dns.duration("ttl"),
        }),
        origin_port: fields.text_or_number("origin_port"),
        tls: fields.choice::<v1::TlsMode>("tls"),
        certificate: fields.text("certificate"),
        sni: fields.texts("sni"),
        origin_ca: fields.text_or_file("origin_ca", "origin_ca_file"),
        proxy_protocol: fields.choice::<v1::ProxyProtocol>("proxy_protocol"),
        client_ip: fields.choice::<v1::ClientIp>("client_ip"),
        accept_proxy_protocol: fields.texts("accept_proxy_protocol"),
        access: fields.mapping("access", "access", |access| v1::Access {
            default: access.choice::<v1::AccessAction>("default"),
            rules: access.mappings("rules", "an access rule", |rule| v1::AccessRule {
                action: rule.choice::<v1::AccessAction>("action"),
                source: rule.text("source"),
            }),
        }),
        limits: fields.mapping("limits", "limits", |limits| v1::Limits {
            connections: limits.count("connections"),
            connections_per_source: limits.count("connections_per_source"),
            new_connections_per_source: limits.count("new_connections_per_source"),
            bytes_per_second_per_connection: limits.count("bytes_per_second_per_connection"),
        }),
        timeouts: fields.mapping("timeouts", "timeouts", |timeouts| v1::Timeouts {
            connect: timeouts.duration("connect"),
            tls_handshake: timeouts.duration("tls_handshake"),
            idle: timeouts.duration("idle"),
            udp_idle: timeouts.duration("udp_idle"),
            drain: timeouts.duration("drain"),
        }),
        disable: fields.mapping("disable", "disable", |disable| v1::Disable {
            close: disable.choice::<v1::disable::Close>("close"),
        }),
    };
    fields.spoil_together(&["tls", "certificate", "sni", "origin_ca"]);
    fields.spoil_together(&["origin_pool", "origin_direct", "origin_dns", "origin_port"]);
    app
}
