//! The kinds of thing that a user declares. Values of these types hold for
//! themselves; whether they fit each other is [`crate::validate`]'s matter.

use std::{fmt, net::SocketAddr, num::NonZeroU32, str::FromStr, sync::Arc, time::Duration};

use ipnet::IpNet;

use crate::{
    access::Access,
    certificate::Certificate,
    check::Check,
    dns::DnsOrigin,
    identity::Identity,
    limits::Limits,
    names::{AppName, CertificateName, MonitorName, OriginName, PoolName},
    ports::{PortMap, PortRange},
    tls::Tls,
};

/// A declared thing of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    Prefix(Prefix),
    Monitor(Arc<Monitor>),
    Pool(Arc<Pool>),
    Certificate(Arc<Certificate>),
    App(Arc<App>),
}

/// Kind and name of a resource. Orders as resources refer to each other: what
/// is referred to comes first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceRef {
    Prefix(Prefix),
    Monitor(MonitorName),
    Pool(PoolName),
    Certificate(CertificateName),
    App(AppName),
}

/// The kinds without a name, in the order of [`ResourceRef`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Prefix,
    Monitor,
    Pool,
    Certificate,
    App,
}

impl Kind {
    pub const ALL: [Kind; 5] = [
        Kind::Prefix,
        Kind::Monitor,
        Kind::Pool,
        Kind::Certificate,
        Kind::App,
    ];

    /// The word for one of this kind.
    pub fn singular(self) -> &'static str {
        match self {
            Kind::Prefix => "prefix",
            Kind::Monitor => "monitor",
            Kind::Pool => "pool",
            Kind::Certificate => "certificate",
            Kind::App => "app",
        }
    }

    /// The word for several, which is also the manifest's key.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Prefix => "prefixes",
            Kind::Monitor => "monitors",
            Kind::Pool => "pools",
            Kind::Certificate => "certificates",
            Kind::App => "apps",
        }
    }
}

impl Resource {
    pub fn reference(&self) -> ResourceRef {
        match self {
            Resource::Prefix(prefix) => ResourceRef::Prefix(*prefix),
            Resource::Monitor(monitor) => ResourceRef::Monitor(monitor.name.clone()),
            Resource::Pool(pool) => ResourceRef::Pool(pool.name.clone()),
            Resource::Certificate(certificate) => {
                ResourceRef::Certificate(certificate.name.clone())
            }
            Resource::App(app) => ResourceRef::App(app.name.clone()),
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Resource::Prefix(_) => Kind::Prefix,
            Resource::Monitor(_) => Kind::Monitor,
            Resource::Pool(_) => Kind::Pool,
            Resource::Certificate(_) => Kind::Certificate,
            Resource::App(_) => Kind::App,
        }
    }
}

impl ResourceRef {
    pub fn kind(&self) -> Kind {
        match self {
            ResourceRef::Prefix(_) => Kind::Prefix,
            ResourceRef::Monitor(_) => Kind::Monitor,
            ResourceRef::Pool(_) => Kind::Pool,
            ResourceRef::Certificate(_) => Kind::Certificate,
            ResourceRef::App(_) => Kind::App,
        }
    }

    /// The name alone; a prefix is named by its CIDR.
    pub fn name(&self) -> String {
        match self {
            ResourceRef::Prefix(prefix) => prefix.to_string(),
            ResourceRef::Monitor(name) => name.to_string(),
            ResourceRef::Pool(name) => name.to_string(),
            ResourceRef::Certificate(name) => name.to_string(),
            ResourceRef::App(name) => name.to_string(),
        }
    }
}

/// `app "minecraft"`.
impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind().singular(), self.name())
    }
}

impl fmt::Debug for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Address space that the edges answer for: a network without host bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpNet);

/// Why a network cannot be a [`Prefix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    #[error("{given} has host bits; the network is {network}")]
    HostBits { given: IpNet, network: IpNet },
    #[error("{0} cannot be answered for: it holds loopback, link-local or multicast addresses")]
    NotRoutable(IpNet),
}

impl Prefix {
    pub fn new(net: IpNet) -> Result<Self, PrefixError> {
        if net != net.trunc() {
            return Err(PrefixError::HostBits {
                given: net,
                network: net.trunc(),
            });
        }
        if UNROUTABLE.iter().any(|bad| overlaps(bad, &net)) {
            return Err(PrefixError::NotRoutable(net));
        }
        Ok(Self(net))
    }

    pub fn net(self) -> IpNet {
        self.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Whether one of two networks contains the other (networks never overlap in
/// another way).
pub fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Space that making "local" would break the host itself: this-network,
/// loopback, link-local, multicast (RFC 6890, RFC 4291).
const UNROUTABLE: [IpNet; 8] = [
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 3),
    v6(0, 0, 127),
    v6(0xfe80, 0, 10),
    v6(0xff00, 0, 8),
    // v4-mapped
    IpNet::V6(ipnet::Ipv6Net::new_assert(
        std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0),
        96,
    )),
];

const fn v4(octets: [u8; 4], len: u8) -> IpNet {
    let [a, b, c, d] = octets;
    IpNet::V4(ipnet::Ipv4Net::new_assert(
        std::net::Ipv4Addr::new(a, b, c, d),
        len,
    ))
}

const fn v6(high: u16, low: u16, len: u8) -> IpNet {
    IpNet::V6(ipnet::Ipv6Net::new_assert(
        std::net::Ipv6Addr::new(high, 0, 0, 0, 0, 0, 0, low),
        len,
    ))
}

/// How the origins of a pool are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    pub name: MonitorName,
    pub check: Check,
    /// Between two probes of one origin, before jitter.
    pub interval: Duration,
    /// Of one probe, all its phases together.
    pub timeout: Duration,
    /// Further attempts at once, after a timeout only.
    pub retries: u32,
    pub thresholds: Thresholds,
    /// Instead of the origin's own port. [`Check::Icmp`] has none.
    pub port: Option<u16>,
}

/// Probes in a row that change a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    pub up: NonZeroU32,
    pub down: NonZeroU32,
}

/// Origins that can stand in for each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub name: PoolName,
    /// None: health is not considered.
    pub monitor: Option<MonitorName>,
    pub policy: Policy,
    /// Fewer healthy origins than this: the pool is down.
    pub minimum_origins: u32,
    pub fallback: Option<PoolName>,
    pub origins: Vec<Origin>,
}

/// How an origin is chosen among those of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Weighted,
    RoundRobin,
    LeastConnections,
    Latency,
    Hash,
}

impl Policy {
    pub const ALL: [Policy; 5] = [
        Policy::Weighted,
        Policy::RoundRobin,
        Policy::LeastConnections,
        Policy::Latency,
        Policy::Hash,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Policy::Weighted => "weighted",
            Policy::RoundRobin => "round_robin",
            Policy::LeastConnections => "least_connections",
            Policy::Latency => "latency",
            Policy::Hash => "hash",
        }
    }
}

/// One server of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub name: OriginName,
    pub address: SocketAddr,
    pub weight: Weight,
    pub enabled: bool,
}

/// An origin's part relative to the others: 0 to 1000 in steps of a
/// thousandth. Whole numbers inside, so that weights compare and add exactly
/// on every edge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u32);

/// A number that is no [`Weight`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0} is no weight; a weight is a number from 0 to 1000")]
pub struct WeightError(pub f64);

impl Weight {
    pub const ZERO: Weight = Weight(0);
    pub const ONE: Weight = Weight(1000);

    /// Rounds to thousandths; what is above 0 stays above 0.
    pub fn new(value: f64) -> Result<Self, WeightError> {
        if !(0.0..=1000.0).contains(&value) {
            return Err(WeightError(value));
        }
        // In range, so the cast is exact after rounding.
        let thousandths = (value * 1000.0).round() as u32;
        Ok(Self(if value > 0.0 { thousandths.max(1) } else { 0 }))
    }

    /// More than there can be counts as the most.
    pub fn of_thousandths(thousandths: u32) -> Self {
        Self(thousandths.min(1_000_000))
    }

    pub fn thousandths(self) -> u32 {
        self.0
    }

    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_f64(), f)
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Transport protocol of a connection or flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub const ALL: [Transport; 2] = [Transport::Tcp, Transport::Udp];

    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

/// A text that is no [`Transport`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no transport; right is tcp or udp")]
pub struct TransportError(String);

impl FromStr for Transport {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        let mut all = Transport::ALL.into_iter();
        all.find(|transport| transport.as_str() == text)
            .ok_or_else(|| TransportError(text.to_owned()))
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What arrives where, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    pub name: AppName,
    pub transport: Transport,
    /// Ports at the edge.
    pub ports: PortRange,
    /// Where the app answers; networks without host bits, not empty, none twice.
    pub edge_nets: Vec<IpNet>,
    pub origin: OriginChoice,
    pub tls: Tls,
    pub identity: Identity,
    pub access: Access,
    pub limits: Limits,
    pub timeouts: Timeouts,
    /// Set: the app takes no connections, and its ports look closed.
    pub disable: Option<Disable>,
}

impl App {
    /// An app on TCP, everything else as where a manifest leaves it out.
    pub fn new(
        name: AppName,
        ports: PortRange,
        edge_nets: Vec<IpNet>,
        origin: OriginChoice,
    ) -> Self {
        Self {
            name,
            transport: Transport::Tcp,
            ports,
            edge_nets,
            origin,
            tls: Tls::default(),
            identity: Identity::default(),
            access: Access::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            disable: None,
        }
    }
}

/// What becomes of the open connections of an app that is disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disable {
    /// They go on to their end.
    KeepOpen,
    /// They are reset at once, both sides.
    CloseNow,
}

impl Disable {
    pub fn as_str(self) -> &'static str {
        match self {
            Disable::KeepOpen => "keep",
            Disable::CloseNow => "now",
        }
    }
}

/// Where an app's connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginChoice {
    Pool {
        pool: PoolName,
        /// Replaces the ports of the pool's origins.
        port: Option<PortMap>,
    },
    /// Addresses given with the app itself, all alike.
    Direct(Vec<DirectOrigin>),
    /// Addresses that a name stands for.
    Dns(DnsOrigin),
}

/// One address of `origin_direct`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectOrigin {
    pub ip: std::net::IpAddr,
    pub port: PortMap,
}

/// How long the phases of a connection may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until some origin has accepted, all attempts together.
    pub connect: Duration,
    /// Of each TLS handshake, and until a ClientHello that decides is there.
    pub tls_handshake: Duration,
    /// Without a byte in either direction.
    pub idle: Duration,
    /// Without a datagram in either direction, for flows of UDP.
    pub udp_idle: Duration,
    /// Once the edge agent was asked to end.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            tls_handshake: Duration::from_secs(5),
            idle: Duration::from_secs(3600),
            udp_idle: Duration::from_secs(60),
            drain: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_prefix_has_no_host_bits() {
        let given: IpNet = "198.51.100.7/24".parse().unwrap();
        let fault = Prefix::new(given).unwrap_err().to_string();
        assert_eq!(
            fault,
            "198.51.100.7/24 has host bits; the network is 198.51.100.0/24"
        );
    }

    #[test]
    fn space_that_would_break_the_host_is_no_prefix() {
        for bad in [
            "0.0.0.0/0",
            "127.0.0.0/8",
            "127.1.0.0/16",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "255.255.255.255/32",
            "::/0",
            "::1/128",
            "fe80::/64",
            "ff02::/16",
            "::ffff:0:0/96",
        ] {
            assert!(Prefix::new(bad.parse().unwrap()).is_err(), "{bad}");
        }
        for good in [
            "198.51.100.0/24",
            "10.0.0.0/8",
            "2001:db8::/32",
            "203.0.113.9/32",
        ] {
            assert!(Prefix::new(good.parse().unwrap()).is_ok(), "{good}");
        }
    }

    proptest! {
        #[test]
        fn weights_keep_their_thousandths(thousandths in 0u32..=1_000_000) {
            let weight = Weight::new(f64::from(thousandths) / 1000.0).unwrap();
            prop_assert_eq!(weight.thousandths(), thousandths);
        }
    }

    #[test]
    fn numbers_that_are_no_weight_are_refused() {
        for bad in [-0.001, 1000.001, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(Weight::new(bad).is_err(), "{bad}");
        }
        assert_eq!(Weight::new(0.0001).unwrap().thousandths(), 1);
    }
}
