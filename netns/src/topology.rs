//! The network that the demo and the tests run in.
//!
//! ```text
//!  client ─────────────── edge ═══════════ origin 1
//!  10.0.1.2        10.0.1.1  10.0.2.1  ║   10.0.2.2
//!  fd00:1::2     fd00:1::1  fd00:2::1  ║   fd00:2::2
//!                                      ╚══ origin 2
//!                                          10.0.2.3, fd00:2::3   …
//! ```
//!
//! The client sends everything for [`routed_prefixes`] to the edge, as an upstream router would;
//! nobody there answers until an edge agent does. The origins reach everything else through the
//! edge, so that a connection that carries the client's own address finds its way back. The edge
//! does not forward: what it does not terminate goes nowhere.
//!
//! Each link is named for what is at its other end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::{Error, Result};
use crate::mounts::Mounts;
use crate::namespace::Namespace;
use crate::route::NextHop;
use crate::{link, route, sysctl};

/// The client's addresses.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
/// See [`CLIENT_V4`].
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
/// The edge's addresses towards the client.
pub const EDGE_TO_CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// See [`EDGE_TO_CLIENT_V4`].
pub const EDGE_TO_CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
/// The edge's addresses towards the origins.
pub const EDGE_TO_ORIGINS_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
/// See [`EDGE_TO_ORIGINS_V4`].
pub const EDGE_TO_ORIGINS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1);

/// The edge's link to the client.
pub const CLIENT_LINK: &str = "client";
/// The edge's link to the origins, a bridge; `origin1`, `origin2`, … are its ports.
pub const ORIGINS_LINK: &str = "origins";
/// The only link of the client and of each origin.
pub const EDGE_LINK: &str = "edge";

/// Origins are 10.0.2.2 to 10.0.2.254.
const MOST_ORIGINS: usize = 253;

const V4_PREFIX_LEN: u8 = 24;
const V6_PREFIX_LEN: u8 = 64;

/// The prefixes that the client routes to the edge. They are set aside for documentation
/// (RFC 5737, RFC 3849), so that nothing real is ever shadowed.
pub fn routed_prefixes() -> [IpNet; 3] {
    [
        v4(Ipv4Addr::new(198, 51, 100, 0), V4_PREFIX_LEN),
        v4(Ipv4Addr::new(203, 0, 113, 0), V4_PREFIX_LEN),
        v6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0), 48),
    ]
}

/// A client, an edge and some origins, each in a namespace of its own.
#[derive(Debug)]
pub struct Topology {
    client: Namespace,
    edge: Namespace,
    origins: Vec<Origin>,
}

/// A namespace for an origin server, and its addresses.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Where to run the server.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Topology {
    /// Makes the network with `origins` origins, ready to use.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without root, [`Error::TooManyOrigins`] for more than 253.
    pub fn new(origins: usize) -> Result<Self> {
        Self::with_mounts(origins, &Mounts::new()?)
    }

    /// The same, with mounts for the edge that another one has had, with what is pinned there.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_mounts(origins: usize, mounts: &Mounts) -> Result<Self> {
        if origins > MOST_ORIGINS {
            return Err(Error::TooManyOrigins {
                asked: origins,
                most: MOST_ORIGINS,
            });
        }
        let client = Namespace::new("client")?;
        let edge = Namespace::new("edge")?.with_mounts(mounts)?;
        for namespace in [&client, &edge] {
            accept_any_return_path(namespace)?;
        }
        for forwarding in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            sysctl::set(&edge, forwarding, "0")?;
        }
        link::veth((&client, EDGE_LINK), (&edge, CLIENT_LINK))?;
        address(&client, EDGE_LINK, CLIENT_V4, CLIENT_V6)?;
        address(&edge, CLIENT_LINK, EDGE_TO_CLIENT_V4, EDGE_TO_CLIENT_V6)?;
        for prefix in routed_prefixes() {
            let gateway = match prefix {
                IpNet::V4(_) => EDGE_TO_CLIENT_V4.into(),
                IpNet::V6(_) => EDGE_TO_CLIENT_V6.into(),
            };
            route::add(&client, prefix, NextHop::Gateway(gateway))?;
        }
        link::bridge(&edge, ORIGINS_LINK)?;
        let origins = (2..).take(origins).map(|host| Origin::new(&edge, host));
        let origins = origins.collect::<Result<_>>()?;
        // After the ports: an IPv6 address on a bridge without any is not usable yet.
        address(&edge, ORIGINS_LINK, EDGE_TO_ORIGINS_V4, EDGE_TO_ORIGINS_V6)?;
        Ok(Self {
            client,
            edge,
            origins,
        })
    }

    /// Where clients run.
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// Where the edge agent runs: with mounts of its own, so that what it pins for BPF is nobody
    /// else's.
    pub fn edge(&self) -> &Namespace {
        &self.edge
    }

    /// Where the origin servers run, by rising address.
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }
}

impl Origin {
    /// `host` is the last byte of its IPv4 address.
    fn new(edge: &Namespace, host: u8) -> Result<Self> {
        let number = host - 1;
        let namespace = Namespace::new(&format!("origin {number}"))?;
        accept_any_return_path(&namespace)?;
        let port = format!("origin{number}");
        link::veth((&namespace, EDGE_LINK), (edge, &port))?;
        link::add_bridge_port(edge, ORIGINS_LINK, &port)?;
        let origin = Self {
            namespace,
            v4: Ipv4Addr::new(10, 0, 2, host),
            v6: Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, u16::from(host)),
        };
        address(&origin.namespace, EDGE_LINK, origin.v4, origin.v6)?;
        for (everywhere, edge) in [
            (IpNet::V4(Ipv4Net::default()), EDGE_TO_ORIGINS_V4.into()),
            (IpNet::V6(Ipv6Net::default()), EDGE_TO_ORIGINS_V6.into()),
        ] {
            route::add(&origin.namespace, everywhere, NextHop::Gateway(edge))?;
        }
        Ok(origin)
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// New namespaces copy the host's IPv4 settings; a strict reverse path filter there must not decide
/// what can be shown here.
fn accept_any_return_path(namespace: &Namespace) -> Result<()> {
    for scope in ["all", "default"] {
        sysctl::set(namespace, &format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    Ok(())
}

fn address(namespace: &Namespace, link: &str, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Result<()> {
    link::add_address(namespace, link, v4(ipv4, V4_PREFIX_LEN))?;
    link::add_address(namespace, link, v6(ipv6, V6_PREFIX_LEN))
}

fn v4(address: Ipv4Addr, prefix_len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, prefix_len))
}

fn v6(address: Ipv6Addr, prefix_len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(address, prefix_len))
}
