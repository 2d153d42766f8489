//! Which app a connection belongs to.
//!
//! Of the claims that hold the destination, the one with the longest network
//! wins; at equal length the narrower range of ports. A lookup tries the
//! network lengths in use, longest first, and in each does one hash lookup and
//! one binary search: it does not grow with the number of apps.
//!
//! Apps with the same network and ports share that place if they differ by the
//! names that TLS clients ask for; one of them may be without names, and has
//! what no name fits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    access::Action,
    ports::PortRange,
    resource::{App, Transport},
    server_name::{ByName, NamePattern, ServerName},
};

/// The apps of one state, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    apps: Vec<Arc<App>>,
    places: Vec<Place>,
    /// Network lengths in use, longest first, for IPv4 and IPv6.
    lengths: [Vec<u8>; 2],
    nets: HashMap<(Transport, IpNet), Vec<Segment>>,
}

/// Ports of one network that all belong to one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    first: u16,
    last: u16,
    /// Index into `RouteTable::places`.
    place: u32,
}

/// The apps that claim the same ports of one network, by index into
/// `RouteTable::apps`.
#[derive(Debug, Clone)]
struct Place {
    first: u32,
    /// The one without names.
    any: Option<u32>,
    /// `None` where no app has names.
    names: Option<Box<Named>>,
}

/// Of a place whose apps are told apart by name.
#[derive(Debug, Clone)]
struct Named {
    apps: ByName<u32>,
    /// One app for each of their different access rules: whom these turn away,
    /// all do. Empty where one of them lets everyone in.
    rules: Vec<u32>,
    waiting_per_source: NonZeroU32,
}

/// Where there are more different access rules at one place, they are asked
/// once the name is known: before that, it would cost too much.
const RULES_MAX: usize = 16;

/// So many connections of one source may wait at one place until it is known
/// which app they ask for, or as many as the largest `connections_per_source`
/// there says.
const WAITING_MIN: NonZeroU32 = NonZeroU32::new(64).unwrap();

/// So many where an app there has no such limit.
const WAITING_UNLIMITED: NonZeroU32 = NonZeroU32::new(1024).unwrap();

/// The apps that share a destination.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    table: &'a RouteTable,
    place: &'a Place,
    net: IpNet,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Indices into the apps that were given; `first` < `second`.
    pub first: usize,
    pub second: usize,
    pub net: IpNet,
    /// The name that both have, where they share their place.
    pub name: Option<NamePattern>,
    /// Of `net` in the second one's networks, or of `name` in its names.
    pub position: usize,
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
/// the same network, overlapping ranges of the same width, and not the same
/// ports with different names.
pub fn conflicts(apps: &[&Arc<App>]) -> Vec<Conflict> {
    let apps: Vec<Arc<App>> = apps.iter().map(|app| Arc::clone(app)).collect();
    let mut found = Vec::new();
    for ((_, net), claims) in claims_by_net(&apps) {
        let mut conflict = |a: usize, b: usize, name: Option<&NamePattern>| {
            let (first, second) = (a.min(b), a.max(b));
            let app = &apps[second];
            let position = match name {
                None => app.edge_nets.iter().position(|own| own.trunc() == net),
                Some(name) => app.tls.sni().iter().position(|own| own == name),
            };
            found.push(Conflict {
                first,
                second,
                net,
                name: name.cloned(),
                position: position.unwrap_or(0),
            });
        };
        for pair in claims.windows(2) {
            let [(ports_a, a), (ports_b, b)] = pair else {
                continue;
            };
            let overlap = ports_a.width() == ports_b.width() && ports_a.overlaps(*ports_b);
            if overlap && ports_a != ports_b {
                conflict(*a, *b, None);
            }
        }
        for sharing in claims.chunk_by(|(a, _), (b, _)| a == b) {
            let mut any: Option<usize> = None;
            let mut names: HashMap<&NamePattern, usize> = HashMap::new();
            for &(_, index) in sharing {
                let sni = apps[index].tls.sni();
                if sni.is_empty()
                    && let Some(other) = any.replace(index)
                {
                    conflict(other, index, None);
                }
                for name in sni {
                    if let Some(other) = names.insert(name, index)
                        && other != index
                    {
                        conflict(other, index, Some(name));
                    }
                }
            }
        }
    }
    found
}

/// Pairs of apps that share a place, by index into `apps`, the first one of it
/// with each other; and the network.
pub fn sharing(apps: &[&Arc<App>]) -> Vec<(usize, usize, IpNet)> {
    let apps: Vec<Arc<App>> = apps.iter().map(|app| Arc::clone(app)).collect();
    let mut pairs = Vec::new();
    for ((_, net), claims) in claims_by_net(&apps) {
        for sharing in claims.chunk_by(|(a, _), (b, _)| a == b) {
            if let [(_, first), others @ ..] = sharing {
                pairs.extend(others.iter().map(|(_, other)| (*first, *other, net)));
            }
        }
    }
    pairs
}

impl RouteTable {
    /// Builds the table in O(n log n) of all claims. Of apps in conflict the
    /// earlier one wins.
    pub fn new(apps: Vec<Arc<App>>) -> Self {
        let mut lengths = [BTreeSet::new(), BTreeSet::new()];
        let mut nets = HashMap::new();
        let mut places = Vec::new();
        for (key, claims) in claims_by_net(&apps) {
            lengths[family(&key.1.addr())].insert(key.1.prefix_len());
            let sharing = claims.chunk_by(|(a, _), (b, _)| a == b);
            let claimed: Vec<(PortRange, usize)> = sharing
                .filter_map(|sharing| {
                    let ports = sharing.first()?.0;
                    places.push(Place::of(&apps, sharing)?);
                    Some((ports, places.len() - 1))
                })
                .collect();
            nets.insert(key, segments(&claimed));
        }
        Self {
            apps,
            places,
            lengths: lengths.map(|lengths| lengths.into_iter().rev().collect()),
            nets,
        }
    }

    pub fn apps(&self) -> &[Arc<App>] {
        &self.apps
    }

    /// The app that takes a connection to `destination`, whatever name it asks
    /// for, or none.
    pub fn lookup(&self, transport: Transport, destination: SocketAddr) -> Option<Route<'_>> {
        self.candidates(transport, destination)?.any()
    }

    /// The apps of which one takes a connection to `destination`.
    pub fn candidates(
        &self,
        transport: Transport,
        destination: SocketAddr,
    ) -> Option<Candidates<'_>> {
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
                return Some(Candidates {
                    table: self,
                    place: &self.places[segment.place as usize],
                    net,
                });
            }
        }
        None
    }
}

impl Place {
    /// Of claims with the same ports; of apps in conflict the earlier one wins.
    fn of(apps: &[Arc<App>], sharing: &[(PortRange, usize)]) -> Option<Self> {
        let index = |(_, index): &(PortRange, usize)| u32::try_from(*index).ok();
        let mut any = None;
        let mut names = ByName::default();
        let served = || {
            let apps = sharing.iter().map(|(_, index)| (*index, &*apps[*index]));
            apps.filter(|(_, app)| app.disable.is_none())
        };
        for claim in sharing {
            let index = index(claim)?;
            let sni = apps[index as usize].tls.sni();
            if sni.is_empty() {
                any = any.or(Some(index));
            }
            for name in sni {
                names.insert(name.clone(), index);
            }
        }
        Some(Self {
            first: sharing.first().and_then(index)?,
            any,
            names: (!names.is_empty()).then(|| {
                Box::new(Named {
                    apps: names,
                    rules: different_rules(served()),
                    waiting_per_source: waiting_per_source(served().map(|(_, app)| app)),
                })
            }),
        })
    }
}

fn different_rules<'a>(apps: impl Iterator<Item = (usize, &'a App)>) -> Vec<u32> {
    let mut different: Vec<(u32, &App)> = Vec::new();
    for (index, app) in apps {
        if different
            .iter()
            .any(|(_, known)| known.access == app.access)
        {
            continue;
        }
        match u32::try_from(index) {
            Ok(index) if !app.access.is_open() && different.len() < RULES_MAX => {
                different.push((index, app));
            }
            _ => return Vec::new(),
        }
    }
    different.into_iter().map(|(index, _)| index).collect()
}

fn waiting_per_source<'a>(mut apps: impl Iterator<Item = &'a App>) -> NonZeroU32 {
    let largest = apps.try_fold(WAITING_MIN, |largest, app| {
        Some(app.limits.connections_per_source?.max(largest))
    });
    largest.unwrap_or(WAITING_UNLIMITED)
}

impl<'a> Candidates<'a> {
    fn route(self, index: u32) -> Route<'a> {
        let index = index as usize;
        Route {
            index,
            app: &self.table.apps[index],
            net: self.net,
        }
    }

    /// Whether the name that a connection asks for decides.
    pub fn are_named(self) -> bool {
        self.place.names.is_some()
    }

    /// One of them.
    pub fn first(self) -> Route<'a> {
        self.route(self.place.first)
    }

    /// The app without names: it has what no name fits.
    pub fn any(self) -> Option<Route<'a>> {
        self.place.any.map(|index| self.route(index))
    }

    /// The app for a connection that asks for `name`, or for none.
    pub fn of_name(self, name: Option<&ServerName>) -> Option<Route<'a>> {
        let names = self.place.names.as_deref();
        let named = names
            .zip(name)
            .and_then(|(names, name)| names.apps.get(name));
        named.map(|&index| self.route(index)).or_else(|| self.any())
    }

    /// Where the name decides and no app lets `client` in, whatever it asks for:
    /// one of them.
    pub fn denied(self, client: IpAddr) -> Option<Route<'a>> {
        let rules = &self.place.names.as_deref()?.rules;
        let mut apps = rules.iter().map(|&index| self.route(index));
        let first = apps.next()?;
        let denies = |route: Route<'_>| route.app.access.decide(client).action == Action::Deny;
        (denies(first) && apps.all(denies)).then_some(first)
    }

    /// Where the name decides: how many connections of one source may wait at a
    /// time until it is known.
    pub fn waiting_per_source(self) -> Option<NonZeroU32> {
        let names = self.place.names.as_deref()?;
        Some(names.waiting_per_source)
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

fn push(segments: &mut Vec<Segment>, first: u32, last: u32, place: usize) {
    let (Ok(first), Ok(last), Ok(place)) = (
        u16::try_from(first),
        u16::try_from(last),
        u32::try_from(place),
    ) else {
        return;
    };
    match segments.last_mut() {
        Some(end) if end.place == place && u32::from(end.last) + 1 == u32::from(first) => {
            end.last = last;
        }
        _ => segments.push(Segment { first, last, place }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::access::Rule;
    use crate::resource::{Disable, OriginChoice};
    use crate::tls::Tls;
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

    fn named(name: &str, ports: &str, sni: &[&str]) -> Arc<App> {
        let app = app(name, ports, &["198.51.100.0/24"]);
        Arc::new(App {
            tls: Tls::Off {
                sni: sni.iter().map(|name| name.parse().unwrap()).collect(),
            },
            ..App::clone(&app)
        })
    }

    #[test]
    fn apps_that_share_a_place_are_told_apart_by_name() {
        let apps = vec![
            named("a", "443", &["a.example.com", "*.a.example.com"]),
            named("b", "443", &["b.example.com"]),
            named("any", "443", &[]),
            named("alone", "8443", &["a.example.com"]),
            named("around", "*", &[]),
        ];
        assert_eq!(conflicts(&apps.iter().collect::<Vec<_>>()), []);
        let table = RouteTable::new(apps);
        let taken_by = |port: u16, name: Option<&str>| {
            let to = SocketAddr::from((Ipv4Addr::new(198, 51, 100, 9), port));
            let candidates = table.candidates(Transport::Tcp, to).unwrap();
            let name = name.map(|name| name.parse().unwrap());
            let route = candidates.of_name(name.as_ref());
            route.map(|route| route.app.name.to_string())
        };
        for (port, name, app) in [
            (443, Some("a.example.com"), Some("a")),
            (443, Some("www.a.example.com"), Some("a")),
            (443, Some("b.example.com"), Some("b")),
            (443, Some("c.example.com"), Some("any")),
            (443, None, Some("any")),
            (8443, Some("a.example.com"), Some("alone")),
            // The place is decided by address and port alone.
            (8443, Some("b.example.com"), None),
            (8443, None, None),
            (8444, None, Some("around")),
        ] {
            assert_eq!(taken_by(port, name).as_deref(), app, "{port} {name:?}");
        }
    }

    fn change(app: &Arc<App>, change: impl FnOnce(&mut App)) -> Arc<App> {
        let mut app = App::clone(app);
        change(&mut app);
        Arc::new(app)
    }

    fn deny(app: &Arc<App>, sources: &[&str]) -> Arc<App> {
        change(app, |app| {
            for source in sources {
                let source = IpNet::from(source.parse::<IpAddr>().unwrap());
                let action = Action::Deny;
                app.access.add(Rule { action, source }).unwrap();
            }
        })
    }

    #[test]
    fn whom_all_apps_of_a_place_turn_away_is_known_before_the_name() {
        let apps = [
            named("a", "443", &["a.example.com"]),
            named("b", "443", &["b.example.com"]),
            named("c", "443", &[]),
        ];
        let (nobody, one, both) = ("203.0.113.1", "203.0.113.2", "203.0.113.3");
        let is_denied = |apps: &[Arc<App>], client: &str| {
            let table = RouteTable::new(apps.to_vec());
            let to = "198.51.100.1:443".parse().unwrap();
            let candidates = table.candidates(Transport::Tcp, to).unwrap();
            candidates.denied(client.parse().unwrap()).is_some()
        };
        let [a, b, c] = &apps;
        let guarded = [
            deny(a, &[one, both]),
            deny(b, &[both]),
            deny(c, &[one, both]),
        ];
        for (client, expected) in [(nobody, false), (one, false), (both, true)] {
            assert_eq!(is_denied(&guarded, client), expected, "{client}");
        }
        // One that lets everyone in, and one that takes nobody.
        let [a, b, c] = &guarded;
        let open = [a.clone(), b.clone(), apps[2].clone()];
        assert!(!is_denied(&open, both));
        let disabled = change(&apps[2], |app| app.disable = Some(Disable::KeepOpen));
        assert!(is_denied(&[a.clone(), b.clone(), disabled], both));
        let disabled = change(b, |app| app.disable = Some(Disable::KeepOpen));
        assert!(is_denied(&[a.clone(), disabled, c.clone()], one));
        // More rules than are asked of each connection.
        let many: Vec<_> = (0..=RULES_MAX)
            .map(|n| {
                let app = named(&format!("n{n}"), "443", &[&format!("n{n}.example.com")]);
                deny(&app, &[both, &format!("198.18.0.{n}")])
            })
            .collect();
        assert!(!is_denied(&many, both));
        assert!(is_denied(&many[1..], both));
    }

    #[test]
    fn as_many_wait_as_the_largest_limit_of_a_place_says() {
        let waiting = |limits: &[u32]| {
            let apps = limits.iter().enumerate().map(|(n, limit)| {
                let app = named(&format!("n{n}"), "443", &[&format!("n{n}.example.com")]);
                let limit = NonZeroU32::new(*limit);
                change(&app, |app| app.limits.connections_per_source = limit)
            });
            let table = RouteTable::new(apps.collect());
            let to = "198.51.100.1:443".parse().unwrap();
            let candidates = table.candidates(Transport::Tcp, to).unwrap();
            candidates.waiting_per_source().unwrap().get()
        };
        assert_eq!(waiting(&[1, 10]), 64);
        assert_eq!(waiting(&[1, 5000, 10]), 5000);
        assert_eq!(waiting(&[1, 0]), 1024);
    }

    #[test]
    fn two_apps_with_one_name_at_one_place_conflict() {
        let apps = [
            named("a", "443", &["a.example.com", "*.x.example.com"]),
            named("b", "443", &["b.example.com", "*.x.example.com"]),
            named("elsewhere", "444", &["a.example.com"]),
            named("any", "443", &[]),
            named("other", "443", &[]),
        ];
        let found = conflicts(&apps.iter().collect::<Vec<_>>());
        let said: Vec<_> = found
            .iter()
            .map(|c| {
                (
                    c.first,
                    c.second,
                    c.name.as_ref().map(ToString::to_string),
                    c.position,
                )
            })
            .collect();
        assert_eq!(
            said,
            [
                (0, 1, Some("*.x.example.com".to_owned()), 1),
                (3, 4, None, 0)
            ]
        );
        // Ranges that only overlap are no shared place.
        let apps = [
            named("a", "1-10", &["a.example.com"]),
            named("b", "2-11", &["b.example.com"]),
        ];
        assert_eq!(conflicts(&apps.iter().collect::<Vec<_>>()).len(), 1);
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
