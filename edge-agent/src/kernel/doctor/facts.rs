//! Everything that is looked at, read and not judged.

use std::{fs, net::IpAddr};

use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit};
use nlink::{
    Connection, Nftables, Route,
    netlink::nftables::{ChainType, Family, Hook, Policy},
};

use super::{
    probe::{self, Probe},
    sockets::{self, Listener},
};
use crate::kernel::sk_lookup::{foreign_programs, has_bpf_fs};

/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;

/// A fact, or why it could not be had.
pub(super) type Fact<T> = Result<T, String>;

#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// Major and minor version.
    pub(super) kernel: Fact<(u32, u32)>,
    /// Bits of the effective capabilities.
    pub(super) capabilities: Fact<u64>,
    /// Whether a table like ours could be made, in a namespace of its own.
    pub(super) probe: Probe,
    /// Whether our program could be attached, in a namespace of its own.
    pub(super) sk_lookup: Probe,
    /// Other programs of its kind on this namespace.
    pub(super) foreign_programs: Fact<Vec<String>>,
    /// Whether the BPF file system is where it ought to be.
    pub(super) bpf_fs: bool,
    pub(super) unprivileged_bpf: Fact<u32>,
    pub(super) bpf_jit: Fact<u32>,
    /// Per interface and for `all`.
    pub(super) rp_filter: Fact<Vec<(String, u8)>>,
    pub(super) src_valid_mark: Fact<Vec<(String, u8)>>,
    pub(super) chains: Fact<Vec<ForeignChain>>,
    /// Tables of the iptables that does not go through nftables.
    pub(super) legacy_tables: Vec<String>,
    /// Entries; none where connection tracking is not loaded.
    pub(super) conntrack: Option<u64>,
    /// Whether bridged packets go through the IP hooks; none without the module.
    pub(super) bridge_netfilter: Option<bool>,
    pub(super) somaxconn: Fact<u32>,
    pub(super) syn_backlog: Fact<u32>,
    pub(super) syncookies: Fact<u32>,
    pub(super) ephemeral: Fact<(u16, u16)>,
    pub(super) reserved: Fact<Vec<(u16, u16)>>,
    pub(super) rules: Fact<Vec<PolicyRule>>,
    pub(super) listeners: Fact<Vec<Listener>>,
    pub(super) addresses: Fact<Vec<IpAddr>>,
    /// Subnets of the interfaces, without loopback and link-local ones.
    pub(super) subnets: Fact<Vec<IpNet>>,
    /// Where the default routes of the main table lead.
    pub(super) gateways: Fact<Vec<IpAddr>>,
    /// Soft and hard limit of open files.
    pub(super) open_files: Fact<(u64, u64)>,
}

/// A base chain, not ours, that sees packets on their way to our listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ForeignChain {
    /// As `nft` names it: family, table, chain.
    pub(super) name: String,
    pub(super) hook: Hook,
    pub(super) priority: i32,
    pub(super) translates: bool,
    pub(super) drops_by_default: bool,
}

/// A rule of policy routing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PolicyRule {
    pub(super) v6: bool,
    pub(super) priority: u32,
    pub(super) table: u32,
    pub(super) mark: Option<u32>,
    /// Bits of the mark that are compared.
    pub(super) mask: u32,
    /// Applies to every packet.
    pub(super) to_all: bool,
}

pub(super) async fn gather() -> Facts {
    Facts {
        kernel: kernel(),
        capabilities: capabilities(),
        probe: probe::tproxy().await,
        sk_lookup: probe::sk_lookup().await,
        foreign_programs: foreign_programs(),
        bpf_fs: has_bpf_fs(),
        unprivileged_bpf: number("kernel/unprivileged_bpf_disabled"),
        bpf_jit: number("net/core/bpf_jit_enable"),
        rp_filter: per_interface("rp_filter"),
        src_valid_mark: per_interface("src_valid_mark"),
        chains: chains().await,
        legacy_tables: legacy_tables(),
        conntrack: number("net/netfilter/nf_conntrack_count").ok(),
        bridge_netfilter: bridge_netfilter(),
        somaxconn: number("net/core/somaxconn"),
        syn_backlog: number("net/ipv4/tcp_max_syn_backlog"),
        syncookies: number("net/ipv4/tcp_syncookies"),
        ephemeral: ephemeral(),
        reserved: reserved(),
        rules: rules().await,
        listeners: sockets::on_every_address(),
        addresses: addresses().await,
        subnets: subnets().await,
        gateways: gateways().await,
        open_files: getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| e.to_string()),
    }
}

/// `name` with slashes; the calling thread's namespace decides what is read.
fn sysctl(name: &str) -> Fact<String> {
    let path = format!("/proc/sys/{name}");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    Ok(text.trim().to_owned())
}

fn number<T: std::str::FromStr>(name: &str) -> Fact<T> {
    let text = sysctl(name)?;
    text.parse()
        .map_err(|_| format!("/proc/sys/{name}: {text:?} is not a number"))
}

fn kernel() -> Fact<(u32, u32)> {
    let release = sysctl("kernel/osrelease")?;
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || parts.next()?.parse().ok();
    let version = next().zip(next());
    version.ok_or_else(|| format!("/proc/sys/kernel/osrelease: {release:?} is no version"))
}

fn capabilities() -> Fact<u64> {
    let path = "/proc/thread-self/status";
    let status = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .ok_or_else(|| format!("{path}: no effective capabilities in it"))
}

fn per_interface(setting: &str) -> Fact<Vec<(String, u8)>> {
    let base = "/proc/sys/net/ipv4/conf";
    let directory = fs::read_dir(base).map_err(|error| format!("{base}: {error}"))?;
    let mut values = Vec::new();
    for entry in directory.flatten() {
        let interface = entry.file_name().to_string_lossy().into_owned();
        // An interface may go away meanwhile; `default` applies to none.
        if interface != "default"
            && let Ok(value) = number(&format!("net/ipv4/conf/{interface}/{setting}"))
        {
            values.push((interface, value));
        }
    }
    values.sort();
    Ok(values)
}

async fn chains() -> Fact<Vec<ForeignChain>> {
    let netlink = Connection::<Nftables>::new().map_err(|error| error.to_string())?;
    let chains = netlink.list_chains().await;
    let chains = chains.map_err(|error| error.to_string())?;
    let foreign = chains.into_iter().filter_map(|chain| {
        let ours = chain.family == Family::Inet && chain.table == super::super::table::TABLE;
        let hook = Hook::from_number(chain.family, chain.hook?)?;
        let family_sees_ip = matches!(chain.family, Family::Inet | Family::Ip | Family::Ip6);
        let on_the_way = matches!(hook, Hook::Prerouting | Hook::Input);
        (!ours && family_sees_ip && on_the_way).then(|| ForeignChain {
            name: format!("{} {} {}", chain.family, chain.table, chain.name),
            hook,
            priority: chain.priority.unwrap_or_default(),
            translates: chain.chain_type == Some(ChainType::Nat),
            drops_by_default: chain.policy.and_then(Policy::from_u32) == Some(Policy::Drop),
        })
    });
    Ok(foreign.collect())
}

/// The files exist where the modules are loaded, and name a table where it is
/// in use in this namespace.
fn legacy_tables() -> Vec<String> {
    let mut tables = Vec::new();
    for (program, file) in [
        ("iptables", "ip_tables_names"),
        ("ip6tables", "ip6_tables_names"),
    ] {
        let names = fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let names = names.unwrap_or_default();
        tables.extend(names.lines().map(|table| format!("{program} {table}")));
    }
    tables
}

fn bridge_netfilter() -> Option<bool> {
    let calls = |name| number::<u8>(&format!("net/bridge/bridge-nf-call-{name}")).ok();
    match (calls("iptables"), calls("ip6tables")) {
        (None, None) => None,
        (v4, v6) => Some(v4.unwrap_or(0) != 0 || v6.unwrap_or(0) != 0),
    }
}

fn ephemeral() -> Fact<(u16, u16)> {
    let text = sysctl("net/ipv4/ip_local_port_range")?;
    let mut ports = text.split_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok((first, last)),
        _ => Err(format!("net.ipv4.ip_local_port_range: {text:?}")),
    }
}

fn reserved() -> Fact<Vec<(u16, u16)>> {
    let text = sysctl("net/ipv4/ip_local_reserved_ports")?;
    let range = |item: &str| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        first.parse().ok().zip(last.parse().ok())
    };
    let items = text.split(',').filter(|item| !item.is_empty());
    let ranges: Option<_> = items.map(range).collect();
    ranges.ok_or_else(|| format!("net.ipv4.ip_local_reserved_ports: {text:?}"))
}

async fn rules() -> Fact<Vec<PolicyRule>> {
    let netlink = Connection::<Route>::new().map_err(|error| error.to_string())?;
    let rules = netlink.get_rules().await;
    let rules = rules.map_err(|error| error.to_string())?;
    let rule = |rule: nlink::netlink::messages::RuleMessage| PolicyRule {
        v6: rule.is_ipv6(),
        priority: rule.priority(),
        table: rule.table_id(),
        mark: rule.fwmark().filter(|&mark| mark != 0),
        mask: rule.fwmask().unwrap_or(u32::MAX),
        to_all: rule.is_lookup()
            && rule.source().is_none()
            && rule.destination().is_none()
            && rule.fwmark().is_none()
            && rule.iifname().is_none()
            && rule.oifname().is_none(),
    };
    Ok(rules.into_iter().map(rule).collect())
}

async fn addresses() -> Fact<Vec<IpAddr>> {
    let netlink = Connection::<Route>::new().map_err(|error| error.to_string())?;
    let addresses = netlink.get_addresses().await;
    let addresses = addresses.map_err(|error| error.to_string())?;
    let primary = addresses.iter().filter_map(|a| a.primary_address());
    Ok(primary.copied().collect())
}

async fn subnets() -> Fact<Vec<IpNet>> {
    let netlink = Connection::<Route>::new().map_err(|error| error.to_string())?;
    let addresses = netlink.get_addresses().await;
    let addresses = addresses.map_err(|error| error.to_string())?;
    let subnet = |message: &nlink::netlink::messages::AddressMessage| {
        // Of a point-to-point link, `address` is the other end, which is what
        // is routed to.
        let address = *message.address()?;
        let link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        let net = IpNet::new(address, message.prefix_len()).ok()?.trunc();
        let own_only = message.local().unwrap_or(&address) == &address
            && net.prefix_len() == net.max_prefix_len();
        (!address.is_loopback() && !link_local && !own_only).then_some(net)
    };
    let mut subnets: Vec<_> = addresses.iter().filter_map(subnet).collect();
    subnets.sort();
    subnets.dedup();
    Ok(subnets)
}

async fn gateways() -> Fact<Vec<IpAddr>> {
    let netlink = Connection::<Route>::new().map_err(|error| error.to_string())?;
    let routes = netlink.get_routes_for_table(MAIN_TABLE).await;
    let routes = routes.map_err(|error| error.to_string())?;
    let defaults = routes.iter().filter(|route| route.is_default());
    let mut gateways: Vec<_> = defaults
        .filter_map(|route| route.gateway().copied())
        .collect();
    gateways.sort();
    gateways.dedup();
    Ok(gateways)
}
