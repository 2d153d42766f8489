//! Addresses that must never become local to this host: those of the control
//! plane. An edge that answered for them itself would dial itself instead, and
//! no push could ever take that back.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyport_model::{
    net_set::NetSet,
    resource::{Prefix, ResourceRef},
    steering::Claim,
};
use anyport_node::rpc::Urls;
use anyport_proto::{convert::write_reference, v1};
use ipnet::IpNet;
use tokio::{net::lookup_host, time::timeout};

/// A name server that is away must not keep a configuration from use.
const LOOKUP_MAX: Duration = Duration::from_secs(2);

/// What is to be kept from prefixes and from origins, as of now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guarded {
    /// Of the control plane, but for loopback.
    pub addresses: Vec<IpAddr>,
    pub control_plane: Vec<SocketAddr>,
    /// Where this agent listens.
    pub own: Vec<SocketAddr>,
}

/// The hosts that this agent dials, and the addresses that they have.
#[derive(Debug, Default)]
pub struct Protected {
    known: Vec<SocketAddr>,
    /// Host and port of those whose address is not known yet.
    unresolved: Vec<(String, u16)>,
    listens: Vec<SocketAddr>,
}

impl Protected {
    /// The hosts of `urls`, none of them looked up yet.
    pub fn new<'a>(urls: impl IntoIterator<Item = &'a Urls>) -> Self {
        let mut protected = Self::default();
        for url in urls.into_iter().flatten() {
            let uri = url.uri();
            let host = uri.host().unwrap_or_default();
            let default = if url.is_https() { 443 } else { 80 };
            let port = uri.port_u16().unwrap_or(default);
            let literal = host.trim_start_matches('[').trim_end_matches(']').parse();
            match literal {
                Ok(address) => protected.add(SocketAddr::new(address, port)),
                Err(_) => protected.unresolved.push((host.to_owned(), port)),
            }
        }
        protected
    }

    /// And this is where the agent itself listens.
    #[must_use]
    pub fn listening(mut self, on: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.listens = on.into_iter().collect();
        self
    }

    /// All that is known. Looks up what is not known yet.
    pub async fn now(&mut self) -> Guarded {
        self.look_up().await;
        let hosts = self.known.iter().map(SocketAddr::ip);
        let mut addresses: Vec<IpAddr> = hosts.filter(|ip| !ip.is_loopback()).collect();
        addresses.dedup();
        Guarded {
            addresses,
            control_plane: self.known.clone(),
            own: self.listens.iter().copied().flat_map(reached_at).collect(),
        }
    }

    async fn look_up(&mut self) {
        for (host, port) in std::mem::take(&mut self.unresolved) {
            let found = timeout(LOOKUP_MAX, lookup_host((host.as_str(), port))).await;
            let found = found.map(|found| found.map(Vec::from_iter));
            match found {
                Ok(Ok(found)) => found.iter().for_each(|address| self.add(*address)),
                _ => {
                    tracing::warn!(
                        host,
                        "has no address now; a prefix that contains it would not be noticed"
                    );
                    self.unresolved.push((host, port));
                }
            }
        }
    }

    fn add(&mut self, address: SocketAddr) {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if !self.known.contains(&address) {
            self.known.push(address);
        }
    }
}

/// The addresses that lead to a listener of this host: for one on every
/// address, all that the host has now.
fn reached_at(listener: SocketAddr) -> Vec<SocketAddr> {
    if !listener.ip().is_unspecified() {
        return vec![listener];
    }
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let found = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = || address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
        v4.or_else(v6)
    });
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let all = found.chain(loopback);
    all.map(|ip| SocketAddr::new(ip, listener.port())).collect()
}

/// The address space that this host answers for.
#[derive(Debug)]
pub struct Answered {
    pub prefixes: Vec<IpNet>,
    /// What it must not answer for, with the protected address inside.
    pub refused: Vec<(Prefix, IpAddr)>,
    set: NetSet,
}

impl Answered {
    /// All of `declared` that contain no address of `protected`.
    pub fn of(declared: impl IntoIterator<Item = Prefix>, protected: &[IpAddr]) -> Self {
        let mut prefixes = Vec::new();
        let mut refused = Vec::new();
        for prefix in declared {
            let inside = protected.iter().find(|ip| prefix.net().contains(*ip));
            match inside {
                Some(&address) => refused.push((prefix, address)),
                None => prefixes.push(prefix.net()),
            }
        }
        let set = NetSet::new(prefixes.iter().copied());
        Self {
            prefixes,
            refused,
            set,
        }
    }

    /// Whether the host answers for all of a claim. One that it does not
    /// answer for must not be steered either: what passes through would be.
    pub fn covers(&self, claim: &Claim) -> bool {
        self.set.covering(&claim.net).is_some()
    }

    pub fn rejections(&self) -> impl Iterator<Item = v1::Rejection> {
        self.refused.iter().map(|(prefix, address)| v1::Rejection {
            resource: Some(write_reference(&ResourceRef::Prefix(*prefix))),
            reason: format!(
                "contains {address}, where this edge reaches its config service or balancer, and \
                 would cut it off; declare smaller prefixes around that address, or move the \
                 control plane"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn prefix(net: &str) -> Prefix {
        Prefix::new(net.parse().unwrap()).unwrap()
    }

    fn claim(net: &str) -> Claim {
        Claim {
            transport: anyport_model::resource::Transport::Tcp,
            net: net.parse().unwrap(),
            ports: "80".parse().unwrap(),
        }
    }

    #[test]
    fn a_prefix_around_the_control_plane_is_left_out_with_all_claims_in_it() {
        let declared = ["198.51.100.0/24", "198.51.100.0/28", "2001:db8::/32"].map(prefix);
        let protected = ["198.51.100.77".parse().unwrap()];
        let answered = Answered::of(declared, &protected);
        let kept = ["198.51.100.0/28", "2001:db8::/32"].map(|net| net.parse().unwrap());
        assert_eq!(answered.prefixes, kept);
        for (net, covered) in [
            ("198.51.100.77/32", false),
            ("198.51.100.64/32", false),
            ("198.51.100.0/24", false),
            ("198.51.100.5/32", true),
            ("2001:db8::/48", true),
        ] {
            assert_eq!(answered.covers(&claim(net)), covered, "{net}");
        }
        let [rejection] = &answered.rejections().collect::<Vec<_>>()[..] else {
            panic!("{answered:?}");
        };
        assert_eq!(rejection.resource.as_ref().unwrap().name, "198.51.100.0/24");
        assert!(rejection.reason.contains("198.51.100.77"), "{rejection:?}");
    }

    #[tokio::test]
    async fn hosts_of_urls_are_protected_but_for_loopback() {
        let first: Urls = "http://198.51.100.77:7400,https://[2001:db8::7]:7400,http://127.0.0.1:1"
            .parse()
            .unwrap();
        let second: Urls = "http://[::ffff:198.51.100.78]:7410,http://localhost:7410"
            .parse()
            .unwrap();
        let mut protected = Protected::new([&first, &second]);
        let expected: [IpAddr; 3] = ["198.51.100.77", "2001:db8::7", "198.51.100.78"]
            .map(|address| address.parse().unwrap());
        let guarded = protected.now().await;
        assert_eq!(guarded.addresses, expected);
        for socket in ["127.0.0.1:1", "127.0.0.1:7410", "198.51.100.78:7410"] {
            let socket = socket.parse().unwrap();
            assert!(guarded.control_plane.contains(&socket), "{guarded:?}");
        }
        assert!(protected.unresolved.is_empty(), "localhost was looked up");
    }

    #[tokio::test]
    async fn a_host_without_an_address_is_looked_up_again() {
        let urls: Urls = "http://nowhere.invalid:7400".parse().unwrap();
        let mut protected = Protected::new([&urls]);
        assert!(protected.now().await.addresses.is_empty());
        assert_eq!(protected.unresolved.len(), 1);
        protected.unresolved[0].0 = "198.51.100.9".to_owned();
        assert_eq!(protected.now().await.addresses.len(), 1);
    }

    #[tokio::test]
    async fn a_listener_on_every_address_is_the_agents_own_on_each() {
        let listens = ["0.0.0.0:7420", "10.0.0.1:7421"].map(|a| a.parse().unwrap());
        let guarded = Protected::default().listening(listens).now().await;
        for own in ["127.0.0.1:7420", "[::1]:7420", "10.0.0.1:7421"] {
            let own = own.parse().unwrap();
            assert!(guarded.own.contains(&own), "{own}: {guarded:?}");
        }
    }
}
