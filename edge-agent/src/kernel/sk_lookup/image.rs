//! The claims in the form in which the program looks them up. Pure.
//!
//! For each network that is claimed, the set of all ports that are claimed at
//! it *or around it*: the program looks at the most specific network alone.
//! A set is a tree of nodes with 16 entries, and equal nodes are stored once,
//! so a claim costs a few nodes however wide its range is and however many
//! ports are claimed around it, and the same ports on many networks cost one
//! set. The layout is that of `bpf/steer.bpf.c`.

use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;

use super::super::desired::Element;

/// Claimed ports of one protocol, by its number in the IP header.
pub(crate) type Steered = (u8, Element);

/// Four bits of a port choose an entry: of another node, or, in the lowest
/// nodes, a bitmap of the last four bits.
type Node = [u32; 16];

/// A node in which nothing is claimed, at any height.
const EMPTY: u32 = 0;

/// Height of the nodes whose entries are bitmaps.
const LOWEST: u32 = 2;

const EVERY_BIT: u32 = 0xffff;

/// What the maps `networks` and `ports` of one program hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    networks: Vec<([u8; Image::KEY_SIZE], u32)>,
    nodes: Vec<Node>,
}

impl Image {
    /// `struct network`.
    pub(crate) const KEY_SIZE: usize = 24;

    /// The claims may overlap.
    pub(crate) fn of(claims: impl IntoIterator<Item = Steered>) -> Self {
        let mut by_net: BTreeMap<(u8, IpNet), Vec<(u16, u16)>> = BTreeMap::new();
        for (protocol, element) in claims {
            let ports = by_net.entry((protocol, net_of(&element))).or_default();
            ports.push(element.ports);
        }
        let mut sets = PortSets::default();
        let mut networks = Vec::with_capacity(by_net.len());
        // Networks around the present one, with the sets that hold there.
        // `IpNet` orders a network before those inside it.
        let mut around: Vec<(u8, IpNet, u32)> = Vec::new();
        for ((protocol, net), ports) in by_net {
            while (around.last())
                .is_some_and(|(of, outer, _)| *of != protocol || !outer.contains(&net))
            {
                around.pop();
            }
            let outer = around.last().map_or(EMPTY, |(_, _, set)| *set);
            let set = sets.with(outer, ports);
            networks.push((key(protocol, net), set));
            around.push((protocol, net, set));
        }
        Self {
            networks,
            nodes: sets.nodes,
        }
    }

    pub(crate) fn networks(&self) -> u32 {
        count(self.networks.len())
    }

    pub(crate) fn nodes(&self) -> u32 {
        count(self.nodes.len())
    }

    /// Keys and values of `networks`, each one after the other.
    pub(crate) fn network_entries(&self) -> (Vec<u8>, Vec<u8>) {
        let keys = self.networks.iter().flat_map(|(key, _)| *key).collect();
        let roots = self
            .networks
            .iter()
            .flat_map(|(_, root)| root.to_ne_bytes());
        (keys, roots.collect())
    }

    /// Keys and values of `ports`, each one after the other.
    pub(crate) fn node_entries(&self) -> (Vec<u8>, Vec<u8>) {
        let keys = (0..self.nodes()).flat_map(u32::to_ne_bytes).collect();
        let entries = self.nodes.iter().flatten().copied();
        (keys, entries.flat_map(u32::to_ne_bytes).collect())
    }
}

/// There are fewer: a claim adds at most five nodes, and its own text is longer
/// than a few bytes.
fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Elements are made of networks, so their ends differ in the host's bits.
fn net_of(element: &Element) -> IpNet {
    let (first, last) = element.addresses;
    let length = match (first, last) {
        (std::net::IpAddr::V4(first), std::net::IpAddr::V4(last)) => {
            (first.to_bits() ^ last.to_bits()).leading_zeros()
        }
        (std::net::IpAddr::V6(first), std::net::IpAddr::V6(last)) => {
            (first.to_bits() ^ last.to_bits()).leading_zeros()
        }
        _ => u32::MAX,
    };
    let length = u8::try_from(length).unwrap_or(u8::MAX);
    IpNet::new(first, length).unwrap_or_else(|_| IpNet::from(first))
}

/// `struct network`: bits of what follows, family, protocol, and the address in
/// network byte order.
fn key(protocol: u8, net: IpNet) -> [u8; Image::KEY_SIZE] {
    const FIXED_BITS: u32 = 32;
    let mut key = [0; Image::KEY_SIZE];
    let (family, octets) = match net {
        IpNet::V4(net) => (libc::AF_INET, net.network().octets().to_vec()),
        IpNet::V6(net) => (libc::AF_INET6, net.network().octets().to_vec()),
    };
    let length = FIXED_BITS + u32::from(net.prefix_len());
    key[..4].copy_from_slice(&length.to_ne_bytes());
    // Both numbers are below 256 by the ABI.
    key[4] = u8::try_from(family).unwrap_or_default();
    key[5] = protocol;
    key[8..8 + octets.len()].copy_from_slice(&octets);
    key
}

/// All sets of ports, as nodes of which no two are equal.
struct PortSets {
    nodes: Vec<Node>,
    known: HashMap<Node, u32>,
    /// Nodes in which everything is claimed, by height.
    full: [u32; LOWEST as usize + 1],
    /// Sets that were made already, by what they were made of.
    made: HashMap<(u32, Vec<(u32, u32)>), u32>,
}

impl Default for PortSets {
    fn default() -> Self {
        let mut sets = Self {
            nodes: Vec::new(),
            known: HashMap::new(),
            full: [EMPTY; LOWEST as usize + 1],
            made: HashMap::new(),
        };
        sets.intern([EMPTY; 16]);
        let mut entry = EVERY_BIT;
        for height in (0..=LOWEST as usize).rev() {
            entry = sets.intern([entry; 16]);
            sets.full[height] = entry;
        }
        sets
    }
}

impl PortSets {
    /// The set `base` and `ranges` together.
    fn with(&mut self, base: u32, ranges: Vec<(u16, u16)>) -> u32 {
        let ranges = union(ranges);
        if let Some(&set) = self.made.get(&(base, ranges.clone())) {
            return set;
        }
        let set = self.add(base, 0, 0, &ranges);
        self.made.insert((base, ranges), set);
        set
    }

    /// `ranges` are as [`union`] returns them.
    fn add(&mut self, node: u32, height: u32, from: u32, ranges: &[(u32, u32)]) -> u32 {
        // Ports of one entry.
        let width = 1 << (4 * (3 - height));
        let mut entries = self.nodes[node as usize];
        for (index, entry) in (0u32..).zip(&mut entries) {
            let first = from + index * width;
            let last = first + (width - 1);
            let within = overlapping(ranges, first, last);
            let whole = match within {
                [] => continue,
                [only] => only.0 <= first && last <= only.1,
                _ => false,
            };
            *entry = match height {
                LOWEST if whole => EVERY_BIT,
                LOWEST => *entry | bitmap(first, within),
                _ if whole => self.full[height as usize + 1],
                _ => self.add(*entry, height + 1, first, within),
            };
        }
        self.intern(entries)
    }

    fn intern(&mut self, node: Node) -> u32 {
        let next = count(self.nodes.len());
        *self.known.entry(node).or_insert_with(|| {
            self.nodes.push(node);
            next
        })
    }
}

/// Sorted, disjoint and not adjacent; in 32 bits the port after the last exists.
fn union(mut ranges: Vec<(u16, u16)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        let (first, last) = (u32::from(first), u32::from(last));
        match joined.last_mut() {
            Some(end) if first <= end.1 + 1 => end.1 = end.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// Those of the sorted `ranges` that have ports from `first` to `last`.
fn overlapping(ranges: &[(u32, u32)], first: u32, last: u32) -> &[(u32, u32)] {
    let start = ranges.partition_point(|range| range.1 < first);
    let end = ranges.partition_point(|range| range.0 <= last);
    ranges.get(start..end).unwrap_or_default()
}

/// Bits of the 16 ports from `first` on that are in one of `ranges`.
fn bitmap(first: u32, ranges: &[(u32, u32)]) -> u32 {
    (0..16)
        .filter(|bit| {
            let port = first + bit;
            ranges
                .iter()
                .any(|range| range.0 <= port && port <= range.1)
        })
        .fold(0, |bits, bit| bits | 1 << bit)
}

#[cfg(test)]
mod tests;
