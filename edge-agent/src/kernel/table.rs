//! Steering by TPROXY: one nftables table, `inet anyport`.
//!
//! ```text
//! table inet anyport {
//!     comment "anyport layout 2; kept as it is by the edge agent"
//!     set tcp4 { type ipv4_addr . inet_service; flags interval; … }
//!     set tcp6 { type ipv6_addr . inet_service; flags interval; … }
//!     set udp4, udp6: the same for UDP
//!     chain steer {
//!         type filter hook prerouting priority mangle; policy accept;
//!         meta l4proto tcp ip daddr . tcp dport @tcp4 tproxy ip to 127.0.0.1:PORT accept
//!         meta l4proto tcp ip6 daddr . tcp dport @tcp6 tproxy ip6 to [::1]:PORT accept
//!         … and the same two for UDP
//!     }
//! }
//! ```
//!
//! One lookup decides, however many claims there are. A packet that matches
//! goes to the listener with its headers as they came, unless a socket is
//! connected to just its addresses and ports: that one is looked for first,
//! which is how a flow of UDP keeps to its own socket. Where the listener is
//! gone, the expression does not match, and the stack answers RST, or ICMP
//! port unreachable. Rules therefore stay when the agent ends, and the next
//! start replaces the port in place.
//!
//! The comment is our mark: a table of that name without it is someone
//! else's. Table comments need Linux 5.10.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU16};

use anyport_model::resource::Transport;
use nix::sys::socket::{setsockopt, sockopt};
use nlink::{
    Connection, Nftables,
    netlink::nftables::{
        BaseChain, Chain, ChainInfo, ChainKind, Family, FilterHook, Item, PacketField, Policy,
        Priority, Rule, RuleInfo, Set, SetElement, SetFlags, SetInfo, SetKeyType, Stmt, Table,
        Transaction,
    },
};

use super::{
    desired::{Element, Ip, Lane, PerLane},
    error::KernelError,
    observed::{Content, ObservedRule, OurTable, Part, TableState},
    plan::TableStep,
};

pub(crate) const TABLE: &str = "anyport";
const CHAIN: &str = "steer";
const MARK: &str = "anyport layout ";
const MARK_TAIL: &str = "; kept as it is by the edge agent";

/// A netlink message ends at 64 KiB; an IPv6 element takes some 70 bytes.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// A transaction is one datagram. This is room for some 200,000 elements.
const SEND_BUFFER: usize = 16 << 20;

/// Opens a connection that can carry a large transaction.
pub(crate) fn connect() -> Result<Connection<Nftables>, KernelError> {
    let netlink = Connection::<Nftables>::new()
        .map_err(|source| KernelError::netlink("opening a netfilter netlink socket", source))?;
    setsockopt(netlink.socket(), sockopt::SndBufForce, &SEND_BUFFER)
        .map_err(|source| KernelError::SendBuffer(source.into()))?;
    Ok(netlink)
}

/// The state of the table, and the ruleset's generation before it was read.
pub(crate) async fn observe(
    netlink: &Connection<Nftables>,
) -> Result<(u32, TableState), KernelError> {
    let reading = |source| KernelError::netlink("reading the nftables ruleset", source);
    let generation = netlink.generation().await.map_err(reading)?;
    let tables = netlink
        .list_tables_in(Family::Inet)
        .await
        .map_err(reading)?;
    let Some(table) = tables.into_iter().find(|table| table.name == TABLE) else {
        return Ok((generation, TableState::Absent));
    };
    let Some(layout) = layout(&table) else {
        return Ok((generation, TableState::Foreign));
    };
    let chains = netlink.list_chains_in(TABLE, Family::Inet);
    let chains = chains.await.map_err(reading)?;
    let sets = netlink.list_sets_in(TABLE, Family::Inet);
    let sets = sets.await.map_err(reading)?;
    let rules = netlink.list_rules(TABLE, Family::Inet);
    let rules = rules.await.map_err(reading)?;
    let mut contents = PerLane::from_fn(|_| Part::Missing);
    for lane in Lane::ALL {
        let Some(set) = sets.iter().find(|set| set.name == set_name(lane)) else {
            continue;
        };
        *contents.get_mut(lane) = if is_right_set(lane, set) {
            let elements = netlink.list_set_elements(TABLE, set_name(lane), Family::Inet);
            content(lane, &elements.await.map_err(reading)?)
        } else {
            Part::Wrong
        };
    }
    let ours = OurTable {
        layout,
        crowded: chains.iter().any(|chain| chain.name != CHAIN)
            || sets
                .iter()
                .any(|set| !Lane::ALL.map(set_name).contains(&set.name.as_str())),
        asleep: table.flags & nlink::netlink::nftables::NFT_TABLE_F_DORMANT != 0,
        chain: match chains.iter().find(|chain| chain.name == CHAIN) {
            None => Part::Missing,
            Some(chain) if is_right_chain(chain) => Part::Right(()),
            Some(_) => Part::Wrong,
        },
        sets: contents,
        rules: (rules.iter())
            .filter(|rule| rule.chain == CHAIN)
            .map(observed_rule)
            .collect(),
    };
    Ok((generation, TableState::Ours(ours)))
}

/// Carries out `steps` all or nothing, unless the ruleset has changed since
/// `generation`.
pub(crate) async fn commit(
    netlink: &Connection<Nftables>,
    generation: u32,
    steps: &[TableStep],
) -> nlink::Result<()> {
    let mut transaction = netlink.transaction().expect_generation(generation);
    for step in steps {
        transaction = write(transaction, step)?;
    }
    transaction.commit(netlink).await
}

fn write(to: Transaction, step: &TableStep) -> nlink::Result<Transaction> {
    Ok(match step {
        TableStep::DeleteTable => to.del_table(TABLE, Family::Inet),
        TableStep::CreateTable => {
            let mark = format!("{MARK}{}{MARK_TAIL}", OurTable::LAYOUT);
            to.add_table_with_comment(TABLE, Family::Inet, 0, Some(&mark))
        }
        TableStep::WakeTable => to.update_table(TABLE, Family::Inet, 0),
        TableStep::FlushRules => to.flush_chain(TABLE, CHAIN, Family::Inet),
        TableStep::DeleteRule(handle) => to.del_rule(TABLE, CHAIN, Family::Inet, *handle),
        TableStep::DeleteChain => to.del_chain(TABLE, CHAIN, Family::Inet),
        TableStep::CreateChain => to.add_chain(
            Chain::new(TABLE, CHAIN)?
                .family(Family::Inet)
                .base(base_chain()),
        ),
        TableStep::DeleteSet(lane) => to.del_set(TABLE, set_name(*lane), Family::Inet),
        TableStep::CreateSet(lane) => to.add_set(set(*lane)),
        TableStep::RemoveElements(lane, elements) => {
            let set = set(*lane);
            (elements.chunks(ELEMENTS_PER_MESSAGE)).fold(to, |to, chunk| {
                to.del_set_elements(&set, &wire_elements(chunk))
            })
        }
        TableStep::AddElements(lane, elements) => {
            let set = set(*lane);
            (elements.chunks(ELEMENTS_PER_MESSAGE)).fold(to, |to, chunk| {
                to.add_set_elements(&set, &wire_elements(chunk))
            })
        }
        TableStep::ReplaceRule(handle, lane, port) => to.replace_rule(rule(*lane, *port), *handle),
        TableStep::AddRule(lane, port) => to.add_rule(rule(*lane, *port)),
    })
}

/// `None`: not our table. `Some(None)`: ours, of a layout not known here.
fn layout(table: &Table) -> Option<Option<u32>> {
    let version = table.comment.as_deref()?.strip_prefix(MARK)?;
    let digits = version.split(';').next().unwrap_or_default();
    Some(digits.parse().ok())
}

fn base_chain() -> BaseChain {
    BaseChain::filter(FilterHook::Prerouting, Priority::Mangle).policy(Policy::Accept)
}

fn is_right_chain(chain: &ChainInfo) -> bool {
    chain.kind() == Some(ChainKind::Base(base_chain()))
}

fn set_name(lane: Lane) -> &'static str {
    match (lane.transport, lane.ip) {
        (Transport::Tcp, Ip::V4) => "tcp4",
        (Transport::Tcp, Ip::V6) => "tcp6",
        (Transport::Udp, Ip::V4) => "udp4",
        (Transport::Udp, Ip::V6) => "udp6",
    }
}

fn set_fields(lane: Lane) -> [PacketField; 2] {
    let address = match lane.ip {
        Ip::V4 => PacketField::Ip4Daddr,
        Ip::V6 => PacketField::Ip6Daddr,
    };
    let port = match lane.transport {
        Transport::Tcp => PacketField::TcpDport,
        Transport::Udp => PacketField::UdpDport,
    };
    [address, port]
}

fn key_type(lane: Lane) -> SetKeyType {
    SetKeyType::Concat(set_fields(lane).map(PacketField::key_type).to_vec())
}

fn set(lane: Lane) -> Set {
    Set::new(TABLE, set_name(lane))
        .family(Family::Inet)
        .key_type(key_type(lane))
        .interval()
}

fn is_right_set(lane: Lane, set: &SetInfo) -> bool {
    let key = key_type(lane);
    set.key_type == key.type_id()
        && set.key_len == key.len()
        && set.flags == SetFlags::INTERVAL | SetFlags::CONCAT
        && set.statements.is_empty()
        && set.size.is_none()
}

fn rule(lane: Lane, port: NonZeroU16) -> Rule {
    Rule::new(TABLE, CHAIN)
        .family(Family::Inet)
        .match_concat_in_set(&set_fields(lane), set_name(lane))
        .tproxy(Family::Inet, Some(lane.ip.loopback()), Some(port.get()))
        .accept()
}

/// A rule is recognised by its whole body, so one that was tampered with is
/// not taken for ours.
fn observed_rule(info: &RuleInfo) -> ObservedRule {
    let spec = info.spec();
    let target = spec.items().iter().find_map(|item| match item {
        Item::Stmt(Stmt::Tproxy { addr, port, .. }) => {
            Some((Ip::of((*addr)?), NonZeroU16::new((*port)?)?))
        }
        _ => None,
    });
    ObservedRule {
        handle: info.handle,
        steers: target.and_then(|(ip, port)| {
            let mut lanes = Transport::ALL
                .map(|transport| Lane::new(transport, ip))
                .into_iter();
            let lane = lanes.find(|lane| *rule(*lane, port).spec() == spec)?;
            Some((lane, port))
        }),
    }
}

fn wire_elements(elements: &[Element]) -> Vec<SetElement> {
    elements.iter().map(wire_element).collect()
}

fn wire_element(element: &Element) -> SetElement {
    let (first, last) = element.addresses;
    let addresses = SetElement::range(octets(first), octets(last));
    let (first, last) = element.ports;
    SetElement::concat([addresses, SetElement::port_range(first, last)])
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Wrong as a whole where an element is not a rectangle that we could name:
/// a catch-all, say, which would steer everything.
fn content(lane: Lane, elements: &[SetElement]) -> Part<Content> {
    let elements: Option<BTreeSet<_>> = elements.iter().map(|e| read_element(lane, e)).collect();
    elements.map_or(Part::Wrong, Part::Right)
}

fn read_element(lane: Lane, element: &SetElement) -> Option<Element> {
    if element.is_catchall() || element.is_interval_end() {
        return None;
    }
    let (first, first_port) = read_key(lane, element.key())?;
    let (last, last_port) = read_key(lane, element.key_end().unwrap_or(element.key()))?;
    Some(Element {
        addresses: (first, last),
        ports: (first_port, last_port),
    })
}

/// An address, then a port, each padded to words of four bytes.
fn read_key(lane: Lane, key: &[u8]) -> Option<(IpAddr, u16)> {
    let (address, port) = match lane.ip {
        Ip::V4 => {
            let (address, port) = key.split_first_chunk::<4>()?;
            (IpAddr::from(*address), port)
        }
        Ip::V6 => {
            let (address, port) = key.split_first_chunk::<16>()?;
            (IpAddr::from(*address), port)
        }
    };
    Some((address, u16::from_be_bytes(*port.first_chunk()?)))
}
