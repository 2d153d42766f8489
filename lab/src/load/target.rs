//! What to connect to: single addresses and ports, or ranges of both to draw from.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use rand::Rng;

/// Addresses × ports. Written `ADDRESS:PORT`, `CIDR:PORT`, `CIDR:FIRST-LAST` or `CIDR:*`, with an
/// IPv6 address or CIDR in brackets: `[2001:db8:51::/64]:1-65535`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSet {
    addresses: IpNet,
    ports: RangeInclusive<u16>,
}

/// One or more sets; each is drawn from equally often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    sets: Vec<TargetSet>,
}

/// Why a text is not a target.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "target {text:?}: {fault}; write ADDRESS:PORT, CIDR:PORT, CIDR:FIRST-LAST or CIDR:*, \
     an IPv6 address or CIDR in brackets"
)]
pub struct TargetError {
    text: String,
    fault: &'static str,
}

impl TargetSet {
    /// Whether this is IPv6.
    pub fn is_ipv6(&self) -> bool {
        matches!(self.addresses, IpNet::V6(_))
    }

    /// Every single target, for a set of one address.
    ///
    /// # Errors
    ///
    /// Where there is more than one address.
    pub fn ports_of_one_address(&self) -> Result<Vec<SocketAddr>, TargetError> {
        if self.addresses.prefix_len() != self.addresses.max_prefix_len() {
            return Err(TargetError {
                text: self.to_string(),
                fault: "this has to be one address",
            });
        }
        let address = self.addresses.addr();
        Ok(self
            .ports
            .clone()
            .map(|port| SocketAddr::new(address, port))
            .collect())
    }

    fn draw(&self, rng: &mut impl Rng) -> SocketAddr {
        let port = rng.random_range(self.ports.clone());
        let address = match self.addresses {
            IpNet::V4(net) => {
                let host = rng.random::<u32>() & net.hostmask().to_bits();
                IpAddr::V4((net.network().to_bits() | host).into())
            }
            IpNet::V6(net) => {
                let host = rng.random::<u128>() & net.hostmask().to_bits();
                IpAddr::V6((net.network().to_bits() | host).into())
            }
        };
        SocketAddr::new(address, port)
    }
}

impl Targets {
    /// One of `sets` has to be there. `None` where there is none.
    pub fn new(sets: Vec<TargetSet>) -> Option<Self> {
        (!sets.is_empty()).then_some(Self { sets })
    }

    /// The sets.
    pub fn sets(&self) -> &[TargetSet] {
        &self.sets
    }

    /// One target, at random.
    pub(super) fn draw(&self, rng: &mut impl Rng) -> SocketAddr {
        let index = rng.random_range(0..self.sets.len());
        self.sets[index].draw(rng)
    }
}

impl From<TargetSet> for Targets {
    fn from(set: TargetSet) -> Self {
        Self { sets: vec![set] }
    }
}

impl From<SocketAddr> for TargetSet {
    fn from(target: SocketAddr) -> Self {
        Self {
            addresses: target.ip().into(),
            ports: target.port()..=target.port(),
        }
    }
}

impl From<SocketAddr> for Targets {
    fn from(target: SocketAddr) -> Self {
        TargetSet::from(target).into()
    }
}

impl FromStr for TargetSet {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let fault = |fault| TargetError {
            text: text.to_owned(),
            fault,
        };
        let (addresses, ports) = text.rsplit_once(':').ok_or(fault("it has no port"))?;
        let bracketed = addresses
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let addresses: IpNet = match bracketed.unwrap_or(addresses) {
            cidr if cidr.contains('/') => cidr.parse().ok(),
            address => address.parse().ok().map(|address: IpAddr| address.into()),
        }
        .ok_or(fault("the part before the port is no address or CIDR"))?;
        if matches!(addresses, IpNet::V6(_)) != bracketed.is_some() {
            return Err(fault("brackets go around IPv6, and only there"));
        }
        let port = |text: &str| text.parse().ok().filter(|port| *port != 0);
        let ports = match (ports, ports.split_once('-')) {
            ("*", _) => Some(1..=u16::MAX),
            (_, Some((first, last))) => port(first)
                .zip(port(last))
                .map(|(first, last)| first..=last)
                .filter(|range| !range.is_empty()),
            (single, None) => port(single).map(|port| port..=port),
        }
        .ok_or(fault(
            "ports are 1 to 65535, a range has the lower one first",
        ))?;
        Ok(Self { addresses, ports })
    }
}

impl fmt::Display for TargetSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let single = self.addresses.prefix_len() == self.addresses.max_prefix_len();
        match (self.addresses, single) {
            (IpNet::V4(net), true) => write!(f, "{}", net.addr()),
            (IpNet::V4(net), false) => write!(f, "{net}"),
            (IpNet::V6(net), true) => write!(f, "[{}]", net.addr()),
            (IpNet::V6(net), false) => write!(f, "[{net}]"),
        }?;
        match (*self.ports.start(), *self.ports.end()) {
            (1, u16::MAX) => f.write_str(":*"),
            (first, last) if first == last => write!(f, ":{first}"),
            (first, last) => write!(f, ":{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn a_target_reads_back_as_it_was_written() {
        for text in [
            "198.51.100.7:25565",
            "198.51.100.0/24:1000-2000",
            "[2001:db8:51::10]:443",
            "[2001:db8:51::/64]:*",
            "0.0.0.0/0:1",
        ] {
            assert_eq!(text.parse::<TargetSet>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for text in [
            "",
            "198.51.100.7",
            "198.51.100.7:",
            "198.51.100.7:0",
            "198.51.100.7:70000",
            "198.51.100.7:20-10",
            "198.51.100.7:0-10",
            "198.51.100.0/33:1",
            "[198.51.100.7]:1",
            "2001:db8::1:443",
            "name.example:443",
        ] {
            let error = text.parse::<TargetSet>().unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn draws_stay_inside_and_reach_every_corner_and_repeat_with_the_seed() {
        let sets = ["198.51.100.252/30:65534-65535", "[2001:db8::/126]:7-8"];
        let sets = sets.map(|text| text.parse().unwrap());
        let targets = Targets::new(sets.to_vec()).unwrap();
        let draw = |seed| {
            let mut rng = SmallRng::seed_from_u64(seed);
            (0..2000)
                .map(|_| targets.draw(&mut rng))
                .collect::<Vec<_>>()
        };
        let drawn: HashSet<_> = draw(1).into_iter().collect();
        let v4 = (252..=255).flat_map(|host| {
            [65534, 65535].map(|port| SocketAddr::from(([198, 51, 100, host], port)))
        });
        let v6 = (0..4).flat_map(|host| {
            [7, 8].map(|port| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, host], port)))
        });
        assert_eq!(drawn, v4.chain(v6).collect());
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn only_one_address_can_be_listened_on() {
        let set: TargetSet = "10.0.2.2:3000-3002".parse().unwrap();
        let ports = set.ports_of_one_address().unwrap();
        assert_eq!(
            ports.iter().map(SocketAddr::port).collect::<Vec<_>>(),
            [3000, 3001, 3002]
        );
        let set: TargetSet = "10.0.2.0/24:3000".parse().unwrap();
        assert!(set.ports_of_one_address().is_err());
    }
}
