//! The way back of connections that carry the client's own address to an
//! origin.
//!
//! The origin answers to the client's address. Those packets come to this
//! host, which has no such address and would forward or drop them. So what
//! belongs to a transparent socket of this host is marked, and what is marked
//! is taken for local:
//!
//! ```text
//! table inet anyport_return {
//!     comment "anyport return path 2; kept as it is by the edge agent"
//!     chain divert {
//!         type filter hook prerouting priority mangle; policy accept;
//!         fib daddr type != local socket transparent 1 socket wildcard 0 meta mark set 0x616e7970
//!     }
//!     chain reassemble {
//!         meta l4proto udp tproxy to :9
//!     }
//! }
//! ip rule add priority 65 fwmark 0x616e7970 lookup 65 protocol 65      (and ip -6)
//! ip route add local default dev lo table 65 proto 65                  (and ip -6)
//! ```
//!
//! Packets to what is local anyway, that is to owned prefixes and to the host
//! itself, are neither looked up nor marked: they find their sockets without.
//! ICMP errors about such a connection belong to its socket as well, so path
//! MTU discovery works. It does not matter how connections are steered.
//!
//! Of a datagram in fragments, only the first says which socket it is for. Nothing
//! comes by the second chain, but while there is a rule of its kind, the kernel
//! puts fragments together before they come by the first.
//!
//! A table of its own, because steering comes and goes without it. All of it
//! is there only while an app wants it.

use nlink::{
    Connection, Nftables, Route,
    netlink::{
        FromNetlink, InterfaceRef, MessageBuilder, NlMsgType,
        messages::{RouteMessage, RuleMessage},
        nftables::{
            BaseChain, Chain, ChainKind, Family, FibFlags, FibResult, Field, FilterHook, Match,
            Policy, Priority, Rule, RuleSpec, SocketKey, Stmt,
        },
        parse::PResult,
        route::{ResolvedRouteInterfaces, RouteConfig},
        rule::RuleBuilder,
        types::route::{RouteScope, RouteType, RtMsg, RtaAttr},
    },
};

use super::{
    anyip::{self, ROUTE_PROTOCOL},
    desired::Ip,
    error::KernelError,
    reconcile::{ATTEMPTS, Netlink},
};

pub(crate) const TABLE: &str = "anyport_return";
const DIVERT: &str = "divert";
const REASSEMBLE: &str = "reassemble";
const COMMENT: &str = "anyport return path 2; kept as it is by the edge agent";
const OUR_COMMENTS: &str = "anyport return path ";

/// "anyp". Compared whole: others use single bits or ranges of the mark, and
/// none of them uses this.
pub(crate) const MARK: u32 = 0x616e_7970;

/// Number of the routing table, and priority of the rule that leads to it:
/// right behind the local table, so that nobody's rule takes the packets first.
pub(crate) const ROUTING_TABLE: u8 = 65;
pub(crate) const PRIORITY: u32 = 65;

/// For which families the way back is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
}

impl Wanted {
    fn family(self, ip: Ip) -> bool {
        match ip {
            Ip::V4 => self.v4,
            Ip::V6 => self.v6,
        }
    }

    /// For what either is wanted.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            v4: self.v4 || other.v4,
            v6: self.v6 || other.v6,
        }
    }

    fn any(self) -> bool {
        self.v4 || self.v6
    }
}

/// What was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    marking: Marking,
    v4: Ways,
    v6: Ways,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marking {
    Absent,
    /// Has our name, but not our comment.
    Foreign,
    Wrong,
    Right,
}

/// What leads marked packets of one family to this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ways {
    /// Those that carry our protocol number.
    rules: Vec<RuleKey>,
    route: bool,
}

/// What names a rule when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RuleKey {
    priority: u32,
    table: u32,
    /// With its mask.
    mark: Option<(u32, u32)>,
    inverted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    AddRoute(Ip),
    AddRule(Ip),
    /// Makes the nftables table, or makes it anew, in one transaction.
    Mark,
    Unmark,
    RemoveRule(Ip, RuleKey),
    RemoveRoute(Ip),
}

impl Found {
    fn ways(&self, ip: Ip) -> &Ways {
        match ip {
            Ip::V4 => &self.v4,
            Ip::V6 => &self.v6,
        }
    }

    /// Valid in the order given: nothing is marked that would not find its
    /// way.
    fn steps(&self, wanted: Wanted) -> Vec<Step> {
        let mut steps = Vec::new();
        for ip in Ip::BOTH.into_iter().filter(|&ip| wanted.family(ip)) {
            let ways = self.ways(ip);
            if !ways.route {
                steps.push(Step::AddRoute(ip));
            }
            if !ways.rules.contains(&RuleKey::OURS) {
                steps.push(Step::AddRule(ip));
            }
        }
        match (wanted.any(), self.marking) {
            (true, Marking::Right) | (false, Marking::Absent | Marking::Foreign) => {}
            (true, _) => steps.push(Step::Mark),
            (false, _) => steps.push(Step::Unmark),
        }
        for ip in Ip::BOTH {
            let ways = self.ways(ip);
            // One of ours stays where it is wanted.
            let mut kept = !wanted.family(ip);
            for &rule in &ways.rules {
                if rule == RuleKey::OURS && !kept {
                    kept = true;
                } else {
                    steps.push(Step::RemoveRule(ip, rule));
                }
            }
            if ways.route && !wanted.family(ip) {
                steps.push(Step::RemoveRoute(ip));
            }
        }
        steps
    }
}

/// Makes the kernel as wanted. Says how many objects were not as they had
/// been `before`, where anything had been granted.
pub(crate) async fn converge(
    kernel: &Netlink,
    wanted: Wanted,
    before: Option<Wanted>,
) -> Result<u64, KernelError> {
    let mut drift = None;
    for attempts in 1.. {
        let (generation, found) = observe(kernel).await?;
        let amiss = before.map_or(0, |before| found.steps(before).len() as u64);
        let drift = *drift.get_or_insert(amiss);
        if wanted.any() && found.marking == Marking::Foreign {
            return Err(KernelError::ForeignReturnTable);
        }
        let mut done = Ok(());
        for step in found.steps(wanted) {
            done = take(kernel, generation, found.marking, step).await;
            if done.is_err() {
                break;
            }
        }
        match done {
            Ok(()) => return Ok(drift),
            Err(last) if last.is_stale() && attempts == ATTEMPTS => {
                let last = Box::new(last);
                return Err(KernelError::Busy { attempts, last });
            }
            Err(error) if error.is_stale() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(0)
}

/// For which families it is there, as an earlier agent may have left it.
pub(crate) async fn found(kernel: &Netlink) -> Result<Wanted, KernelError> {
    let (_, found) = observe(kernel).await?;
    let is_there = |ip| {
        let ways = found.ways(ip);
        ways.route && ways.rules.contains(&RuleKey::OURS)
    };
    Ok(Wanted {
        v4: is_there(Ip::V4),
        v6: is_there(Ip::V6),
    })
}

/// Takes all of it away; says how many objects there were.
pub(crate) async fn remove(kernel: &Netlink) -> Result<usize, KernelError> {
    let found = observe(kernel).await?.1.steps(Wanted::default()).len();
    converge(kernel, Wanted::default(), None).await?;
    Ok(found)
}

async fn take(
    kernel: &Netlink,
    generation: u32,
    marking: Marking,
    step: Step,
) -> Result<(), KernelError> {
    let routes = &kernel.routes;
    let (doing, done) = match step {
        Step::AddRoute(ip) => ("adding the way back", routes.add_route(WayBack(ip)).await),
        Step::AddRule(ip) => {
            let rule = RuleKey::OURS.builder(ip);
            (
                "adding the rule of the way back",
                routes.add_rule(rule).await,
            )
        }
        Step::Mark | Step::Unmark => {
            let mut transaction = kernel.nft.transaction().expect_generation(generation);
            if marking != Marking::Absent {
                transaction = transaction.del_table(TABLE, Family::Inet);
            }
            if step == Step::Mark {
                transaction = transaction
                    .add_table_with_comment(TABLE, Family::Inet, 0, Some(COMMENT))
                    .add_chain(chain(DIVERT)?.base(base_chain()))
                    .add_chain(chain(REASSEMBLE)?)
                    .add_rule(divert())
                    .add_rule(reassemble());
            }
            let doing = "changing the nftables table \"inet anyport_return\"";
            (doing, transaction.commit(&kernel.nft).await)
        }
        Step::RemoveRule(ip, key) => {
            let removed = routes.del_rule_if_exists(key.builder(ip)).await;
            ("removing the rule of the way back", removed.map(|_| ()))
        }
        Step::RemoveRoute(ip) => {
            let removed = routes.del_route_if_exists(WayBack(ip)).await;
            ("removing the way back", removed.map(|_| ()))
        }
    };
    done.map_err(|source| KernelError::netlink(doing, source))
}

/// The generation of the ruleset, and what was found.
async fn observe(kernel: &Netlink) -> Result<(u32, Found), KernelError> {
    let (generation, marking) = observe_marking(&kernel.nft).await?;
    let reading = |source| KernelError::netlink("reading the rules of policy routing", source);
    let rules = kernel.routes.get_rules().await.map_err(reading)?;
    let of = |ip| {
        let ours = rules.iter().filter(move |rule| {
            rule.protocol() == Some(ROUTE_PROTOCOL) && rule.is_ipv6() == (ip == Ip::V6)
        });
        ours.map(RuleKey::of).collect()
    };
    let found = Found {
        marking,
        v4: Ways {
            rules: of(Ip::V4),
            route: has_route::<false>(&kernel.routes).await?,
        },
        v6: Ways {
            rules: of(Ip::V6),
            route: has_route::<true>(&kernel.routes).await?,
        },
    };
    Ok((generation, found))
}

async fn observe_marking(netlink: &Connection<Nftables>) -> Result<(u32, Marking), KernelError> {
    let reading = |source| KernelError::netlink("reading the nftables ruleset", source);
    let generation = netlink.generation().await.map_err(reading)?;
    let tables = netlink.list_tables_in(Family::Inet).await;
    let tables = tables.map_err(reading)?;
    let Some(table) = tables.into_iter().find(|table| table.name == TABLE) else {
        return Ok((generation, Marking::Absent));
    };
    match table.comment.as_deref() {
        Some(COMMENT) if table.flags == 0 => {}
        Some(comment) if comment.starts_with(OUR_COMMENTS) => {
            return Ok((generation, Marking::Wrong));
        }
        _ => return Ok((generation, Marking::Foreign)),
    }
    let chains = netlink.list_chains_in(TABLE, Family::Inet).await;
    let sets = netlink.list_sets_in(TABLE, Family::Inet).await;
    let rules = netlink.list_rules(TABLE, Family::Inet).await;
    let right_chains = match chains.map_err(reading)?.as_slice() {
        [first, second] => {
            (first.name == DIVERT && first.kind() == Some(ChainKind::Base(base_chain())))
                && (second.name == REASSEMBLE && second.kind() == Some(ChainKind::Regular))
        }
        _ => false,
    };
    let right_rules = match rules.map_err(reading)?.as_slice() {
        [first, second] => {
            (first.chain == DIVERT && first.spec() == *divert().spec())
                && (second.chain == REASSEMBLE && second.spec() == *reassemble().spec())
        }
        _ => false,
    };
    let marking = if right_chains && right_rules && sets.map_err(reading)?.is_empty() {
        Marking::Right
    } else {
        Marking::Wrong
    };
    Ok((generation, marking))
}

fn base_chain() -> BaseChain {
    BaseChain::filter(FilterHook::Prerouting, Priority::Mangle).policy(Policy::Accept)
}

fn chain(name: &str) -> Result<Chain, KernelError> {
    let chain =
        Chain::new(TABLE, name).map_err(|source| KernelError::netlink("naming a chain", source))?;
    Ok(chain.family(Family::Inet))
}

fn divert() -> Rule {
    let destination = Field::Fib {
        flags: FibFlags::DADDR,
        result: FibResult::AddrType,
    };
    let spec = RuleSpec::new()
        .then(Match::ne(destination, RouteType::Local))
        .then(Match::eq(Field::Socket(SocketKey::Transparent), true))
        .then(Match::eq(Field::Socket(SocketKey::Wildcard), false))
        .then(Stmt::SetMark(MARK));
    Rule::from_spec(TABLE, DIVERT, spec).family(Family::Inet)
}

fn reassemble() -> Rule {
    // Any port: it is for the kernel that the rule is there, not for packets.
    Rule::new(TABLE, REASSEMBLE)
        .family(Family::Inet)
        .match_l4proto(libc::IPPROTO_UDP as u8)
        .tproxy(Family::Inet, None, Some(9))
}

impl RuleKey {
    const OURS: Self = Self {
        priority: PRIORITY,
        table: ROUTING_TABLE as u32,
        mark: Some((MARK, u32::MAX)),
        inverted: false,
    };

    fn of(rule: &RuleMessage) -> Self {
        let mask = rule.fwmask().unwrap_or(u32::MAX);
        Self {
            priority: rule.priority(),
            table: rule.table_id(),
            mark: rule.fwmark().map(|mark| (mark, mask)),
            inverted: rule.is_invert(),
        }
    }

    fn builder(self, ip: Ip) -> RuleBuilder {
        let builder = match ip {
            Ip::V4 => RuleBuilder::v4(),
            Ip::V6 => RuleBuilder::v6(),
        };
        let builder = builder
            .priority(self.priority)
            .table(self.table)
            .protocol(ROUTE_PROTOCOL);
        let builder = match self.mark {
            Some((mark, mask)) => builder.fwmark_mask(mark, mask),
            None => builder,
        };
        if self.inverted {
            builder.invert()
        } else {
            builder
        }
    }
}

/// `local default dev lo` in our routing table.
struct WayBack(Ip);

impl WayBack {
    fn write(&self, message: &mut MessageBuilder) {
        // IPv6 has no scopes of routes.
        let scope = match self.0 {
            Ip::V4 => RouteScope::Host,
            Ip::V6 => RouteScope::Universe,
        };
        let header = RtMsg::new()
            .with_family(anyip::family(self.0))
            .with_table(ROUTING_TABLE)
            .with_protocol(ROUTE_PROTOCOL)
            .with_scope(scope as u8)
            .with_type(RouteType::Local as u8);
        message.append(&header);
        message.append_attr_u32(RtaAttr::Oif as u16, anyip::LOOPBACK_INTERFACE);
    }

    fn is(route: &RouteMessage) -> bool {
        route.table_id() == u32::from(ROUTING_TABLE)
            && route.protocol().number() == ROUTE_PROTOCOL
            && route.dst_len() == 0
            && route.route_type() == RouteType::Local
            && route.oif() == Some(anyip::LOOPBACK_INTERFACE)
    }
}

impl RouteConfig for WayBack {
    fn device_ref(&self) -> Option<&InterfaceRef> {
        None
    }

    fn multipath_device_refs(&self) -> Vec<Option<&InterfaceRef>> {
        Vec::new()
    }

    fn family(&self) -> u8 {
        anyip::family(self.0)
    }

    fn write_add(&self, builder: &mut MessageBuilder, _: &ResolvedRouteInterfaces) {
        self.write(builder);
    }

    fn write_delete(&self, builder: &mut MessageBuilder) {
        self.write(builder);
    }
}

async fn has_route<const V6: bool>(netlink: &Connection<Route>) -> Result<bool, KernelError> {
    let routes = netlink.dump_typed::<OurTable<V6>>(NlMsgType::RTM_GETROUTE);
    match routes.await {
        // A kernel without IPv6 answers for IPv4.
        Ok(routes) => Ok(routes
            .iter()
            .any(|route| route.0.is_ipv6() == V6 && WayBack::is(&route.0))),
        Err(error) if anyip::NO_SUCH_TABLE.map(Some).contains(&error.errno()) => Ok(false),
        Err(source) => Err(KernelError::netlink("reading our routing table", source)),
    }
}

/// A route read by a request for one family of our routing table alone.
struct OurTable<const V6: bool>(RouteMessage);

impl<const V6: bool> FromNetlink for OurTable<V6> {
    fn parse(input: &mut &[u8]) -> PResult<Self> {
        RouteMessage::parse(input).map(Self)
    }

    fn write_dump_header(buffer: &mut Vec<u8>) {
        let ip = if V6 { Ip::V6 } else { Ip::V4 };
        let header = RtMsg::new()
            .with_family(anyip::family(ip))
            .with_table(ROUTING_TABLE);
        buffer.extend_from_slice(header.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Wanted = Wanted { v4: true, v6: true };
    const NEITHER: Wanted = Wanted {
        v4: false,
        v6: false,
    };

    fn nothing() -> Found {
        Found {
            marking: Marking::Absent,
            v4: Ways::default(),
            v6: Ways::default(),
        }
    }

    fn all() -> Found {
        let ways = Ways {
            rules: vec![RuleKey::OURS],
            route: true,
        };
        Found {
            marking: Marking::Right,
            v4: ways.clone(),
            v6: ways,
        }
    }

    #[test]
    fn what_is_as_wanted_is_left_alone() {
        assert_eq!(all().steps(BOTH), []);
        assert_eq!(nothing().steps(NEITHER), []);
    }

    #[test]
    fn nothing_is_marked_before_it_finds_its_way_or_after() {
        use Step::*;
        let (v4, v6) = (Ip::V4, Ip::V6);
        let made = [AddRoute(v4), AddRule(v4), AddRoute(v6), AddRule(v6), Mark];
        assert_eq!(nothing().steps(BOTH), made);
        let ours = RuleKey::OURS;
        let undone = [
            Unmark,
            RemoveRule(v4, ours),
            RemoveRoute(v4),
            RemoveRule(v6, ours),
            RemoveRoute(v6),
        ];
        assert_eq!(all().steps(NEITHER), undone);
    }

    #[test]
    fn rules_that_others_bent_or_doubled_go() {
        let bent = RuleKey {
            mark: Some((MARK, 0xffff)),
            ..RuleKey::OURS
        };
        let mut found = all();
        found.v4.rules = vec![bent, RuleKey::OURS, RuleKey::OURS];
        found.v6.rules = vec![bent];
        let mended = [
            Step::AddRule(Ip::V6),
            Step::RemoveRule(Ip::V4, bent),
            Step::RemoveRule(Ip::V4, RuleKey::OURS),
            Step::RemoveRule(Ip::V6, bent),
        ];
        assert_eq!(found.steps(BOTH), mended);
    }

    #[test]
    fn a_table_of_someone_else_is_left_alone_where_none_is_wanted() {
        let found = Found {
            marking: Marking::Foreign,
            ..nothing()
        };
        assert_eq!(found.steps(NEITHER), []);
    }
}
