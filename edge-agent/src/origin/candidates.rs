//! The origins of a target in the order in which they are tried.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{OnceLock, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyport_model::{
    outcome::Status,
    pick::{Draw, Wheel},
    positions::Positions,
    resource::Transport,
};

use super::{NoOrigin, Unheard, nothing_to_try};
use crate::{
    stats::OriginStats,
    table::{OriginEntry, PoolEntry, Target},
};

/// Chooses one origin after the other, each once, and passes over what must
/// not be dialled. Those of the target's pool come first, then those of the
/// pools that stand in for it.
pub struct Candidates<'a> {
    target: Target<'a>,
    edge_port: u16,
    client: IpAddr,
    /// How long nothing may be heard of a connection that tries an origin for
    /// all.
    patience: Duration,
    unheard: Unheard,
    pools: Vec<Tried<'a>>,
    failed: Option<NoOrigin>,
}

/// A pool, and those of its origins that were tried.
struct Tried<'a> {
    pool: &'a PoolEntry,
    tried: Positions,
    /// These, and those that another connection has begun to try.
    passed: Positions,
    /// One for all choices for this connection, so that those that are made in
    /// vain do not skip anybody's.
    turn: OnceLock<usize>,
}

struct Chosen {
    /// Of which pool.
    of: usize,
    index: usize,
    /// It did not refuse lately.
    fresh: bool,
}

/// A dial that has run out of time is told of a little later.
const TELLING: Duration = Duration::from_millis(500);

/// An origin to be tried.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    pub pool: &'a PoolEntry,
    pub origin: &'a OriginEntry,
    pub address: SocketAddr,
}

impl<'a> Candidates<'a> {
    /// For a connection of `client` to `edge_port`.
    pub fn new(target: Target<'a>, edge_port: u16, client: IpAddr) -> Self {
        let pools = target.pools().map(|pool| Tried {
            pool,
            tried: Positions::default(),
            passed: Positions::default(),
            turn: OnceLock::new(),
        });
        Self {
            target,
            edge_port,
            client,
            patience: target.app.app.timeouts.connect + TELLING,
            unheard: match target.app.app.transport {
                Transport::Tcp => Unheard::AnotherTries,
                Transport::Udp => Unheard::AllComeBack,
            },
            pools: pools.collect(),
            failed: None,
        }
    }

    /// Where there is one, the address that the origin is to see as its peer's:
    /// only origins of its family then, and none that has it itself, which would
    /// take what comes for forged.
    #[must_use]
    pub fn showing(mut self, shown: Option<SocketAddr>) -> Self {
        let Some(client) = shown else {
            return self;
        };
        for of in &mut self.pools {
            let (target, could) = (self.target.with(of.pool), of.left());
            let address = |index| target.address(index, self.edge_port);
            for index in 0..of.pool.origins.len() {
                let why_not = address(index).and_then(|address| cannot_see(client, address));
                if let Some(none) = why_not {
                    of.pass(std::iter::once(index));
                    if of.left() < could {
                        self.failed = Some(none);
                    }
                }
            }
        }
        self
    }

    /// Not these.
    #[must_use]
    pub fn without(mut self, tried: impl Fn(&OriginStats) -> bool) -> Self {
        for of in &mut self.pools {
            let origins = of.pool.origins.iter().enumerate();
            let tried = origins.filter(|(_, origin)| tried(&origin.stats));
            of.pass(tried.map(|(index, _)| index));
        }
        self
    }

    /// How many could be tried yet, but for those that must not be dialled.
    pub fn left(&self) -> usize {
        self.pools.iter().map(Tried::left).sum()
    }

    /// The target's pool has had its part of the time: what stands in for it
    /// comes first from now on, if there is anything.
    pub fn leave_first_pool(&mut self) {
        let is_first = |of: &Tried<'_>| std::ptr::eq(of.pool, self.target.pool);
        if self.pools.first().is_some_and(is_first) {
            self.pools.rotate_left(1);
        }
    }

    /// The next origin: a healthy one that did not refuse lately, else a
    /// healthy one, else any. Of connections that come when one has rested, one
    /// tries it for all.
    pub fn next(&mut self, now: Instant) -> Option<Candidate<'a>> {
        loop {
            let Chosen { of, index, fresh } = self.choose(now)?;
            let of = self.pools.get_mut(of)?;
            let pool = of.pool;
            let origin = pool.origins.get(index)?;
            let target = self.target.with(pool);
            let address = target.address(index, self.edge_port)?;
            of.passed.insert(index);
            // Asked of the very address that is dialled: what a name stands for
            // may be another one each time.
            let forbidden = target.forbidden(address);
            // Who cannot dial it does not try it for the others.
            let may_try = || origin.stats.may_try(now, self.patience, self.unheard);
            if fresh && forbidden.is_none() && !may_try() {
                continue;
            }
            of.tried.insert(index);
            if let Some(why) = forbidden {
                target.app.stats.blocked(why);
                self.failed(Status::Blocked, format!("{address} {why}"));
                continue;
            }
            return Some(Candidate {
                pool,
                origin,
                address,
            });
        }
    }

    /// The one that was tried last did not do.
    pub fn failed(&mut self, status: Status, reason: String) {
        self.failed = Some(NoOrigin { status, reason });
    }

    /// Why there is no origin, when none is left: the last failure, or that
    /// there was nothing to try.
    pub fn why_none(&mut self) -> NoOrigin {
        let failed = self.failed.take();
        failed.unwrap_or_else(|| nothing_to_try(self.target))
    }

    fn choose(&self, now: Instant) -> Option<Chosen> {
        let first = |fresh: bool, choose: &dyn Fn(&Tried<'_>) -> Option<usize>| {
            let chosen = |(of, tried): (usize, &Tried<'_>)| {
                let index = choose(tried)?;
                Some(Chosen { of, index, fresh })
            };
            self.pools.iter().enumerate().find_map(chosen)
        };
        let client = self.client;
        first(true, &|of| of.healthy(client, now, &of.avoided(now)))
            .or_else(|| first(false, &|of| of.healthy(client, now, &of.tried)))
            .or_else(|| first(false, &|of| of.any(client, now)))
    }
}

impl Tried<'_> {
    fn left(&self) -> usize {
        self.pool.last_resort.candidates_left(&self.tried)
    }

    /// Not these.
    fn pass(&mut self, indices: impl Iterator<Item = usize>) {
        for index in indices {
            self.passed.insert(index);
            self.tried.insert(index);
        }
    }

    /// Those that were passed, and those that refused lately.
    fn avoided(&self, now: Instant) -> Positions {
        let mut avoided = self.passed.clone();
        if !self.pool.stats.is_troubled() {
            return avoided;
        }
        let origins = self.pool.origins.iter().enumerate();
        let resting = origins.filter(|(_, origin)| origin.stats.is_resting(now));
        avoided.extend(resting.map(|(index, _)| index));
        avoided
    }

    fn healthy(&self, client: IpAddr, now: Instant, passed: &Positions) -> Option<usize> {
        let mut wheels = std::iter::once(&self.pool.wheel).chain(&self.pool.later);
        wheels.find_map(|wheel| self.chosen(wheel, client, now, passed))
    }

    /// As a last resort.
    fn any(&self, client: IpAddr, now: Instant) -> Option<usize> {
        self.chosen(&self.pool.last_resort, client, now, &self.tried)
    }

    fn chosen(
        &self,
        wheel: &Wheel,
        client: IpAddr,
        now: Instant,
        passed: &Positions,
    ) -> Option<usize> {
        let next_turn = &self.pool.stats.turn;
        let draw = Draw {
            turn: *self.turn.get_or_init(|| next_turn.fetch_add(1, Relaxed)),
            random: rand::random(),
            client,
        };
        let load = |index: usize| match self.pool.origins.get(index) {
            Some(origin) => origin.stats.load(now),
            None => Default::default(),
        };
        wheel.choose(draw, load, passed)
    }
}

/// Why an origin cannot have `client` as its peer, if so.
fn cannot_see(client: SocketAddr, origin: SocketAddr) -> Option<NoOrigin> {
    let ip = origin.ip().to_canonical();
    let reason = if client.is_ipv4() != ip.is_ipv4() {
        let family = if client.is_ipv4() { "IPv4" } else { "IPv6" };
        format!("client_ip is transparent, and no origin of the pool has an {family} address")
    } else if client.ip() == ip {
        format!("client_ip is transparent, and {origin} is the client itself")
    } else {
        return None;
    };
    Some(NoOrigin {
        status: Status::NoOrigin,
        reason,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use anyport_model::resource::{Policy, Weight};

    use super::*;
    use crate::{
        origin::fake_edge::{Edge, edge_of},
        protect::Guarded,
    };

    #[test]
    fn what_can_never_be_tried_takes_no_time_from_the_others() {
        let [v4, v6]: [SocketAddr; 2] = ["10.1.0.1:1", "[fd00::1]:1"].map(|a| a.parse().unwrap());
        let mut edge = edge_of(
            &[&[v4, v4, v4, v4, v6], &[v6, v4]],
            Policy::RoundRobin,
            Duration::from_secs(5),
        );
        edge.declare(|at, origin| {
            origin.enabled = at != 1;
            origin.weight = Weight::new(if at == 2 { 0.0 } else { 1.0 }).unwrap();
        });
        // Held to be down, and yet a last resort.
        edge.weigh(|at| if at == 0 { 1.0 } else { 0.0 });
        let table = edge.table();
        let client: SocketAddr = "192.168.0.1:1".parse().unwrap();
        let all = || Candidates::new(Edge::target(&table), 80, client.ip());
        assert_eq!(all().left(), 5);
        let mut shown = all().showing(Some(client));
        assert_eq!(shown.left(), 3);
        let now = Instant::now();
        let mut tried = Vec::new();
        while let Some(candidate) = shown.next(now) {
            assert_eq!(candidate.address, v4);
            tried.push((candidate.pool.id.label(), candidate.origin.label.as_ref()));
            assert_eq!(shown.left(), 3 - tried.len());
        }
        assert_eq!(tried, [("pool0", "o0"), ("pool1", "o1"), ("pool0", "o3")]);
        let reason = "client_ip is transparent, and no origin of the pool has an IPv4 address";
        assert_eq!(shown.why_none().reason, reason);

        let mut to_itself = all().showing(Some("10.1.0.1:9".parse().unwrap()));
        assert!(to_itself.next(now).is_none());
        let reason = "client_ip is transparent, and 10.1.0.1:1 is the client itself";
        assert_eq!(to_itself.why_none().reason, reason);
    }

    #[test]
    fn who_must_not_dial_an_origin_does_not_try_it_for_the_others() {
        let address: SocketAddr = "10.1.0.1:1".parse().unwrap();
        let mut edge = edge_of(&[&[address]], Policy::RoundRobin, Duration::from_secs(5));
        let rested = || Instant::now() + Duration::from_secs(1);
        let stats = {
            let table = edge.table();
            Arc::clone(&Edge::target(&table).pool.origins[0].stats)
        };
        stats.dialled(Err(&"no"));
        edge.writer.protect(Guarded {
            own: vec![address],
            ..Guarded::default()
        });
        edge.publish();
        let table = edge.table();
        let mut none = Candidates::new(Edge::target(&table), 80, address.ip());
        assert!(none.next(rested()).is_none());
        assert!(!stats.is_resting(rested()), "nobody tries it");
    }

    /// `cargo test -p anyport-edge-agent --lib -- --ignored --nocapture thousand_origins`
    #[test]
    #[ignore = "a measurement"]
    #[allow(clippy::print_stdout)]
    fn what_a_choice_among_a_thousand_origins_costs() {
        let address = |at: u16| SocketAddr::from(([10, 1, 0, 1], 1000 + at));
        let origins: Vec<SocketAddr> = (0..1000).map(address).collect();
        println!(
            "policy               none rests (µs)   every other rests (µs)   new weights (ms)"
        );
        for policy in Policy::ALL {
            let mut edge = edge_of(&[&origins], policy, Duration::from_secs(5));
            let start = Instant::now();
            for round in 0..20 {
                edge.weigh(|at| 1.0 + ((at + round) % 10) as f64 / 10.0);
            }
            let weighed = start.elapsed() / 20;
            let table = edge.table();
            let target = Edge::target(&table);
            let cost = || {
                let start = Instant::now();
                for client in 0..2000u32 {
                    let client = IpAddr::from((0x0a02_0000 + client).to_be_bytes());
                    assert!(Candidates::new(target, 80, client).next(start).is_some());
                }
                start.elapsed().as_secs_f64() * 1e6 / 2000.0
            };
            let none = cost();
            for origin in target.pool.origins.iter().step_by(2) {
                // Long enough for the measurement.
                let rest = || origin.stats.dialled(Err(&"refused"));
                rest();
            }
            let half = cost();
            println!(
                "{:20} {none:15.1}   {half:22.1}   {:16.2}",
                policy.as_str(),
                weighed.as_secs_f64() * 1e3
            );
        }
    }
}
