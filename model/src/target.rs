//! What no connection to an origin may be made to, whoever asks for it: the
//! edge itself, the prefixes of the fleet, credentials of the host, and what
//! is no single host at all. Asked when a resource is declared and again of
//! the very address that is about to be dialled, since a name may resolve to
//! anything, and to something else a moment later.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;

use crate::net_set::NetSet;

/// How an address came to be an origin's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An operator wrote it down, in a pool or in `origin_direct`.
    Declared,
    /// A name server answered with it.
    Resolved,
}

/// Why an address is no origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forbidden {
    /// In 0.0.0.0/8 or `::`, which Linux takes for this host.
    Unspecified,
    /// Multicast or broadcast.
    NoSingleHost,
    /// Where a cloud gives a host its credentials.
    Metadata,
    LinkLocal,
    /// Loopback that nobody declared.
    Loopback,
    /// In a prefix of the fleet: the connection would come back to an edge.
    Prefix(IpNet),
    /// A socket of this agent.
    OwnSocket,
    /// A config service or balancer that this agent talks to.
    ControlPlane,
}

impl Forbidden {
    /// What [`as_str`](Self::as_str) says.
    pub const WORDS: [&str; 8] = [
        "unspecified",
        "no_single_host",
        "metadata",
        "link_local",
        "loopback",
        "prefix",
        "own_socket",
        "control_plane",
    ];

    /// The word for it in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Forbidden::Unspecified => "unspecified",
            Forbidden::NoSingleHost => "no_single_host",
            Forbidden::Metadata => "metadata",
            Forbidden::LinkLocal => "link_local",
            Forbidden::Loopback => "loopback",
            Forbidden::Prefix(_) => "prefix",
            Forbidden::OwnSocket => "own_socket",
            Forbidden::ControlPlane => "control_plane",
        }
    }
}

/// Follows the address in a sentence: `10.0.0.1 is …`.
impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Forbidden::Unspecified => {
                f.write_str("is an unspecified address; an origin has an address of its own")
            }
            Forbidden::NoSingleHost => f.write_str("is no address of a single host"),
            Forbidden::Metadata => {
                f.write_str("is a cloud's metadata service, which is never an origin")
            }
            Forbidden::LinkLocal => {
                f.write_str("is a link-local address, which is never an origin")
            }
            Forbidden::Loopback => {
                f.write_str("is loopback, which is an origin only where it is declared literally")
            }
            Forbidden::Prefix(prefix) => write!(
                f,
                "is in the prefix {prefix}, so connections would come back to the edge"
            ),
            Forbidden::OwnSocket => f.write_str("is the edge agent itself"),
            Forbidden::ControlPlane => f.write_str("is the control plane of this edge"),
        }
    }
}

/// Why `ip` is no origin on any host. The address is judged by where packets
/// to it end up, so all spellings of an address are judged alike.
pub fn forbidden(ip: IpAddr, source: Source) -> Option<Forbidden> {
    match real(ip) {
        IpAddr::V4(ip) => forbidden_v4(ip, source),
        IpAddr::V6(ip) => forbidden_v6(ip, source),
    }
}

/// The IPv4 address that an IPv6 address stands for, where it does.
fn real(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => embedded(v6).map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

/// Mapped (RFC 4291 2.5.5.2), compatible (2.5.5.1), translated (RFC 2765),
/// NAT64's well-known and local prefixes (RFC 6052, RFC 8215), 6to4 (RFC 3056).
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let last = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => Some(last(high, low)),
        [0, 0, 0, 0, 0xffff, 0, high, low] => Some(last(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(last(high, low)),
        [0x64, 0xff9b, 1, _, _, _, high, low] => Some(last(high, low)),
        [0x2002, high, low, ..] => Some(last(high, low)),
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => Some(last(high, low)),
        _ => None,
    }
}

/// Where clouds answer for credentials outside of link-local space: Alibaba,
/// Oracle, Azure.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];

/// In link-local space they are told apart for the message only: Amazon and
/// most others, Amazon's containers, Scaleway.
const METADATA_LINK_LOCAL: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(169, 254, 42, 42),
];

/// Amazon (instances, pods), Google, Scaleway.
const METADATA_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

fn forbidden_v4(ip: Ipv4Addr, source: Source) -> Option<Forbidden> {
    if ip.octets()[0] == 0 {
        Some(Forbidden::Unspecified)
    } else if ip.is_multicast() || ip.is_broadcast() {
        Some(Forbidden::NoSingleHost)
    } else if METADATA_V4.contains(&ip) || METADATA_LINK_LOCAL.contains(&ip) {
        Some(Forbidden::Metadata)
    } else if ip.is_link_local() {
        Some(Forbidden::LinkLocal)
    } else {
        (ip.is_loopback() && source == Source::Resolved).then_some(Forbidden::Loopback)
    }
}

fn forbidden_v6(ip: Ipv6Addr, source: Source) -> Option<Forbidden> {
    if ip.is_unspecified() {
        Some(Forbidden::Unspecified)
    } else if ip.is_multicast() {
        Some(Forbidden::NoSingleHost)
    } else if METADATA_V6.contains(&ip) {
        Some(Forbidden::Metadata)
    } else if ip.is_unicast_link_local() {
        Some(Forbidden::LinkLocal)
    } else {
        (ip.is_loopback() && source == Source::Resolved).then_some(Forbidden::Loopback)
    }
}

/// What is forbidden to one who answers for prefixes and has sockets.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    prefixes: NetSet,
    own: Vec<SocketAddr>,
    control_plane: Vec<SocketAddr>,
}

impl Rules {
    /// `own` and `control_plane` name single sockets: an origin may share a
    /// host with either.
    pub fn new(
        prefixes: NetSet,
        own: impl IntoIterator<Item = SocketAddr>,
        control_plane: impl IntoIterator<Item = SocketAddr>,
    ) -> Self {
        Self {
            prefixes,
            own: own.into_iter().map(canonical).collect(),
            control_plane: control_plane.into_iter().map(canonical).collect(),
        }
    }

    /// Why nothing may be dialled at `ip`, on any port.
    pub fn forbid_address(&self, ip: IpAddr, source: Source) -> Option<Forbidden> {
        forbidden(ip, source).or_else(|| {
            // Both as it is written and as what it stands for: a prefix may
            // itself lie in the space of a translator.
            let spellings = [ip, real(ip)];
            let mut inside = spellings
                .iter()
                .filter_map(|ip| self.prefixes.covering(&IpNet::from(*ip)));
            inside.next().map(Forbidden::Prefix)
        })
    }

    /// Why no connection may be made to `target`.
    pub fn forbid(&self, target: SocketAddr, source: Source) -> Option<Forbidden> {
        self.forbid_address(target.ip(), source).or_else(|| {
            let target = canonical(target);
            if self.own.contains(&target) {
                Some(Forbidden::OwnSocket)
            } else {
                let found = self.control_plane.contains(&target);
                found.then_some(Forbidden::ControlPlane)
            }
        })
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(real(address.ip()), address.port())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn word(ip: &str, source: Source) -> &'static str {
        let ip = ip.parse().unwrap();
        forbidden(ip, source).map_or("", Forbidden::as_str)
    }

    /// Every way to write an IPv4 address as an IPv6 one that some host takes
    /// for it.
    fn spellings(v4: &str) -> Vec<String> {
        let [a, b, c, d] = v4.parse::<Ipv4Addr>().unwrap().octets();
        vec![
            v4.to_owned(),
            format!("::ffff:{v4}"),
            format!("::ffff:{a:02x}{b:02x}:{c:02x}{d:02x}"),
            format!("0:0:0:0:0:FFFF:{v4}"),
            format!("::{v4}"),
            format!("::ffff:0:{v4}"),
            format!("64:ff9b::{v4}"),
            format!("64:ff9b:1::{v4}"),
            format!("64:ff9b:1:2:3:4:{v4}"),
            format!("2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1"),
        ]
    }

    #[test]
    fn every_spelling_of_a_forbidden_address_is_forbidden() {
        for (v4, declared, resolved) in [
            ("0.1.2.3", "unspecified", "unspecified"),
            ("224.0.0.1", "no_single_host", "no_single_host"),
            ("239.255.255.255", "no_single_host", "no_single_host"),
            ("255.255.255.255", "no_single_host", "no_single_host"),
            ("169.254.169.254", "metadata", "metadata"),
            ("169.254.170.2", "metadata", "metadata"),
            ("100.100.100.200", "metadata", "metadata"),
            ("192.0.0.192", "metadata", "metadata"),
            ("168.63.129.16", "metadata", "metadata"),
            ("169.254.0.1", "link_local", "link_local"),
            ("169.254.255.255", "link_local", "link_local"),
            ("127.0.0.1", "", "loopback"),
            ("127.255.255.254", "", "loopback"),
            ("10.0.2.2", "", ""),
            ("169.253.255.255", "", ""),
            ("169.255.0.0", "", ""),
            ("128.0.0.1", "", ""),
            ("240.0.0.1", "", ""),
            ("1.0.0.0", "", ""),
        ] {
            for spelling in spellings(v4) {
                assert_eq!(word(&spelling, Source::Declared), declared, "{spelling}");
                assert_eq!(word(&spelling, Source::Resolved), resolved, "{spelling}");
            }
        }
        for (v6, declared, resolved) in [
            ("::", "unspecified", "unspecified"),
            ("::1", "", "loopback"),
            ("0:0:0:0:0:0:0:1", "", "loopback"),
            ("fe80::1", "link_local", "link_local"),
            ("febf:ffff::1", "link_local", "link_local"),
            ("fec0::1", "", ""),
            ("ff02::1", "no_single_host", "no_single_host"),
            ("fd00:ec2::254", "metadata", "metadata"),
            ("FD00:0EC2:0::0254", "metadata", "metadata"),
            ("fd20:ce::254", "metadata", "metadata"),
            ("fd00:ec2::255", "", ""),
            ("2001:db8::1", "", ""),
            ("64:ff9b:2::169.254.169.254", "", ""),
        ] {
            assert_eq!(word(v6, Source::Declared), declared, "{v6}");
            assert_eq!(word(v6, Source::Resolved), resolved, "{v6}");
        }
        // Of `::/96`, two are no IPv4 address at all.
        assert_eq!(word("::0.0.0.0", Source::Declared), "unspecified");
        assert_eq!(word("::ffff:0.0.0.0", Source::Declared), "unspecified");
    }

    fn rules() -> Rules {
        let prefixes = ["198.51.100.0/24", "2001:db8:51::/64", "203.0.113.7/32"];
        Rules::new(
            NetSet::new(prefixes.iter().map(|net| net.parse().unwrap())),
            ["127.0.0.1:7420", "[::1]:40000"].map(|a| a.parse().unwrap()),
            ["10.0.0.2:7400", "[::ffff:10.0.0.3]:7410"].map(|a| a.parse().unwrap()),
        )
    }

    #[test]
    fn loops_and_the_agents_own_sockets_are_found_at_the_address_that_is_dialled() {
        let rules = rules();
        for (target, word) in [
            ("198.51.100.9:80", "prefix"),
            ("[::ffff:198.51.100.9]:80", "prefix"),
            ("[64:ff9b::198.51.100.9]:80", "prefix"),
            ("[2001:db8:51::ffff]:1", "prefix"),
            ("203.0.113.7:1", "prefix"),
            ("203.0.113.8:1", ""),
            ("127.0.0.1:7420", "own_socket"),
            ("[::ffff:127.0.0.1]:7420", "own_socket"),
            ("127.0.0.1:7421", ""),
            ("[::1]:40000", "own_socket"),
            ("10.0.0.2:7400", "control_plane"),
            ("10.0.0.3:7410", "control_plane"),
            ("10.0.0.2:7410", ""),
        ] {
            let found = rules.forbid(target.parse().unwrap(), Source::Declared);
            assert_eq!(found.map_or("", Forbidden::as_str), word, "{target}");
        }
    }

    proptest! {
        #[test]
        fn all_spellings_of_any_address_are_judged_alike(
            octets: [u8; 4], port: u16, resolved: bool,
        ) {
            let source = if resolved { Source::Resolved } else { Source::Declared };
            let v4 = Ipv4Addr::from(octets);
            let judged = |ip: &str| {
                let target = SocketAddr::new(ip.parse().unwrap(), port);
                rules().forbid(target, source)
            };
            let plain = judged(&v4.to_string());
            // `::0.0.0.0` and `::0.0.0.1` are IPv6's own.
            prop_assume!(u32::from(v4) > 1);
            for spelling in spellings(&v4.to_string()) {
                prop_assert_eq!(judged(&spelling), plain, "{}", spelling);
            }
        }

        #[test]
        fn no_address_of_a_prefix_is_ever_dialled(host: u8, port: u16) {
            let target = SocketAddr::from(([198, 51, 100, host], port));
            prop_assert!(rules().forbid(target, Source::Declared).is_some());
        }
    }
}
