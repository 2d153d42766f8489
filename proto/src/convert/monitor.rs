use std::{num::NonZeroU32, time::Duration};

use anyport_model::{
    check::{Check, Exchange, Request},
    resource::{Kind, Monitor, Thresholds},
};

use super::{
    fields::{Faults, Unreadable},
    write_duration,
};
use crate::v1::{self, MonitorType as Type};

const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(2);
const THRESHOLD: u32 = 2;
/// More in a row would only hide that an origin is down.
const RETRIES_MAX: u32 = 10;
const THRESHOLD_MAX: u32 = 100;
/// Of `send`, `expect` and `expected_body`, in bytes.
const TEXT_MAX: usize = 4096;
/// Of `service`, in bytes.
const SERVICE_MAX: usize = 255;
/// Longest part of a misplaced value that is shown, in bytes.
const SHOWN: usize = 40;

pub(super) fn read(wire: v1::Monitor) -> Result<Monitor, Unreadable> {
    let mut faults = Faults::default();
    let name = faults.parse("name", &wire.name);
    let kind = faults.take("type", Type::try_from(wire.r#type));
    let bounds = Duration::from_millis(100)..=Duration::from_secs(3600);
    let interval = faults.duration("interval", wire.interval, INTERVAL, bounds);
    let bounds = Duration::from_millis(10)..=Duration::from_secs(60);
    let timeout = faults.duration("timeout", wire.timeout, TIMEOUT, bounds);
    let retries = up_to(&mut faults, "retries", wire.retries, RETRIES_MAX);
    let up = threshold(&mut faults, "consecutive_up", wire.consecutive_up);
    let down = threshold(&mut faults, "consecutive_down", wire.consecutive_down);
    let port = port(&mut faults, wire.port);
    let check = kind.and_then(|kind| check(&mut faults, kind, &wire));
    let monitor = (|| {
        Some(Monitor {
            name: name?,
            check: check?,
            interval: interval?,
            timeout: timeout?,
            retries: retries?,
            thresholds: Thresholds {
                up: up?,
                down: down?,
            },
            port: port?,
        })
    })();
    let reference = super::reference::of_message(Kind::Monitor, &wire.name);
    faults.finish(reference, monitor)
}

fn up_to(faults: &mut Faults, field: &str, value: u32, most: u32) -> Option<u32> {
    if value > most {
        faults.add(
            field,
            format_args!("{value} is too many; right is at most {most}"),
        );
        return None;
    }
    Some(value)
}

fn threshold(faults: &mut Faults, field: &str, value: u32) -> Option<NonZeroU32> {
    let value = if value == 0 { THRESHOLD } else { value };
    NonZeroU32::new(up_to(faults, field, value, THRESHOLD_MAX)?)
}

fn port(faults: &mut Faults, value: u32) -> Option<Option<u16>> {
    match u16::try_from(value) {
        Ok(0) => Some(None),
        Ok(port) => Some(Some(port)),
        Err(_) => {
            faults.add(
                "port",
                format_args!("{value} is no port; right is 1 to 65535, or 0 for the origin's own"),
            );
            None
        }
    }
}

fn check(faults: &mut Faults, kind: Type, wire: &v1::Monitor) -> Option<Check> {
    let kind = match kind {
        Type::Unspecified => Type::Tcp,
        kind => kind,
    };
    misplaced(faults, kind, wire);
    Some(match kind {
        Type::Unspecified | Type::Tcp => Check::Tcp(exchange(faults, wire)?),
        Type::Tls => Check::Tls(exchange(faults, wire)?),
        Type::Http => Check::Http(request(faults, wire)?),
        Type::Https => Check::Https(request(faults, wire)?),
        Type::Grpc => {
            at_most(faults, "service", wire.service.len(), SERVICE_MAX)?;
            Check::Grpc {
                service: wire.service.clone(),
            }
        }
        Type::Udp => Check::Udp(exchange(faults, wire)?),
        Type::Icmp => Check::Icmp,
    })
}

/// Notes the fields that are set although monitors of this type do not have them.
fn misplaced(faults: &mut Faults, kind: Type, wire: &v1::Monitor) {
    const EXCHANGE: &[Type] = &[Type::Tcp, Type::Tls, Type::Udp];
    const REQUEST: &[Type] = &[Type::Http, Type::Https];
    const PORT: &[Type] = &[
        Type::Tcp,
        Type::Tls,
        Type::Http,
        Type::Https,
        Type::Grpc,
        Type::Udp,
    ];
    let port = Some(wire.port.to_string()).filter(|_| wire.port != 0);
    for (field, value, of) in [
        ("port", port, PORT),
        ("send", shown(&wire.send), EXCHANGE),
        ("expect", shown(&wire.expect), EXCHANGE),
        ("path", shown(wire.path.as_bytes()), REQUEST),
        (
            "expected_codes",
            shown(wire.expected_codes.as_bytes()),
            REQUEST,
        ),
        (
            "expected_body",
            shown(wire.expected_body.as_bytes()),
            REQUEST,
        ),
        ("service", shown(wire.service.as_bytes()), &[Type::Grpc]),
    ] {
        let Some(value) = value.filter(|_| !of.contains(&kind)) else {
            continue;
        };
        let of: Vec<&str> = of.iter().map(|kind| word(*kind)).collect();
        faults.add(
            field,
            format_args!(
                "{value} is for monitors of type {}, and this one is {}; right is to leave it out",
                of.join(", "),
                word(kind),
            ),
        );
    }
}

fn word(kind: Type) -> &'static str {
    match kind {
        Type::Unspecified | Type::Tcp => "tcp",
        Type::Tls => "tls",
        Type::Http => "http",
        Type::Https => "https",
        Type::Grpc => "grpc",
        Type::Udp => "udp",
        Type::Icmp => "icmp",
    }
}

/// In quotes; `None` where there is nothing.
fn shown(value: &[u8]) -> Option<String> {
    let (part, more) = match value {
        [] => return None,
        value if value.len() > SHOWN => (&value[..SHOWN], "…"),
        value => (value, ""),
    };
    let part = String::from_utf8_lossy(part);
    Some(format!("\"{}\"{more}", part.escape_debug()))
}

fn exchange(faults: &mut Faults, wire: &v1::Monitor) -> Option<Exchange> {
    let send = at_most(faults, "send", wire.send.len(), TEXT_MAX);
    at_most(faults, "expect", wire.expect.len(), TEXT_MAX)?;
    send?;
    Some(Exchange {
        send: wire.send.clone(),
        expect: wire.expect.clone(),
    })
}

fn request(faults: &mut Faults, wire: &v1::Monitor) -> Option<Request> {
    let path = faults.parse_optional("path", &wire.path);
    let expected_codes = faults.parse_optional("expected_codes", &wire.expected_codes);
    at_most(faults, "expected_body", wire.expected_body.len(), TEXT_MAX)?;
    Some(Request {
        path: path?.unwrap_or_default(),
        expected_codes: expected_codes?.unwrap_or_default(),
        expected_body: wire.expected_body.clone(),
    })
}

fn at_most(faults: &mut Faults, field: &str, len: usize, most: usize) -> Option<()> {
    if len > most {
        faults.add(
            field,
            format_args!("is {len} bytes long; right is at most {most}"),
        );
        return None;
    }
    Some(())
}

pub(super) fn write(monitor: &Monitor) -> v1::Monitor {
    v1::Monitor {
        name: monitor.name.to_string(),
        interval: Some(write_duration(monitor.interval)),
        timeout: Some(write_duration(monitor.timeout)),
        retries: monitor.retries,
        consecutive_up: monitor.thresholds.up.get(),
        consecutive_down: monitor.thresholds.down.get(),
        port: monitor.port.map_or(0, u32::from),
        ..write_check(&monitor.check)
    }
}

fn write_check(check: &Check) -> v1::Monitor {
    let of = |kind: Type| v1::Monitor {
        r#type: kind.into(),
        ..v1::Monitor::default()
    };
    let exchange = |kind, exchange: &Exchange| v1::Monitor {
        send: exchange.send.clone(),
        expect: exchange.expect.clone(),
        ..of(kind)
    };
    let request = |kind, request: &Request| v1::Monitor {
        path: request.path.as_str().to_owned(),
        expected_codes: request.expected_codes.to_string(),
        expected_body: request.expected_body.clone(),
        ..of(kind)
    };
    match check {
        Check::Tcp(what) => exchange(Type::Tcp, what),
        Check::Tls(what) => exchange(Type::Tls, what),
        Check::Http(what) => request(Type::Http, what),
        Check::Https(what) => request(Type::Https, what),
        Check::Grpc { service } => v1::Monitor {
            service: service.clone(),
            ..of(Type::Grpc)
        },
        Check::Udp(what) => exchange(Type::Udp, what),
        Check::Icmp => of(Type::Icmp),
    }
}
