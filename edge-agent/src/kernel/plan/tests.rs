//! Plans carried out on a kernel of plain data that is as strict as the real
//! one: it refuses what exists already, and what does not exist.

use std::net::IpAddr;

use anyport_model::resource::Transport;
use proptest::prelude::*;

use super::*;
use crate::kernel::{SteeredSockets, desired::Ip, observed::RouteKey};

/// Carries out a plan, and panics where the real kernel would refuse.
fn carry_out(observed: &mut Observed, plan: &Plan) {
    for &step in &plan.add_routes {
        let same_key = |route: &ObservedRoute| route.net == step.net() && route.in_place;
        let at = observed.routes.iter().position(same_key);
        match (step, at) {
            (RouteStep::Add(_), None) => {}
            (RouteStep::Add(net), Some(_)) => panic!("{net} exists"),
            (RouteStep::Replace(net), None) => panic!("{net}: nothing to replace"),
            (RouteStep::Replace(net), Some(at)) => {
                let old = observed.routes.remove(at);
                assert!(old.ours, "{net} is not ours to replace");
            }
        }
        observed.routes.push(our_route(step.net()));
    }
    for step in &plan.table {
        carry_out_step(&mut observed.table, step);
    }
    for route in &plan.remove_routes {
        let at = observed.routes.iter().position(|r| r == route);
        let gone = observed.routes.remove(at.expect("the route exists"));
        assert!(gone.ours, "{} is not ours to remove", gone.net);
    }
}

fn carry_out_step(state: &mut TableState, step: &TableStep) {
    let table = match (&mut *state, step) {
        (TableState::Absent, TableStep::CreateTable) => {
            *state = TableState::Ours(OurTable {
                layout: Some(OurTable::LAYOUT),
                crowded: false,
                asleep: false,
                chain: Part::Missing,
                sets: PerLane::from_fn(|_| Part::Missing),
                rules: Vec::new(),
            });
            return;
        }
        (TableState::Ours(_), TableStep::DeleteTable) => {
            *state = TableState::Absent;
            return;
        }
        (TableState::Ours(table), _) => table,
        (state, step) => panic!("{step:?} on {state:?}"),
    };
    let rule_at = |rules: &[ObservedRule], handle| {
        let at = rules.iter().position(|rule| rule.handle == handle);
        at.expect("the rule exists")
    };
    match step {
        TableStep::DeleteTable | TableStep::CreateTable => panic!("{step:?} on our table"),
        TableStep::WakeTable => table.asleep = false,
        TableStep::FlushRules => table.rules.clear(),
        TableStep::DeleteRule(handle) => {
            table.rules.remove(rule_at(&table.rules, *handle));
        }
        TableStep::DeleteChain => {
            assert!(table.rules.is_empty(), "a chain with rules is busy");
            assert_ne!(table.chain, Part::Missing);
            table.chain = Part::Missing;
        }
        TableStep::CreateChain => {
            assert_eq!(table.chain, Part::Missing);
            table.chain = Part::Right(());
        }
        TableStep::DeleteSet(lane) => {
            assert!(table.rules.is_empty(), "a set that rules refer to is busy");
            assert_ne!(*table.sets.get(*lane), Part::Missing);
            *table.sets.get_mut(*lane) = Part::Missing;
        }
        TableStep::CreateSet(lane) => {
            assert_eq!(*table.sets.get(*lane), Part::Missing);
            *table.sets.get_mut(*lane) = Part::Right(Content::new());
        }
        TableStep::RemoveElements(lane, gone) => {
            let content = content(table, *lane);
            assert!(!gone.is_empty() && gone.iter().all(|e| content.remove(e)));
        }
        TableStep::AddElements(lane, new) => {
            let content = content(table, *lane);
            assert!(!new.is_empty() && new.iter().all(|e| content.insert(*e)));
        }
        TableStep::ReplaceRule(handle, lane, port) => {
            let at = rule_at(&table.rules, *handle);
            table.rules[at].steers = Some((*lane, *port));
        }
        TableStep::AddRule(lane, port) => {
            assert_eq!(table.chain, Part::Right(()));
            assert_ne!(
                *table.sets.get(*lane),
                Part::Missing,
                "a rule needs its set"
            );
            let handle = 1 + table
                .rules
                .iter()
                .map(|rule| rule.handle)
                .max()
                .unwrap_or(0);
            table.rules.push(ObservedRule {
                handle,
                steers: Some((*lane, *port)),
            });
        }
    }
}

fn content(table: &mut OurTable, lane: Lane) -> &mut Content {
    match table.sets.get_mut(lane) {
        Part::Right(content) => content,
        other => panic!("elements of a set that is {other:?}"),
    }
}

fn our_route(net: IpNet) -> ObservedRoute {
    ObservedRoute {
        net,
        ours: true,
        local: true,
        right: true,
        in_place: true,
        key: key(0),
    }
}

/// Keys only have to differ where routes do.
fn key(metric: u32) -> RouteKey {
    RouteKey {
        kind: 2,
        scope: 254,
        metric: Some(metric),
        interface: Some(1),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn port(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).expect("a port")
}

fn element(host: u8, first: u16) -> Element {
    let address = IpAddr::from([198, 51, 100, host]);
    Element {
        addresses: (address, address),
        ports: (first, first + 9),
    }
}

fn goal(routes: &[&str], elements: &[Element], listener: u16) -> Goal {
    Goal {
        lingering: Default::default(),
        steering: Steering::Tproxy,
        routes: routes.iter().map(|text| net(text)).collect(),
        without_listener: BTreeSet::new(),
        elements: PerLane::from_fn(|lane| {
            let filled = (lane == TCP4).then_some(elements);
            filled.unwrap_or_default().iter().copied().collect()
        }),
        listeners: PerLane::from_fn(|_| Some(port(listener))),
        sockets: SteeredSockets::default(),
        return_path: Default::default(),
    }
}

const TCP4: Lane = Lane::new(Transport::Tcp, Ip::V4);

#[test]
fn by_sk_lookup_only_our_table_goes() {
    let tproxy = goal(&["198.51.100.0/24"], &[element(7, 80)], 1);
    let goal = Goal {
        steering: Steering::SkLookup,
        ..tproxy.clone()
    };
    let planned = plan(&goal, &after(&tproxy)).expect("a plan");
    assert_eq!(planned.table, [TableStep::DeleteTable]);
    assert_eq!(planned.add_routes, []);
    let foreign = Observed {
        table: TableState::Foreign,
        ..after(&tproxy)
    };
    assert_eq!(plan(&goal, &foreign), Ok(Plan::default()));
}

const NOTHING: Observed = Observed {
    routes: Vec::new(),
    table: TableState::Absent,
};

fn after(goal: &Goal) -> Observed {
    let mut observed = NOTHING;
    carry_out(&mut observed, &plan(goal, &NOTHING).expect("a plan"));
    observed
}

#[test]
fn specific_routes_come_first_and_go_last() {
    let nested = ["198.51.100.0/24", "198.51.100.8/32", "198.51.100.0/28"];
    let wanted = goal(&nested, &[], 1);
    let lengths = |nets: Vec<IpNet>| nets.iter().map(IpNet::prefix_len).collect::<Vec<_>>();

    let adds = plan(&wanted, &NOTHING).expect("a plan").add_routes;
    let adds = adds.into_iter().map(RouteStep::net).collect();
    assert_eq!(lengths(adds), [32, 28, 24]);
    let removal = plan_removal(&after(&wanted)).remove_routes;
    let removal = removal.into_iter().map(|route| route.net).collect();
    assert_eq!(lengths(removal), [24, 28, 32]);
}

#[test]
fn another_listener_port_replaces_rules_and_touches_nothing_else() {
    let before = after(&goal(&["198.51.100.0/24"], &[element(1, 80)], 1000));
    let plan = plan(
        &goal(&["198.51.100.0/24"], &[element(1, 80)], 2000),
        &before,
    );
    let plan = plan.expect("a plan");
    let replaced = (1..).zip(Lane::ALL);
    let replaced = replaced.map(|(handle, lane)| TableStep::ReplaceRule(handle, lane, port(2000)));
    assert_eq!(plan.table, replaced.collect::<Vec<_>>());
    assert!(plan.add_routes.is_empty() && plan.remove_routes.is_empty());
}

#[test]
fn a_claim_comes_and_goes_by_itself() {
    let before = after(&goal(&[], &[element(1, 80), element(2, 80)], 1));
    let plan = plan(&goal(&[], &[element(2, 80), element(3, 80)], 1), &before);
    let steps = [
        TableStep::RemoveElements(TCP4, vec![element(1, 80)]),
        TableStep::AddElements(TCP4, vec![element(3, 80)]),
    ];
    assert_eq!(plan.expect("a plan").table, steps);
}

#[test]
fn a_foreign_table_is_no_plan_and_no_removal() {
    let foreign = Observed {
        table: TableState::Foreign,
        ..NOTHING
    };
    assert_eq!(plan(&goal(&[], &[], 1), &foreign), Err(NotOurTable));
    assert_eq!(plan_removal(&foreign), Plan::default());
}

#[test]
fn a_missing_table_is_one_thing_amiss() {
    let wanted = goal(&["198.51.100.0/24"], &[element(1, 80)], 1);
    let amiss = plan(&wanted, &NOTHING).expect("a plan").amiss;
    let expected = Amiss {
        routes: 1,
        tables: 1,
        ..Amiss::default()
    };
    assert_eq!(amiss, expected);
}

/// A small world, so that what is there and what is wanted often meet.
const NETS: [&str; 6] = [
    "198.51.100.0/24",
    "198.51.100.0/28",
    "198.51.100.8/32",
    "203.0.113.0/24",
    "2001:db8::/32",
    "2001:db8:1::/48",
];

fn any_route() -> impl Strategy<Value = ObservedRoute> {
    let kind = prop_oneof![
        // Ours and right; ours and wrong; someone else's.
        Just((true, true, true, true)),
        Just((true, true, false, true)),
        Just((true, false, false, true)),
        Just((true, true, false, false)),
        Just((false, true, false, true)),
        Just((false, false, false, false)),
    ];
    (0..NETS.len(), kind, 1u32..9).prop_map(|(at, (ours, local, right, in_place), metric)| {
        ObservedRoute {
            net: net(NETS[at]),
            ours,
            local,
            right,
            in_place,
            key: key(if in_place { 0 } else { metric }),
        }
    })
}

fn any_content() -> impl Strategy<Value = Content> {
    let element = (0u8..5, 1u16..4).prop_map(|(host, block)| element(host, block * 10));
    prop::collection::btree_set(element, 0..8)
}

fn any_part<T: Clone + std::fmt::Debug>(
    right: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Part<T>> {
    prop_oneof![
        1 => Just(Part::Missing),
        1 => Just(Part::Wrong),
        6 => right.prop_map(Part::Right),
    ]
}

fn any_lane() -> impl Strategy<Value = Lane> {
    prop::sample::select(&Lane::ALL)
}

fn per_lane<T: Clone + std::fmt::Debug + 'static>(
    one: impl Fn() -> BoxedStrategy<T>,
) -> impl Strategy<Value = PerLane<T>> {
    let four = prop::collection::vec(one(), Lane::ALL.len());
    four.prop_map(|mut four| PerLane::from_fn(|_| four.remove(0)))
}

fn any_table() -> impl Strategy<Value = OurTable> {
    let layout =
        prop_oneof![1 => Just(None), 1 => Just(Some(9)), 8 => Just(Some(OurTable::LAYOUT))];
    let sets = per_lane(|| any_part(any_content()).boxed());
    let steers = prop::option::of((any_lane(), (1u16..4).prop_map(port)));
    let rules = prop::collection::vec(steers, 0..5);
    let flags = (prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    (layout, flags, any_part(Just(())), sets, rules).prop_map(
        |(layout, (crowded, asleep), chain, sets, rules)| OurTable {
            layout,
            crowded,
            asleep,
            rules: match chain {
                Part::Missing => Vec::new(),
                _ => (1..)
                    .zip(rules)
                    .map(|(handle, steers)| ObservedRule { handle, steers })
                    .collect(),
            },
            chain,
            sets,
        },
    )
}

fn any_observed() -> impl Strategy<Value = Observed> {
    let table = prop_oneof![
        1 => Just(TableState::Absent),
        5 => any_table().prop_map(TableState::Ours),
    ];
    (prop::collection::vec(any_route(), 0..8), table).prop_map(|(mut routes, table)| {
        // The kernel holds one route of a prefix and metric.
        let mut seen = Vec::new();
        routes.retain(|route| {
            let name = (route.net, route.key.metric);
            let new = !seen.contains(&name);
            seen.push(name);
            new
        });
        Observed { routes, table }
    })
}

fn any_goal() -> impl Strategy<Value = Goal> {
    let routes = prop::sample::subsequence(NETS.to_vec(), 0..=NETS.len());
    (
        routes,
        per_lane(|| any_content().boxed()),
        per_lane(|| prop::option::of((1u16..4).prop_map(port)).boxed()),
    )
        .prop_map(|(routes, elements, listeners)| Goal {
            lingering: Default::default(),
            steering: Steering::Tproxy,
            routes: routes.into_iter().map(net).collect(),
            without_listener: BTreeSet::new(),
            elements,
            listeners,
            sockets: SteeredSockets::default(),
            return_path: Default::default(),
        })
}

fn is_sorted_by_length(lengths: &[u8], falling: bool) -> bool {
    lengths.windows(2).all(|pair| {
        if falling {
            pair[0] >= pair[1]
        } else {
            pair[0] <= pair[1]
        }
    })
}

proptest! {
    #[test]
    fn whatever_was_there_the_goal_is_reached(goal in any_goal(), start in any_observed()) {
        let first = plan(&goal, &start).expect("a plan");
        let mut reached = start.clone();
        carry_out(&mut reached, &first);

        // A second look finds nothing to do.
        let second = plan(&goal, &reached).expect("a plan");
        let nothing = Plan { conflicts: first.conflicts.clone(), ..Plan::default() };
        prop_assert_eq!(second, nothing);

        // Ours is exactly what is wanted.
        for route in reached.routes.iter().filter(|route| route.ours) {
            prop_assert!(route.right && goal.routes.contains(&route.net), "{:?}", route);
        }
        for net in &goal.routes {
            let local = reached.routes.iter().any(|route| route.net == *net && route.local);
            prop_assert!(local != first.conflicts.iter().any(|conflict| conflict.net == *net), "{}", net);
        }
        let TableState::Ours(table) = &reached.table else { panic!("no table") };
        let mut steers: Vec<_> = table.rules.iter().map(|rule| rule.steers).collect();
        steers.sort();
        let wanted: Vec<_> = Lane::ALL.into_iter()
            .filter_map(|lane| Some(Some((lane, (*goal.listeners.get(lane))?))))
            .collect();
        prop_assert_eq!(steers, wanted);
        for lane in Lane::ALL {
            prop_assert_eq!(table.sets.get(lane), &Part::Right(goal.elements.get(lane).clone()));
        }

        // What is not ours is as it was.
        let foreign = |observed: &Observed| {
            observed.routes.iter().filter(|route| !route.ours).cloned().collect::<Vec<_>>()
        };
        prop_assert_eq!(foreign(&start), foreign(&reached));
    }

    #[test]
    fn specific_before_wide_when_adding_and_after_it_when_removing(
        goal in any_goal(), start in any_observed(),
    ) {
        let plan = plan(&goal, &start).expect("a plan");
        let added: Vec<_> = plan.add_routes.iter().map(|step| step.net().prefix_len()).collect();
        let removed: Vec<_> = plan.remove_routes.iter().map(|route| route.net.prefix_len()).collect();
        prop_assert!(is_sorted_by_length(&added, true), "{:?}", added);
        prop_assert!(is_sorted_by_length(&removed, false), "{:?}", removed);
    }

    #[test]
    fn what_stays_is_not_touched(from in any_goal(), to in any_goal()) {
        let start = after(&from);
        let plan = plan(&to, &start).expect("a plan");
        for step in &plan.table {
            let touches = match step {
                TableStep::RemoveElements(lane, gone) => {
                    gone.iter().any(|element| to.elements.get(*lane).contains(element))
                }
                TableStep::ReplaceRule(_, lane, _) => from.listeners.get(*lane) == to.listeners.get(*lane),
                TableStep::AddElements(..) | TableStep::AddRule(..) | TableStep::DeleteRule(_) => false,
                _ => true,
            };
            prop_assert!(!touches, "{:?}", step);
        }
        for route in &plan.remove_routes {
            prop_assert!(!to.routes.contains(&route.net));
        }
    }

    #[test]
    fn a_table_made_anew_reaches_the_goal_too(goal in any_goal(), start in any_observed()) {
        let mut reached = start.clone();
        let anew = plan_anew(&goal, &start).expect("a plan");
        prop_assert!(!anew.table.iter().any(|step| matches!(step, TableStep::RemoveElements(..))));
        carry_out(&mut reached, &anew);
        prop_assert_eq!(plan(&goal, &reached).expect("a plan").table, vec![]);
    }

    #[test]
    fn nothing_is_amiss_right_after_it_was_applied(goal in any_goal()) {
        let plan = plan(&goal, &after(&goal)).expect("a plan");
        prop_assert_eq!(plan, Plan::default());
    }

    #[test]
    fn removal_leaves_only_what_is_foreign(start in any_observed()) {
        let mut observed = start.clone();
        carry_out(&mut observed, &plan_removal(&start));
        prop_assert_eq!(observed.table, TableState::Absent);
        prop_assert!(observed.routes.iter().all(|route| !route.ours));
    }
}
