//! What a worker needs to know to serve a connection, as one immutable
//! snapshot that is swapped whole: routes, pools, weights. One writer makes
//! it; readers never wait.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyport_model::{
    certificate::CertificateError,
    disabled::without_disabled,
    names::{AppName, PoolName, Revision},
    net_set::NetSet,
    pick::Wheel,
    ports::PortMap,
    resource::{
        App, DirectOrigin, Disable, Origin, OriginChoice, Policy, Pool, Prefix, Resource,
        ResourceRef, Transport, Weight,
    },
    route::{Candidates, Route, RouteTable},
    state::Resources,
    steering::{Claim, claims_of, disjoint_claims},
    tls::Tls,
    weights::{PoolState, PoolWeights},
};
use anyport_proto::{convert::write_reference, v1};
use arc_swap::ArcSwap;
use ipnet::IpNet;

use crate::{
    live::AppKey,
    protect::Answered,
    stats::{AppStats, OriginStats, PoolId, PoolStats, Stats},
    tls::{Configs, Termination},
};

/// Everything that workers read.
#[derive(Default)]
pub struct Snapshot {
    pub revision: Revision,
    routes: Arc<RouteTable>,
    /// In the order of the apps in `routes`.
    apps: Arc<Vec<AppEntry>>,
    pools: Vec<Arc<PoolEntry>>,
}

/// One app as it is served.
pub struct AppEntry {
    pub app: Arc<App>,
    pub stats: Arc<AppStats>,
    /// Whom a connection has to come from, with a PROXY header; none where
    /// clients come themselves.
    pub trusted_senders: Option<NetSet>,
    /// Into `Snapshot::pools`: the app's pool, then its fallbacks in order.
    chain: Vec<usize>,
    ports: Ports,
    /// `None`: bytes pass untouched.
    pub tls: Option<Termination>,
}

#[derive(Clone)]
enum Ports {
    /// Each origin's own.
    Own,
    Mapped(PortMap),
    /// By the origin's position.
    Each(Vec<PortMap>),
}

/// Origins that can stand in for each other, with their weights of now.
pub struct PoolEntry {
    pub id: PoolId,
    pub stats: Arc<PoolStats>,
    state: PoolState,
    /// By the weights of the balancer: what is healthy.
    pub wheel: Wheel,
    /// By the declared weights: when nothing healthy is left, an origin that
    /// is held to be down may still answer, and failing costs nothing more.
    pub last_resort: Wheel,
    pub origins: Vec<OriginEntry>,
    /// None for an app's own origins, which have no weights to follow.
    declared: Option<Arc<Pool>>,
}

pub struct OriginEntry {
    pub label: Arc<str>,
    pub stats: Arc<OriginStats>,
    address: SocketAddr,
}

/// The app that takes a connection and the pool to choose an origin from.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub app: &'a AppEntry,
    pub pool: &'a PoolEntry,
}

impl Snapshot {
    /// Where a connection or flow to `destination` goes that asks for no name;
    /// `None`: no app takes it, or one that is disabled.
    pub fn target(&self, transport: Transport, destination: SocketAddr) -> Option<Target<'_>> {
        let candidates = self.routes.candidates(transport, destination)?;
        self.target_of(candidates.any()?)
    }

    /// The apps of which one takes a connection to `destination`, the first of
    /// them, and where no name decides, where it goes. `None`: no app takes it,
    /// or one that is disabled.
    pub fn apps_at(
        &self,
        destination: SocketAddr,
    ) -> Option<(Candidates<'_>, &AppEntry, Option<Target<'_>>)> {
        let candidates = self.routes.candidates(Transport::Tcp, destination)?;
        let first = candidates.first();
        let only = if candidates.are_named() {
            None
        } else {
            Some(self.target_of(first)?)
        };
        Some((candidates, self.apps.get(first.index)?, only))
    }

    /// The app of a route, and the pool for a connection; `None` where it is
    /// disabled.
    pub fn target_of(&self, route: Route<'_>) -> Option<Target<'_>> {
        let app = self.apps.get(route.index)?;
        if app.app.disable.is_some() {
            return None;
        }
        let chain = app.chain.iter().filter_map(|&index| self.pools.get(index));
        let up = chain.clone().find(|pool| pool.state != PoolState::Down);
        let pool = up.or_else(|| chain.clone().next())?;
        Some(Target { app, pool })
    }
}

impl Snapshot {
    /// How long each app's open connections may go on once a drain began.
    pub fn drain_windows(&self) -> HashMap<AppKey, Duration> {
        let windows = self.apps.iter();
        let windows = windows.map(|entry| (AppKey::of(&entry.stats), entry.app.timeouts.drain));
        windows.collect()
    }

    /// Apps that are disabled and whose open connections are not to go on.
    pub fn to_close(&self) -> HashSet<AppKey> {
        let apps = self.apps.iter();
        let to_close = apps.filter(|entry| entry.app.disable == Some(Disable::CloseNow));
        to_close.map(|entry| AppKey::of(&entry.stats)).collect()
    }
}

impl Target<'_> {
    /// The address of origin `index` for a connection to `edge_port`.
    pub fn address(&self, index: usize, edge_port: u16) -> Option<SocketAddr> {
        let origin = self.pool.origins.get(index)?;
        let port = match &self.app.ports {
            Ports::Own => origin.address.port(),
            Ports::Mapped(map) => map.origin_port(edge_port),
            Ports::Each(maps) => maps.get(index)?.origin_port(edge_port),
        };
        Some(SocketAddr::new(origin.address.ip(), port))
    }
}

/// What a set of resources means for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelNeeds {
    pub prefixes: Vec<IpNet>,
    pub claims: Vec<Claim>,
}

/// Makes snapshots. The only writer of what workers read.
pub struct TableWriter {
    stats: Arc<Stats>,
    weights: BTreeMap<PoolName, PoolWeights>,
    protected: Vec<IpAddr>,
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
            protected: Vec::new(),
            tls: Configs::default(),
            current: Arc::default(),
        }
    }

    /// What workers read from.
    pub fn reader(&self) -> Arc<ArcSwap<Snapshot>> {
        Arc::clone(&self.current)
    }

    /// From now on, no prefix that contains one of `addresses` is answered
    /// for.
    pub fn protect(&mut self, addresses: &[IpAddr]) {
        self.protected = addresses.to_vec();
    }

    /// Makes the table for `resources` without putting it to use. An app whose
    /// pool or certificate is missing is served as before, or not at all, and is rejected. A
    /// prefix that contains a protected address is not answered for.
    pub fn prepare(&self, revision: Revision, resources: &Resources) -> Prepared {
        let previous = self.current.load();
        let mut builder = Builder {
            writer: self,
            resources,
            pools: Vec::new(),
            index: BTreeMap::new(),
        };
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
        let pools = builder.pools;
        for pool in pools.iter().filter_map(|pool| pool.declared.as_ref()) {
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
        let answered = Answered::of(resources.values().filter_map(as_prefix), &self.protected);
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
        };
        let snapshot = Snapshot {
            revision,
            routes: Arc::new(RouteTable::new(served().cloned().collect())),
            apps: Arc::new(apps),
            pools,
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
        let snapshot = prepared.snapshot;
        self.forget_what_is_gone(&snapshot);
        self.current.store(Arc::new(snapshot));
    }

    fn forget_what_is_gone(&mut self, snapshot: &Snapshot) {
        let apps: BTreeSet<AppName> = snapshot.apps.iter().map(|e| e.app.name.clone()).collect();
        let pools: BTreeSet<PoolId> = snapshot.pools.iter().map(|p| p.id.clone()).collect();
        for pool in &snapshot.pools {
            pool.stats
                .retain(&pool.origins.iter().map(|o| o.label.as_ref()).collect());
        }
        self.stats.retain(&apps, &pools);
    }

    /// Takes the balancer's weights into use; those of pools that are not
    /// named stay.
    pub fn weigh(&mut self, weights: impl IntoIterator<Item = (PoolName, PoolWeights)>) {
        self.weights.extend(weights);
        let current = self.current.load_full();
        let pools = current.pools.iter().map(|pool| match &pool.declared {
            Some(declared) => Arc::new(self.pool(declared)),
            None => Arc::clone(pool),
        });
        self.current.store(Arc::new(Snapshot {
            revision: current.revision,
            routes: Arc::clone(&current.routes),
            apps: Arc::clone(&current.apps),
            pools: pools.collect(),
        }));
    }

    /// Forgets the weights of pools that the balancer no longer has.
    pub fn retain_weights(&mut self, keep: impl Fn(&PoolName) -> bool) {
        self.weights.retain(|name, _| keep(name));
    }

    fn pool(&self, pool: &Arc<Pool>) -> PoolEntry {
        let id = PoolId::Declared(pool.name.clone());
        let weights = self.weights.get(&pool.name);
        let weight_of = |origin: &Origin| {
            if !origin.enabled {
                return Weight::ZERO;
            }
            // An origin that the balancer does not know yet counts as up.
            let known = weights.and_then(|w| w.origins.iter().find(|o| o.name == origin.name));
            known.map_or(origin.weight, |known| known.weight)
        };
        let unasked = || PoolWeights::weigh(pool, |_| None).state;
        let healthy: Vec<Weight> = pool.origins.iter().map(weight_of).collect();
        let declared: Vec<Weight> = pool
            .origins
            .iter()
            .map(|origin| {
                if origin.enabled {
                    origin.weight
                } else {
                    Weight::ZERO
                }
            })
            .collect();
        let stats = self.stats.pool(&id);
        let origins = pool.origins.iter().map(|origin| OriginEntry {
            label: origin.name.as_str().into(),
            stats: stats.origin(origin.name.as_str()),
            address: origin.address,
        });
        PoolEntry {
            id,
            state: weights.map_or_else(unasked, |weights| weights.state),
            wheel: Wheel::new(pool.policy, &healthy),
            last_resort: Wheel::new(pool.policy, &declared),
            origins: origins.collect(),
            stats,
            declared: Some(Arc::clone(pool)),
        }
    }

    fn direct(&self, app: &AppName, origins: &[DirectOrigin]) -> PoolEntry {
        let id = PoolId::DirectOf(app.clone());
        let stats = self.stats.pool(&id);
        let wheel = Wheel::new(Policy::Weighted, &vec![Weight::ONE; origins.len()]);
        let entries = origins.iter().map(|origin| {
            let label: Arc<str> = direct_label(origin).into();
            OriginEntry {
                stats: stats.origin(&label),
                label,
                address: SocketAddr::new(origin.ip, 0),
            }
        });
        PoolEntry {
            state: PoolState::Unmonitored,
            last_resort: wheel.clone(),
            wheel,
            origins: entries.collect(),
            id,
            stats,
            declared: None,
        }
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

fn rejection(app: &App, missing: &Missing) -> v1::Rejection {
    v1::Rejection {
        resource: Some(write_reference(&ResourceRef::App(app.name.clone()))),
        reason: missing.to_string(),
    }
}

/// What an app lacks to be served.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("there is no {0} here; it was not sent or was rejected")]
    Resource(ResourceRef),
    #[error("certificate: {0}")]
    Certificate(#[from] CertificateError),
}

/// Makes the entries of one table, each pool once.
struct Builder<'a> {
    writer: &'a TableWriter,
    resources: &'a Resources,
    pools: Vec<Arc<PoolEntry>>,
    index: BTreeMap<PoolId, usize>,
}

impl<'a> Builder<'a> {
    fn declared(&self, name: &PoolName) -> Option<&'a Arc<Pool>> {
        match self.resources.get(&ResourceRef::Pool(name.clone())) {
            Some(Resource::Pool(pool)) => Some(pool),
            _ => None,
        }
    }

    fn termination(&self, app: &App) -> Result<Option<Termination>, Missing> {
        let Tls::Terminate {
            certificate,
            origin,
        } = &app.tls
        else {
            return Ok(None);
        };
        let reference = ResourceRef::Certificate(certificate.clone());
        match self.resources.get(&reference) {
            Some(Resource::Certificate(certificate)) => {
                Ok(Some(self.writer.tls.termination(certificate, origin)?))
            }
            _ => Err(Missing::Resource(reference)),
        }
    }

    /// The entry of an app, or what it lacks.
    fn app(&mut self, app: &Arc<App>) -> Result<AppEntry, Missing> {
        let tls = self.termination(app)?;
        let (chain, ports) = match &app.origin {
            OriginChoice::Pool { pool, port } => {
                (self.chain(pool)?, port.map_or(Ports::Own, Ports::Mapped))
            }
            OriginChoice::Direct(origins) => {
                let id = PoolId::DirectOf(app.name.clone());
                let entry = |writer: &TableWriter| Arc::new(writer.direct(&app.name, origins));
                let ports = origins.iter().map(|origin| origin.port).collect();
                (vec![self.once(id, entry)], Ports::Each(ports))
            }
        };
        let trusted = &app.identity.trusted_senders;
        Ok(AppEntry {
            app: Arc::clone(app),
            stats: self.writer.stats.app(&app.name),
            trusted_senders: (!trusted.is_empty()).then(|| NetSet::new(trusted.iter().copied())),
            chain,
            ports,
            tls,
        })
    }

    /// The entry of an app as it was served, of what is left of its pools, and
    /// where its own is gone, with the pools that it had.
    fn as_before(&mut self, old: &AppEntry, previous: &Snapshot) -> AppEntry {
        if let Ok(entry) = self.app(&old.app) {
            return entry;
        }
        let pools = old.chain.iter().filter_map(|&at| previous.pools.get(at));
        let chain = pools.map(|pool| {
            let declared = pool
                .declared
                .as_ref()
                .and_then(|old| self.declared(&old.name));
            self.once(pool.id.clone(), |writer| match declared {
                Some(declared) => Arc::new(writer.pool(declared)),
                None => Arc::clone(pool),
            })
        });
        AppEntry {
            app: Arc::clone(&old.app),
            stats: Arc::clone(&old.stats),
            trusted_senders: old.trusted_senders.clone(),
            chain: chain.collect(),
            ports: old.ports.clone(),
            tls: old.tls.clone(),
        }
    }

    /// A pool and its fallbacks. A fallback that is missing ends the chain.
    fn chain(&mut self, first: &PoolName) -> Result<Vec<usize>, Missing> {
        let mut chain = Vec::new();
        let mut next = Some(first);
        while let Some(name) = next {
            let Some(pool) = self.declared(name) else {
                break;
            };
            let id = PoolId::Declared(name.clone());
            let index = self.once(id, |writer| Arc::new(writer.pool(pool)));
            if chain.contains(&index) {
                break;
            }
            chain.push(index);
            next = pool.fallback.as_ref();
        }
        if chain.is_empty() {
            return Err(Missing::Resource(ResourceRef::Pool(first.clone())));
        }
        Ok(chain)
    }

    fn once(&mut self, id: PoolId, make: impl FnOnce(&TableWriter) -> Arc<PoolEntry>) -> usize {
        *self.index.entry(id).or_insert_with(|| {
            self.pools.push(make(self.writer));
            self.pools.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use anyport_model::{
        ports::PortRange,
        weights::{OriginHealth, OriginWeight},
    };

    fn pool(name: &str, fallback: Option<&str>, origins: &[&str]) -> Resource {
        Resource::Pool(Arc::new(Pool {
            name: name.parse().unwrap(),
            monitor: None,
            policy: Policy::Weighted,
            minimum_origins: 1,
            fallback: fallback.map(|name| name.parse().unwrap()),
            origins: origins
                .iter()
                .enumerate()
                .map(|(index, address)| Origin {
                    name: format!("o{index}").parse().unwrap(),
                    address: address.parse().unwrap(),
                    weight: Weight::ONE,
                    enabled: true,
                })
                .collect(),
        }))
    }

    fn app(name: &str, ports: &str, origin: OriginChoice) -> Resource {
        Resource::App(Arc::new(App::new(
            name.parse().unwrap(),
            ports.parse().unwrap(),
            vec!["198.51.100.0/24".parse().unwrap()],
            origin,
        )))
    }

    fn to_pool(name: &str) -> OriginChoice {
        OriginChoice::Pool {
            pool: name.parse().unwrap(),
            port: None,
        }
    }

    fn resources(list: impl IntoIterator<Item = Resource>) -> Resources {
        list.into_iter().map(|r| (r.reference(), r)).collect()
    }

    fn writer() -> TableWriter {
        let registry = prometheus::Registry::new();
        TableWriter::new(Arc::new(Stats::new(&registry).unwrap()))
    }

    fn publish(writer: &mut TableWriter, list: impl IntoIterator<Item = Resource>) -> Seen {
        let prefix = Prefix::new("198.51.100.0/24".parse().unwrap()).unwrap();
        let list = list.into_iter().chain([Resource::Prefix(prefix)]);
        let prepared = writer.prepare(Revision(1), &resources(list));
        let seen = Seen {
            rejected: prepared.rejections.len(),
            claims: prepared.kernel.claims.len(),
        };
        writer.publish(prepared);
        seen
    }

    struct Seen {
        rejected: usize,
        claims: usize,
    }

    /// The pool and the address that a connection would go to first.
    fn way(writer: &TableWriter, destination: &str) -> Option<(String, SocketAddr)> {
        let snapshot = writer.reader().load_full();
        let destination: SocketAddr = destination.parse().unwrap();
        let target = snapshot.target(Transport::Tcp, destination)?;
        let index = target.pool.wheel.choose(0, 0, |_| 0, &[]).unwrap_or(0);
        let address = target.address(index, destination.port())?;
        Some((target.pool.id.label().to_owned(), address))
    }

    fn weights(name: &str, state: PoolState, weights: &[f64]) -> (PoolName, PoolWeights) {
        let origins = weights
            .iter()
            .enumerate()
            .map(|(index, weight)| OriginWeight {
                name: format!("o{index}").parse().unwrap(),
                health: OriginHealth::Up,
                weight: Weight::new(*weight).unwrap(),
            });
        let origins = origins.collect();
        (name.parse().unwrap(), PoolWeights { state, origins })
    }

    #[test]
    fn a_range_goes_to_the_origin_by_offset() {
        let mut writer = writer();
        let edge: PortRange = "1000-2000".parse().unwrap();
        let port = PortMap::new(edge, "3000-4000".parse().unwrap()).unwrap();
        let ip = "10.0.2.2".parse().unwrap();
        let direct = OriginChoice::Direct(vec![DirectOrigin { ip, port }]);
        publish(&mut writer, [app("ranged", "1000-2000", direct)]);
        let (_, address) = way(&writer, "198.51.100.9:1005").unwrap();
        assert_eq!(address, "10.0.2.2:3005".parse().unwrap());
        assert_eq!(way(&writer, "198.51.100.9:2001"), None);
    }

    #[test]
    fn weights_move_connections_and_outlive_a_new_table() {
        let mut writer = writer();
        let list = || {
            [
                pool("game", None, &["10.0.2.2:1", "10.0.2.3:1"]),
                app("a", "*", to_pool("game")),
            ]
        };
        publish(&mut writer, list());
        assert_eq!(
            way(&writer, "198.51.100.9:7").unwrap().1,
            "10.0.2.2:1".parse().unwrap()
        );
        writer.weigh([weights("game", PoolState::Degraded, &[0.0, 1.0])]);
        assert_eq!(
            way(&writer, "198.51.100.9:7").unwrap().1,
            "10.0.2.3:1".parse().unwrap()
        );
        publish(&mut writer, list());
        assert_eq!(
            way(&writer, "198.51.100.9:7").unwrap().1,
            "10.0.2.3:1".parse().unwrap()
        );
    }

    #[test]
    fn a_pool_that_is_down_gives_way_to_its_fallback_and_comes_back() {
        let mut writer = writer();
        publish(
            &mut writer,
            [
                pool("first", Some("second"), &["10.0.2.2:1"]),
                pool("second", None, &["10.0.2.3:1"]),
                app("a", "*", to_pool("first")),
            ],
        );
        let used = |writer: &TableWriter| way(writer, "198.51.100.9:7").unwrap().0;
        assert_eq!(used(&writer), "first");
        writer.weigh([weights("first", PoolState::Down, &[0.0])]);
        assert_eq!(used(&writer), "second");
        writer.weigh([weights("second", PoolState::Down, &[0.0])]);
        assert_eq!(
            used(&writer),
            "first",
            "all down: the app's own pool is tried"
        );
        writer.weigh([weights("first", PoolState::Healthy, &[1.0])]);
        assert_eq!(used(&writer), "first");
    }

    #[test]
    fn an_app_without_its_pool_is_rejected_alone_and_served_as_before() {
        let mut writer = writer();
        let good = || app("good", "1", to_pool("game"));
        let game = || pool("game", None, &["10.0.2.2:1"]);
        publish(
            &mut writer,
            [game(), good(), app("moved", "2", to_pool("game"))],
        );
        let seen = publish(
            &mut writer,
            [
                game(),
                good(),
                app("moved", "2", to_pool("absent")),
                app("new", "3", to_pool("absent")),
            ],
        );
        assert_eq!(
            (seen.rejected, seen.claims),
            (2, 1),
            "1 and 2 are one claim"
        );
        assert!(way(&writer, "198.51.100.9:1").is_some());
        assert!(way(&writer, "198.51.100.9:2").is_some());
        assert!(way(&writer, "198.51.100.9:3").is_none());
    }

    #[test]
    fn an_app_that_moved_to_an_unreadable_pool_outlives_its_old_one() {
        let mut writer = writer();
        let moved = |pool| app("moved", "2", to_pool(pool));
        let old = [
            pool("old", Some("spare"), &["10.0.2.2:1"]),
            pool("spare", None, &["10.0.2.3:1"]),
            moved("old"),
        ];
        publish(&mut writer, old.clone());
        for revision in [2, 3] {
            let list = resources([moved("unreadable")]);
            let prepared = writer.prepare(Revision(revision), &list);
            assert_eq!(prepared.rejections.len(), 1);
            assert_eq!(prepared.in_use, resources(old.clone()), "to be kept");
            writer.publish(prepared);
            let used = way(&writer, "198.51.100.9:2").unwrap();
            assert_eq!(used, ("old".to_owned(), "10.0.2.2:1".parse().unwrap()));
        }
        writer.weigh([weights("old", PoolState::Down, &[0.0])]);
        assert_eq!(way(&writer, "198.51.100.9:2").unwrap().0, "spare");

        // What was kept is enough to start from.
        let mut restarted = self::writer();
        let kept = resources(old);
        let prepared = restarted.prepare(Revision(3), &kept);
        restarted.publish(prepared);
        assert_eq!(way(&restarted, "198.51.100.9:2").unwrap().0, "old");
    }

    #[test]
    fn an_app_that_was_never_served_is_not_kept() {
        let list = resources([app("new", "3", to_pool("absent"))]);
        let prepared = writer().prepare(Revision(1), &list);
        assert_eq!(prepared.in_use, Resources::new());
    }
}
