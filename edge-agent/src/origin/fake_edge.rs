//! An edge for tests, with nothing but a table.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyport_model::{
    names::{PoolName, Revision},
    resource::{
        App, Origin, OriginChoice, Policy, Pool, Resource, ResourceRef, Timeouts, Transport, Weight,
    },
    state::Resources,
    weights::{Factors, OriginHealth, OriginWeight, PoolState, PoolWeights},
};

use crate::{
    stats::Stats,
    table::{Snapshot, TableWriter, Target},
};

/// What a worker knows, of one app.
pub(super) struct Edge {
    pub(super) stats: Arc<Stats>,
    pub(super) writer: TableWriter,
    pub(super) resources: Resources,
}

impl Edge {
    pub(super) fn publish(&mut self) {
        let prepared = self.writer.prepare(Revision(1), &self.resources);
        self.writer.publish(prepared);
    }

    pub(super) fn table(&self) -> Arc<Snapshot> {
        self.writer.reader().load_full()
    }

    /// Where the app's connections go.
    pub(super) fn target(table: &Snapshot) -> Target<'_> {
        table.target(Transport::Tcp, EDGE.parse().unwrap()).unwrap()
    }

    /// The origins of its first pool are declared so.
    pub(super) fn declare(&mut self, change: impl Fn(usize, &mut Origin)) {
        let pool = ResourceRef::Pool("pool0".parse().unwrap());
        let Some(Resource::Pool(declared)) = self.resources.get(&pool) else {
            panic!("it is declared");
        };
        let mut declared = Pool::clone(declared);
        let origins = declared.origins.iter_mut().enumerate();
        origins.for_each(|(at, origin)| change(at, origin));
        let declared = Resource::Pool(Arc::new(declared));
        self.resources.insert(pool, declared);
        self.publish();
    }

    /// Its first pool weighs so by the balancer.
    pub(super) fn weigh(&mut self, weight: impl Fn(usize) -> f64) {
        let pool: PoolName = "pool0".parse().unwrap();
        let Some(Resource::Pool(declared)) = self.resources.get(&ResourceRef::Pool(pool.clone()))
        else {
            panic!("it is declared");
        };
        let origins = declared
            .origins
            .iter()
            .enumerate()
            .map(|(at, origin)| OriginWeight {
                name: origin.name.clone(),
                health: OriginHealth::Up,
                weight: Weight::new(weight(at)).unwrap(),
                factors: Factors::NONE,
            });
        let weights = PoolWeights {
            state: PoolState::Healthy,
            panic: false,
            origins: origins.collect(),
        };
        self.writer.weigh([(pool, weights)]);
    }
}

const EDGE: &str = "198.51.100.1:80";

pub(super) fn edge(origins: &[SocketAddr], connect: Duration) -> Edge {
    edge_of(&[origins], Policy::RoundRobin, connect)
}

/// Pools that are each the fallback of the one before.
pub(super) fn edge_of(pools: &[&[SocketAddr]], policy: Policy, connect: Duration) -> Edge {
    let stats = Arc::new(Stats::new(&prometheus::Registry::new()).unwrap());
    let writer = TableWriter::new(Arc::clone(&stats));
    let origin = |(index, address): (usize, &SocketAddr)| Origin {
        name: format!("o{index}").parse().unwrap(),
        address: *address,
        weight: Weight::ONE,
        enabled: true,
    };
    let pools = pools.iter().enumerate().map(|(at, origins)| {
        let name = |at: usize| format!("pool{at}").parse().unwrap();
        Resource::Pool(Arc::new(Pool {
            name: name(at),
            monitor: None,
            policy,
            minimum_origins: 1,
            fallback: (at + 1 < pools.len()).then(|| name(at + 1)),
            origins: origins.iter().enumerate().map(origin).collect(),
        }))
    });
    let app = Resource::App(Arc::new(App {
        timeouts: Timeouts {
            connect,
            ..Timeouts::default()
        },
        ..App::new(
            "app".parse().unwrap(),
            "*".parse().unwrap(),
            vec!["198.51.100.0/24".parse().unwrap()],
            OriginChoice::Pool {
                pool: "pool0".parse().unwrap(),
                port: None,
            },
        )
    }));
    let resources = pools.chain([app]).map(|r| (r.reference(), r)).collect();
    let mut edge = Edge {
        stats,
        writer,
        resources,
    };
    edge.publish();
    edge
}
