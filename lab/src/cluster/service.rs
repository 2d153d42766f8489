//! The processes of a cluster: their programs, flags and ports.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyport_netns::topology::EDGE_TO_CLIENT_V4;

use super::{Plan, certs};

/// A process of the cluster, in the order in which they are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// The store, with [`Store::Etcd`].
    Etcd,
    /// A replica of the config service.
    ConfigService(Replica),
    /// The balancer.
    Balancer,
    /// The edge agent.
    EdgeAgent,
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
    pub(super) fn all_of(plan: &Plan) -> &'static [Self] {
        let all: &[Self] = match plan.store {
            Store::Embedded => &[
                Self::ConfigService(Replica::First),
                Self::Balancer,
                Self::EdgeAgent,
            ],
            Store::Etcd => &[
                Self::Etcd,
                Self::ConfigService(Replica::First),
                Self::ConfigService(Replica::Second),
                Self::Balancer,
                Self::EdgeAgent,
            ],
        };
        let nodes = [Self::Balancer, Self::EdgeAgent];
        match plan.without_nodes {
            true => &all[..all.len() - nodes.len()],
            false => all,
        }
    }

    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ConfigService(_) => "config-service",
            Self::Balancer => "balancer",
            Self::EdgeAgent => "edge-agent",
        }
    }

    /// Its gRPC address, inside the edge's namespace; of etcd, the clients'.
    pub fn listen(self) -> SocketAddr {
        loopback(match self {
            Self::Etcd => ETCD_CLIENTS,
            Self::ConfigService(replica) => replica.port(),
            Self::Balancer => 7410,
            Self::EdgeAgent => 7420,
        })
    }

    /// Its admin HTTP address, inside the edge's namespace.
    pub fn admin(self) -> SocketAddr {
        match self {
            Self::Etcd => loopback(ETCD_METRICS),
            _ => loopback(self.listen().port() + 1),
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
                    let name = certs::of(self).1;
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
                flag("name", &"balancer1"),
                flag("config-service", &Replica::First.url_in(plan.scheme())),
            ],
            Self::EdgeAgent => {
                let replica = plan.store.replicas().last().unwrap_or(&Replica::First);
                vec![
                    flag("name", &"edge1"),
                    flag("region", &"lab"),
                    flag("config-service", &replica.url_in(plan.scheme())),
                    flag(
                        "balancer",
                        &format!("{}://{}", plan.scheme(), Self::Balancer.listen()),
                    ),
                    flag("state-dir", &below("edge-agent")),
                    flag("steering", &plan.steering),
                    flag("workers", &plan.workers),
                ]
            }
        };
        let mut listen = self.listen();
        if plan.without_nodes {
            listen.set_ip(Ipv4Addr::UNSPECIFIED.into());
            arguments.push("--insecure".to_owned());
        }
        arguments.push(flag("listen", &listen));
        arguments.push(flag("admin", &self.admin()));
        arguments
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Its name, also that of its log file.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigService(Replica::Second) => f.write_str("config-service-2"),
            _ => f.write_str(self.program()),
        }
    }
}
