//! The processes of a cluster: their programs, flags and ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyport_netns::topology::EDGE_TO_CLIENT_V4;

use super::{Plan, apart, certs};

/// A process of the cluster, in the order in which they are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// The store, with [`Store::Etcd`].
    Etcd,
    /// A replica of the config service.
    ConfigService(Replica),
    /// The balancer.
    Balancer,
    /// One of several balancers, by its number from 0, in a namespace of its own.
    BalancerApart(usize),
    /// The edge agent.
    EdgeAgent,
    /// Another agent, by its number from 0, in a namespace of its own.
    EdgeApart(usize),
}

/// Where the config service keeps its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// In a file, so there is one replica.
    Embedded,
    /// In a real etcd, with two replicas: commands and the balancer talk to the first, the edge
    /// agent to the second, so that nothing works that does not work across the two.
    Etcd,
}

/// How the agent has the kernel hand connections over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// By nftables.
    Tproxy,
    /// By a BPF program.
    SkLookup,
}

impl fmt::Display for Steering {
    /// As the agent's flag has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tproxy => "tproxy",
            Self::SkLookup => "sk-lookup",
        })
    }
}

/// Which config service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Replica {
    /// The one that commands talk to.
    First,
    /// The one that the agent talks to, where there are two.
    Second,
}

const ETCD_CLIENTS: u16 = 2379;
const ETCD_PEERS: u16 = 2380;
const ETCD_METRICS: u16 = 2381;

impl Store {
    pub(super) fn replicas(self) -> &'static [Replica] {
        match self {
            Self::Embedded => &[Replica::First],
            Self::Etcd => &[Replica::First, Replica::Second],
        }
    }
}

impl Replica {
    fn port(self) -> u16 {
        match self {
            Self::First => 7400,
            Self::Second => 7402,
        }
    }

    /// Its gRPC URL, inside the edge's namespace.
    pub fn url(self) -> String {
        self.url_in("http")
    }

    pub(super) fn url_in(self, scheme: &str) -> String {
        format!("{scheme}://127.0.0.1:{}", self.port())
    }

    /// Its gRPC URL, inside the client's namespace, where the plan is
    /// [`without_nodes`](Plan::without_nodes).
    pub fn url_for_clients(self) -> String {
        format!("http://{EDGE_TO_CLIENT_V4}:{}", self.port())
    }
}

impl Service {
    pub(super) fn all_of(plan: &Plan) -> Vec<Self> {
        let etcd = match plan.store {
            Store::Embedded => None,
            Store::Etcd => Some(Self::Etcd),
        };
        let replicas = plan.store.replicas().iter().copied();
        let control = etcd.into_iter().chain(replicas.map(Self::ConfigService));
        if plan.without_nodes {
            return control.collect();
        }
        let balancers = (0..plan.balancers).map(Self::BalancerApart);
        let beside = (plan.balancers == 0).then_some(Self::Balancer);
        let edges = (0..plan.more_edges).map(Self::EdgeApart);
        control
            .chain(beside)
            .chain(balancers)
            .chain([Self::EdgeAgent])
            .chain(edges)
            .collect()
    }

    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ConfigService(_) => "config-service",
            Self::Balancer | Self::BalancerApart(_) => "balancer",
            Self::EdgeAgent | Self::EdgeApart(_) => "edge-agent",
        }
    }

    /// Its name in the fleet; of what is no node, that of its certificate.
    pub fn name(self) -> String {
        match self {
            Self::Etcd | Self::ConfigService(_) => self.to_string(),
            Self::Balancer => "balancer1".to_owned(),
            Self::BalancerApart(number) => format!("balancer{}", number + 1),
            Self::EdgeAgent => "edge1".to_owned(),
            Self::EdgeApart(number) => format!("edge{}", number + 2),
        }
    }

    /// Its gRPC address, inside its own namespace; of etcd, the clients'.
    pub fn listen(self) -> SocketAddr {
        loopback(match self {
            Self::Etcd => ETCD_CLIENTS,
            Self::ConfigService(replica) => replica.port(),
            Self::BalancerApart(number) => return (apart::balancer(number), 7410).into(),
            Self::Balancer => 7410,
            Self::EdgeAgent | Self::EdgeApart(_) => 7420,
        })
    }

    /// Its admin HTTP address, inside its own namespace.
    pub fn admin(self) -> SocketAddr {
        match self {
            Self::Etcd => loopback(ETCD_METRICS),
            _ => loopback(self.listen().port() + 1),
        }
    }

    /// What it is dialled at, where that is not its host only.
    pub(super) fn hosts(self, plan: &Plan) -> Vec<IpAddr> {
        match self {
            Self::ConfigService(_) if plan.is_apart() => {
                vec![Ipv4Addr::LOCALHOST.into(), apart::EDGE_TO_CONTROL.into()]
            }
            Self::BalancerApart(_) => vec![self.listen().ip()],
            _ => Vec::new(),
        }
    }

    pub(super) fn ready_path(self) -> &'static str {
        match self {
            Self::Etcd => "/health",
            _ => "/readyz",
        }
    }

    pub(super) fn arguments(self, plan: &Plan, directory: &Path) -> Vec<String> {
        let below = |name: &str| directory.join(name).display().to_string();
        let flag = |name: &str, value: &dyn fmt::Display| format!("--{name}={value}");
        let mut arguments = match self {
            Self::Etcd => {
                let clients = format!("{}://{}", plan.scheme(), loopback(ETCD_CLIENTS));
                let peers = format!("http://{}", loopback(ETCD_PEERS));
                let metrics = format!("http://{}", self.admin());
                let mut arguments = vec![
                    flag("data-dir", &below("etcd")),
                    flag("listen-client-urls", &clients),
                    flag("advertise-client-urls", &clients),
                    flag("listen-peer-urls", &peers),
                    flag("initial-advertise-peer-urls", &peers),
                    flag("initial-cluster", &format!("default={peers}")),
                    flag("listen-metrics-urls", &metrics),
                ];
                if plan.tls {
                    let name = self.name();
                    arguments.extend(certs::of_etcd(&certs::directory(directory), &name));
                }
                return arguments;
            }
            Self::ConfigService(_) => {
                let store = match plan.store {
                    Store::Embedded => format!("embedded:{}", below("config-service")),
                    Store::Etcd => format!("etcd://{}", loopback(ETCD_CLIENTS)),
                };
                vec![flag("store", &store)]
            }
            Self::Balancer => vec![
                flag("name", &self.name()),
                flag("config-service", &Replica::First.url_in(plan.scheme())),
            ],
            Self::BalancerApart(_) => vec![
                flag("name", &self.name()),
                flag("config-service", &replicas_from_apart(plan)),
            ],
            Self::EdgeAgent | Self::EdgeApart(_) => {
                let replica = plan.store.replicas().last().unwrap_or(&Replica::First);
                let (config_service, steering, follows) = match self {
                    Self::EdgeApart(number) => {
                        (replicas_from_apart(plan), Steering::Tproxy, number + 1)
                    }
                    _ => (replica.url_in(plan.scheme()), plan.steering, 0),
                };
                vec![
                    flag("name", &self.name()),
                    flag("region", &"lab"),
                    flag("config-service", &config_service),
                    flag("balancer", &balancers(plan, follows)),
                    flag("state-dir", &below(&self.to_string())),
                    flag("steering", &steering),
                    flag("workers", &plan.workers),
                ]
            }
        };
        let mut listen = self.listen();
        if plan.is_apart() {
            arguments.push("--insecure".to_owned());
        }
        if plan.is_apart() && matches!(self, Self::ConfigService(_)) {
            listen.set_ip(Ipv4Addr::UNSPECIFIED.into());
        }
        arguments.push(flag("listen", &listen));
        arguments.push(flag("admin", &self.admin()));
        arguments
    }
}

/// The config service's replicas, for those who are not in the edge's namespace.
fn replicas_from_apart(plan: &Plan) -> String {
    let replicas = plan.store.replicas().iter();
    let urls = replicas.map(|replica| {
        let (scheme, port) = (plan.scheme(), replica.port());
        format!("{scheme}://{}:{port}", apart::EDGE_TO_CONTROL)
    });
    urls.collect::<Vec<_>>().join(",")
}

/// All balancers, in the order in which an agent tries them that begins with the one of this
/// number.
fn balancers(plan: &Plan, first: usize) -> String {
    let url = |service: Service| format!("{}://{}", plan.scheme(), service.listen());
    if plan.balancers == 0 {
        return url(Service::Balancer);
    }
    let numbers = (first..).map(|number| number % plan.balancers);
    let urls = numbers
        .take(plan.balancers)
        .map(|number| url(Service::BalancerApart(number)));
    urls.collect::<Vec<_>>().join(",")
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Its name, also that of its log file.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigService(Replica::Second) => f.write_str("config-service-2"),
            Self::BalancerApart(number) => write!(f, "balancer-{}", number + 1),
            Self::EdgeApart(number) => write!(f, "edge-agent-{}", number + 2),
            _ => f.write_str(self.program()),
        }
    }
}
