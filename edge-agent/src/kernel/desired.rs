//! What the agent wants the kernel to do, and that wish in the shape in which
//! it is compared with what the kernel does.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
};

use anyport_model::{resource::Transport, steering::Claim};
use ipnet::IpNet;

use super::{return_path, sk_lookup::SteeredSockets};

/// How the kernel hands claimed ports over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steering {
    /// By an nftables table with TPROXY.
    Tproxy,
    /// By a BPF program on the network namespace.
    SkLookup,
}

impl Steering {
    pub fn as_str(self) -> &'static str {
        match self {
            Steering::Tproxy => "tproxy",
            Steering::SkLookup => "sk-lookup",
        }
    }
}

/// The whole wish: everything of ours that is in the kernel and not in here
/// goes away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// What is there of the other way is taken away once this one works.
    pub steering: Steering,
    /// Address space this host answers for. May nest; host bits are ignored.
    pub prefixes: Vec<IpNet>,
    /// What is steered to the listeners. The rectangles must not overlap: with
    /// TPROXY, the kernel refuses a set of intervals that do.
    pub claims: Vec<Claim>,
    /// Whether origins see the address of a client as their peer, and answer
    /// to it.
    pub return_path: bool,
    pub listeners: ListenerPorts,
    /// The sockets on those ports, which is what sk_lookup needs to know of
    /// them; TPROXY does not.
    pub sockets: SteeredSockets,
}

/// Where the agent listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerPorts {
    /// On 127.0.0.1.
    pub v4: FamilyPorts,
    /// On ::1; none where the host has no IPv6, and then the host does not
    /// answer for prefixes of IPv6 either.
    pub v6: Option<FamilyPorts>,
}

/// The ports of the agent's listeners on one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyPorts {
    pub tcp: NonZeroU16,
    pub udp: NonZeroU16,
}

/// One of the two address families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ip {
    V4,
    V6,
}

impl Ip {
    pub(crate) const BOTH: [Ip; 2] = [Ip::V4, Ip::V6];

    /// Where the agent listens, and the source that the host's own clients
    /// take towards an owned prefix.
    pub(crate) fn loopback(self) -> IpAddr {
        match self {
            Ip::V4 => Ipv4Addr::LOCALHOST.into(),
            Ip::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    pub(crate) fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Ip::V4 } else { Ip::V6 }
    }
}

/// What is steered alike: one transport over one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lane {
    pub(crate) transport: Transport,
    pub(crate) ip: Ip,
}

impl Lane {
    pub(crate) const ALL: [Lane; 4] = [
        Lane::new(Transport::Tcp, Ip::V4),
        Lane::new(Transport::Tcp, Ip::V6),
        Lane::new(Transport::Udp, Ip::V4),
        Lane::new(Transport::Udp, Ip::V6),
    ];

    pub(crate) const fn new(transport: Transport, ip: Ip) -> Self {
        Self { transport, ip }
    }
}

/// One value for each [`Lane`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PerLane<T> {
    tcp4: T,
    tcp6: T,
    udp4: T,
    udp6: T,
}

impl<T> PerLane<T> {
    pub(crate) fn from_fn(mut value: impl FnMut(Lane) -> T) -> Self {
        let [tcp4, tcp6, udp4, udp6] = Lane::ALL.map(&mut value);
        Self {
            tcp4,
            tcp6,
            udp4,
            udp6,
        }
    }

    pub(crate) fn get(&self, lane: Lane) -> &T {
        match (lane.transport, lane.ip) {
            (Transport::Tcp, Ip::V4) => &self.tcp4,
            (Transport::Tcp, Ip::V6) => &self.tcp6,
            (Transport::Udp, Ip::V4) => &self.udp4,
            (Transport::Udp, Ip::V6) => &self.udp6,
        }
    }

    pub(crate) fn get_mut(&mut self, lane: Lane) -> &mut T {
        match (lane.transport, lane.ip) {
            (Transport::Tcp, Ip::V4) => &mut self.tcp4,
            (Transport::Tcp, Ip::V6) => &mut self.tcp6,
            (Transport::Udp, Ip::V4) => &mut self.udp4,
            (Transport::Udp, Ip::V6) => &mut self.udp6,
        }
    }
}

/// A rectangle of addresses and ports as an interval set holds it, both ends
/// included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Element {
    pub(crate) addresses: (IpAddr, IpAddr),
    pub(crate) ports: (u16, u16),
}

impl From<&Claim> for Element {
    fn from(claim: &Claim) -> Self {
        Self {
            addresses: (claim.net.network(), claim.net.broadcast()),
            ports: (claim.ports.first(), claim.ports.last()),
        }
    }
}

/// [`Desired`], each fact once and in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Goal {
    pub(crate) steering: Steering,
    pub(crate) routes: BTreeSet<IpNet>,
    /// Prefixes that are no longer wanted and still routed, for connections
    /// that were open when they were removed.
    pub(crate) lingering: BTreeSet<IpNet>,
    /// Prefixes of a family that nothing listens for.
    pub(crate) without_listener: BTreeSet<IpNet>,
    pub(crate) elements: PerLane<BTreeSet<Element>>,
    pub(crate) listeners: PerLane<Option<NonZeroU16>>,
    pub(crate) sockets: SteeredSockets,
    pub(crate) return_path: return_path::Wanted,
}

impl From<&Desired> for Goal {
    fn from(desired: &Desired) -> Self {
        let mut elements = PerLane::<BTreeSet<Element>>::default();
        for claim in &desired.claims {
            let lane = Lane::new(claim.transport, Ip::of(claim.net.addr()));
            elements.get_mut(lane).insert(Element::from(claim));
        }
        let of_family = |ip| match ip {
            Ip::V4 => Some(desired.listeners.v4),
            Ip::V6 => desired.listeners.v6,
        };
        let listeners = PerLane::from_fn(|lane| {
            let ports = of_family(lane.ip)?;
            Some(match lane.transport {
                Transport::Tcp => ports.tcp,
                Transport::Udp => ports.udp,
            })
        });
        let prefixes = desired.prefixes.iter().map(IpNet::trunc);
        let (routes, without_listener) =
            prefixes.partition(|net| of_family(Ip::of(net.addr())).is_some());
        Self {
            steering: desired.steering,
            routes,
            lingering: BTreeSet::new(),
            without_listener,
            elements,
            listeners,
            sockets: desired.sockets.clone(),
            return_path: return_path::Wanted {
                v4: desired.return_path,
                v6: desired.return_path && of_family(Ip::V6).is_some(),
            },
        }
    }
}
