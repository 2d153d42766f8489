//! Puts the parts of the service together.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use anyport_node::{
    access::Role,
    admin::AdminServer,
    drain::Drain,
    identity::{self, Expiry, Identity, IdentityError},
    listen::ListenError,
    metrics::{Registry, prometheus},
    ready::Readiness,
    rpc::{ServeError, Server},
};
use anyport_proto::DESCRIPTORS;

use crate::{
    admit::Writer,
    config::Config,
    metrics::Metrics,
    nodes::{self, Balancers, Nodes, keep, share},
    push::{DiscoveryServer, Push},
    reseal::reseal,
    rollout::conduct,
    serve::{ConfigApi, ConfigServer, Intake},
    state::{Keeper, Retention, StoreKeyError, StoreKeys, follow, history::tidy},
    store::{
        Store, StoreUrl,
        balancers::{BalancerRecord, InMemory},
        embedded::{Embedded, OpenError},
        etcd::{ConnectError, Etcd, balancers::EtcdBalancers, connect, presence::Presence},
    },
};

/// A config service that listens, but does not serve yet.
#[must_use = "nothing is served before `serve`"]
pub struct ConfigService {
    identity: Identity,
    server: Server,
    admin: AdminServer,
    readiness: Readiness,
    registry: Registry,
    metrics: Metrics,
    store: Arc<dyn Store>,
    presence: Option<Presence>,
    record: Arc<dyn BalancerRecord>,
    keys: StoreKeys,
    replica: String,
    retention: Retention,
}

/// The service could not start, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Embedded(#[from] OpenError),
    #[error(transparent)]
    Etcd(#[from] ConnectError),
    #[error(transparent)]
    StoreKey(#[from] StoreKeyError),
    #[error("metrics")]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Runs a config service until the drain has begun and every call has ended.
///
/// # Errors
/// See [`RunError`].
pub async fn run(config: Config, drain: Drain) -> Result<(), RunError> {
    ConfigService::bind(&config).await?.serve(&drain).await
}

impl ConfigService {
    /// Opens the store and the listeners. An etcd that cannot be reached is no
    /// error: the service waits for it and says so.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn bind(config: &Config) -> Result<Self, RunError> {
        let identity = config.tls.load_as(Role::ConfigService, None)?;
        let keys = config.store_key.read()?;
        let server = Server::bind("--listen", config.listen, &identity)?;
        let admin = AdminServer::bind("--admin", config.admin, &identity)?;
        type Backend = (Arc<dyn Store>, Arc<dyn BalancerRecord>, Option<Presence>);
        let (store, record, presence): Backend = match &config.store {
            StoreUrl::Embedded(directory) => {
                let store = Embedded::open(directory)?;
                (Arc::new(store), Arc::new(InMemory::default()), None)
            }
            StoreUrl::Etcd(url) => {
                let members = connect(url, &identity).await?;
                let presence = Presence::new(&members, url, rand::random());
                let record = EtcdBalancers::new(&members, url);
                let store = Etcd::new(&members, url);
                (Arc::new(store), Arc::new(record), Some(presence))
            }
        };
        let registry = Registry::new();
        Ok(Self {
            replica: replica_name(server.address()),
            metrics: Metrics::new(&registry)?,
            readiness: Readiness::new(),
            identity,
            server,
            admin,
            registry,
            store,
            presence,
            record,
            retention: config.retention,
            keys,
        })
    }

    /// Where gRPC is served; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where the admin HTTP server answers.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// What the service still waits for.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Serves until the drain has begun and every call has ended.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn serve(self, drain: &Drain) -> Result<(), RunError> {
        let Self {
            server,
            admin,
            readiness,
            registry,
            metrics,
            store,
            presence,
            record,
            keys,
            replica,
            retention,
            identity,
        } = self;
        let keeper = Keeper::sealing(store, keys);
        let nodes = Nodes::default();
        nodes.set_elsewhere_known(presence.is_none());
        let loaded = readiness.condition("store", "the store has not been read yet");
        let expiry = Expiry::register(&identity, &registry)?;
        let remark = readiness.remark("identity");
        let _admin = admin.spawn(registry, readiness.clone(), drain.clone());
        let push = Push::new(
            keeper.clone(),
            nodes.clone(),
            metrics.clone(),
            drain.clone(),
            replica,
        );
        let balancers = Balancers::default();
        let writer = Writer::new(keeper.clone());
        let api = ConfigApi {
            writer: writer.clone(),
            keeper: keeper.clone(),
            nodes: nodes.clone(),
            metrics: metrics.clone(),
            drain: drain.clone(),
        };
        let intake = Intake::default();
        let discovery =
            DiscoveryServer::new(push, balancers.clone(), drain.clone(), intake.clone());
        let server = server
            .service(ConfigServer::new(api, intake.clone()))
            .service(discovery)
            .descriptors(DESCRIPTORS);
        tracing::info!(address = %server.address(), tls = identity.is_tls(), "serving");
        // Of its own, so that sharing ends with serving whatever ended that.
        let sharing = drain.child();
        // Boxed: large, and moved a few times before they are first polled.
        let serving = Box::pin(async {
            let served = server.serve(&readiness, drain).await;
            sharing.begin();
            served
        });
        let share = Box::pin(share_presence(&nodes, presence.as_ref(), &sharing));
        let keep = Box::pin(keep(&nodes, &*record, &balancers, &sharing));
        let served = async { tokio::join!(serving, share, keep).0 };
        tokio::select! {
            served = served => Ok(served?),
            never = Box::pin(follow(&keeper, &loaded)) => match never {},
            never = Box::pin(tidy(&keeper, retention)) => match never {},
            never = count(&keeper, &nodes, &balancers, &metrics) => match never {},
            never = identity::follow(identity.clone(), expiry, remark) => match never {},
            never = Box::pin(conduct(&keeper, &nodes, &writer)) => match never {},
            never = Box::pin(reseal(&keeper, &writer)) => match never {},
        }
    }
}

/// Tells other replicas of our nodes, where there are others.
async fn share_presence(nodes: &Nodes, presence: Option<&Presence>, drain: &Drain) {
    if let Some(presence) = presence {
        share(nodes, presence, drain).await;
    }
}

/// Keeps the gauges in step with what they show.
async fn count(
    keeper: &Keeper,
    nodes: &Nodes,
    balancers: &Balancers,
    metrics: &Metrics,
) -> Infallible {
    let mut present = keeper.subscribe();
    let mut here = nodes.changes_here();
    let mut rewinds = keeper.rewinds();
    let mut sets = balancers.subscribe();
    loop {
        let revision = present.latest().map(|state| state.revision());
        metrics.moved_to(revision.map_or(0, |revision| revision.0));
        here.borrow_and_update();
        metrics.rewound(rewinds.borrow_and_update().count);
        for role in nodes::Role::ALL {
            metrics.connected(role, nodes.count_here(role));
        }
        if let Some(set) = &*sets.borrow_and_update() {
            metrics.take_part(set);
        }
        // None can fail: all senders are held by the arguments.
        tokio::select! {
            _ = present.changed() => {}
            _ = here.changed() => {}
            _ = rewinds.changed() => {}
            _ = sets.changed() => {}
        }
    }
}

/// How `NodeStatus` names this process: host and port, as people know it.
fn replica_name(address: SocketAddr) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.as_deref().map(str::trim).unwrap_or_default();
    if host.is_empty() {
        address.to_string()
    } else {
        format!("{host}:{}", address.port())
    }
}
