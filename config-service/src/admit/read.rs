//! The resources of a request: every one of them read, every fault by its path.

use anyport_model::resource::{Kind, Prefix, Resource, ResourceRef};
use anyport_proto::{
    convert::{Unreadable, read_resource},
    v1::{self, resource::Kind as Wire},
};

use super::{
    Violation,
    intent::{ApplyRead, path_of},
};

/// Reads all resources of a request. What is wrong with them is in
/// [`ApplyRead::violations`], and found together with what does not fit.
pub fn read_apply(resources: Vec<v1::Resource>) -> ApplyRead {
    let mut read = ApplyRead::default();
    for (index, wire) in resources.into_iter().enumerate() {
        let kind = kind_of(&wire);
        let stand_in = stand_in(&wire);
        match read_resource(wire) {
            Ok(resource) => add(&mut read, index, resource),
            Err(Unreadable { reference, faults }) => {
                let faults = faults.into_iter().map(|fault| Violation {
                    path: path_of(index, kind, &fault.field),
                    problem: fault.problem,
                });
                read.violations.extend(faults);
                read.unreadable.extend(reference);
                read.stand_ins.extend(stand_in);
            }
        }
    }
    read
}

fn add(read: &mut ApplyRead, index: usize, resource: Resource) {
    let reference = resource.reference();
    match read.resources.get(&reference) {
        None => {
            read.resources.insert(reference, (index, resource));
        }
        Some((first, _)) => read.violations.push(Violation {
            path: format!(
                "resources[{index}].{}.{}",
                reference.kind().singular(),
                name_field(&reference)
            ),
            problem: format!(
                "{reference} is also resources[{first}]; a request holds each resource once"
            ),
        }),
    }
}

fn name_field(reference: &ResourceRef) -> &'static str {
    match reference {
        ResourceRef::Prefix(_) => "cidr",
        ResourceRef::Monitor(_)
        | ResourceRef::Pool(_)
        | ResourceRef::Certificate(_)
        | ResourceRef::App(_) => "name",
    }
}

fn kind_of(wire: &v1::Resource) -> Option<Kind> {
    wire.kind.as_ref().map(|kind| match kind {
        Wire::Prefix(_) => Kind::Prefix,
        Wire::Monitor(_) => Kind::Monitor,
        Wire::Pool(_) => Kind::Pool,
        Wire::Certificate(_) => Kind::Certificate,
        Wire::App(_) => Kind::App,
    })
}

/// A prefix with host bits is wrong, but what was meant is plain: the apps
/// inside it are not wrong too.
fn stand_in(wire: &v1::Resource) -> Option<Resource> {
    let Some(Wire::Prefix(prefix)) = &wire.kind else {
        return None;
    };
    let net: ipnet::IpNet = prefix.cidr.parse().ok()?;
    Prefix::new(net.trunc()).ok().map(Resource::Prefix)
}
