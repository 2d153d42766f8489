//! What is to be balanced and probed: pools, their origins and monitors, as the
//! configuration declares them.

mod subscriber;

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use anyport_model::{
    names::{OriginName, PoolName},
    resource::{Monitor, Pool, Resource, ResourceRef},
    sip::Sip,
    state::Resources,
};
use anyport_proto::{convert::write_resource, v1};
use prost::Message;

pub(crate) use subscriber::Subscriber;

/// Any number would do, as long as all balancers have the same.
const FINGERPRINT: Sip = Sip::new(0x616e_7970_6f72_7421, 0x6173_6b65_6421_2121);

/// An origin in its pool. The same server in two pools is two origins: each
/// pool has its own monitor, hence its own verdict.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct OriginKey {
    pub(crate) pool: PoolName,
    pub(crate) origin: OriginName,
}

impl OriginKey {
    pub(crate) fn of(pool: &PoolName, origin: &OriginName) -> Self {
        Self {
            pool: pool.clone(),
            origin: origin.clone(),
        }
    }
}

/// `game/a`, as the command line writes it.
impl fmt::Display for OriginKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.origin)
    }
}

/// What is probed, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The origin's own address.
    pub(crate) origin: SocketAddr,
    /// Which of its pool's origins it is, from 0.
    pub(crate) place: usize,
    pub(crate) monitor: Arc<Monitor>,
}

impl Target {
    /// Where probes go: the monitor may name another port.
    pub(crate) fn address(&self) -> SocketAddr {
        let port = self.monitor.port.unwrap_or(self.origin.port());
        SocketAddr::new(self.origin.ip(), port)
    }

    /// The same on every balancer for targets that ask the same.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut wire = write_resource(&Resource::Monitor(Arc::clone(&self.monitor)));
        if let Some(v1::resource::Kind::Monitor(monitor)) = &mut wire.kind {
            let asked_only = v1::Monitor {
                name: String::new(),
                interval: None,
                timeout: None,
                retries: 0,
                consecutive_up: 0,
                consecutive_down: 0,
                ..std::mem::take(monitor)
            };
            *monitor = asked_only;
        }
        let asked = wire.encode_to_vec();
        FINGERPRINT.hash(&[self.origin.to_string().as_bytes(), &asked].concat())
    }

    /// Whether what is known from probing `other` says something of this one:
    /// the same server is asked the same thing. How often and how patiently it
    /// is asked does not matter, nor what the monitor is called.
    pub(crate) fn asks_the_same(&self, other: &Target) -> bool {
        self.origin == other.origin
            && self.monitor.port == other.monitor.port
            && self.monitor.check == other.monitor.check
    }
}

/// The part of the configuration that concerns the balancer.
#[derive(Debug, Default)]
pub(crate) struct Members {
    pub(crate) pools: BTreeMap<PoolName, Arc<Pool>>,
    /// Origins to be probed: enabled ones of pools with a monitor.
    pub(crate) targets: BTreeMap<OriginKey, Target>,
    /// Pools that cannot be probed although they ask for it, with why.
    pub(crate) unprobed: Vec<(ResourceRef, String)>,
}

impl Members {
    pub(crate) fn of(resources: &Resources) -> Self {
        let mut members = Members::default();
        for resource in resources.values() {
            let Resource::Pool(pool) = resource else {
                continue;
            };
            members.pools.insert(pool.name.clone(), Arc::clone(pool));
            let Some(name) = &pool.monitor else { continue };
            match resources.get(&ResourceRef::Monitor(name.clone())) {
                Some(Resource::Monitor(monitor)) => members.probe(pool, monitor),
                // The service admits no such pool; but its monitor may have
                // been rejected here as unreadable.
                _ => members.unprobed.push((
                    resource.reference(),
                    format!("monitor: {name:?} is not known here, so its origins are not probed"),
                )),
            }
        }
        members
    }

    fn probe(&mut self, pool: &Pool, monitor: &Arc<Monitor>) {
        let origins = pool.origins.iter().enumerate();
        for (place, origin) in origins.filter(|(_, origin)| origin.enabled) {
            let key = OriginKey::of(&pool.name, &origin.name);
            let target = Target {
                origin: origin.address,
                place,
                monitor: Arc::clone(monitor),
            };
            self.targets.insert(key, target);
        }
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    #![allow(clippy::unwrap_used)]
    //! Small declarations for the tests of this crate.

    use std::{num::NonZeroU32, time::Duration};

    use anyport_model::{
        check::{Check, Exchange},
        resource::{Origin, Policy, Thresholds, Weight},
    };

    use super::*;

    pub(crate) const INTERVAL: Duration = Duration::from_secs(10);

    pub(crate) fn monitor(name: &str, up: u32, down: u32) -> Monitor {
        Monitor {
            name: name.parse().unwrap(),
            check: Check::Tcp(Exchange::default()),
            interval: INTERVAL,
            timeout: Duration::from_secs(2),
            retries: 0,
            thresholds: Thresholds {
                up: NonZeroU32::new(up).unwrap(),
                down: NonZeroU32::new(down).unwrap(),
            },
            port: None,
        }
    }

    pub(crate) fn pool(name: &str, monitor: Option<&str>, origins: &[(&str, &str)]) -> Pool {
        Pool {
            name: name.parse().unwrap(),
            monitor: monitor.map(|name| name.parse().unwrap()),
            policy: Policy::Weighted,
            minimum_origins: 1,
            fallback: None,
            origins: origins
                .iter()
                .map(|(name, address)| Origin {
                    name: name.parse().unwrap(),
                    address: address.parse().unwrap(),
                    weight: Weight::ONE,
                    enabled: true,
                })
                .collect(),
        }
    }

    pub(crate) fn resources(
        monitors: impl IntoIterator<Item = Monitor>,
        pools: impl IntoIterator<Item = Pool>,
    ) -> Resources {
        let monitors = monitors.into_iter().map(Arc::new).map(Resource::Monitor);
        let pools = pools.into_iter().map(Arc::new).map(Resource::Pool);
        let all = monitors.chain(pools);
        all.map(|resource| (resource.reference(), resource))
            .collect()
    }

    pub(crate) fn key(pool: &str, origin: &str) -> OriginKey {
        OriginKey {
            pool: pool.parse().unwrap(),
            origin: origin.parse().unwrap(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{fixtures::*, *};

    #[test]
    fn only_enabled_origins_of_pools_with_a_monitor_are_probed() {
        let mut watched = pool(
            "game",
            Some("quick"),
            &[("a", "10.0.2.2:7000"), ("b", "10.0.2.3:7000")],
        );
        watched.origins[1].enabled = false;
        let trusted = pool("mail", None, &[("a", "10.0.2.4:25")]);
        let members = Members::of(&resources([monitor("quick", 1, 1)], [watched, trusted]));
        assert_eq!(members.pools.len(), 2);
        let probed: Vec<_> = members.targets.keys().cloned().collect();
        assert_eq!(probed, [key("game", "a")]);
        assert!(members.unprobed.is_empty());
    }

    #[test]
    fn a_pool_without_its_monitor_is_kept_and_named() {
        let orphan = pool("game", Some("gone"), &[("a", "10.0.2.2:7000")]);
        let members = Members::of(&resources([], [orphan]));
        assert!(members.targets.is_empty());
        assert_eq!(members.pools.len(), 1);
        let (reference, reason) = &members.unprobed[0];
        assert_eq!(reference.to_string(), "pool \"game\"");
        assert!(reason.contains("\"gone\" is not known here"), "{reason}");
    }

    #[test]
    fn targets_have_one_fingerprint_where_they_ask_the_same() {
        let target = |monitor: Monitor, address: &str| Target {
            origin: address.parse().unwrap(),
            place: 0,
            monitor: Arc::new(monitor),
        };
        let one = target(monitor("quick", 1, 1), "10.0.2.2:7000");
        let mut patient = monitor("slow", 5, 5);
        patient.timeout *= 2;
        patient.retries = 3;
        let elsewhere = Monitor {
            port: Some(9000),
            ..monitor("quick", 1, 1)
        };
        for other in [
            target(patient, "10.0.2.2:7000"),
            target(monitor("quick", 1, 1), "10.0.2.3:7000"),
            target(elsewhere, "10.0.2.2:7000"),
        ] {
            let alike = other.fingerprint() == one.fingerprint();
            assert_eq!(alike, other.asks_the_same(&one), "{other:?}");
        }
    }

    #[test]
    fn the_monitor_may_probe_another_port() {
        let monitor = Monitor {
            port: Some(9000),
            ..monitor("quick", 1, 1)
        };
        let pool = pool("game", Some("quick"), &[("a", "[2001:db8::1]:7000")]);
        let members = Members::of(&resources([monitor], [pool]));
        let target = &members.targets[&key("game", "a")];
        assert_eq!(target.address(), "[2001:db8::1]:9000".parse().unwrap());
    }
}
