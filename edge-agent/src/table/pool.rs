//! Origins that a connection may go to, as they are weighed now.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use anyport_model::{
    dns::{DnsOrigin, Question},
    names::AppName,
    pick::{Candidate, Wheel},
    ports::PortMap,
    resource::{DirectOrigin, Origin, Policy, Pool, Weight},
    weights::{PoolState, PoolWeights},
};
use tokio::sync::watch;

use crate::{
    origin::{Failed, Standing},
    stats::{OriginStats, PoolId, PoolStats, Stats},
};

/// Origins that can stand in for each other, with their weights of now.
pub struct PoolEntry {
    pub id: PoolId,
    pub stats: Arc<PoolStats>,
    pub(super) state: PoolState,
    /// By the weights of the balancer: what is healthy.
    pub wheel: Wheel,
    /// For when all of `wheel` fail: the later priorities of SRV records.
    pub later: Vec<Wheel>,
    /// By the declared weights: when nothing healthy is left, an origin that
    /// is held to be down may still answer, and failing costs nothing more.
    pub last_resort: Wheel,
    pub origins: Vec<OriginEntry>,
    /// Why `origins` is empty, where a name has to be resolved first.
    pub unknown: Option<Unknown>,
    /// The policy goes by how long answers take.
    pub is_timed: bool,
    /// The policy goes by the client's address.
    pub is_by_client: bool,
    pub(super) made_of: MadeOf,
}

/// Nothing is known yet of the addresses that a name stands for.
#[derive(Clone)]
pub enum Unknown {
    /// Closed once there is a newer table with an answer, or with a failure.
    Pending(watch::Receiver<()>),
    Failed(Failed),
}

/// What an entry follows from.
#[derive(Clone)]
pub(super) enum MadeOf {
    Pool(Arc<Pool>, Option<Arc<PoolWeights>>),
    Direct,
    Dns(DnsOrigin),
}

pub struct OriginEntry {
    pub label: Arc<str>,
    pub stats: Arc<OriginStats>,
    pub(super) address: SocketAddr,
}

impl PoolEntry {
    /// None for an app's own origins, which have no weights to follow.
    pub(super) fn declared(&self) -> Option<&Arc<Pool>> {
        match &self.made_of {
            MadeOf::Pool(pool, _) => Some(pool),
            MadeOf::Direct | MadeOf::Dns(_) => None,
        }
    }

    pub(super) fn question(&self) -> Option<&Question> {
        match &self.made_of {
            MadeOf::Dns(dns) => Some(dns.question()),
            MadeOf::Pool(..) | MadeOf::Direct => None,
        }
    }

    /// The entry of a declared pool: `previous` itself where nothing has changed.
    pub(super) fn of(
        pool: &Arc<Pool>,
        weights: Option<&Arc<PoolWeights>>,
        stats: &Stats,
        previous: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        if let Some(entry) = previous
            && let MadeOf::Pool(old, old_weights) = &entry.made_of
            && old == pool
            && old_weights.as_ref() == weights
        {
            return Arc::clone(entry);
        }
        let id = PoolId::Declared(pool.name.clone());
        let known = weights.map_or(&[][..], |weights| &weights.origins);
        let mut known = InOrder::new(known, |known| &known.name);
        let mut weight_of = |origin: &Origin| {
            // An origin that the balancer does not know yet counts as up.
            let known = known.find(&origin.name);
            match origin.enabled {
                true => known.map_or(origin.weight, |known| known.weight),
                false => Weight::ZERO,
            }
        };
        let unasked = || PoolWeights::weigh(pool, |_| None).state;
        let wheel = |weight: &mut dyn FnMut(&Origin) -> Weight| {
            let candidates = pool.origins.iter().map(|origin| Candidate {
                name: origin.name.as_str(),
                weight: weight(origin),
                declared: declared_weight(origin),
            });
            Wheel::new(pool.policy, &candidates.collect::<Vec<_>>())
        };
        let mut healthy = wheel(&mut weight_of);
        if let Some(previous) = previous {
            healthy = healthy.sharing(&previous.wheel);
        }
        let stats = stats.pool(&id);
        let origins = pool.origins.iter().map(|origin| OriginEntry {
            label: origin.name.as_str().into(),
            stats: stats.origin(origin.name.as_str()),
            address: origin.address,
        });
        Arc::new(Self {
            id,
            state: weights.map_or_else(unasked, |weights| weights.state),
            last_resort: wheel(&mut declared_weight).sharing(&healthy),
            wheel: healthy,
            later: Vec::new(),
            origins: origins.collect(),
            stats,
            unknown: None,
            is_timed: pool.policy == Policy::Latency,
            is_by_client: pool.policy == Policy::Hash,
            made_of: MadeOf::Pool(Arc::clone(pool), weights.cloned()),
        })
    }

    /// The entry of an app's own list of origins.
    pub(super) fn direct(app: &AppName, origins: &[DirectOrigin], stats: &Stats) -> Self {
        let id = PoolId::DirectOf(app.clone());
        let stats = stats.pool(&id);
        let alike = Candidate {
            name: "",
            weight: Weight::ONE,
            declared: Weight::ONE,
        };
        let wheel = Wheel::new(Policy::Weighted, &vec![alike; origins.len()]);
        let entries = origins.iter().map(|origin| {
            let label: Arc<str> = direct_label(origin).into();
            OriginEntry {
                stats: stats.origin(&label),
                label,
                address: SocketAddr::new(origin.ip, 0),
            }
        });
        Self {
            state: PoolState::Unmonitored,
            last_resort: wheel.clone(),
            wheel,
            later: Vec::new(),
            origins: entries.collect(),
            id,
            stats,
            unknown: None,
            is_timed: false,
            is_by_client: false,
            made_of: MadeOf::Direct,
        }
    }

    /// The entry of what an app's name of origins stands for now.
    pub(super) fn named(
        app: &AppName,
        dns: &DnsOrigin,
        standing: &Standing,
        stats: &Stats,
    ) -> Self {
        let (places, unknown) = match standing {
            Standing::Answered(answer) => (answer.places(), None),
            Standing::Pending(first) => (&[][..], Some(Unknown::Pending(first.clone()))),
            Standing::Failed(failed) => (&[][..], Some(Unknown::Failed(failed.clone()))),
        };
        let id = PoolId::DirectOf(app.clone());
        let stats = stats.pool(&id);
        let entries = places.iter().map(|place| {
            let fixed = PortMap::Fixed(place.port.unwrap_or_default());
            let port = dns.port().unwrap_or(fixed);
            let ip = place.ip;
            let label: Arc<str> = direct_label(&DirectOrigin { ip, port }).into();
            OriginEntry {
                stats: stats.origin(&label),
                label,
                address: SocketAddr::new(ip, place.port.unwrap_or_default()),
            }
        });
        let wheel = |priority: Option<u16>| {
            let candidates = places.iter().map(|place| Candidate {
                name: "",
                weight: match priority {
                    Some(only) if place.priority != only => Weight::ZERO,
                    _ => place.weight,
                },
                declared: place.weight,
            });
            Wheel::new(Policy::Weighted, &candidates.collect::<Vec<_>>())
        };
        let priorities: BTreeSet<u16> = places.iter().map(|place| place.priority).collect();
        let mut priorities = priorities.into_iter();
        Self {
            state: PoolState::Unmonitored,
            wheel: wheel(priorities.next()),
            later: priorities.map(|priority| wheel(Some(priority))).collect(),
            last_resort: wheel(None),
            origins: entries.collect(),
            id,
            stats,
            unknown,
            is_timed: false,
            is_by_client: false,
            made_of: MadeOf::Dns(dns.clone()),
        }
    }
}

/// What has names, to be found by them in about the order in which it is there,
/// as two lists of the same origins have it: each next to the one before, and the
/// whole is looked through only where the lists differ.
pub(super) struct InOrder<'a, T, N> {
    all: &'a [T],
    name: N,
    next: usize,
}

impl<'a, T, K: PartialEq + 'a, N: Fn(&'a T) -> &'a K> InOrder<'a, T, N> {
    pub(super) fn new(all: &'a [T], name: N) -> Self {
        Self { all, name, next: 0 }
    }

    pub(super) fn find(&mut self, wanted: &K) -> Option<&'a T> {
        let is_wanted = |one: &&'a T| (self.name)(*one) == wanted;
        let next = self.all.get(self.next).filter(is_wanted);
        let at = match next {
            Some(_) => self.next,
            None => self.all.iter().position(|one| is_wanted(&one))?,
        };
        self.next = at + 1;
        self.all.get(at)
    }
}

fn declared_weight(origin: &Origin) -> Weight {
    if origin.enabled {
        origin.weight
    } else {
        Weight::ZERO
    }
}

/// `10.0.2.2:7000`, `[2001:db8::1]:3000-4000`.
fn direct_label(origin: &DirectOrigin) -> String {
    match origin.port {
        PortMap::Fixed(port) => SocketAddr::new(origin.ip, port).to_string(),
        PortMap::Offset { edge, origin_first } => {
            let first = SocketAddr::new(origin.ip, origin_first);
            format!("{first}-{}", origin.port.origin_port(edge.last()))
        }
    }
}
