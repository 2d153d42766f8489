//! Networks that can be asked for one that contains another.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;

/// A value for each of some networks, without host bits. It is asked in a step
/// per prefix length in use and not per network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetMap<T> {
    nets: HashMap<IpNet, T>,
    lengths: BTreeSet<u8>,
}

impl<T> Default for NetMap<T> {
    fn default() -> Self {
        Self {
            nets: HashMap::new(),
            lengths: BTreeSet::new(),
        }
    }
}

impl<T> NetMap<T> {
    pub fn get(&self, net: &IpNet) -> Option<&T> {
        self.nets.get(net)
    }

    /// Gives the value that the network had.
    pub fn insert(&mut self, net: IpNet, value: T) -> Option<T> {
        self.lengths.insert(net.prefix_len());
        self.nets.insert(net, value)
    }

    /// The longest network of the map that contains `net`, and its value.
    pub fn covering(&self, net: &IpNet) -> Option<(IpNet, &T)> {
        self.lengths
            .range(..=net.prefix_len())
            .rev()
            .filter_map(|&len| IpNet::new(net.addr(), len).ok())
            .map(|wider| wider.trunc())
            .find_map(|wider| Some((wider, self.nets.get(&wider)?)))
    }
}

/// A set of networks, without host bits, that is asked as a [`NetMap`] is.
#[derive(Debug, Clone, Default)]
pub struct NetSet(NetMap<()>);

impl NetSet {
    pub fn new(nets: impl Iterator<Item = IpNet>) -> Self {
        let mut set = NetMap::default();
        nets.for_each(|net| {
            set.insert(net, ());
        });
        Self(set)
    }

    /// The longest network of the set that contains `net`.
    pub fn covering(&self, net: &IpNet) -> Option<IpNet> {
        self.0.covering(net).map(|(net, ())| net)
    }
}
