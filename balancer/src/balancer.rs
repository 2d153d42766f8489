//! Puts the parts together.

use std::net::SocketAddr;

use anyport_node::{
    access::Role,
    admin::AdminServer,
    drain::Drain,
    identity::{self, Expiry},
    listen::ListenError,
    metrics::{Registry, prometheus},
    ready::Readiness,
    rpc::{Endpoint, EndpointError, ServeError, Server, advertised},
};
use anyport_proto::{DESCRIPTORS, sync, v1};
use tokio::task::{JoinError, JoinSet};

use crate::{
    Config,
    driver::{Driver, Reports},
    membership::Subscriber,
    metrics::Metrics,
    peers,
    probe::Opener,
    serve::Service,
};

/// A balancer that has its sockets and does nothing yet.
#[must_use = "a balancer does nothing before it runs"]
pub struct Balancer {
    config: Config,
    server: Server,
    admin: AdminServer,
    replicas: Vec<Endpoint>,
    registry: Registry,
    metrics: Metrics,
    opener: Opener,
}

/// The balancer could not start, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum BalancerError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A config service cannot be dialled as asked.
    #[error("--config-service {0}")]
    ConfigService(#[from] EndpointError),
    /// Two metrics have one name.
    #[error("metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// TLS cannot be set up for probes.
    #[error("TLS cannot be set up for probes")]
    Tls(#[from] rustls::Error),
    /// The gRPC server failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A part of the balancer ended before it should.
    #[error("{part} ended unexpectedly")]
    Ended {
        /// Which.
        part: &'static str,
        /// The panic, where it was one.
        source: Option<JoinError>,
    },
}

/// Runs a balancer until `drain` begins and its streams have ended.
///
/// # Errors
/// See [`BalancerError`].
pub async fn run(config: Config, drain: Drain) -> Result<(), BalancerError> {
    Balancer::bind(config)?.run(drain).await
}

impl Balancer {
    /// Takes the sockets, so that their addresses are known before anything
    /// runs. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// See [`BalancerError`].
    pub fn bind(config: Config) -> Result<Self, BalancerError> {
        let identity = &config.identity;
        let server = Server::bind("--listen", config.listen, identity)?;
        let admin = AdminServer::bind("--admin", config.admin, identity)?;
        let replicas = config
            .config_service
            .iter()
            .map(|url| Endpoint::new(url, identity, Role::ConfigService))
            .collect::<Result<_, _>>()?;
        let registry = Registry::new();
        let metrics = Metrics::new(&registry)?;
        Ok(Self {
            config,
            server,
            admin,
            replicas,
            registry,
            metrics,
            opener: Opener::new()?,
        })
    }

    /// Where gRPC is.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where admin HTTP is.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Runs until `drain` begins and the streams have ended.
    ///
    /// # Errors
    /// See [`BalancerError`].
    pub async fn run(self, drain: Drain) -> Result<(), BalancerError> {
        let readiness = Readiness::new();
        let (driver, handle, published) = Driver::new(self.opener, self.metrics, &readiness);
        let service = Service::new(
            self.config.name.clone(),
            handle.clone(),
            published.clone(),
            drain.clone(),
        );
        let who = sync::Identity {
            role: v1::NodeRole::Balancer,
            name: self.config.name.to_string(),
            region: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            steering: String::new(),
            address: advertised(
                self.config.advertise.as_ref(),
                self.server.address(),
                &self.config.identity,
            ),
        };
        let subscriber = Subscriber::new(handle.clone());
        let expiry = Expiry::register(&self.config.identity, &self.registry)?;
        let remark = readiness.remark("identity");

        let admin = self
            .admin
            .spawn(self.registry, readiness.clone(), drain.clone());
        tracing::info!(
            name = %self.config.name,
            grpc = %self.server.address(),
            admin = %admin.address(),
            "balancer started"
        );
        // Tasks end with this function: dropping the set aborts them.
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            driver.run().await;
            "the prober"
        });
        let files = identity::follow(self.config.identity.clone(), expiry, remark);
        tasks.spawn(async move { match files.await {} });
        tasks.spawn(peers::follow(
            self.replicas.clone(),
            self.config.name.clone(),
            self.config.identity.clone(),
            (handle, published.superseded.clone()),
        ));
        let reports = published.reports;
        tasks.spawn(follow(self.replicas, who, reports, subscriber));
        let serve = self
            .server
            .service(v1::balancer_service_server::BalancerServiceServer::new(
                service,
            ))
            .descriptors(DESCRIPTORS)
            .serve(&readiness, &drain);
        tokio::select! {
            served = serve => Ok(served?),
            Some(ended) = tasks.join_next() => Err(match ended {
                Ok(part) => BalancerError::Ended { part, source: None },
                Err(error) => BalancerError::Ended { part: "a task", source: Some(error) },
            }),
        }
    }
}

async fn follow(
    replicas: Vec<Endpoint>,
    identity: sync::Identity,
    reports: Reports,
    mut subscriber: Subscriber,
) -> &'static str {
    let replicas = replicas.into_iter().map(Endpoint::into_dial).collect();
    sync::follow(replicas, identity, reports, &mut subscriber, rand::random).await;
    "the subscription"
}
