//! What a worker needs to know to serve a connection, as one immutable
//! snapshot that is swapped whole: routes, pools, weights. One writer makes
//! it; readers never wait.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyport_model::{
    certificate::CertificateError,
    disabled::without_disabled,
    dns::{Answer, DnsOrigin, Question},
    identity::ClientIp,
    names::{AppName, PoolName, Revision},
    net_set::NetSet,
    pick::{Candidate, Wheel},
    ports::PortMap,
    resource::{
        App, DirectOrigin, Disable, Origin, OriginChoice, Policy, Pool, Prefix, Resource,
        ResourceRef, Transport, Weight,
    },
    route::{Candidates, Route, RouteTable},
    state::Resources,
    steering::{Claim, claims_of, disjoint_claims},
    target::{Forbidden, Rules, Source},
    tls::Tls,
    weights::{PoolState, PoolWeights},
};
use anyport_proto::{convert::write_reference, v1};
use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::sync::watch;

use crate::{
    live::AppKey,
    origin::{Failed, Names, Standing},
    protect::{Answered, Guarded},
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
    /// What is never dialled.
    rules: Arc<Rules>,
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
    made_of: MadeOf,
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
enum MadeOf {
    Pool(Arc<Pool>, Option<Arc<PoolWeights>>),
    Direct,
    Dns(DnsOrigin),
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
    /// The app's pools, `pool` among them, where others can stand in for it.
    all: &'a [Arc<PoolEntry>],
    chain: &'a [usize],
    rules: &'a Rules,
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
        Some(Target {
            app,
            pool,
            all: &self.pools,
            chain: &app.chain,
            rules: &self.rules,
        })
    }
}

impl Snapshot {
    /// Where a connection goes by this table that an older one sent to
    /// `target`; `None`: nowhere any more.
    pub fn again<'a>(&'a self, target: Target<'a>) -> Option<Target<'a>> {
        let pool = self.pools.iter().find(|pool| pool.id == target.pool.id)?;
        // Of another table, the chain says nothing here; and who waits for a
        // name has no fallback.
        Some(Target {
            app: target.app,
            pool,
            all: &self.pools,
            chain: &[],
            rules: &self.rules,
        })
    }

    /// An app as this table has it, which may be newer than the entry.
    pub fn declared(&self, entry: &AppEntry) -> Option<&App> {
        let key = AppKey::of(&entry.stats);
        let found = self.apps.iter().find(|app| AppKey::of(&app.stats) == key)?;
        Some(&found.app)
    }

    /// How long each app's open connections may go on once a drain began.
    pub fn drain_windows(&self) -> HashMap<AppKey, Duration> {
        let windows = self.apps.iter();
        let windows = windows.map(|entry| (AppKey::of(&entry.stats), entry.app.timeouts.drain));
        windows.collect()
    }

    /// The same, for agents that know the apps by their names only.
    pub fn named_drain_windows(&self) -> BTreeMap<AppName, Duration> {
        let windows = self.apps.iter();
        let windows = windows.map(|entry| (entry.app.name.clone(), entry.app.timeouts.drain));
        windows.collect()
    }

    /// Each app with its key.
    pub fn apps(&self) -> impl Iterator<Item = (&AppName, AppKey)> {
        let apps = self.apps.iter();
        apps.map(|entry| (&entry.app.name, AppKey::of(&entry.stats)))
    }

    /// Apps that are disabled and whose open connections are not to go on.
    pub fn to_close(&self) -> HashMap<AppKey, AppName> {
        let apps = self.apps.iter();
        let to_close = apps.filter(|entry| entry.app.disable == Some(Disable::CloseNow));
        let named = to_close.map(|entry| (AppKey::of(&entry.stats), entry.app.name.clone()));
        named.collect()
    }
}

impl<'a> Target<'a> {
    /// `pool`, and then those that stand in for it where it fails: first the
    /// ones that are not down, in the order of the app's chain.
    pub fn pools(self) -> impl Iterator<Item = &'a PoolEntry> {
        let chain = self.chain.iter().filter_map(|&index| self.all.get(index));
        let others = chain
            .map(Arc::as_ref)
            .filter(move |pool| !std::ptr::eq(*pool, self.pool));
        let is_down = |pool: &&PoolEntry| pool.state == PoolState::Down;
        let up = others.clone().filter(move |pool| !is_down(pool));
        std::iter::once(self.pool).chain(up.chain(others.filter(is_down)))
    }

    /// The same for a connection to another of the app's pools.
    #[must_use]
    pub fn with(self, pool: &'a PoolEntry) -> Self {
        Self { pool, ..self }
    }

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

    /// Why no connection may be made to `address`.
    pub fn forbidden(&self, address: SocketAddr) -> Option<Forbidden> {
        let source = match self.pool.made_of {
            MadeOf::Pool(..) | MadeOf::Direct => Source::Declared,
            MadeOf::Dns(_) => Source::Resolved,
        };
        self.rules.forbid(address, source)
    }
}

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
        let mut builder = Builder {
            writer: self,
            resources,
            previous: previous.pools.iter().map(|pool| (&pool.id, pool)).collect(),
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
    fn pool(&self, pool: &Arc<Pool>, previous: Option<&Arc<PoolEntry>>) -> Arc<PoolEntry> {
        let weights = self.weights.get(&pool.name);
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
        let stats = self.stats.pool(&id);
        let origins = pool.origins.iter().map(|origin| OriginEntry {
            label: origin.name.as_str().into(),
            stats: stats.origin(origin.name.as_str()),
            address: origin.address,
        });
        Arc::new(PoolEntry {
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

    fn direct(&self, app: &AppName, origins: &[DirectOrigin]) -> PoolEntry {
        let id = PoolId::DirectOf(app.clone());
        let stats = self.stats.pool(&id);
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
        PoolEntry {
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

    /// The entry of what a name stands for now.
    fn named(&self, app: &AppName, dns: &DnsOrigin) -> PoolEntry {
        let standing = self.names.standing(dns.question());
        let (places, unknown) = match &standing {
            Standing::Answered(answer) => (answer.places(), None),
            Standing::Pending(first) => (&[][..], Some(Unknown::Pending(first.clone()))),
            Standing::Failed(failed) => (&[][..], Some(Unknown::Failed(failed.clone()))),
        };
        let id = PoolId::DirectOf(app.clone());
        let stats = self.stats.pool(&id);
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
        PoolEntry {
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

impl PoolEntry {
    /// None for an app's own origins, which have no weights to follow.
    fn declared(&self) -> Option<&Arc<Pool>> {
        match &self.made_of {
            MadeOf::Pool(pool, _) => Some(pool),
            MadeOf::Direct | MadeOf::Dns(_) => None,
        }
    }

    fn question(&self) -> Option<&Question> {
        match &self.made_of {
            MadeOf::Dns(dns) => Some(dns.question()),
            MadeOf::Pool(..) | MadeOf::Direct => None,
        }
    }
}

/// What has names, to be found by them in about the order in which it is there,
/// as two lists of the same origins have it: each next to the one before, and the
/// whole is looked through only where the lists differ.
struct InOrder<'a, T, N> {
    all: &'a [T],
    name: N,
    next: usize,
}

impl<'a, T, K: PartialEq + 'a, N: Fn(&'a T) -> &'a K> InOrder<'a, T, N> {
    fn new(all: &'a [T], name: N) -> Self {
        Self { all, name, next: 0 }
    }

    fn find(&mut self, wanted: &K) -> Option<&'a T> {
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
    previous: BTreeMap<&'a PoolId, &'a Arc<PoolEntry>>,
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
                let entry = |writer: &TableWriter, _: Option<&Arc<PoolEntry>>| {
                    Arc::new(writer.direct(&app.name, origins))
                };
                let ports = origins.iter().map(|origin| origin.port).collect();
                (vec![self.once(id, entry)], Ports::Each(ports))
            }
            OriginChoice::Dns(dns) => {
                let id = PoolId::DirectOf(app.name.clone());
                let entry = |writer: &TableWriter, _: Option<&Arc<PoolEntry>>| {
                    Arc::new(writer.named(&app.name, dns))
                };
                let ports = dns.port().map_or(Ports::Own, Ports::Mapped);
                (vec![self.once(id, entry)], ports)
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
            let declared = pool.declared().and_then(|old| self.declared(&old.name));
            self.once(pool.id.clone(), |writer, previous| match declared {
                Some(declared) => writer.pool(declared, previous),
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
            let index = self.once(id, |writer, previous| writer.pool(pool, previous));
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

    fn once(
        &mut self,
        id: PoolId,
        make: impl FnOnce(&TableWriter, Option<&Arc<PoolEntry>>) -> Arc<PoolEntry>,
    ) -> usize {
        let previous = self.previous.get(&id).copied();
        *self.index.entry(id).or_insert_with(|| {
            self.pools.push(make(self.writer, previous));
            self.pools.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use anyport_model::{
        dns::{RecordType, Service},
        pick::{Draw, Load},
        ports::PortRange,
        positions::Positions,
        weights::{Factors, OriginHealth, OriginWeight},
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
        let draw = Draw {
            turn: 0,
            random: 0,
            client: [203, 0, 113, 7].into(),
        };
        let index = target
            .pool
            .wheel
            .choose(draw, |_| Load::default(), &Positions::NONE);
        let index = index.unwrap_or(0);
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
                factors: Factors::NONE,
            });
        let origins = origins.collect();
        let weights = PoolWeights {
            state,
            panic: false,
            origins,
        };
        (name.parse().unwrap(), weights)
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

    fn named(record: RecordType, port: Option<u16>) -> (Question, OriginChoice) {
        let question = Question {
            name: "game.internal".parse().unwrap(),
            record,
            ttl: None,
        };
        let dns = DnsOrigin::new(question.clone(), port.map(PortMap::Fixed)).unwrap();
        (question, OriginChoice::Dns(dns))
    }

    /// What a connection to the app would find: addresses, and how many of them
    /// are of the first choice.
    fn places(writer: &TableWriter) -> (Vec<String>, usize) {
        let snapshot = writer.reader().load_full();
        let target = snapshot.target(Transport::Tcp, "198.51.100.9:7".parse().unwrap());
        let target = target.unwrap();
        let all = 0..target.pool.origins.len();
        let all = all.map(|index| target.address(index, 7).unwrap().to_string());
        (
            all.collect(),
            target.pool.wheel.candidates_left(&Positions::NONE),
        )
    }

    #[test]
    fn what_a_name_stands_for_comes_into_the_table_and_outlives_a_new_one() {
        let mut writer = writer();
        let (question, origin) = named(RecordType::A, Some(7000));
        let list = || {
            [
                app("named", "*", origin.clone()),
                pool("other", None, &["10.0.2.9:1"]),
                app("beside", "80", to_pool("other")),
            ]
        };
        publish(&mut writer, list());
        assert_eq!(**writer.questions().borrow(), [question.clone()].into());
        assert_eq!(places(&writer), (Vec::new(), 0));
        let answer = |hosts: &[u8]| {
            let ips = hosts.iter().map(|&host| [10, 0, 2, host].into());
            Ok(Answer::of_addresses(ips).unwrap())
        };
        writer.resolved(&question, answer(&[2, 3]));
        let two = || vec!["10.0.2.2:7000".to_owned(), "10.0.2.3:7000".to_owned()];
        assert_eq!(places(&writer), (two(), 2));
        let failed = Failed {
            status: anyport_model::outcome::Status::Unresolvable,
            reason: "no".into(),
        };
        let before = writer.reader().load_full();
        writer.resolved(&question, Err(failed));
        writer.resolved(&question, answer(&[3, 2]));
        let after = writer.reader().load_full();
        assert!(Arc::ptr_eq(&before, &after), "nothing has changed");
        publish(&mut writer, list());
        assert_eq!(places(&writer), (two(), 2));
        writer.resolved(&question, answer(&[4]));
        assert_eq!(places(&writer), (vec!["10.0.2.4:7000".to_owned()], 1));
        publish(&mut writer, []);
        assert!(writer.questions().borrow().is_empty());
    }

    #[test]
    fn services_of_a_later_priority_are_no_first_choice() {
        let mut writer = writer();
        let (question, origin) = named(RecordType::Srv, None);
        publish(&mut writer, [app("named", "*", origin)]);
        let service = |priority, port, host| Service {
            priority,
            weight: 1,
            port,
            addresses: vec![[10, 0, 2, host].into()],
        };
        let services = [service(20, 9, 4), service(10, 7, 2), service(10, 8, 3)];
        writer.resolved(&question, Ok(Answer::of_services(services).unwrap()));
        let all = ["10.0.2.2:7", "10.0.2.3:8", "10.0.2.4:9"].map(str::to_owned);
        assert_eq!(places(&writer), (all.into(), 2));
    }

    #[test]
    fn entries_that_nothing_changes_stay_the_same() {
        let mut writer = writer();
        let list = || {
            [
                pool("one", None, &["10.0.2.2:1"]),
                pool("two", None, &["10.0.2.3:1"]),
                app("a", "1", to_pool("one")),
                app("b", "2", to_pool("two")),
            ]
        };
        publish(&mut writer, list());
        let first = writer.reader().load_full();
        publish(&mut writer, list());
        let up = || weights("one", PoolState::Healthy, &[0.5]);
        writer.weigh([up()]);
        let second = writer.reader().load_full();
        writer.weigh([up()]);
        let third = writer.reader().load_full();
        let same = |one: &Snapshot, other: &Snapshot| {
            let pairs = one.pools.iter().zip(&other.pools);
            pairs.map(|(a, b)| Arc::ptr_eq(a, b)).collect::<Vec<_>>()
        };
        assert_eq!(same(&first, &second), [false, true]);
        assert_eq!(same(&second, &third), [true, true]);
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
    fn weights_are_found_by_name_whatever_the_order() {
        let all = ["a", "b", "c", "d"];
        let mut known = InOrder::new(&all, |name| name);
        for wanted in ["a", "b", "x", "d", "a", "c", "c", "y", "b"] {
            let found = known.find(&wanted).copied();
            assert_eq!(found, all.contains(&wanted).then_some(wanted));
        }
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
    fn pools_stand_in_for_one_that_fails_in_their_order_and_those_that_are_down_last() {
        let mut writer = writer();
        let one = |name, next| pool(name, next, &["10.0.2.2:1"]);
        let chain = [
            one("a", Some("b")),
            one("b", Some("c")),
            one("c", Some("d")),
            one("d", None),
        ];
        publish(
            &mut writer,
            chain.into_iter().chain([app("x", "*", to_pool("a"))]),
        );
        let order = |writer: &TableWriter| {
            let snapshot = writer.reader().load_full();
            let target = snapshot.target(Transport::Tcp, "198.51.100.9:7".parse().unwrap());
            let pools = target.unwrap().pools().map(|pool| pool.id.label());
            pools.collect::<Vec<_>>().concat()
        };
        assert_eq!(order(&writer), "abcd");
        let state = |name, state| weights(name, state, &[1.0]);
        writer.weigh([state("a", PoolState::Down), state("c", PoolState::Down)]);
        assert_eq!(order(&writer), "bdac");
        writer.weigh([state("b", PoolState::Down), state("d", PoolState::Down)]);
        assert_eq!(order(&writer), "abcd");
    }

    #[test]
    fn who_holds_an_older_table_finds_an_app_as_it_is_declared_now() {
        let mut writer = writer();
        let pool = || pool("game", None, &["10.0.2.2:1"]);
        publish(&mut writer, [pool(), app("a", "1", to_pool("game"))]);
        let older = writer.reader().load_full();
        let entry = older.apps.first().unwrap();
        publish(&mut writer, [pool(), app("a", "2", to_pool("game"))]);
        let newer = writer.reader().load_full();
        let declared = newer.declared(entry).unwrap();
        assert_eq!(declared.ports, "2".parse().unwrap());
        publish(&mut writer, [pool()]);
        let newer = writer.reader().load_full();
        assert!(newer.declared(entry).is_none());
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
