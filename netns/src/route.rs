//! Routes of a namespace's main table.

use std::net::IpAddr;

use ipnet::IpNet;
use nlink::{Ipv4Route, Ipv6Route};

use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::netlink::converse;

/// Where packets for a destination go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop<'a> {
    /// To a neighbour, by its address.
    Gateway(IpAddr),
    /// Straight onto a link, by its name.
    Link(&'a str),
}

/// Adds a route to `to`, whose host bits are ignored.
///
/// # Errors
///
/// Where the gateway cannot be reached, the link does not exist, or the route is there already.
pub fn add(namespace: &Namespace, to: IpNet, next: NextHop<'_>) -> Result<()> {
    let to = to.trunc();
    if let (IpNet::V6(_), NextHop::Gateway(gateway @ IpAddr::V4(_))) = (to, next) {
        return Err(Error::GatewayFamily { to, gateway });
    }
    converse(
        namespace,
        &format!("adding a route to {to} by {next:?}"),
        |netlink| async move {
            match to {
                IpNet::V4(net) => {
                    let route = Ipv4Route::new(net.addr(), net.prefix_len());
                    let route = match next {
                        NextHop::Gateway(IpAddr::V4(gateway)) => route.gateway(gateway),
                        NextHop::Gateway(IpAddr::V6(gateway)) => route.gateway_v6(gateway),
                        NextHop::Link(name) => route.dev(name),
                    };
                    netlink.add_route(route).await
                }
                IpNet::V6(net) => {
                    let route = Ipv6Route::new(net.addr(), net.prefix_len());
                    let route = match next {
                        NextHop::Gateway(IpAddr::V6(gateway)) => route.gateway(gateway),
                        // Refused above.
                        NextHop::Gateway(IpAddr::V4(_)) => route,
                        NextHop::Link(name) => route.dev(name),
                    };
                    netlink.add_route(route).await
                }
            }
        },
    )
}
