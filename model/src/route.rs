//! Which app a connection belongs to.
//!
//! Of the claims that hold the destination, the one with the longest network
//! wins; at equal length the narrower range of ports. A lookup tries the
//! network lengths in use, longest first, and in each does one hash lookup and
//! one binary search: it does not grow with the number of apps.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    ports::PortRange,
    resource::{App, Transport},
};

/// The apps of one state, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    apps: Vec<Arc<App>>,
    /// Network lengths in use, longest first, for IPv4 and IPv6.
    lengths: [Vec<u8>; 2],
    nets: HashMap<(Transport, IpNet), Vec<Segment>>,
}

/// Ports of one network that all belong to one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    first: u16,
    last: u16,
    /// Index into `RouteTable::apps`.
    app: u32,
}

/// The app that takes a connection, and the claim that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route<'a> {
    /// Position of the app in the list that the table was built from.
    pub index: usize,
    pub app: &'a Arc<App>,
    pub net: IpNet,
}

/// Two apps of which neither is the more specific somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// Indices into the apps that were given; `first` < `second`.
    pub first: usize,
    pub second: usize,
    pub net: IpNet,
}

fn family(ip: &IpAddr) -> usize {
    usize::from(ip.is_ipv6())
}

type Claims = BTreeMap<(Transport, IpNet), Vec<(PortRange, usize)>>;

/// The claims of `apps` by network, each list with the narrowest range first
/// and, at equal width, in order of port.
fn claims_by_net(apps: &[Arc<App>]) -> Claims {
    let mut claims = Claims::new();
    for (index, app) in apps.iter().enumerate() {
        for net in &app.edge_nets {
            let key = (app.transport, net.trunc());
            claims.entry(key).or_default().push((app.ports, index));
        }
    }
    for list in claims.values_mut() {
        list.sort_unstable();
    }
    claims
}

/// Every pair of neighbouring claims that a lookup could not decide between:
/// the same network and overlapping ranges of the same width.
pub fn conflicts(apps: &[&Arc<App>]) -> Vec<Conflict> {
    let apps: Vec<Arc<App>> = apps.iter().map(|app| Arc::clone(app)).collect();
    let mut found = Vec::new();
    for ((_, net), claims) in claims_by_net(&apps) {
        for pair in claims.windows(2) {
            let [(ports_a, a), (ports_b, b)] = pair else {
                continue;
            };
            if ports_a.width() == ports_b.width() && ports_a.overlaps(*ports_b) && a != b {
                found.push(Conflict {
                    first: *a.min(b),
                    second: *a.max(b),
                    net,
                });
            }
        }
    }
    found
}

impl RouteTable {
    /// Builds the table in O(n log n) of all claims. Of apps in conflict the
    /// earlier one wins.
    pub fn new(apps: Vec<Arc<App>>) -> Self {
        let mut lengths = [BTreeSet::new(), BTreeSet::new()];
        let mut nets = HashMap::new();
        for (key, claims) in claims_by_net(&apps) {
            lengths[family(&key.1.addr())].insert(key.1.prefix_len());
            nets.insert(key, segments(&claims));
        }
        Self {
            apps,
            lengths: lengths.map(|lengths| lengths.into_iter().rev().collect()),
            nets,
        }
    }

    pub fn apps(&self) -> &[Arc<App>] {
        &self.apps
    }

    /// The app that takes a connection to `destination`.
    pub fn lookup(&self, transport: Transport, destination: SocketAddr) -> Option<Route<'_>> {
        let ip = destination.ip().to_canonical();
        let port = destination.port();
        for &len in &self.lengths[family(&ip)] {
            let Ok(net) = IpNet::new(ip, len) else {
                continue;
            };
            let net = net.trunc();
            let Some(segments) = self.nets.get(&(transport, net)) else {
                continue;
            };
            let after = segments.partition_point(|segment| segment.first <= port);
            let segment = after.checked_sub(1).map(|index| segments[index]);
            if let Some(segment) = segment.filter(|segment| port <= segment.last) {
                let index = segment.app as usize;
                let app = &self.apps[index];
                return Some(Route { index, app, net });
            }
        }
        None
    }
}

/// Cuts overlapping claims (narrowest first) into sorted, disjoint segments,
/// each of the narrowest claim that holds it: a sweep over where claims begin
/// and end.
fn segments(claims: &[(PortRange, usize)]) -> Vec<Segment> {
    // (port, does a claim begin here, rank); the port after the last is 65536.
    let mut edges: Vec<(u32, bool, usize)> = Vec::with_capacity(claims.len() * 2);
    for (rank, (ports, _)) in claims.iter().enumerate() {
        edges.push((u32::from(ports.first()), true, rank));
        edges.push((u32::from(ports.last()) + 1, false, rank));
    }
    edges.sort_unstable();
    let mut open: BTreeSet<usize> = BTreeSet::new();
    let mut segments: Vec<Segment> = Vec::new();
    let mut from = 0u32;
    for (at, begins, rank) in edges {
        if let Some(&narrowest) = open.first()
            && at > from
        {
            push(&mut segments, from, at - 1, claims[narrowest].1);
        }
        if begins {
            open.insert(rank);
        } else {
            open.remove(&rank);
        }
        from = at;
    }
    segments
}

fn push(segments: &mut Vec<Segment>, first: u32, last: u32, app: usize) {
    let (Ok(first), Ok(last), Ok(app)) = (
        u16::try_from(first),
        u16::try_from(last),
        u32::try_from(app),
    ) else {
        return;
    };
    match segments.last_mut() {
        Some(end) if end.app == app && u32::from(end.last) + 1 == u32::from(first) => {
            end.last = last;
        }
        _ => segments.push(Segment { first, last, app }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::resource::OriginChoice;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn app(name: &str, ports: &str, nets: &[&str]) -> Arc<App> {
        Arc::new(App::new(
            name.parse().unwrap(),
            ports.parse().unwrap(),
            nets.iter().map(|net| net.parse().unwrap()).collect(),
            OriginChoice::Direct(Vec::new()),
        ))
    }

    fn taken_by(table: &RouteTable, destination: &str) -> Option<String> {
        let route = table.lookup(Transport::Tcp, destination.parse().unwrap())?;
        Some(route.app.name.to_string())
    }

    #[test]
    fn the_longest_network_wins_and_then_the_narrowest_range() {
        let table = RouteTable::new(vec![
            app("all", "*", &["198.51.100.0/24", "2001:db8::/64"]),
            app("range", "1000-2000", &["198.51.100.0/24"]),
            app("port", "1500", &["198.51.100.0/24"]),
            app("host", "1000-65535", &["198.51.100.7/32"]),
        ]);
        for (destination, app) in [
            ("198.51.100.1:1", Some("all")),
            ("198.51.100.1:65535", Some("all")),
            ("198.51.100.1:999", Some("all")),
            ("198.51.100.1:1000", Some("range")),
            ("198.51.100.1:1500", Some("port")),
            ("198.51.100.1:2000", Some("range")),
            ("198.51.100.1:2001", Some("all")),
            ("198.51.100.7:1500", Some("host")),
            ("198.51.100.7:999", Some("all")),
            ("198.51.101.1:1500", None),
            ("[2001:db8::9]:22", Some("all")),
            ("[::ffff:198.51.100.1]:1500", Some("port")),
            ("[2001:db8:1::9]:22", None),
        ] {
            assert_eq!(
                taken_by(&table, destination).as_deref(),
                app,
                "{destination}"
            );
        }
    }

    #[test]
    fn two_apps_of_which_neither_is_more_specific_conflict() {
        let apps = [
            app("a", "1000-2000", &["198.51.100.0/24"]),
            app("b", "2000-3000", &["198.51.100.0/24"]),
            app("wider", "1000-3000", &["198.51.100.0/24"]),
            app("elsewhere", "1000-2000", &["198.51.100.0/25"]),
        ];
        let found = conflicts(&apps.iter().collect::<Vec<_>>());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].first, found[0].second), (0, 1));
    }

    #[test]
    fn apps_of_two_transports_share_ports_without_conflict() {
        let tcp = app("tcp", "53", &["198.51.100.0/24"]);
        let udp = Arc::new(App {
            name: "udp".parse().unwrap(),
            transport: Transport::Udp,
            ..(*tcp).clone()
        });
        assert_eq!(conflicts(&[&tcp, &udp]), []);
        let table = RouteTable::new(vec![tcp, udp]);
        for transport in Transport::ALL {
            let route = table.lookup(transport, "198.51.100.1:53".parse().unwrap());
            assert_eq!(route.unwrap().app.name.as_str(), transport.as_str());
        }
    }

    fn any_apps() -> impl Strategy<Value = Vec<Arc<App>>> {
        let claim = (0u8..8, 28u8..=32, 1u16..30, 0u16..30);
        prop::collection::vec(claim, 0..10).prop_map(|claims| {
            let apps = claims
                .into_iter()
                .enumerate()
                .map(|(i, (host, len, first, width))| {
                    let net =
                        IpNet::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, host)), len).unwrap();
                    app(
                        &format!("app{i}"),
                        &format!("{first}-{}", first + width),
                        &[&net.trunc().to_string()],
                    )
                });
            apps.collect()
        })
    }

    proptest! {
        #[test]
        fn agrees_with_trying_every_claim(apps in any_apps()) {
            let table = RouteTable::new(apps.clone());
            for host in 0..16 {
                for port in 1..65u16 {
                    let ip = IpAddr::V4(Ipv4Addr::new(198, 51, 100, host));
                    let best = apps
                        .iter()
                        .enumerate()
                        .filter(|(_, app)| app.edge_nets[0].contains(&ip) && app.ports.contains(port))
                        .min_by_key(|(i, app)| (32 - app.edge_nets[0].prefix_len(), app.ports, *i))
                        .map(|(i, _)| i);
                    let found = table.lookup(Transport::Tcp, SocketAddr::new(ip, port));
                    prop_assert_eq!(found.map(|route| route.index), best);
                }
            }
        }

        #[test]
        fn without_conflicts_the_order_of_apps_does_not_matter(apps in any_apps()) {
            prop_assume!(conflicts(&apps.iter().collect::<Vec<_>>()).is_empty());
            let forward = RouteTable::new(apps.clone());
            let backward = RouteTable::new(apps.into_iter().rev().collect());
            for host in 0..16 {
                for port in 1..65u16 {
                    let to = SocketAddr::from((Ipv4Addr::new(198, 51, 100, host), port));
                    let name = |table: &RouteTable| table.lookup(Transport::Tcp, to).map(|r| r.app.name.clone());
                    prop_assert_eq!(name(&forward), name(&backward));
                }
            }
        }
    }
}
