//! What the agent wants the kernel to do, and that wish in the shape in which
//! it is compared with what the kernel does.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
};

use anyport_model::steering::Claim;
use ipnet::IpNet;

/// The whole wish: everything of ours that is in the kernel and not in here
/// goes away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Address space this host answers for. May nest; host bits are ignored.
    pub prefixes: Vec<IpNet>,
    /// What is steered to the listeners. The rectangles must not overlap: the
    /// kernel refuses a set of intervals that do.
    pub tcp_claims: Vec<Claim>,
    /// Port of the agent's listener on 127.0.0.1.
    pub listener_v4: NonZeroU16,
    /// Port of the agent's listener on ::1; none where the host has no IPv6,
    /// and then the host does not answer for prefixes of IPv6 either.
    pub listener_v6: Option<NonZeroU16>,
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

/// One value for each address family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PerFamily<T> {
    pub(crate) v4: T,
    pub(crate) v6: T,
}

impl<T> PerFamily<T> {
    pub(crate) fn get(&self, ip: Ip) -> &T {
        match ip {
            Ip::V4 => &self.v4,
            Ip::V6 => &self.v6,
        }
    }

    pub(crate) fn get_mut(&mut self, ip: Ip) -> &mut T {
        match ip {
            Ip::V4 => &mut self.v4,
            Ip::V6 => &mut self.v6,
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
    pub(crate) routes: BTreeSet<IpNet>,
    /// Prefixes of a family that nothing listens for.
    pub(crate) without_listener: BTreeSet<IpNet>,
    pub(crate) elements: PerFamily<BTreeSet<Element>>,
    pub(crate) listeners: PerFamily<Option<NonZeroU16>>,
}

impl From<&Desired> for Goal {
    fn from(desired: &Desired) -> Self {
        let mut elements = PerFamily::<BTreeSet<Element>>::default();
        for claim in &desired.tcp_claims {
            let ip = Ip::of(claim.net.addr());
            elements.get_mut(ip).insert(Element::from(claim));
        }
        let listeners = PerFamily {
            v4: Some(desired.listener_v4),
            v6: desired.listener_v6,
        };
        let prefixes = desired.prefixes.iter().map(IpNet::trunc);
        let (routes, without_listener) =
            prefixes.partition(|net| listeners.get(Ip::of(net.addr())).is_some());
        Self {
            routes,
            without_listener,
            elements,
            listeners,
        }
    }
}
