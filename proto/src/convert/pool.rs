use std::net::SocketAddr;

use anyport_model::{
    resource::{Kind, Origin, Policy, Pool, Weight},
    validate::repeated_origins,
};

use super::fields::{Faults, Unreadable};
use crate::v1;

/// More would make every choice and every weights update slow.
const ORIGINS_MAX: usize = 1000;

pub(super) fn read(wire: v1::Pool) -> Result<Pool, Unreadable> {
    let mut faults = Faults::default();
    let name = faults.parse("name", &wire.name);
    let monitor = faults.parse_optional("monitor", &wire.monitor);
    let policy = faults.take("policy", v1::Policy::try_from(wire.policy));
    let fallback = faults.parse_optional("fallback_pool", &wire.fallback_pool);
    let origins = origins(&mut faults, &wire.origins);
    let minimum_origins = minimum(&mut faults, wire.minimum_origins, wire.origins.len());
    let pool = (|| {
        Some(Pool {
            name: name?,
            monitor: monitor?,
            policy: match policy? {
                v1::Policy::Unspecified | v1::Policy::Weighted => Policy::Weighted,
                v1::Policy::RoundRobin => Policy::RoundRobin,
                v1::Policy::LeastConnections => Policy::LeastConnections,
                v1::Policy::Latency => Policy::Latency,
                v1::Policy::Hash => Policy::Hash,
            },
            minimum_origins: minimum_origins?,
            fallback: fallback?,
            origins: origins?,
        })
    })();
    let reference = super::reference::of_message(Kind::Pool, &wire.name);
    faults.finish(reference, pool)
}

fn minimum(faults: &mut Faults, value: u32, origins: usize) -> Option<u32> {
    let value = value.max(1);
    if value as usize > origins && origins > 0 {
        faults.add(
            "minimum_origins",
            format_args!(
                "{value} is more than the {origins} origins of the pool, which could never be up"
            ),
        );
        return None;
    }
    Some(value)
}

fn origins(faults: &mut Faults, wire: &[v1::Origin]) -> Option<Vec<Origin>> {
    if wire.is_empty() {
        faults.add("origins", "is empty; a pool has at least one origin");
        return None;
    }
    if wire.len() > ORIGINS_MAX {
        let count = wire.len();
        faults.add(
            "origins",
            format_args!("has {count} entries; right is at most {ORIGINS_MAX}"),
        );
        return None;
    }
    let read: Vec<Option<Origin>> = wire
        .iter()
        .enumerate()
        .map(|(index, origin)| read_origin(faults, index, origin))
        .collect();
    let origins: Vec<Origin> = read.into_iter().collect::<Option<_>>()?;
    for (index, first) in repeated_origins(&origins) {
        let name = &origins[index].name;
        faults.add(
            format!("origins[{index}].name"),
            format_args!(
                "{:?} is also the name of origins[{first}]; names are unique in a pool",
                name.as_str()
            ),
        );
    }
    Some(origins)
}

fn read_origin(faults: &mut Faults, index: usize, wire: &v1::Origin) -> Option<Origin> {
    let field = |name: &str| format!("origins[{index}].{name}");
    let name = faults.parse(field("name"), &wire.name);
    let address = address(faults, field("address"), &wire.address);
    let weight = wire.weight.map_or(Ok(Weight::ONE), Weight::new);
    let weight = faults.take(field("weight"), weight);
    Some(Origin {
        name: name?,
        address: address?,
        weight: weight?,
        enabled: wire.enabled.unwrap_or(true),
    })
}

fn address(faults: &mut Faults, field: String, text: &str) -> Option<SocketAddr> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Some(address),
        _ => {
            faults.add(
                field,
                format_args!(
                    "{text:?} is no address; right is 10.0.2.2:7000 or [2001:db8::1]:7000"
                ),
            );
            None
        }
    }
}

pub(super) fn write(pool: &Pool) -> v1::Pool {
    v1::Pool {
        name: pool.name.to_string(),
        monitor: pool
            .monitor
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        policy: match pool.policy {
            Policy::Weighted => v1::Policy::Weighted,
            Policy::RoundRobin => v1::Policy::RoundRobin,
            Policy::LeastConnections => v1::Policy::LeastConnections,
            Policy::Latency => v1::Policy::Latency,
            Policy::Hash => v1::Policy::Hash,
        }
        .into(),
        minimum_origins: pool.minimum_origins,
        fallback_pool: pool
            .fallback
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        origins: pool.origins.iter().map(write_origin).collect(),
    }
}

fn write_origin(origin: &Origin) -> v1::Origin {
    v1::Origin {
        name: origin.name.to_string(),
        address: origin.address.to_string(),
        weight: Some(origin.weight.as_f64()),
        enabled: Some(origin.enabled),
    }
}
