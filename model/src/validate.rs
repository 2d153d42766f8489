//! Whether resources fit each other: every reference leads somewhere, every
//! edge address is ours to answer for, no two apps claim the same, no origin
//! leads back to the fleet. Every fault is found in one pass.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    fault::{Fault, StateFault},
    identity::ClientIp,
    names::PoolName,
    net_set::NetSet,
    resource::{App, Origin, OriginChoice, Pool, Resource, ResourceRef},
    route,
    state::{self, Resources},
    target::{Rules, Source},
};

/// Every fault of `resources`. `unreadable` names resources that were declared
/// too but have faults of their own: referring to them is no further fault.
pub fn faults(resources: &Resources, unreadable: &BTreeSet<ResourceRef>) -> Vec<StateFault> {
    let meant = unreadable.iter().filter_map(|reference| match reference {
        ResourceRef::Prefix(prefix) => Some(*prefix),
        _ => None,
    });
    let prefixes = state::prefixes(resources).chain(meant);
    let prefixes = NetSet::new(prefixes.map(|prefix| prefix.net()));
    let mut checker = Checker {
        resources,
        unreadable,
        prefixes: &prefixes,
        // Whose sockets are where is known to each edge alone.
        targets: &Rules::new(prefixes.clone(), [], []),
        faults: Vec::new(),
    };
    for resource in resources.values() {
        match resource {
            Resource::Prefix(_) | Resource::Monitor(_) | Resource::Certificate(_) => {}
            Resource::Pool(pool) => checker.pool(pool),
            Resource::App(app) => checker.app(app),
        }
    }
    checker.conflicts();
    checker.faults
}

struct Checker<'a> {
    resources: &'a Resources,
    unreadable: &'a BTreeSet<ResourceRef>,
    prefixes: &'a NetSet,
    targets: &'a Rules,
    faults: Vec<StateFault>,
}

impl Checker<'_> {
    fn fault(&mut self, resource: ResourceRef, field: impl Into<String>, problem: String) {
        self.faults.push(StateFault {
            resource,
            fault: Fault::new(field, problem),
        });
    }

    fn declared(&self, reference: &ResourceRef) -> bool {
        self.resources.contains_key(reference) || self.unreadable.contains(reference)
    }

    fn must_be_declared(&mut self, by: &ResourceRef, field: &str, reference: ResourceRef) {
        if !self.declared(&reference) {
            self.fault(by.clone(), field, format!("there is no {reference}"));
        }
    }

    fn pool(&mut self, pool: &Pool) {
        let this = ResourceRef::Pool(pool.name.clone());
        if let Some(monitor) = &pool.monitor {
            self.must_be_declared(&this, "monitor", ResourceRef::Monitor(monitor.clone()));
        }
        if let Some(fallback) = &pool.fallback {
            self.must_be_declared(&this, "fallback_pool", ResourceRef::Pool(fallback.clone()));
            if let Some(path) = self.fallback_cycle(pool) {
                let problem = format!("leads back to this pool: {path}");
                self.fault(this.clone(), "fallback_pool", problem);
            }
        }
        for (index, origin) in pool.origins.iter().enumerate() {
            if let Some(problem) = self.forbidden(origin.address.ip()) {
                self.fault(this.clone(), format!("origins[{index}].address"), problem);
            }
        }
    }

    /// The way from `pool` over fallbacks back to itself, if there is one.
    fn fallback_cycle(&self, pool: &Pool) -> Option<String> {
        let mut path: Vec<&PoolName> = vec![&pool.name];
        let mut next = pool.fallback.as_ref();
        while let Some(name) = next {
            path.push(name);
            if *name == pool.name {
                let names: Vec<_> = path.iter().map(|name| name.as_str()).collect();
                return Some(names.join(" → "));
            }
            // A cycle that this pool only leads into is its members' fault.
            if path.iter().filter(|seen| **seen == name).count() > 1 {
                return None;
            }
            next = state::pool(self.resources, name).and_then(|pool| pool.fallback.as_ref());
        }
        None
    }

    fn app(&mut self, app: &App) {
        let this = ResourceRef::App(app.name.clone());
        self.transparent(app);
        for (index, net) in app.edge_nets.iter().enumerate() {
            if self.prefixes.covering(net).is_none() {
                let problem = format!("{net} is in no declared prefix");
                self.fault(this.clone(), format!("edge_ips[{index}]"), problem);
            }
        }
        if let Some(certificate) = app.tls.certificate() {
            let reference = ResourceRef::Certificate(certificate.clone());
            self.must_be_declared(&this, "certificate", reference);
        }
        match &app.origin {
            OriginChoice::Pool { pool, .. } => {
                self.must_be_declared(&this, "origin_pool", ResourceRef::Pool(pool.clone()));
            }
            OriginChoice::Direct(origins) => {
                for (index, origin) in origins.iter().enumerate() {
                    if let Some(problem) = self.forbidden(origin.ip) {
                        self.fault(this.clone(), format!("origin_direct[{index}]"), problem);
                    }
                }
            }
            // What a name stands for is judged where it is resolved.
            OriginChoice::Dns(_) => {}
        }
    }

    /// An origin that sees the client's own address can only be of the client's
    /// address family, and cannot be this very host, whose answers would not
    /// come through the edge.
    fn transparent(&mut self, app: &App) {
        if app.identity.client_ip != ClientIp::Transparent {
            return;
        }
        let origins: Vec<IpAddr> = match &app.origin {
            OriginChoice::Pool { pool, .. } => match state::pool(self.resources, pool) {
                Some(pool) => pool
                    .origins
                    .iter()
                    .map(|origin| origin.address.ip())
                    .collect(),
                None => return,
            },
            OriginChoice::Direct(origins) => origins.iter().map(|origin| origin.ip).collect(),
            // What a name stands for is not known here.
            OriginChoice::Dns(_) => return,
        };
        let mut fault = |problem| {
            let this = ResourceRef::App(app.name.clone());
            self.fault(this, "client_ip", problem);
        };
        if let Some(ip) = origins.iter().find(|ip| ip.to_canonical().is_loopback()) {
            fault(format!(
                "is transparent, and the origin {ip} would answer to clients itself and not \
                 through the edge"
            ));
        }
        if !app.identity.trusted_senders.is_empty() {
            // A client may be of any family, whatever the edge's address is.
            return;
        }
        for (v4, family) in [(true, "IPv4"), (false, "IPv6")] {
            let is_of_family = |ip: &IpAddr| ip.to_canonical().is_ipv4() == v4;
            let mut nets = app.edge_nets.iter();
            let net = nets.find(|net| matches!(net, IpNet::V4(_)) == v4);
            if let Some(net) = net.filter(|_| !origins.iter().any(is_of_family)) {
                fault(format!(
                    "is transparent, and no origin has an {family} address to see the clients of \
                     {net} with"
                ));
            }
        }
    }

    /// Why no connection may be made to `ip`.
    fn forbidden(&self, ip: IpAddr) -> Option<String> {
        let why = self.targets.forbid_address(ip, Source::Declared)?;
        Some(format!("{} {why}", ip.to_canonical()))
    }

    fn conflicts(&mut self) {
        let apps: Vec<&Arc<App>> = state::apps(self.resources).collect();
        for (first, second, net) in route::sharing(&apps) {
            let (first, second) = (&apps[first], &apps[second]);
            let trusted = |app: &App| -> BTreeSet<IpNet> {
                app.identity.trusted_senders.iter().copied().collect()
            };
            if trusted(first) != trusted(second) {
                let other = ResourceRef::App(first.name.clone());
                let problem = format!(
                    "is not that of {other}, with which this app shares {}/{} on {net}; a PROXY \
                     header comes before the name that tells them apart",
                    second.transport, second.ports,
                );
                let this = ResourceRef::App(second.name.clone());
                self.fault(this, "accept_proxy_protocol", problem);
            }
        }
        for conflict in route::conflicts(&apps) {
            let (first, second) = (&apps[conflict.first], &apps[conflict.second]);
            let other = ResourceRef::App(first.name.clone());
            let (field, problem) = match &conflict.name {
                None => (
                    format!("edge_ips[{}]", conflict.position),
                    format!(
                        "{}/{} on {} overlaps {}/{} of {other}, and neither is the more specific",
                        second.transport, second.ports, conflict.net, first.transport, first.ports,
                    ),
                ),
                Some(name) => (
                    format!("sni[{}]", conflict.position),
                    format!(
                        "{name} at {}/{} on {} is also a name of {other}",
                        second.transport, second.ports, conflict.net,
                    ),
                ),
            };
            self.fault(ResourceRef::App(second.name.clone()), field, problem);
        }
    }
}

/// Origins of one pool that have the same name, as `(index, first index)`.
pub fn repeated_origins(origins: &[Origin]) -> Vec<(usize, usize)> {
    let mut seen = HashMap::new();
    let mut repeated = Vec::new();
    for (index, origin) in origins.iter().enumerate() {
        if let Some(&first) = seen.get(&origin.name) {
            repeated.push((index, first));
        } else {
            seen.insert(&origin.name, index);
        }
    }
    repeated
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ports::{PortMap, PortRange};
    use crate::resource::{DirectOrigin, Policy, Prefix, Weight};

    fn prefix(cidr: &str) -> Resource {
        Resource::Prefix(Prefix::new(cidr.parse().unwrap()).unwrap())
    }

    fn pool(name: &str, fallback: Option<&str>, address: &str) -> Resource {
        Resource::Pool(Arc::new(Pool {
            name: name.parse().unwrap(),
            monitor: None,
            policy: Policy::Weighted,
            minimum_origins: 1,
            fallback: fallback.map(|name| name.parse().unwrap()),
            origins: vec![Origin {
                name: "a".parse().unwrap(),
                address: address.parse().unwrap(),
                weight: Weight::ONE,
                enabled: true,
            }],
        }))
    }

    fn app(name: &str, ports: &str, net: &str, origin: &str) -> Resource {
        let ports: PortRange = ports.parse().unwrap();
        let port = PortMap::new(ports, "80".parse().unwrap()).unwrap();
        let ip = origin.parse().unwrap();
        Resource::App(Arc::new(App::new(
            name.parse().unwrap(),
            ports,
            vec![net.parse().unwrap()],
            OriginChoice::Direct(vec![DirectOrigin { ip, port }]),
        )))
    }

    fn said(list: Vec<Resource>) -> Vec<String> {
        let resources = list.into_iter().map(|r| (r.reference(), r)).collect();
        let faults = faults(&resources, &BTreeSet::new());
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_origin_that_leads_back_or_nowhere_is_named() {
        for (origin, word) in [
            ("198.51.100.9", "come back to the edge"),
            ("::ffff:198.51.100.9", "come back to the edge"),
            ("169.254.169.254", "metadata"),
            ("::ffff:169.254.169.254", "metadata"),
            ("fd00:ec2::254", "metadata"),
            ("169.254.7.7", "link-local"),
            ("64:ff9b::198.51.100.9", "come back to the edge"),
            ("0.0.0.0", "unspecified"),
            ("224.0.0.1", "single host"),
        ] {
            let found = said(vec![
                prefix("198.51.100.0/24"),
                app("a", "1", "198.51.100.0/24", origin),
            ]);
            assert_eq!(found.len(), 1, "{origin}: {found:?}");
            assert!(
                found[0].starts_with("app \"a\": origin_direct[0]: "),
                "{found:?}"
            );
            assert!(found[0].contains(word), "{found:?}");
        }
    }

    #[test]
    fn overlapping_apps_are_both_named() {
        let found = said(vec![
            prefix("198.51.100.0/24"),
            app("first", "1-10", "198.51.100.7/32", "10.0.2.2"),
            app("second", "5-14", "198.51.100.7/32", "10.0.2.2"),
            app("narrower", "7", "198.51.100.7/32", "10.0.2.2"),
        ]);
        assert_eq!(
            found,
            [
                "app \"second\": edge_ips[0]: tcp/5-14 on 198.51.100.7/32 overlaps tcp/1-10 of \
              app \"first\", and neither is the more specific"
            ]
        );
    }

    #[test]
    fn apps_told_apart_by_name_trust_the_same_senders() {
        let app = |name: &str, sni: &[&str], trusted: &[&str]| {
            let Resource::App(app) = app(name, "443", "198.51.100.7/32", "10.0.2.2") else {
                panic!("an app");
            };
            let mut app = Arc::unwrap_or_clone(app);
            let sni = sni.iter().map(|name| name.parse().unwrap()).collect();
            app.tls = crate::tls::Tls::Off { sni };
            app.identity.trusted_senders = trusted.iter().map(|net| net.parse().unwrap()).collect();
            Resource::App(Arc::new(app))
        };
        let found = said(vec![
            prefix("198.51.100.0/24"),
            app("a", &["a.org"], &["10.0.0.0/8"]),
            app("b", &["b.org"], &["10.0.0.0/8"]),
            app("c", &[], &[]),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("app \"c\": accept_proxy_protocol: is not that of app \"a\""),
            "{found:?}"
        );
    }

    #[test]
    fn fallbacks_in_a_circle_are_found_in_each_of_its_pools() {
        let found = said(vec![
            pool("a", Some("b"), "10.0.2.2:1"),
            pool("b", Some("a"), "10.0.2.2:1"),
            pool("c", Some("a"), "10.0.2.2:1"),
            pool("d", Some("absent"), "10.0.2.2:1"),
        ]);
        assert_eq!(
            found,
            [
                "pool \"a\": fallback_pool: leads back to this pool: a → b → a",
                "pool \"b\": fallback_pool: leads back to this pool: b → a → b",
                "pool \"d\": fallback_pool: there is no pool \"absent\"",
            ]
        );
    }

    #[test]
    fn what_could_not_be_read_is_no_further_fault() {
        let list = [app("a", "1", "198.51.100.0/24", "10.0.2.2")];
        let resources = list.into_iter().map(|r| (r.reference(), r)).collect();
        assert_eq!(faults(&resources, &BTreeSet::new()).len(), 1);
        let meant = prefix("198.51.100.0/24").reference();
        assert_eq!(faults(&resources, &[meant].into()), []);
    }

    #[test]
    fn what_sees_the_client_is_of_its_family_and_elsewhere() {
        let transparent = |net: &str, origin: &str, senders: &[&str]| {
            let Resource::App(app) = app("a", "80", net, origin) else {
                panic!("an app");
            };
            let mut app = Arc::unwrap_or_clone(app);
            app.identity.client_ip = ClientIp::Transparent;
            app.identity.trusted_senders = senders.iter().map(|net| net.parse().unwrap()).collect();
            let resources = [prefix("198.51.100.0/24"), prefix("2001:db8:51::/48")];
            let resources = resources.into_iter().chain([Resource::App(Arc::new(app))]);
            let resources = resources.map(|r| (r.reference(), r)).collect();
            let faults = faults(&resources, &BTreeSet::new());
            faults
                .into_iter()
                .map(|fault| fault.fault.field)
                .collect::<Vec<_>>()
        };
        assert_eq!(transparent("198.51.100.7/32", "10.0.2.2", &[]), [""; 0]);
        assert_eq!(transparent("2001:db8:51::7/128", "fd00::2", &[]), [""; 0]);
        assert_eq!(
            transparent("2001:db8:51::7/128", "10.0.2.2", &[]),
            ["client_ip"]
        );
        assert_eq!(
            transparent("198.51.100.7/32", "fd00::2", &[]),
            ["client_ip"]
        );
        // Clients behind a proxy may be of either family.
        assert_eq!(
            transparent("198.51.100.7/32", "fd00::2", &["10.0.0.0/8"]),
            [""; 0]
        );
        assert_eq!(
            transparent("198.51.100.7/32", "127.0.0.1", &[]),
            ["client_ip"]
        );
    }
}
