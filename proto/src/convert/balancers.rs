//! Which balancers take part.

use std::{collections::BTreeMap, time::Duration};

use anyport_model::{
    balancers::{BalancerSet, Epoch},
    fault::Fault,
};

use super::write_duration;
use crate::v1;

/// # Errors
/// Where a member has no name, or one that another has.
pub fn read_balancer_set(wire: v1::BalancerSet) -> Result<BalancerSet, Fault> {
    let mut members = BTreeMap::new();
    for (index, member) in wire.members.into_iter().enumerate() {
        let field = format!("members[{index}].name");
        let name = match member.name.parse() {
            Ok(name) => name,
            Err(problem) => return Err(Fault::new(field, problem)),
        };
        if members.insert(name, member.address).is_some() {
            let problem = format!("{:?} is a member already", member.name);
            return Err(Fault::new(field, problem));
        }
    }
    Ok(BalancerSet {
        epoch: Epoch(wire.epoch),
        members,
    })
}

/// `lease`: how long a member stays one that is away.
pub fn write_balancer_set(set: &BalancerSet, lease: Duration) -> v1::BalancerSet {
    let members = set.members.iter();
    v1::BalancerSet {
        epoch: set.epoch.0,
        members: members
            .map(|(name, address)| v1::BalancerMember {
                name: name.to_string(),
                address: address.clone(),
            })
            .collect(),
        lease: Some(write_duration(lease)),
    }
}
