use std::{num::NonZeroU32, time::Duration};

use anyport_model::resource::{Check, Kind, Monitor, Thresholds};

use super::{
    fields::{Faults, Unreadable},
    write_duration,
};
use crate::v1;

const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(2);
const THRESHOLD: u32 = 2;
/// More in a row would only hide that an origin is down.
const RETRIES_MAX: u32 = 10;
const THRESHOLD_MAX: u32 = 100;
/// Of `send` and of `expect`.
const TEXT_MAX: usize = 4096;

pub(super) fn read(wire: v1::Monitor) -> Result<Monitor, Unreadable> {
    let mut faults = Faults::default();
    let name = faults.parse("name", &wire.name);
    let kind = faults.take("type", v1::MonitorType::try_from(wire.r#type));
    let bounds = Duration::from_millis(100)..=Duration::from_secs(3600);
    let interval = faults.duration("interval", wire.interval, INTERVAL, bounds);
    let bounds = Duration::from_millis(10)..=Duration::from_secs(60);
    let timeout = faults.duration("timeout", wire.timeout, TIMEOUT, bounds);
    let retries = up_to(&mut faults, "retries", wire.retries, RETRIES_MAX);
    let up = threshold(&mut faults, "consecutive_up", wire.consecutive_up);
    let down = threshold(&mut faults, "consecutive_down", wire.consecutive_down);
    let port = port(&mut faults, wire.port);
    let send = text(&mut faults, "send", wire.send);
    let expect = text(&mut faults, "expect", wire.expect);
    let monitor = (|| {
        Some(Monitor {
            name: name?,
            check: match kind? {
                v1::MonitorType::Unspecified | v1::MonitorType::Tcp => Check::Tcp {
                    send: send?,
                    expect: expect?,
                },
            },
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

fn text(faults: &mut Faults, field: &str, bytes: Vec<u8>) -> Option<Vec<u8>> {
    if bytes.len() > TEXT_MAX {
        let len = bytes.len();
        faults.add(
            field,
            format_args!("is {len} bytes long; right is at most {TEXT_MAX}"),
        );
        return None;
    }
    Some(bytes)
}

pub(super) fn write(monitor: &Monitor) -> v1::Monitor {
    let Check::Tcp { send, expect } = &monitor.check;
    v1::Monitor {
        name: monitor.name.to_string(),
        r#type: v1::MonitorType::Tcp.into(),
        interval: Some(write_duration(monitor.interval)),
        timeout: Some(write_duration(monitor.timeout)),
        retries: monitor.retries,
        consecutive_up: monitor.thresholds.up.get(),
        consecutive_down: monitor.thresholds.down.get(),
        port: monitor.port.map_or(0, u32::from),
        send: send.clone(),
        expect: expect.clone(),
    }
}
