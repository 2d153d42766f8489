//! The one writer of what workers read.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyport_model::{
    disabled::without_disabled,
    dns::{Answer, DnsOrigin, Question},
    identity::ClientIp,
    names::{AppName, PoolName, Revision},
    net_set::NetSet,
    resource::{App, DirectOrigin, OriginChoice, Pool, Prefix, Resource, ResourceRef},
    route::RouteTable,
    state::Resources,
    steering::{Claim, claims_of, disjoint_claims},
    target::Rules,
    weights::PoolWeights,
};
use anyport_proto::v1;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::sync::watch;

use super::{
    Snapshot,
    builder::{Builder, rejection},
    pool::{MadeOf, PoolEntry},
};
use crate::{
    origin::{Failed, Names},
    protect::{Answered, Guarded},
    stats::{AppStats, PoolId, Stats},
    tls::Configs,
};

/// What a set of resources means for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelNeeds {
    pub prefixes: Vec<IpNet>,
    pub claims: Vec<Claim>,
    /// Some app's origins see its clients' own addresses.
    pub return_path: bool,
}

/// Makes snapshots. The only writer of what workers read.
pub struct TableWriter {
    stats: Arc<Stats>,
    weights: BTreeMap<PoolName, Arc<PoolWeights>>,
    names: Names,
    guarded: Guarded,
    tls: Configs,
    current: Arc<ArcSwap<Snapshot>>,
}

/// A new table, made and not yet in use.
pub struct Prepared {
    pub snapshot: Snapshot,
    pub kernel: KernelNeeds,
    /// Apps that could not be served as they are and prefixes that must not be
    /// answered for, each with why.
    pub rejections: Vec<v1::Rejection>,
    /// The resources that the table was made of in the end: those given, if
    /// none was rejected.
    pub in_use: Resources,
}

impl TableWriter {
    pub fn new(stats: Arc<Stats>) -> Self {
        Self {
            stats,
            weights: BTreeMap::new(),
            names: Names::default(),
            guarded: Guarded::default(),
            tls: Configs::default(),
            current: Arc::default(),
        }
    }

    /// What workers read from.
    pub fn reader(&self) -> Arc<ArcSwap<Snapshot>> {
        Arc::clone(&self.current)
    }

    /// From now on, no prefix that contains the control plane is answered for,
    /// and neither it nor the agent itself is dialled as an origin.
    pub fn protect(&mut self, guarded: Guarded) {
        self.guarded = guarded;
    }

    /// The names that have to be resolved.
    pub fn questions(&self) -> watch::Receiver<Arc<BTreeSet<Question>>> {
        self.names.wanted()
    }

    /// Makes the table for `resources` without putting it to use. An app whose
    /// pool or certificate is missing is served as before, or not at all, and is rejected. A
    /// prefix that contains a protected address is not answered for.
    pub fn prepare(&mut self, revision: Revision, resources: &Resources) -> Prepared {
        let previous = self.current.load_full();
        for app in resources.values().filter_map(as_app) {
            if let OriginChoice::Dns(dns) = &app.origin {
                self.names.want(dns.question());
            }
        }
        let mut builder = Builder::new(self, resources, &previous.pools);
        let mut apps = Vec::new();
        let mut rejections = Vec::new();
        let mut in_use = resources.clone();
        for app in resources.values().filter_map(as_app) {
            match builder.app(app) {
                Ok(entry) => apps.push(entry),
                Err(missing) => {
                    rejections.push(rejection(app, &missing));
                    let reference = ResourceRef::App(app.name.clone());
                    in_use.remove(&reference);
                    let served = previous.apps.iter().find(|old| old.app.name == app.name);
                    if let Some(old) = served {
                        in_use.insert(reference, Resource::App(Arc::clone(&old.app)));
                        apps.push(builder.as_before(old, &previous));
                    }
                }
            }
        }
        let pools = builder.into_pools();
        for pool in pools.iter().filter_map(|pool| pool.declared()) {
            let reference = ResourceRef::Pool(pool.name.clone());
            let kept = in_use.entry(reference);
            kept.or_insert_with(|| Resource::Pool(Arc::clone(pool)));
        }
        for shown in apps.iter().filter_map(|app| app.tls.as_ref()) {
            let certificate = &shown.shown.certificate;
            let reference = ResourceRef::Certificate(certificate.name.clone());
            let kept = in_use.entry(reference);
            kept.or_insert_with(|| Resource::Certificate(Arc::clone(certificate)));
        }
        let prefixes = || resources.values().filter_map(as_prefix);
        let answered = Answered::of(prefixes(), &self.guarded.addresses);
        rejections.extend(answered.rejections());
        for (prefix, _) in &answered.refused {
            in_use.remove(&ResourceRef::Prefix(*prefix));
        }
        let served = || apps.iter().map(|entry| &entry.app);
        let enabled = served().filter(|app| app.disable.is_none());
        let claims = enabled.flat_map(|app| claims_of(app));
        let claims = disjoint_claims(claims.filter(|claim| answered.covers(claim)));
        let kernel = KernelNeeds {
            claims: without_disabled(claims, served().map(Arc::as_ref)),
            prefixes: answered.prefixes,
            return_path: served().any(|app| {
                app.disable.is_none() && app.identity.client_ip == ClientIp::Transparent
            }),
        };
        let snapshot = Snapshot {
            revision,
            routes: Arc::new(RouteTable::new(served().cloned().collect())),
            apps: Arc::new(apps),
            pools,
            rules: Arc::new(Rules::new(
                NetSet::new(prefixes().map(Prefix::net)),
                self.guarded.own.iter().copied(),
                self.guarded.control_plane.iter().copied(),
            )),
        };
        Prepared {
            snapshot,
            kernel,
            rejections,
            in_use,
        }
    }

    /// Puts a table to use. Connections that are open keep what they have.
    pub fn publish(&mut self, prepared: Prepared) {
        let snapshot = Arc::new(prepared.snapshot);
        self.current.store(Arc::clone(&snapshot));
        // After it is seen: a connection that opens meanwhile either counts as open
        // already, or finds that its app is gone.
        self.forget_what_is_gone(&snapshot);
    }

    fn forget_what_is_gone(&mut self, snapshot: &Snapshot) {
        let apps: BTreeSet<AppName> = snapshot.apps.iter().map(|e| e.app.name.clone()).collect();
        let pools: BTreeSet<PoolId> = snapshot.pools.iter().map(|p| p.id.clone()).collect();
        for pool in &snapshot.pools {
            pool.stats
                .retain(&pool.origins.iter().map(|o| o.label.as_ref()).collect());
        }
        self.stats.retain(&apps, &pools);
        let named = snapshot.pools.iter().filter_map(|pool| pool.question());
        self.names.retain(&named.cloned().collect());
    }

    /// Takes the balancer's weights into use; those of pools that are not
    /// named stay.
    pub fn weigh(&mut self, weights: impl IntoIterator<Item = (PoolName, PoolWeights)>) {
        let weights = weights.into_iter();
        self.weights
            .extend(weights.map(|(name, weights)| (name, Arc::new(weights))));
        self.replace_pools(|pool| match pool.declared() {
            Some(declared) => self.pool(declared, Some(pool)),
            None => Arc::clone(pool),
        });
    }

    /// Takes what a name server said into use. Where it could not say, what it
    /// said last stays in use.
    pub fn resolved(&mut self, question: &Question, said: Result<Answer, Failed>) {
        // Who waits for the first answer is told after it is in use.
        let Some(_waiters) = self.names.take(question, said) else {
            return;
        };
        self.replace_pools(|pool| match (&pool.made_of, &pool.id) {
            (MadeOf::Dns(dns), PoolId::DirectOf(app)) if dns.question() == question => {
                let entry = Arc::new(self.named(app, dns));
                let labels = entry.origins.iter().map(|o| o.label.as_ref()).collect();
                let gone = entry.stats.retain(&labels);
                self.stats.forget_origins(app, &gone);
                entry
            }
            _ => Arc::clone(pool),
        });
    }

    fn replace_pools(&self, replace: impl Fn(&Arc<PoolEntry>) -> Arc<PoolEntry>) {
        let current = self.current.load_full();
        self.current.store(Arc::new(Snapshot {
            revision: current.revision,
            routes: Arc::clone(&current.routes),
            apps: Arc::clone(&current.apps),
            pools: current.pools.iter().map(replace).collect(),
            rules: Arc::clone(&current.rules),
        }));
    }

    /// Forgets the weights of pools that the balancer no longer has.
    pub fn retain_weights(&mut self, keep: impl Fn(&PoolName) -> bool) {
        self.weights.retain(|name, _| keep(name));
    }

    /// The entry of a pool: `previous` itself where nothing has changed.
    pub(super) fn pool(
        &self,
        pool: &Arc<Pool>,
        previous: Option<&Arc<PoolEntry>>,
    ) -> Arc<PoolEntry> {
        let weights = self.weights.get(&pool.name);
        PoolEntry::of(pool, weights, &self.stats, previous)
    }

    pub(super) fn direct(&self, app: &AppName, origins: &[DirectOrigin]) -> PoolEntry {
        PoolEntry::direct(app, origins, &self.stats)
    }

    pub(super) fn named(&self, app: &AppName, dns: &DnsOrigin) -> PoolEntry {
        let standing = self.names.standing(dns.question());
        PoolEntry::named(app, dns, &standing, &self.stats)
    }

    pub(super) fn app_stats(&self, app: &AppName) -> Arc<AppStats> {
        self.stats.app(app)
    }

    pub(super) fn tls(&self) -> &Configs {
        &self.tls
    }
}

fn as_app(resource: &Resource) -> Option<&Arc<App>> {
    match resource {
        Resource::App(app) => Some(app),
        _ => None,
    }
}

fn as_prefix(resource: &Resource) -> Option<Prefix> {
    match resource {
        Resource::Prefix(prefix) => Some(*prefix),
        _ => None,
    }
}
