//! Who may connect to an app, and how much of it each may have.

use std::num::NonZeroU32;

use anyport_model::{
    access::{Access, Action, Rule},
    limits::Limits,
};

use super::{
    app::{are_few, net_text, network},
    fields::Faults,
};
use crate::v1;

pub(super) fn read_access(faults: &mut Faults, wire: Option<v1::Access>) -> Option<Access> {
    let wire = wire.unwrap_or_default();
    let default = action(faults, "access.default", wire.default)?;
    let mut access = Access::new(default.unwrap_or_default());
    if !are_few(faults, "access.rules", wire.rules.len()) {
        return None;
    }
    for (index, rule) in wire.rules.iter().enumerate() {
        let action_field = format!("access.rules[{index}].action");
        let action = action(faults, &action_field, rule.action).and_then(|action| {
            if action.is_none() {
                faults.add(action_field, "is not set; right is allow or deny");
            }
            action
        });
        let field = format!("access.rules[{index}].source");
        let source = faults.take(field.clone(), network(&rule.source));
        if let (Some(action), Some(source)) = (action, source) {
            faults.take(field, access.add(Rule { action, source }));
        }
    }
    Some(access)
}

/// `Some(None)`: it is not set.
fn action(faults: &mut Faults, field: &str, wire: i32) -> Option<Option<Action>> {
    use v1::AccessAction as Wire;
    Some(match faults.take(field, Wire::try_from(wire))? {
        Wire::Unspecified => None,
        Wire::Allow => Some(Action::Allow),
        Wire::Deny => Some(Action::Deny),
    })
}

/// The wire's default is not written out.
pub(super) fn write_access(access: &Access) -> Option<v1::Access> {
    if access.is_open() {
        return None;
    }
    let write = |action| match action {
        Action::Allow => v1::AccessAction::Allow,
        Action::Deny => v1::AccessAction::Deny,
    };
    let rules = access.rules().iter().map(|rule| v1::AccessRule {
        action: write(rule.action).into(),
        source: net_text(&rule.source),
    });
    Some(v1::Access {
        default: write(access.default_action()).into(),
        rules: rules.collect(),
    })
}

pub(super) fn read_limits(wire: Option<v1::Limits>) -> Limits {
    let wire = wire.unwrap_or_default();
    Limits {
        connections: NonZeroU32::new(wire.connections),
        connections_per_source: NonZeroU32::new(wire.connections_per_source),
        new_connections_per_source: NonZeroU32::new(wire.new_connections_per_source),
        bytes_per_second_per_connection: NonZeroU32::new(wire.bytes_per_second_per_connection),
    }
}

/// The wire's default is not written out.
pub(super) fn write_limits(limits: &Limits) -> Option<v1::Limits> {
    let number = |limit: Option<NonZeroU32>| limit.map_or(0, NonZeroU32::get);
    (*limits != Limits::default()).then(|| v1::Limits {
        connections: number(limits.connections),
        connections_per_source: number(limits.connections_per_source),
        new_connections_per_source: number(limits.new_connections_per_source),
        bytes_per_second_per_connection: number(limits.bytes_per_second_per_connection),
    })
}
