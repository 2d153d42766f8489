use anyport_model::{
    fault::Fault,
    resource::{Kind, Prefix, ResourceRef},
};
use ipnet::IpNet;

use crate::v1;

/// The kind that a request names; `None` for unspecified.
pub fn read_kind(wire: i32) -> Result<Option<Kind>, Fault> {
    match v1::Kind::try_from(wire) {
        Ok(v1::Kind::Unspecified) => Ok(None),
        Ok(v1::Kind::Prefix) => Ok(Some(Kind::Prefix)),
        Ok(v1::Kind::Monitor) => Ok(Some(Kind::Monitor)),
        Ok(v1::Kind::Pool) => Ok(Some(Kind::Pool)),
        Ok(v1::Kind::Certificate) => Ok(Some(Kind::Certificate)),
        Ok(v1::Kind::App) => Ok(Some(Kind::App)),
        Err(unknown) => Err(Fault::new("kind", unknown)),
    }
}

pub fn write_kind(kind: Kind) -> v1::Kind {
    match kind {
        Kind::Prefix => v1::Kind::Prefix,
        Kind::Monitor => v1::Kind::Monitor,
        Kind::Pool => v1::Kind::Pool,
        Kind::Certificate => v1::Kind::Certificate,
        Kind::App => v1::Kind::App,
    }
}

pub fn read_reference(wire: &v1::ResourceRef) -> Result<ResourceRef, Fault> {
    let name = |problem: &dyn std::fmt::Display| Fault::new("name", problem);
    match read_kind(wire.kind)? {
        None => Err(Fault::new("kind", "is not set; name one of the kinds")),
        Some(Kind::Prefix) => {
            let net: IpNet = wire
                .name
                .parse()
                .map_err(|_| Fault::new("name", format_args!("{:?} is no CIDR", wire.name)))?;
            let prefix = Prefix::new(net).map_err(|e| name(&e))?;
            Ok(ResourceRef::Prefix(prefix))
        }
        Some(Kind::Monitor) => match wire.name.parse() {
            Ok(monitor) => Ok(ResourceRef::Monitor(monitor)),
            Err(problem) => Err(name(&problem)),
        },
        Some(Kind::Pool) => match wire.name.parse() {
            Ok(pool) => Ok(ResourceRef::Pool(pool)),
            Err(problem) => Err(name(&problem)),
        },
        Some(Kind::Certificate) => match wire.name.parse() {
            Ok(certificate) => Ok(ResourceRef::Certificate(certificate)),
            Err(problem) => Err(name(&problem)),
        },
        Some(Kind::App) => match wire.name.parse() {
            Ok(app) => Ok(ResourceRef::App(app)),
            Err(problem) => Err(name(&problem)),
        },
    }
}

pub fn write_reference(reference: &ResourceRef) -> v1::ResourceRef {
    v1::ResourceRef {
        kind: write_kind(reference.kind()).into(),
        name: reference.name(),
    }
}

/// The reference that a resource would have, where its name can be read.
pub(super) fn of_message(kind: Kind, name: &str) -> Option<ResourceRef> {
    let kind = write_kind(kind).into();
    read_reference(&v1::ResourceRef {
        kind,
        name: name.to_owned(),
    })
    .ok()
}
