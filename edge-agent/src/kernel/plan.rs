//! The difference between what is wanted and what the kernel holds, as steps.
//! Pure: no socket, no clock. The steps are valid in the order given.
//!
//! Two rules hold for every plan. A more specific route is added before, and
//! removed after, the wider one around it, so that no address is ever left to
//! a route that was not meant for it. And what is already right is not
//! touched: elements and rules change by difference, never by rebuilding, so
//! that a claim that stays is steered at every instant.

use std::{collections::BTreeSet, num::NonZeroU16};

use ipnet::IpNet;

use super::{
    desired::{Element, Goal, Lane, PerLane, Steering},
    handle::Conflict,
    observed::{Content, Observed, ObservedRoute, ObservedRule, OurTable, Part, TableState},
};

/// What has to be done, in three parts that are carried out in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Most specific first.
    pub(crate) add_routes: Vec<RouteStep>,
    /// One netlink transaction.
    pub(crate) table: Vec<TableStep>,
    /// Least specific first.
    pub(crate) remove_routes: Vec<ObservedRoute>,
    /// Those of them whose addresses the host would no longer answer for: they
    /// stay as long as something is open there.
    pub(crate) vacated: BTreeSet<IpNet>,
    /// What of that has stayed.
    pub(crate) lingering: BTreeSet<IpNet>,
    /// Prefixes that cannot be had: there is no listener for their family, or
    /// the local table holds a route for exactly the prefix that is not ours
    /// and does not make it local, for example a broadcast address.
    pub(crate) conflicts: Vec<Conflict>,
    /// How many objects of each kind are not as they should be.
    pub(crate) amiss: Amiss,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouteStep {
    Add(IpNet),
    /// Ours, but not as it should be: changed in place, without a gap.
    Replace(IpNet),
}

impl RouteStep {
    pub(crate) fn net(self) -> IpNet {
        match self {
            RouteStep::Add(net) | RouteStep::Replace(net) => net,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TableStep {
    DeleteTable,
    CreateTable,
    /// Take back the flag that switches a table off.
    WakeTable,
    FlushRules,
    DeleteRule(u64),
    DeleteChain,
    CreateChain,
    DeleteSet(Lane),
    CreateSet(Lane),
    RemoveElements(Lane, Vec<Element>),
    AddElements(Lane, Vec<Element>),
    ReplaceRule(u64, Lane, NonZeroU16),
    AddRule(Lane, NonZeroU16),
}

/// Objects that differ from what is wanted, by kind. A missing table counts
/// once, not once more for each thing that it would hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amiss {
    pub(crate) routes: u64,
    pub(crate) tables: u64,
    pub(crate) chains: u64,
    pub(crate) rules: u64,
    /// Sets whose content differs.
    pub(crate) sets: u64,
    /// Of sk_lookup: the link that keeps the program attached.
    pub(crate) links: u64,
    /// Another program runs than the one that was attached.
    pub(crate) programs: u64,
    /// Kinds of sockets of which the map holds none, or another one.
    pub(crate) sockets: u64,
    /// The file system lacks what keeps the rest when the agent ends.
    pub(crate) pins: u64,
    /// Whatever leads answers back to transparent sockets.
    pub(crate) return_path: u64,
}

impl Amiss {
    /// `self` by nftables and routes, `other` by sk_lookup.
    pub(crate) fn and(self, other: Self) -> Self {
        let Self {
            links,
            programs,
            sockets,
            pins,
            ..
        } = other;
        Self {
            links,
            programs,
            sockets,
            pins,
            ..self
        }
    }
}

/// A table of our name that we did not make. It is not ours to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotOurTable;

pub(crate) fn plan(goal: &Goal, observed: &Observed) -> Result<Plan, NotOurTable> {
    let mut plan = Plan::default();
    plan_routes(goal, &observed.routes, &mut plan);
    if goal.steering != Steering::Tproxy {
        // It would steer past what is now to steer.
        if matches!(observed.table, TableState::Ours(_)) {
            plan.amiss.tables = 1;
            plan.table.push(TableStep::DeleteTable);
        }
        return Ok(plan);
    }
    match &observed.table {
        TableState::Foreign => return Err(NotOurTable),
        TableState::Absent => {
            plan.amiss.tables = 1;
            plan.create_table(goal);
        }
        TableState::Ours(table) if table.is_other_layout() => {
            plan.amiss.tables = 1;
            plan.table.push(TableStep::DeleteTable);
            plan.create_table(goal);
        }
        TableState::Ours(table) => plan.mend_table(goal, table),
    }
    Ok(plan)
}

/// Like [`plan`], but makes our table anew even where it could be mended.
///
/// For kernels that take an element which the same transaction removes for
/// one that is still there, and refuse the new one in its place: 6.17 and
/// 6.18 on processors with AVX2, until "nft_set_pipapo_avx2: don't return
/// non-matching entry on expiry". New sets have nothing to remove.
pub(crate) fn plan_anew(goal: &Goal, observed: &Observed) -> Result<Plan, NotOurTable> {
    let mut plan = plan(goal, observed)?;
    if matches!(observed.table, TableState::Ours(_)) {
        plan.table = vec![TableStep::DeleteTable];
        plan.create_table(goal);
    }
    Ok(plan)
}

/// What takes everything of ours away.
pub(crate) fn plan_removal(observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    if matches!(observed.table, TableState::Ours(_)) {
        plan.table.push(TableStep::DeleteTable);
    }
    plan.remove_routes = (observed.routes.iter().filter(|route| route.ours))
        .cloned()
        .collect();
    plan.order_routes();
    plan
}

fn plan_routes(goal: &Goal, observed: &[ObservedRoute], plan: &mut Plan) {
    plan.conflicts = goal.without_listener.iter().map(no_listener).collect();
    for &net in &goal.routes {
        let mut at_net = observed.iter().filter(|route| route.net == net);
        if at_net.clone().any(|route| route.ours && route.right) {
            continue;
        }
        let mut foreign = at_net.clone().filter(|route| !route.ours);
        if foreign.clone().any(|route| route.local) {
            // Someone else, as a rule an address of the host itself, makes
            // the prefix local already. It is their route, and it will do.
            continue;
        }
        if foreign.next().is_some() {
            let reason = format!(
                "the host's table local has a route of its own for {net}; remove it \
                 (ip route show table local {net})"
            );
            plan.conflicts.push(Conflict { net, reason });
            continue;
        }
        plan.amiss.routes += 1;
        if at_net.any(|route| route.ours && route.in_place) {
            plan.add_routes.push(RouteStep::Replace(net));
        } else {
            plan.add_routes.push(RouteStep::Add(net));
        }
    }
    let replaced = |route: &ObservedRoute| {
        route.in_place && plan.add_routes.contains(&RouteStep::Replace(route.net))
    };
    let stale: Vec<_> = observed
        .iter()
        .filter(|route| route.ours && !replaced(route))
        .filter(|route| !(route.right && goal.routes.contains(&route.net)))
        .cloned()
        .collect();
    plan.amiss.routes += stale
        .iter()
        .filter(|route| !goal.routes.contains(&route.net))
        .filter(|route| !goal.lingering.contains(&route.net))
        .count() as u64;
    let covered = |net: &IpNet| goal.routes.iter().any(|wanted| wanted.contains(net));
    let nets = stale.iter().map(|route| route.net);
    plan.vacated = nets.filter(|net| !covered(net)).collect();
    plan.remove_routes = stale;
    plan.order_routes();
}

fn no_listener(&net: &IpNet) -> Conflict {
    let reason = "the agent could not listen on ::1, so nothing would answer there; enable IPv6 \
                  on `lo` (sysctl net.ipv6.conf.lo.disable_ipv6=0) and restart the agent"
        .to_owned();
    Conflict { net, reason }
}

impl Plan {
    /// Takes note that routes were planned and could not be added.
    pub(crate) fn go_without(&mut self, refused: Vec<Conflict>) {
        let is_refused = |net| refused.iter().any(|conflict| conflict.net == net);
        self.add_routes.retain(|step| !is_refused(step.net()));
        self.conflicts.extend(refused);
    }

    /// Takes note that routes were to be removed and stay for a while.
    pub(crate) fn linger(&mut self, nets: BTreeSet<IpNet>) {
        self.remove_routes
            .retain(|route| !nets.contains(&route.net));
        self.lingering = nets;
    }

    fn order_routes(&mut self) {
        self.add_routes
            .sort_by_key(|step| (std::cmp::Reverse(step.net().prefix_len()), step.net()));
        self.remove_routes
            .sort_by_key(|route| (route.net.prefix_len(), route.net));
    }

    fn create_table(&mut self, goal: &Goal) {
        self.table.push(TableStep::CreateTable);
        self.table.push(TableStep::CreateChain);
        for lane in Lane::ALL {
            self.create_set(lane, goal.elements.get(lane));
        }
        self.add_rules(&goal.listeners);
    }

    fn create_set(&mut self, lane: Lane, elements: &BTreeSet<Element>) {
        self.table.push(TableStep::CreateSet(lane));
        if !elements.is_empty() {
            let all = elements.iter().copied().collect();
            self.table.push(TableStep::AddElements(lane, all));
        }
    }

    fn add_rules(&mut self, listeners: &PerLane<Option<NonZeroU16>>) {
        for lane in Lane::ALL {
            if let Some(port) = *listeners.get(lane) {
                self.table.push(TableStep::AddRule(lane, port));
            }
        }
    }

    fn mend_table(&mut self, goal: &Goal, table: &OurTable) {
        if table.asleep {
            self.amiss.tables = 1;
            self.table.push(TableStep::WakeTable);
        }
        let sets_wrong = Lane::ALL
            .into_iter()
            .any(|lane| *table.sets.get(lane) == Part::Wrong);
        // A set that rules refer to cannot be deleted, a chain goes with its
        // rules: in both cases all rules are written anew.
        let rules_anew = match table.chain {
            Part::Right(()) if sets_wrong => {
                self.table.push(TableStep::FlushRules);
                true
            }
            Part::Right(()) => false,
            Part::Wrong => {
                self.amiss.chains = 1;
                self.table.push(TableStep::FlushRules);
                self.table.push(TableStep::DeleteChain);
                self.table.push(TableStep::CreateChain);
                true
            }
            Part::Missing => {
                self.amiss.chains = 1;
                self.table.push(TableStep::CreateChain);
                true
            }
        };
        for lane in Lane::ALL {
            self.mend_set(lane, goal.elements.get(lane), table.sets.get(lane));
        }
        if rules_anew {
            self.add_rules(&goal.listeners);
        } else {
            self.mend_rules(goal, &table.rules);
        }
    }

    fn mend_set(&mut self, lane: Lane, wanted: &BTreeSet<Element>, set: &Part<Content>) {
        match set {
            Part::Missing => {
                self.amiss.sets += 1;
                self.create_set(lane, wanted);
            }
            Part::Wrong => {
                self.amiss.sets += 1;
                self.table.push(TableStep::DeleteSet(lane));
                self.create_set(lane, wanted);
            }
            Part::Right(content) => {
                let gone: Vec<_> = content.difference(wanted).copied().collect();
                let new: Vec<_> = wanted.difference(content).copied().collect();
                self.amiss.sets += u64::from(!(gone.is_empty() && new.is_empty()));
                // Removal first: a claim may come in a new shape, and two
                // elements that overlap are refused.
                if !gone.is_empty() {
                    self.table.push(TableStep::RemoveElements(lane, gone));
                }
                if !new.is_empty() {
                    self.table.push(TableStep::AddElements(lane, new));
                }
            }
        }
    }

    fn mend_rules(&mut self, goal: &Goal, rules: &[ObservedRule]) {
        let mut kept = Vec::new();
        for lane in Lane::ALL {
            let Some(port) = *goal.listeners.get(lane) else {
                continue;
            };
            let of_lane = || {
                let steers = move |rule: &&ObservedRule| rule.steers.is_some_and(|s| s.0 == lane);
                rules.iter().filter(steers)
            };
            let right = of_lane().find(|rule| rule.steers == Some((lane, port)));
            if let Some(rule) = right {
                kept.push(rule.handle);
            } else if let Some(rule) = of_lane().next() {
                self.amiss.rules += 1;
                kept.push(rule.handle);
                self.table
                    .push(TableStep::ReplaceRule(rule.handle, lane, port));
            } else {
                self.amiss.rules += 1;
                self.table.push(TableStep::AddRule(lane, port));
            }
        }
        for rule in rules.iter().filter(|rule| !kept.contains(&rule.handle)) {
            self.amiss.rules += 1;
            self.table.push(TableStep::DeleteRule(rule.handle));
        }
    }
}

#[cfg(test)]
mod tests;
