//! Addresses and ports to dial, the same ones for the same seed.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// A source of random places to dial.
pub struct Targets(StdRng);

impl Targets {
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Any port, 1 to 65535, of any address of `prefix`.
    pub fn within(&mut self, prefix: IpNet) -> SocketAddr {
        let address = match prefix {
            IpNet::V4(net) => {
                let host = self.0.random::<u32>() & u32::from(net.hostmask());
                IpAddr::V4(Ipv4Addr::from(u32::from(net.network()) | host))
            }
            IpNet::V6(net) => {
                let host = self.0.random::<u128>() & u128::from(net.hostmask());
                IpAddr::V6(Ipv6Addr::from(u128::from(net.network()) | host))
            }
        };
        SocketAddr::new(address, self.0.random_range(1..=u16::MAX))
    }

    /// `count` different ones. `prefix` must have far more than that to give.
    pub fn distinct(&mut self, prefix: IpNet, count: usize) -> Vec<SocketAddr> {
        let mut known = BTreeSet::new();
        let endless = std::iter::repeat_with(|| self.within(prefix));
        let new = endless.filter(|target| known.insert(*target));
        new.take(count).collect()
    }

    /// A number to say.
    pub fn number(&mut self) -> u64 {
        self.0.random()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_prefix_and_nothing_else() {
        let mut targets = Targets::new(1);
        for prefix in ["198.51.100.0/24", "2001:db8:51::/64", "10.0.0.1/32", "::/0"] {
            let prefix: IpNet = prefix.parse().expect("a prefix");
            for _ in 0..200 {
                let target = targets.within(prefix);
                assert!(
                    prefix.contains(&target.ip()) && target.port() != 0,
                    "{target}"
                );
            }
        }
        let prefix = "198.51.100.0/24".parse().expect("a prefix");
        let many = targets.distinct(prefix, 5_000);
        let unique: BTreeSet<_> = many.iter().collect();
        let addresses: BTreeSet<_> = many.iter().map(SocketAddr::ip).collect();
        assert_eq!((unique.len(), addresses.len()), (5_000, 256));
    }

    #[test]
    fn the_same_seed_is_the_same_walk() {
        let prefix = "2001:db8:51::/64".parse().expect("a prefix");
        let walk = |seed| Targets::new(seed).distinct(prefix, 50);
        assert_eq!(walk(7), walk(7));
        assert_ne!(walk(7), walk(8));
    }
}
