//! What the demo declares.

use std::net::Ipv4Addr;

use anyport_netns::topology::routed_prefixes;
use ipnet::IpNet;

pub const POOL: &str = "servers";
/// Names of the origins.
pub const ORIGINS: [&str; 3] = ["a", "b", "c"];
/// Where the origin servers listen.
pub const ORIGIN_PORT: u16 = 7000;
/// The one port of [`closed_prefix`] that an app takes.
pub const OPEN_PORT: u16 = 443;

/// Every port of every address of these goes to the pool.
pub fn open_prefixes() -> [IpNet; 2] {
    let [v4, _, v6] = routed_prefixes();
    [v4, IpNet::new_assert(v6.addr(), 64)]
}

/// Of this one, a single port.
pub fn closed_prefix() -> IpNet {
    let [_, closed, _] = routed_prefixes();
    closed
}

/// The manifest, for origins at `addresses`; without `weights` all get the same.
pub fn text(addresses: [Ipv4Addr; 3], weights: Option<[u32; 3]>) -> String {
    let [v4, v6] = open_prefixes();
    let closed = closed_prefix();
    let origins = (0..3).map(|index| {
        let (name, address) = (ORIGINS[index], addresses[index]);
        let weight = weights.map(|weights| format!(", weight: {}", weights[index]));
        let weight = weight.unwrap_or_default();
        format!("      - {{ name: {name}, address: \"{address}:{ORIGIN_PORT}\"{weight} }}\n")
    });
    let origins: String = origins.collect();
    format!(
        "\
prefixes:
  - cidr: {v4}
  - cidr: {v6}
  - cidr: {closed}
monitors:
  - {{ name: quick, type: tcp, interval: 500ms, timeout: 250ms }}
pools:
  - name: {POOL}
    monitor: quick
    origins:
{origins}apps:
  - name: everything
    protocol: tcp/*
    edge_ips: [{v4}, \"{v6}\"]
    origin_pool: {POOL}
  - name: web
    protocol: tcp/{OPEN_PORT}
    edge_ips: [{closed}]
    origin_pool: {POOL}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    #[test]
    fn both_manifests_read_without_a_fault() {
        let addresses = [2, 3, 4].map(|host| Ipv4Addr::new(10, 0, 2, host));
        for weights in [None, Some([50, 30, 20])] {
            let manifest = Manifest::read("demo.yaml", &text(addresses, weights));
            assert_eq!(manifest.faults(), []);
            assert_eq!(manifest.resources().len(), 7);
        }
    }
}
