//! AnyIP: a `local` route per prefix on `lo`, which makes the host answer for
//! every address in it without holding any.
//!
//! The routes carry a protocol number of our own, by which they are told from
//! everyone else's. Each names the loopback address as preferred source, which
//! is for clients on the edge host itself: without it such a client takes the
//! very address that it dials as its own. Access rules would then see an owned
//! address as the source, and the answers, going to an owned address, would
//! meet the steering rule as well; nftables lets them through today because
//! the client's socket is not transparent, iptables does not. Clients from
//! outside are not affected.

use std::net::IpAddr;

use ipnet::IpNet;
use nlink::{
    Connection, Route,
    netlink::{
        FromNetlink, InterfaceRef, MessageBuilder, NlMsgType,
        messages::RouteMessage,
        parse::PResult,
        route::{ResolvedRouteInterfaces, RouteConfig},
        types::route::{RouteScope, RouteType, RtMsg, RtaAttr},
    },
};

use super::{
    desired::Ip,
    error::KernelError,
    observed::{ObservedRoute, RouteKey},
    plan::RouteStep,
};

/// Our mark on routes, as `ip route show table local proto 65` takes it.
///
/// Numbers from 5 up are free for user space; this one is in neither
/// `linux/rtnetlink.h` nor iproute2's `rt_protos`.
pub(crate) const ROUTE_PROTOCOL: u8 = 65;

/// `RT_TABLE_LOCAL`, the table that is consulted first for every packet.
pub(crate) const LOCAL_TABLE: u8 = 255;

/// `lo` is the first interface of every network namespace.
pub(super) const LOOPBACK_INTERFACE: u32 = 1;

/// What the kernel gives an IPv6 route that asks for no metric. Asked for
/// explicitly, so that what is read back can be compared.
const V6_METRIC: u32 = 1024;

pub(super) const NO_SUCH_TABLE: [i32; 3] = [libc::ENOENT, libc::EOPNOTSUPP, libc::EAFNOSUPPORT];

/// Reads the local table.
pub(crate) async fn observe(
    netlink: &Connection<Route>,
) -> Result<Vec<ObservedRoute>, KernelError> {
    let mut routes = read::<false>(netlink).await?;
    routes.extend(read::<true>(netlink).await?);
    Ok(routes)
}

async fn read<const V6: bool>(
    netlink: &Connection<Route>,
) -> Result<Vec<ObservedRoute>, KernelError> {
    match netlink
        .dump_typed::<LocalTable<V6>>(NlMsgType::RTM_GETROUTE)
        .await
    {
        Ok(routes) => Ok(routes
            .iter()
            .filter_map(|route| observed(&route.0))
            .collect()),
        // The table comes into being with the first address of the family,
        // and never where the kernel runs without IPv6.
        Err(error) if NO_SUCH_TABLE.map(Some).contains(&error.errno()) => Ok(Vec::new()),
        Err(source) => Err(KernelError::netlink(
            "reading the local routing table",
            source,
        )),
    }
}

/// Adding fails with EEXIST where a route of the same prefix and metric is:
/// then the table is no longer as it was observed.
pub(crate) async fn add(netlink: &Connection<Route>, step: RouteStep) -> nlink::Result<()> {
    match step {
        RouteStep::Add(net) => netlink.add_route(LocalRoute::ours(net)).await,
        RouteStep::Replace(net) => netlink.replace_route(LocalRoute::ours(net)).await,
    }
}

/// A route that is gone already is as good as removed.
pub(crate) async fn remove(
    netlink: &Connection<Route>,
    route: &ObservedRoute,
) -> nlink::Result<()> {
    let route = LocalRoute {
        net: route.net,
        key: route.key,
        source: None,
    };
    netlink.del_route_if_exists(route).await.map(|_| ())
}

fn observed(message: &RouteMessage) -> Option<ObservedRoute> {
    // Kernels before 5.0 ignore the filter of the request.
    if message.table_id() != u32::from(LOCAL_TABLE) {
        return None;
    }
    // The default route has no destination attribute.
    let any = if message.is_ipv4() {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0; 16])
    };
    let address = message.destination().copied().unwrap_or(any);
    let net = IpNet::new(address, message.dst_len()).ok()?;
    let ours = LocalRoute::ours(net);
    let key = RouteKey {
        kind: message.route_type() as u8,
        scope: message.scope() as u8,
        metric: message.priority().filter(|&metric| metric != 0),
        interface: message.oif(),
    };
    Some(ObservedRoute {
        net,
        ours: message.protocol().number() == ROUTE_PROTOCOL,
        local: message.route_type() == RouteType::Local,
        right: key == ours.key && message.prefsrc().copied() == ours.source,
        in_place: key.metric == ours.key.metric,
        key,
    })
}

/// A route of the local table in the form that the kernel is sent.
struct LocalRoute {
    net: IpNet,
    key: RouteKey,
    source: Option<IpAddr>,
}

impl LocalRoute {
    fn ours(net: IpNet) -> Self {
        // IPv6 has no scopes of routes; the kernel reports every one as
        // universal.
        let (scope, metric) = match Ip::of(net.addr()) {
            Ip::V4 => (RouteScope::Host, None),
            Ip::V6 => (RouteScope::Universe, Some(V6_METRIC)),
        };
        Self {
            net,
            key: RouteKey {
                kind: RouteType::Local as u8,
                scope: scope as u8,
                metric,
                interface: Some(LOOPBACK_INTERFACE),
            },
            source: Some(Ip::of(net.addr()).loopback()),
        }
    }

    fn write(&self, message: &mut MessageBuilder) {
        let header = RtMsg::new()
            .with_family(self.family())
            .with_dst_len(self.net.prefix_len())
            .with_table(LOCAL_TABLE)
            .with_protocol(ROUTE_PROTOCOL)
            .with_scope(self.key.scope)
            .with_type(self.key.kind);
        message.append(&header);
        append_address(message, RtaAttr::Dst, self.net.addr());
        if let Some(source) = self.source {
            append_address(message, RtaAttr::Prefsrc, source);
        }
        if let Some(interface) = self.key.interface {
            message.append_attr_u32(RtaAttr::Oif as u16, interface);
        }
        if let Some(metric) = self.key.metric {
            message.append_attr_u32(RtaAttr::Priority as u16, metric);
        }
    }
}

fn append_address(message: &mut MessageBuilder, attribute: RtaAttr, address: IpAddr) {
    match address {
        IpAddr::V4(address) => message.append_attr(attribute as u16, &address.octets()),
        IpAddr::V6(address) => message.append_attr(attribute as u16, &address.octets()),
    };
}

impl RouteConfig for LocalRoute {
    fn device_ref(&self) -> Option<&InterfaceRef> {
        None
    }

    fn multipath_device_refs(&self) -> Vec<Option<&InterfaceRef>> {
        Vec::new()
    }

    fn family(&self) -> u8 {
        family(Ip::of(self.net.addr()))
    }

    fn write_add(&self, builder: &mut MessageBuilder, _: &ResolvedRouteInterfaces) {
        self.write(builder);
    }

    fn write_delete(&self, builder: &mut MessageBuilder) {
        self.write(builder);
    }
}

pub(super) fn family(ip: Ip) -> u8 {
    let family = match ip {
        Ip::V4 => libc::AF_INET,
        Ip::V6 => libc::AF_INET6,
    };
    // Both numbers are below 256 by the ABI of `struct rtmsg`.
    u8::try_from(family).unwrap_or_default()
}

/// A route read by a request for one family's local table alone. On a host
/// that carries the routes of the whole internet in its main table, reading
/// all of them every few seconds would be no small matter.
struct LocalTable<const V6: bool>(RouteMessage);

impl<const V6: bool> FromNetlink for LocalTable<V6> {
    fn parse(input: &mut &[u8]) -> PResult<Self> {
        RouteMessage::parse(input).map(Self)
    }

    fn write_dump_header(buffer: &mut Vec<u8>) {
        let ip = if V6 { Ip::V6 } else { Ip::V4 };
        let header = RtMsg::new().with_family(family(ip)).with_table(LOCAL_TABLE);
        buffer.extend_from_slice(header.as_bytes());
    }
}
