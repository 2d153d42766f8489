//! Links, and the addresses on them.

use std::time::Duration;

use ipnet::IpNet;
use nlink::netlink::link::{BridgeLink, VethLink};
use nlink::{Ipv4Address, Ipv6Address, LinkCond};

use crate::error::Result;
use crate::namespace::Namespace;
use crate::netlink::converse;

/// How long a virtual cable may take to come up once both of its ends are. It takes a few
/// milliseconds; this bounds a kernel that is starved of processor time.
const CARRIER_WITHIN: Duration = Duration::from_secs(10);

/// Joins two namespaces by a virtual cable, both ends up and able to carry traffic.
///
/// `a` and `b` are the namespace and the name of the end in it (at most 15 bytes). The two may be
/// one namespace. The link ends with either of its namespaces.
///
/// # Errors
///
/// Where a name is taken or not a link name, or the kernel refuses.
pub fn veth(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<()> {
    let (near, near_name) = a;
    let (far, far_name) = b;
    let cable = format!(
        "cable from {near_name:?} to {far_name:?} in namespace {:?}",
        far.label()
    );
    converse(near, &format!("making a {cable}"), |netlink| async move {
        netlink
            .add_link(VethLink::new(near_name, far_name).peer_netns_fd(far))
            .await
    })?;
    up(far, far_name)?;
    up(near, near_name)?;
    for (namespace, name) in [a, b] {
        converse(
            namespace,
            &format!("waiting for the {cable}"),
            |netlink| async move {
                netlink
                    .wait_link(name, LinkCond::OperUp, CARRIER_WITHIN)
                    .await
                    .map(drop)
            },
        )?;
    }
    Ok(())
}

/// Makes a bridge (a virtual switch) and brings it up.
///
/// # Errors
///
/// Where the name is taken or not a link name, or the kernel has no bridges.
pub fn bridge(namespace: &Namespace, name: &str) -> Result<()> {
    converse(
        namespace,
        &format!("making the bridge {name:?}"),
        |netlink| async move {
            netlink.add_link(BridgeLink::new(name)).await?;
            netlink.set_link_up(name).await
        },
    )
}

/// Makes the link `port` a port of `bridge`.
///
/// # Errors
///
/// Where one of them does not exist, or `bridge` is not a bridge.
pub fn add_bridge_port(namespace: &Namespace, bridge: &str, port: &str) -> Result<()> {
    converse(
        namespace,
        &format!("making {port:?} a port of {bridge:?}"),
        |netlink| async move { netlink.set_link_master(port, bridge).await },
    )
}

/// Brings a link up.
///
/// # Errors
///
/// Where it does not exist.
pub fn up(namespace: &Namespace, name: &str) -> Result<()> {
    converse(
        namespace,
        &format!("bringing {name:?} up"),
        |netlink| async move { netlink.set_link_up(name).await },
    )
}

/// Takes a link down: its routes go, its addresses stay (IPv6 addresses go too).
///
/// # Errors
///
/// Where it does not exist.
pub fn down(namespace: &Namespace, name: &str) -> Result<()> {
    converse(
        namespace,
        &format!("taking {name:?} down"),
        |netlink| async move { netlink.set_link_down(name).await },
    )
}

/// Adds an address, with the prefix length of the network it is in. It is usable at once: IPv6
/// addresses are added without duplicate address detection.
///
/// # Errors
///
/// Where the link does not exist or has the address already.
pub fn add_address(namespace: &Namespace, name: &str, address: IpNet) -> Result<()> {
    converse(
        namespace,
        &format!("adding {address} to {name:?}"),
        |netlink| async move {
            match address {
                IpNet::V4(net) => {
                    let config = Ipv4Address::new(name, net.addr(), net.prefix_len());
                    netlink.add_address(config).await
                }
                IpNet::V6(net) => {
                    let config = Ipv6Address::new(name, net.addr(), net.prefix_len()).nodad();
                    netlink.add_address(config).await
                }
            }
        },
    )
}
