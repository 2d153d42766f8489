//! What the kernel has to steer to the edge's listeners: the union of all
//! claims, cut into disjoint rectangles of addresses × ports, because an
//! interval set of the kernel refuses overlapping elements.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::{
    ports::PortRange,
    resource::{App, Transport},
};

/// A rectangle of addresses × ports of one transport. Orders by transport, and
/// then the less specific network first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    pub transport: Transport,
    pub net: IpNet,
    pub ports: PortRange,
}

/// The claims of one app, as declared.
pub fn claims_of(app: &App) -> impl Iterator<Item = Claim> {
    app.edge_nets.iter().map(|&net| Claim {
        transport: app.transport,
        net,
        ports: app.ports,
    })
}

/// Disjoint claims that cover exactly what `claims` cover.
///
/// Networks nest or are apart, so it is enough to leave out of each network
/// the ports that a network around it has already. Adjacent ranges of one
/// network are joined. O(n log n) in the claims times the depth of nesting.
pub fn disjoint_claims(claims: impl IntoIterator<Item = Claim>) -> Vec<Claim> {
    let mut by_net: BTreeMap<(Transport, IpNet), Spans> = BTreeMap::new();
    for claim in claims {
        let ports = (claim.ports.first(), claim.ports.last());
        let key = (claim.transport, claim.net.trunc());
        by_net.entry(key).or_default().push(ports);
    }
    let mut result = Vec::new();
    // Networks around the present one, of the same transport, with all ports
    // claimed at or around them. `IpNet` orders a network before those inside it.
    let mut around: Vec<((Transport, IpNet), Spans)> = Vec::new();
    for ((transport, net), ports) in by_net {
        let is_around = |(of, outer): (Transport, IpNet)| of == transport && outer.contains(&net);
        while around.last().is_some_and(|(outer, _)| !is_around(*outer)) {
            around.pop();
        }
        let taken = around.last().map_or(&[][..], |(_, taken)| taken);
        let own = union(ports);
        for (first, last) in subtract(&own, taken) {
            // Both ends come from valid ranges or stand next to one inside it.
            if let Ok(ports) = PortRange::new(first, last) {
                result.push(Claim {
                    transport,
                    net,
                    ports,
                });
            }
        }
        let all = union(own.iter().chain(taken).copied().collect());
        around.push(((transport, net), all));
    }
    result
}

/// Ranges of ports, both ends included.
type Spans = Vec<(u16, u16)>;

/// Sorted, disjoint and not adjacent.
fn union(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(end) if u32::from(first) <= u32::from(end.1) + 1 => end.1 = end.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// `ranges` without `taken`; both as [`union`] returns them.
fn subtract(ranges: &[(u16, u16)], taken: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut left = Vec::with_capacity(ranges.len());
    for &(first, last) in ranges {
        // In 32 bits the port after the last one exists.
        let (mut from, to) = (u32::from(first), u32::from(last));
        let start = taken.partition_point(|&(_, end)| u32::from(end) < from);
        for &(cut_first, cut_last) in &taken[start..] {
            let (cut_first, cut_last) = (u32::from(cut_first), u32::from(cut_last));
            if cut_first > to {
                break;
            }
            if cut_first > from {
                left.push((from, cut_first - 1));
            }
            from = from.max(cut_last + 1);
        }
        if from <= to {
            left.push((from, to));
        }
    }
    left.into_iter()
        .filter_map(|(a, b)| Some((u16::try_from(a).ok()?, u16::try_from(b).ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn claim(net: &str, ports: &str) -> Claim {
        Claim {
            transport: Transport::Tcp,
            net: net.parse().unwrap(),
            ports: ports.parse().unwrap(),
        }
    }

    #[test]
    fn an_inner_network_keeps_only_what_the_outer_one_lacks() {
        let disjoint = disjoint_claims([
            claim("198.51.100.10/32", "1-100"),
            claim("198.51.100.0/24", "50-60"),
            claim("198.51.100.0/25", "60-80"),
        ]);
        assert_eq!(
            disjoint,
            [
                claim("198.51.100.0/24", "50-60"),
                claim("198.51.100.0/25", "61-80"),
                claim("198.51.100.10/32", "1-49"),
                claim("198.51.100.10/32", "81-100"),
            ]
        );
    }

    #[test]
    fn adjacent_ranges_become_one_element() {
        let disjoint = disjoint_claims([
            claim("2001:db8::/64", "1-9"),
            claim("2001:db8::/64", "10"),
            claim("2001:db8::/64", "11-65535"),
        ]);
        assert_eq!(disjoint, [claim("2001:db8::/64", "*")]);
    }

    #[test]
    fn transports_do_not_share_their_ports() {
        let udp = Claim {
            transport: Transport::Udp,
            ..claim("198.51.100.7/32", "53")
        };
        let disjoint = disjoint_claims([claim("198.51.100.0/24", "*"), udp]);
        assert_eq!(disjoint, [claim("198.51.100.0/24", "*"), udp]);
    }

    fn any_claim() -> impl Strategy<Value = Claim> {
        // A small world, so that claims do nest and overlap.
        let transport = prop::sample::select(&Transport::ALL);
        let numbers = (0u8..8, 28u8..=32, 1u16..40, 0u16..40);
        (transport, numbers).prop_map(|(transport, (host, len, first, width))| Claim {
            transport,
            net: IpNet::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, host)), len)
                .unwrap()
                .trunc(),
            ports: PortRange::new(first, first + width).unwrap(),
        })
    }

    proptest! {
        #[test]
        fn covers_the_same_points_and_each_once(claims in prop::collection::vec(any_claim(), 0..12)) {
            let disjoint = disjoint_claims(claims.iter().copied());
            for (transport, host) in Transport::ALL.into_iter().flat_map(|t| (0..16).map(move |h| (t, h))) {
                let ip = IpAddr::V4(Ipv4Addr::new(198, 51, 100, host));
                for port in 1..90 {
                    let covers = |claim: &&Claim| {
                        claim.transport == transport && claim.net.contains(&ip) && claim.ports.contains(port)
                    };
                    let times = disjoint.iter().filter(covers).count();
                    let wanted = usize::from(claims.iter().any(|claim| covers(&claim)));
                    prop_assert_eq!(times, wanted, "{}/{} port {}", transport, ip, port);
                }
            }
        }
    }
}
