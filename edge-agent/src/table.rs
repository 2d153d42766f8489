//! What a worker needs to know to serve a connection, as one immutable
//! snapshot that is swapped whole: routes, pools, weights. One writer makes
//! it; readers never wait.

mod builder;
mod pool;
mod writer;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyport_model::{
    names::{AppName, Revision},
    net_set::NetSet,
    ports::PortMap,
    resource::{App, Disable, Transport},
    route::{Candidates, Route, RouteTable},
    target::{Forbidden, Rules, Source},
    weights::PoolState,
};

use self::pool::MadeOf;
pub use self::{
    pool::{OriginEntry, PoolEntry, Unknown},
    writer::{KernelNeeds, TableWriter},
};
use crate::{live::AppKey, stats::AppStats, tls::Termination};

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

    /// The counters of each app.
    pub fn app_stats(&self) -> impl Iterator<Item = &AppStats> {
        self.apps.iter().map(|entry| entry.stats.as_ref())
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

#[cfg(test)]
mod tests;
