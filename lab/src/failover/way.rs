//! Who is compared, and how each is configured.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::bench::{SERVICE, WORKERS};

/// Of the service and of the origins.
pub(super) const PORT: u16 = 7000;
/// Of the origins' checks, so that a dial is known for a client's.
pub(super) const CHECKED: u16 = 7001;

/// The origins.
pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];

/// A proxy with its way to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What it is called in tables.
    pub name: &'static str,
    pub(super) proxy: Proxy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxy {
    Anyport {
        policy: &'static str,
    },
    Haproxy {
        balance: &'static str,
        redispatch: &'static str,
        server: &'static str,
    },
}

impl Way {
    const fn anyport(name: &'static str, policy: &'static str) -> Self {
        let proxy = Proxy::Anyport { policy };
        Self { name, proxy }
    }

    const fn haproxy(name: &'static str, balance: &'static str) -> Self {
        let proxy = Proxy::Haproxy {
            balance,
            redispatch: "option redispatch",
            server: "",
        };
        Self { name, proxy }
    }
}

const EAGER: Way = Way {
    name: "HAProxy, eager",
    proxy: Proxy::Haproxy {
        balance: "roundrobin",
        redispatch: "option redispatch 1",
        server: " observe layer4 error-limit 1 on-error mark-down",
    },
};

/// Before origins that die; the others are measured against the first.
pub(super) const BEFORE_OUTAGES: [Way; 3] = [
    Way::haproxy("HAProxy", "roundrobin"),
    EAGER,
    Way::anyport("Anyport", "round_robin"),
];

/// Before origins at distances; the others are measured against the first.
pub(super) const BY_DISTANCE: [Way; 4] = [
    Way::haproxy("HAProxy leastconn", "leastconn"),
    Way::anyport("Anyport round_robin", "round_robin"),
    Way::anyport("Anyport least_connections", "least_connections"),
    Way::anyport("Anyport latency", "latency"),
];

/// As long in all as Anyport's `connect` of 5 s: HAProxy has it for each of four tries.
pub(super) fn haproxy(
    origins: [Ipv4Addr; 3],
    (balance, redispatch, server): (&str, &str, &str),
) -> String {
    let mut text = format!(
        "global
    nbthread {WORKERS}

defaults
    mode tcp
    retries 3
    {redispatch}
    timeout connect 1250ms
    timeout check 500ms
    timeout client 1h
    timeout server 1h

listen service
    bind {SERVICE}:{PORT}
    balance {balance}
    default-server check port {CHECKED} inter 1s fall 2 rise 2{server}
"
    );
    for (name, address) in NAMES.iter().zip(origins) {
        let _ = writeln!(text, "    server {name} {address}:{PORT}");
    }
    text
}

pub(super) fn anyport(origins: [Ipv4Addr; 3], policy: &str) -> String {
    let origin = |(name, address): (&&str, Ipv4Addr)| {
        let address = SocketAddrV4::new(address, PORT);
        format!("      - {{ name: {name}, address: \"{address}\" }}\n")
    };
    let origins: String = NAMES.iter().zip(origins).map(origin).collect();
    format!(
        "prefixes:
  - cidr: 198.51.100.0/24
monitors:
  - name: quick
    type: tcp
    port: {CHECKED}
    interval: 1s
    timeout: 500ms
    consecutive_down: 2
    consecutive_up: 2
pools:
  - name: service
    monitor: quick
    policy: {policy}
    origins:
{origins}apps:
  - name: service
    protocol: tcp/{PORT}
    edge_ips: [{SERVICE}]
    origin_pool: service
    timeouts: {{ connect: 5s }}
"
    )
}
