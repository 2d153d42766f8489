//! Networks that can be asked for one that contains another.

use std::collections::{BTreeSet, HashSet};

use ipnet::IpNet;

/// A set of networks, without host bits, that is asked in a step per prefix
/// length in use and not per network.
#[derive(Debug, Clone, Default)]
pub struct NetSet {
    nets: HashSet<IpNet>,
    lengths: BTreeSet<u8>,
}

impl NetSet {
    pub fn new(nets: impl Iterator<Item = IpNet>) -> Self {
        let nets: HashSet<IpNet> = nets.collect();
        let lengths = nets.iter().map(IpNet::prefix_len).collect();
        Self { nets, lengths }
    }

    /// The longest network of the set that contains `net`.
    pub fn covering(&self, net: &IpNet) -> Option<IpNet> {
        self.lengths
            .range(..=net.prefix_len())
            .rev()
            .filter_map(|&len| IpNet::new(net.addr(), len).ok())
            .map(|wider| wider.trunc())
            .find(|wider| self.nets.contains(wider))
    }
}
