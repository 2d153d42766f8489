//! Balancers, and more agents, in namespaces of their own.
//!
//! ```text
//!             edge ═══════ origins ═══════ origin 1, 2, …
//!              ║           ║     ║
//!           control ══ balancer  edge ── client
//! ```
//!
//! Each is in the place of an origin, the last ones of the topology, and has a second link, `control`, to
//! the config service and to the others. So it can be cut off from the origins only: its link
//! [`EDGE_LINK`] leads to nobody else.

use std::net::{IpAddr, Ipv4Addr};

use anyport_netns::topology::{
    CLIENT_LINK, CLIENT_V4, EDGE_LINK, EDGE_TO_CLIENT_V4, routed_prefixes,
};
use anyport_netns::{Namespace, Topology, link, route, route::NextHop};
use ipnet::{IpNet, Ipv4Net};

use super::{Plan, Result};

/// The link of each to the config service and to the others; of the edge's namespace, a bridge.
const CONTROL_LINK: &str = "control";
/// The edge's namespace, where the config service is, for them.
pub(super) const EDGE_TO_CONTROL: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);

/// Who is apart.
#[derive(Debug, Default)]
pub(super) struct Apart {
    balancers: Vec<Namespace>,
    edges: Vec<Edge>,
}

#[derive(Debug)]
struct Edge {
    namespace: Namespace,
    client: Namespace,
}

impl Plan {
    /// How many origins a topology needs for it.
    pub(super) fn hosts(&self) -> usize {
        self.origins + self.balancers + self.more_edges
    }
}

/// The address of a balancer for the config service, the agents and the other balancers.
pub(super) fn balancer(number: usize) -> Ipv4Addr {
    control(2 + number)
}

/// The address of an agent, from the second on.
fn edge(number: usize) -> Ipv4Addr {
    control(102 + number)
}

fn control(host: usize) -> Ipv4Addr {
    let [network @ .., _] = EDGE_TO_CONTROL.octets();
    let [a, b, c] = network;
    Ipv4Addr::new(a, b, c, u8::try_from(host).unwrap_or(u8::MAX))
}

impl Apart {
    pub(super) fn new(topology: &Topology, plan: &Plan) -> Result<Self> {
        let apart = plan.balancers + plan.more_edges;
        if apart == 0 {
            return Ok(Self::default());
        }
        let hub = topology.edge();
        let hosts = topology.origins();
        let hosts = &hosts[hosts.len().saturating_sub(apart)..];
        link::bridge(hub, CONTROL_LINK)?;
        let mut made = Self::default();
        for (index, host) in hosts.iter().enumerate() {
            let namespace = &host.namespace;
            let port = format!("control{index}");
            link::veth((namespace, CONTROL_LINK), (hub, &port))?;
            link::add_bridge_port(hub, CONTROL_LINK, &port)?;
            let address = match index.checked_sub(plan.balancers) {
                None => {
                    made.balancers.push(namespace.clone());
                    balancer(index)
                }
                Some(number) => {
                    made.edges.push(Edge::new(namespace, number)?);
                    edge(number)
                }
            };
            add_address(namespace, CONTROL_LINK, address)?;
        }
        add_address(hub, CONTROL_LINK, EDGE_TO_CONTROL)?;
        Ok(made)
    }

    pub(super) fn balancer(&self, number: usize) -> Option<&Namespace> {
        self.balancers.get(number)
    }

    pub(super) fn edge(&self, number: usize) -> Option<&Namespace> {
        self.edges.get(number).map(|edge| &edge.namespace)
    }

    /// Where clients of that edge are.
    pub(super) fn client(&self, number: usize) -> Option<&Namespace> {
        self.edges.get(number).map(|edge| &edge.client)
    }
}

impl Edge {
    /// With a client that sends it everything, as the topology's own has.
    fn new(namespace: &Namespace, number: usize) -> Result<Self> {
        let client = Namespace::new(&format!("client of edge {}", number + 2))?;
        link::veth((&client, EDGE_LINK), (namespace, CLIENT_LINK))?;
        add_address(&client, EDGE_LINK, CLIENT_V4)?;
        add_address(namespace, CLIENT_LINK, EDGE_TO_CLIENT_V4)?;
        for prefix in routed_prefixes() {
            if let IpNet::V4(_) = prefix {
                let gateway = NextHop::Gateway(IpAddr::V4(EDGE_TO_CLIENT_V4));
                route::add(&client, prefix, gateway)?;
            }
        }
        Ok(Self {
            namespace: namespace.clone(),
            client,
        })
    }
}

fn add_address(namespace: &Namespace, link: &str, address: Ipv4Addr) -> Result<()> {
    let network = IpNet::V4(Ipv4Net::new_assert(address, 24));
    Ok(link::add_address(namespace, link, network)?)
}
