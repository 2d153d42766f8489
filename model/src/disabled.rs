//! What of the claims is not steered because the app that has it is disabled:
//! a disabled app's ports look closed, and do not fall to a wider app around
//! it.

use ipnet::IpNet;

use crate::{
    ports::PortRange,
    resource::App,
    steering::{Claim, claims_of},
};

/// Cuts out of disjoint `claims` whatever a disabled one of `apps` would get,
/// and leaves them disjoint. Costs nothing where no app is disabled.
pub fn without_disabled<'a>(
    claims: Vec<Claim>,
    apps: impl Iterator<Item = &'a App> + Clone,
) -> Vec<Claim> {
    let disabled = apps.clone().filter(|app| app.disable.is_some());
    let mut left = claims;
    for hole in disabled.flat_map(claims_of) {
        // What a claim at least as specific has is its own.
        let kept = apps.clone().filter(|app| app.disable.is_none());
        let kept = kept
            .flat_map(claims_of)
            .filter(|claim| is_at_least_as_specific(claim, &hole));
        let holes = kept.fold(vec![hole], |holes, claim| subtract_each(holes, &claim));
        left = holes.iter().fold(left, subtract_each);
    }
    left
}

/// Wins against `other`, or shares with it, where both hold.
fn is_at_least_as_specific(claim: &Claim, other: &Claim) -> bool {
    let (own, others) = (claim.net.prefix_len(), other.net.prefix_len());
    own > others || (own == others && claim.ports.width() <= other.ports.width())
}

fn subtract_each(claims: Vec<Claim>, hole: &Claim) -> Vec<Claim> {
    let pieces = claims.into_iter().flat_map(|claim| subtract(claim, hole));
    pieces.collect()
}

/// `claim` without `hole`, in disjoint pieces.
fn subtract(claim: Claim, hole: &Claim) -> Vec<Claim> {
    let first = claim.ports.first().max(hole.ports.first());
    let last = claim.ports.last().min(hole.ports.last());
    let nested = claim.net.contains(&hole.net) || hole.net.contains(&claim.net);
    if claim.transport != hole.transport || first > last || !nested {
        return vec![claim];
    }
    let mut pieces = Vec::new();
    if first > claim.ports.first() {
        pieces.extend(with_ports(claim, claim.ports.first(), first - 1));
    }
    if last < claim.ports.last() {
        pieces.extend(with_ports(claim, last + 1, claim.ports.last()));
    }
    let beside = beside(claim.net, hole.net).into_iter();
    pieces.extend(beside.flat_map(|net| with_ports(Claim { net, ..claim }, first, last)));
    pieces
}

fn with_ports(claim: Claim, first: u16, last: u16) -> Option<Claim> {
    let ports = PortRange::new(first, last).ok()?;
    Some(Claim { ports, ..claim })
}

/// The networks that together are `outer` without `inner`; none where `inner`
/// is all of it.
fn beside(outer: IpNet, inner: IpNet) -> Vec<IpNet> {
    let mut around = outer;
    let mut beside = Vec::new();
    while around.prefix_len() < inner.prefix_len() {
        let Ok(halves) = around.subnets(around.prefix_len() + 1) else {
            return beside;
        };
        for half in halves {
            if half.contains(&inner) {
                around = half;
            } else {
                beside.push(half);
            }
        }
    }
    beside
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        resource::{Disable, OriginChoice, Transport},
        route::RouteTable,
        steering::disjoint_claims,
    };
    use proptest::prelude::*;
    use std::{
        net::{IpAddr, Ipv4Addr, SocketAddr},
        sync::Arc,
    };

    fn app(name: &str, ports: PortRange, net: &str, disable: Option<Disable>) -> Arc<App> {
        let nets = vec![net.parse::<IpNet>().unwrap().trunc()];
        let origin = OriginChoice::Direct(Vec::new());
        Arc::new(App {
            disable,
            ..App::new(name.parse().unwrap(), ports, nets, origin)
        })
    }

    fn steered(apps: &[Arc<App>]) -> Vec<Claim> {
        let enabled = apps.iter().filter(|app| app.disable.is_none());
        let claims = disjoint_claims(enabled.flat_map(|app| claims_of(app)));
        without_disabled(claims, apps.iter().map(Arc::as_ref))
    }

    #[test]
    fn a_disabled_port_does_not_fall_to_the_app_around_it() {
        let apps = [
            app("all", "*".parse().unwrap(), "198.51.100.0/31", None),
            app(
                "ssh",
                "22".parse().unwrap(),
                "198.51.100.1/32",
                Some(Disable::KeepOpen),
            ),
        ];
        let steers = |ip: &str, port| {
            let ip: IpAddr = ip.parse().unwrap();
            let claims = steered(&apps);
            claims
                .iter()
                .any(|claim| claim.net.contains(&ip) && claim.ports.contains(port))
        };
        assert!(steers("198.51.100.0", 22));
        assert!(!steers("198.51.100.1", 22));
        assert!(steers("198.51.100.1", 21) && steers("198.51.100.1", 23));
    }

    proptest! {
        #[test]
        fn exactly_what_enabled_apps_get_is_steered(
            list in prop::collection::vec((0u8..8, 28u8..=32, 1u16..30, 0u16..30, any::<bool>()), 0..10)
        ) {
            let apps: Vec<_> = list.iter().enumerate().map(|(index, &(host, len, first, width, on))| {
                let ports = PortRange::new(first, first + width).unwrap();
                let disable = (!on).then_some(Disable::CloseNow);
                app(&format!("a{index}"), ports, &format!("198.51.100.{host}/{len}"), disable)
            }).collect();
            let refs: Vec<&Arc<App>> = apps.iter().collect();
            // Two that claim the same are refused when they are applied.
            prop_assume!(crate::route::conflicts(&refs).is_empty());
            let steered = steered(&apps);
            let table = RouteTable::new(apps);
            for host in 0..16 {
                let ip = IpAddr::V4(Ipv4Addr::new(198, 51, 100, host));
                for port in 1..65 {
                    let taken = table.lookup(Transport::Tcp, SocketAddr::new(ip, port));
                    let wanted = taken.is_some_and(|route| route.app.disable.is_none());
                    let times = steered.iter()
                        .filter(|claim| claim.net.contains(&ip) && claim.ports.contains(port))
                        .count();
                    prop_assert_eq!(times, usize::from(wanted), "{} port {}", ip, port);
                }
            }
        }
    }
}
