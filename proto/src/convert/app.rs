use std::{
    collections::HashSet,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use anyport_model::{
    ports::{PortMap, PortRange},
    resource::{App, DirectOrigin, Disable, Kind, OriginChoice, Timeouts, Transport},
};
use ipnet::IpNet;

use super::{
    fields::{Faults, Unreadable},
    guards, identity, write_duration,
};
use crate::v1;

/// Of `edge_ips`, `origin_direct`, `accept_proxy_protocol` and `access.rules`.
const ENTRIES_MAX: usize = 1000;

pub(super) fn read(wire: v1::App) -> Result<App, Unreadable> {
    let mut faults = Faults::default();
    let name = faults.parse("name", &wire.name);
    let protocol = protocol(&mut faults, &wire.protocol);
    let edge_nets = edge_nets(&mut faults, &wire.edge_ips);
    let transport = protocol.map(|(transport, _)| transport);
    let identity = identity::read(&mut faults, &wire, transport);
    let origin = origin(&mut faults, &wire, protocol);
    let tls = super::tls::read(&mut faults, &wire, transport);
    let access = guards::read_access(&mut faults, wire.access);
    let limits = guards::read_limits(wire.limits);
    let timeouts = timeouts(&mut faults, wire.timeouts.unwrap_or_default());
    let disable = disable(&mut faults, wire.disable);
    let app = (|| {
        let (transport, ports) = protocol?;
        Some(App {
            name: name?,
            transport,
            ports,
            edge_nets: edge_nets?,
            origin: origin?,
            tls: tls?,
            identity: identity?,
            access: access?,
            limits,
            timeouts: timeouts?,
            disable: disable?,
        })
    })();
    let reference = super::reference::of_message(Kind::App, &wire.name);
    faults.finish(reference, app)
}

fn protocol(faults: &mut Faults, text: &str) -> Option<(Transport, PortRange)> {
    let parts = text.split_once('/');
    let parts = parts.and_then(|(transport, ports)| Some((transport.parse().ok()?, ports)));
    let Some((transport, ports)) = parts else {
        faults.add(
            "protocol",
            format_args!(
                "{text:?} is no protocol; right is tcp/22, tcp/3000-4000, udp/53 or udp/*"
            ),
        );
        return None;
    };
    Some((transport, faults.parse("protocol", ports)?))
}

fn edge_nets(faults: &mut Faults, texts: &[String]) -> Option<Vec<IpNet>> {
    if !count_is_right(faults, "edge_ips", texts.len()) {
        return None;
    }
    networks(faults, "edge_ips", texts)
}

/// Addresses and networks, none twice.
pub(super) fn networks(faults: &mut Faults, name: &str, texts: &[String]) -> Option<Vec<IpNet>> {
    let mut seen = HashSet::new();
    let mut nets = Some(Vec::with_capacity(texts.len()));
    for (index, text) in texts.iter().enumerate() {
        let field = format!("{name}[{index}]");
        match network(text) {
            Err(problem) => {
                faults.add(field, problem);
                nets = None;
            }
            Ok(net) if !seen.insert(net) => {
                faults.add(field, format_args!("{net} is listed twice"))
            }
            Ok(net) => nets.iter_mut().for_each(|nets| nets.push(net)),
        }
    }
    nets
}

pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let net = match (text.parse::<IpAddr>(), text.parse::<IpNet>()) {
        (Ok(ip), _) => IpNet::from(ip),
        (_, Ok(net)) => net,
        _ => {
            return Err(format!(
                "{text:?} is no address; right is 198.51.100.10, 198.51.100.0/24 or 2001:db8:51::10"
            ));
        }
    };
    if net == net.trunc() {
        Ok(net)
    } else {
        Err(format!(
            "{net} has host bits; the network is {}",
            net.trunc()
        ))
    }
}

fn count_is_right(faults: &mut Faults, field: &str, count: usize) -> bool {
    if count == 0 {
        faults.add(field, "is empty; at least one is needed");
    }
    count > 0 && are_few(faults, field, count)
}

pub(super) fn are_few(faults: &mut Faults, field: &str, count: usize) -> bool {
    if count > ENTRIES_MAX {
        faults.add(
            field,
            format_args!("has {count} entries; right is at most {ENTRIES_MAX}"),
        );
    }
    count <= ENTRIES_MAX
}

fn origin(
    faults: &mut Faults,
    wire: &v1::App,
    protocol: Option<(Transport, PortRange)>,
) -> Option<OriginChoice> {
    let edge = protocol.map(|(_, ports)| ports);
    let replaced: Option<Option<PortRange>> =
        faults.parse_optional("origin_port", &wire.origin_port);
    let (pool, texts) = (wire.origin_pool.as_str(), wire.origin_direct.as_slice());
    match (pool, texts, &wire.origin_dns) {
        ("", [], None) => {
            faults.add(
                "origin_pool",
                "is not set; an app has one of origin_pool, origin_direct and origin_dns",
            );
            None
        }
        (pool, [], None) => {
            let pool = faults.parse("origin_pool", pool);
            let port = match replaced? {
                Some(port) => Some(faults.take("origin_port", PortMap::new(edge?, port))?),
                None => None,
            };
            Some(OriginChoice::Pool { pool: pool?, port })
        }
        ("", texts, None) => direct(faults, texts, replaced?, protocol).map(OriginChoice::Direct),
        ("", [], Some(dns)) => {
            super::dns::read(faults, dns, replaced?, edge).map(OriginChoice::Dns)
        }
        (pool, texts, dns) => {
            let set = [
                ("origin_pool", !pool.is_empty()),
                ("origin_direct", !texts.is_empty()),
                ("origin_dns", dns.is_some()),
            ];
            let mut set = set.iter().filter(|(_, set)| *set).map(|(field, _)| field);
            if let (Some(first), Some(second)) = (set.next(), set.next()) {
                faults.add(
                    *second,
                    format_args!(
                        "is set beside {first}; an app has one of origin_pool, origin_direct and \
                         origin_dns"
                    ),
                );
            }
            None
        }
    }
}

fn direct(
    faults: &mut Faults,
    texts: &[String],
    replaced: Option<PortRange>,
    protocol: Option<(Transport, PortRange)>,
) -> Option<Vec<DirectOrigin>> {
    let (transport, edge) = protocol.unzip();
    if !count_is_right(faults, "origin_direct", texts.len()) {
        return None;
    }
    let read: Vec<Option<DirectOrigin>> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let field = format!("origin_direct[{index}]");
            let (ip, ports) = faults.take(&field, target(text, transport))?;
            let field = if replaced.is_some() {
                "origin_port"
            } else {
                &field
            };
            let port = faults.take(field, PortMap::new(edge?, replaced.unwrap_or(ports)))?;
            Some(DirectOrigin { ip, port })
        })
        .collect();
    read.into_iter().collect()
}

/// `tcp://10.0.2.2:7000`, `udp://[2001:db8::1]:3000-4000`, of the app's own
/// transport; `None`: that is not known, so either will do.
fn target(text: &str, transport: Option<Transport>) -> Result<(IpAddr, PortRange), String> {
    let right = transport.unwrap_or(Transport::Tcp);
    let wrong = || {
        format!(
            "{text:?} is no origin; right is {right}://10.0.2.2:7000 or \
             {right}://[2001:db8::1]:3000-4000"
        )
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    let scheme: Transport = scheme.parse().map_err(|_| wrong())?;
    if transport.is_some_and(|transport| transport != scheme) {
        return Err(format!(
            "{text:?} is of another protocol than the app; right is {right}://{rest}"
        ));
    }
    let (host, ports) = rest.rsplit_once(':').ok_or_else(wrong)?;
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let ip = match bracketed {
        Some(v6) => v6.parse::<Ipv6Addr>().map(IpAddr::V6).ok(),
        None => host.parse::<std::net::Ipv4Addr>().map(IpAddr::V4).ok(),
    };
    let ports: PortRange = ports
        .parse()
        .map_err(|problem| format!("{text:?}: {problem}"))?;
    Ok((ip.ok_or_else(wrong)?, ports))
}

fn timeouts(faults: &mut Faults, wire: v1::Timeouts) -> Option<Timeouts> {
    let default = Timeouts::default();
    let second = Duration::from_secs(1);
    let bounds = Duration::from_millis(10)..=60 * second;
    let connect = faults.duration(
        "timeouts.connect",
        wire.connect,
        default.connect,
        bounds.clone(),
    );
    let handshake = faults.duration(
        "timeouts.tls_handshake",
        wire.tls_handshake,
        default.tls_handshake,
        bounds,
    );
    let bounds = second..=7 * 24 * 3600 * second;
    let idle = faults.duration("timeouts.idle", wire.idle, default.idle, bounds.clone());
    let udp_idle = faults.duration("timeouts.udp_idle", wire.udp_idle, default.udp_idle, bounds);
    let bounds = Duration::ZERO..=24 * 3600 * second;
    let drain = faults.duration("timeouts.drain", wire.drain, default.drain, bounds);
    Some(Timeouts {
        connect: connect?,
        tls_handshake: handshake?,
        idle: idle?,
        udp_idle: udp_idle?,
        drain: drain?,
    })
}

fn disable(faults: &mut Faults, wire: Option<v1::Disable>) -> Option<Option<Disable>> {
    use v1::disable::Close;
    let Some(wire) = wire else {
        return Some(None);
    };
    let close = faults.take("disable.close", Close::try_from(wire.close))?;
    Some(Some(match close {
        Close::Unspecified | Close::Keep => Disable::KeepOpen,
        Close::Now => Disable::CloseNow,
    }))
}

fn write_disable(disable: Disable) -> v1::Disable {
    use v1::disable::Close;
    let close = match disable {
        Disable::KeepOpen => Close::Keep,
        Disable::CloseNow => Close::Now,
    };
    v1::Disable {
        close: close.into(),
    }
}

pub(super) fn write(app: &App) -> v1::App {
    let port_text = |port: Option<PortMap>| port.map(|map| ports_text(map, app.ports));
    let mut origin = v1::App::default();
    match &app.origin {
        OriginChoice::Pool { pool, port } => {
            origin.origin_pool = pool.to_string();
            origin.origin_port = port_text(*port).unwrap_or_default();
        }
        OriginChoice::Direct(origins) => {
            let texts = origins.iter().map(|origin| direct_text(origin, app));
            origin.origin_direct = texts.collect();
        }
        OriginChoice::Dns(dns) => {
            origin.origin_dns = Some(super::dns::write(dns));
            origin.origin_port = port_text(dns.port()).unwrap_or_default();
        }
    }
    let wire = v1::App {
        name: app.name.to_string(),
        protocol: format!("{}/{}", app.transport, app.ports),
        edge_ips: app.edge_nets.iter().map(net_text).collect(),
        proxy_protocol: identity::write_proxy_protocol(app.identity.proxy_protocol).into(),
        client_ip: identity::write_client_ip(app.identity.client_ip).into(),
        accept_proxy_protocol: app.identity.trusted_senders.iter().map(net_text).collect(),
        access: guards::write_access(&app.access),
        limits: guards::write_limits(&app.limits),
        timeouts: Some(v1::Timeouts {
            connect: Some(write_duration(app.timeouts.connect)),
            tls_handshake: Some(write_duration(app.timeouts.tls_handshake)),
            idle: Some(write_duration(app.timeouts.idle)),
            udp_idle: Some(write_duration(app.timeouts.udp_idle)),
            drain: Some(write_duration(app.timeouts.drain)),
        }),
        disable: app.disable.map(write_disable),
        ..origin
    };
    super::tls::write(&app.tls, wire)
}

/// A single address without the length that users seldom write.
pub(super) fn net_text(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

fn ports_text(map: PortMap, edge: PortRange) -> String {
    match map {
        PortMap::Fixed(port) => port.to_string(),
        PortMap::Offset { .. } => {
            let (first, last) = (map.origin_port(edge.first()), map.origin_port(edge.last()));
            format!("{first}-{last}")
        }
    }
}

fn direct_text(origin: &DirectOrigin, app: &App) -> String {
    let (transport, ports) = (app.transport, ports_text(origin.port, app.ports));
    match origin.ip {
        IpAddr::V4(ip) => format!("{transport}://{ip}:{ports}"),
        IpAddr::V6(ip) => format!("{transport}://[{ip}]:{ports}"),
    }
}
