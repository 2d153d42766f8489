use std::sync::Arc;

use anyport_model::{fault::Fault, resource::Resource};

use super::{app, certificate, fields::Unreadable, monitor, pool, prefix};
use crate::v1::{self, resource::Kind as Wire};

/// Reads a resource; the paths of faults start inside the message of its kind.
pub fn read_resource(wire: v1::Resource) -> Result<Resource, Unreadable> {
    match wire.kind {
        Some(Wire::Prefix(prefix)) => prefix::read(&prefix).map(Resource::Prefix),
        Some(Wire::Monitor(monitor)) => {
            monitor::read(monitor).map(|monitor| Resource::Monitor(Arc::new(monitor)))
        }
        Some(Wire::Pool(pool)) => pool::read(pool).map(|pool| Resource::Pool(Arc::new(pool))),
        Some(Wire::Certificate(certificate)) => certificate::read(certificate)
            .map(|certificate| Resource::Certificate(Arc::new(certificate))),
        Some(Wire::App(app)) => app::read(app).map(|app| Resource::App(Arc::new(app))),
        None => Err(Unreadable {
            reference: None,
            faults: vec![Fault::new(
                "",
                "holds no kind of resource that this version knows",
            )],
        }),
    }
}

/// Whole, with private keys: for the store and for edges.
pub fn write_resource(resource: &Resource) -> v1::Resource {
    let kind = match resource {
        Resource::Prefix(prefix) => Wire::Prefix(prefix::write(*prefix)),
        Resource::Monitor(monitor) => Wire::Monitor(monitor::write(monitor)),
        Resource::Pool(pool) => Wire::Pool(pool::write(pool)),
        Resource::Certificate(certificate) => Wire::Certificate(certificate::write(certificate)),
        Resource::App(app) => Wire::App(app::write(app)),
    };
    v1::Resource { kind: Some(kind) }
}

/// Without private keys: for whoever asks.
pub fn write_redacted(resource: &Resource) -> v1::Resource {
    match resource {
        Resource::Certificate(certificate) => v1::Resource {
            kind: Some(Wire::Certificate(certificate::write_redacted(certificate))),
        },
        _ => write_resource(resource),
    }
}
