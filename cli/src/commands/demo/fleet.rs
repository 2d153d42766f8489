//! A whole Anyport on one machine: a network of namespaces, the three services on
//! the edge's side of it, an origin server in each of the others.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Stdio,
    time::{Duration, Instant},
};

use anyport_netns::{Topology, counters};
use anyport_node::{
    access::Role,
    identity::{Identity, TlsArgs},
    rpc::{Channel, ServerUrl},
};
use anyport_proto::v1::{self, balancer_service_client::BalancerServiceClient};
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, time::sleep};

use super::{
    admin, manifest,
    process::{Process, this_program},
    resident::Resident,
    sockets::{self, Socket, State},
};
use crate::{connection::Connection, failure::Failure};

/// For whatever ought to happen within moments.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at what is awaited.
const GLANCE: Duration = Duration::from_millis(10);

// The edge's namespace has loopback to itself: the usual ports are free there.
const CONFIG_SERVICE: &str = "http://127.0.0.1:7400";
const BALANCER: &str = "http://127.0.0.1:7410";
/// The edge agent's own listeners, besides those that connections are steered to.
const EDGE_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7420);
const EDGE_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7421);
/// Threads that carry connections.
pub const WORKERS: usize = 2;

/// Everything that runs. Fields are dropped in this order: first what uses the
/// network, then the network.
pub struct Fleet {
    config_service: Option<Process>,
    balancer: Option<Process>,
    edge_agent: Option<Process>,
    /// By position in [`manifest::ORIGINS`].
    origins: [Option<Process>; 3],
    controls: Controls,
    /// Work on the client's side.
    pub client: Resident,
    /// Work on the edge's side.
    pub edge: Resident,
    topology: Topology,
    state: TempDir,
}

/// The control plane, dialled from inside the edge's namespace by the first call.
struct Controls {
    config_service: Connection,
    balancer: BalancerServiceClient<Channel>,
}

impl Controls {
    fn dial() -> Result<Self, Failure> {
        let config_service = Connection::new(&url(CONFIG_SERVICE)?.into(), &TlsArgs::default())?;
        let balancer = Channel::lazy(&url(BALANCER)?, &Identity::none(), Role::Balancer);
        Ok(Self {
            config_service,
            balancer: BalancerServiceClient::new(balancer.map_err(Failure::refused)?),
        })
    }
}

impl Fleet {
    /// Makes the network; nothing runs in it yet.
    pub async fn new() -> Result<Self, Failure> {
        let topology = Topology::new(manifest::ORIGINS.len()).map_err(|error| match error {
            anyport_netns::Error::NotPermitted { .. } => Failure::refused(
                "the demo needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN), \
                 to make network namespaces of its own",
            )
            .remedy("run `sudo anyport demo`; it touches nothing outside of those namespaces"),
            error => Failure::refused(format_args!("cannot make the network: {}", whole(&error))),
        })?;
        let client = Resident::start(topology.client())?;
        let edge = Resident::start(topology.edge())?;
        let controls = edge.run(async { Controls::dial() }).await??;
        let state = tempfile::Builder::new().prefix("anyport-demo-").tempdir();
        Ok(Self {
            config_service: None,
            balancer: None,
            edge_agent: None,
            origins: [const { None }; 3],
            controls,
            client,
            edge,
            topology,
            state: state.map_err(|error| {
                Failure::refused(format_args!("cannot make a temporary directory: {error}"))
            })?,
        })
    }

    /// Where the origins are.
    pub fn origin_addresses(&self) -> [Ipv4Addr; 3] {
        let origins = self.topology.origins();
        std::array::from_fn(|index| origins.get(index).map_or(Ipv4Addr::UNSPECIFIED, |o| o.v4))
    }

    /// Starts the services, and waits until they know each other.
    pub async fn start_services(&mut self) -> Result<(), Failure> {
        let state = self.state.path().display();
        let store = format!("--store=embedded:{state}/store");
        let edge_state = format!("--state-dir={state}/edge");
        let workers = format!("--workers={WORKERS}");
        let namespace = self.topology.edge();
        let start = |name, arguments: &[&str]| Process::start(name, namespace, arguments).map(Some);
        self.config_service = start("the config service", &["config-service", &store])?;
        self.balancer = start("the balancer", &["balancer", "--name=demo-balancer"])?;
        self.edge_agent = start(
            "the edge agent",
            &[
                "edge-agent",
                "--name=demo-edge",
                &edge_state,
                &workers,
                "--drain-timeout=1",
            ],
        )?;
        self.until("the services are connected", async |fleet| {
            let roles = fleet.connected_roles().await.unwrap_or_default();
            let both = [v1::NodeRole::Edge, v1::NodeRole::Balancer];
            both.iter().all(|role| roles.contains(role)).then_some(())
        })
        .await
    }

    async fn connected_roles(&self) -> Result<Vec<v1::NodeRole>, Failure> {
        let listed = self
            .controls
            .config_service
            .nodes(v1::NodeRole::Unspecified);
        let nodes = listed.await?.nodes;
        Ok(nodes.iter().map(v1::NodeStatus::role).collect())
    }

    /// Starts an origin, by its position.
    pub fn start_origin(&mut self, index: usize) -> Result<(), Failure> {
        let (Some(slot), Some(place)) = (
            self.origins.get_mut(index),
            self.topology.origins().get(index),
        ) else {
            return Err(Failure::refused(format_args!("there is no origin {index}")));
        };
        let name = manifest::ORIGINS[index];
        let listen = format!(
            "--listen={}",
            SocketAddr::from((place.v4, manifest::ORIGIN_PORT))
        );
        let arguments = ["origin", &format!("--name={name}"), &listen];
        *slot = Some(Process::start(
            &format!("origin {name}"),
            &place.namespace,
            &arguments,
        )?);
        Ok(())
    }

    /// `kill -9`. When this returns, nobody listens there any more.
    pub async fn kill_origin(&mut self, index: usize) -> Result<(), Failure> {
        match self.origins.get_mut(index).and_then(Option::take) {
            Some(mut origin) => origin.kill().await.map_err(|error| {
                Failure::refused(format_args!("cannot kill origin {index}: {error}"))
            }),
            None => Ok(()),
        }
    }

    /// `anyport apply`, as a user would. Returns once the edge has it.
    pub async fn apply(&self, manifest: &str) -> Result<(), Failure> {
        let failed = |error| Failure::refused(format_args!("cannot run anyport apply: {error}"));
        let mut command = this_program(self.topology.edge());
        command
            .args(["--server", CONFIG_SERVICE, "apply", "-f", "-", "--wait=15s"])
            .stdin(Stdio::piped());
        let mut apply = command.spawn().map_err(failed)?;
        if let Some(mut input) = apply.stdin.take() {
            // What it could not read, it says itself.
            let _ = input.write_all(manifest.as_bytes()).await;
        }
        let output = apply.wait_with_output().await.map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let refused = format_args!("anyport apply: {}", output.status);
        Err(Failure::refused(refused)
            .details(said.lines().map(str::to_owned))
            .remedy("`anyport doctor` says what this machine lacks"))
    }

    /// What the balancer holds of the pool's origins.
    pub async fn health(&self) -> Result<v1::PoolHealth, Failure> {
        let request = v1::GetHealthRequest {
            pool: manifest::POOL.to_owned(),
        };
        let mut balancer = self.controls.balancer.clone();
        let answer = balancer.get_health(request).await.map_err(|status| {
            Failure::refused(format_args!("cannot ask the balancer for health: {status}"))
        })?;
        let pool = answer.into_inner().pools.into_iter().next();
        pool.ok_or_else(|| Failure::refused("the balancer does not know the pool"))
    }

    /// Waits until the balancer holds of the pool what `wanted` says.
    pub async fn until_health(
        &mut self,
        what: &str,
        wanted: impl Fn(&v1::PoolHealth) -> bool,
    ) -> Result<v1::PoolHealth, Failure> {
        self.until(what, async |fleet| {
            fleet.health().await.ok().filter(|pool| wanted(pool))
        })
        .await
    }

    /// That everything that was started runs.
    pub fn check(&mut self) -> Result<(), Failure> {
        self.processes().try_for_each(Process::check)
    }

    /// Looks again and again, and not longer than everything runs.
    async fn until<T>(
        &mut self,
        what: &str,
        look: impl AsyncFn(&Self) -> Option<T>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        loop {
            if let Some(seen) = look(self).await {
                return Ok(seen);
            }
            self.check()?;
            if begun.elapsed() > PATIENCE {
                let limit = PATIENCE.as_secs();
                return Err(Failure::refused(format_args!(
                    "waited {limit} s in vain until {what}"
                )));
            }
            sleep(GLANCE).await;
        }
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        let services = [
            &mut self.config_service,
            &mut self.balancer,
            &mut self.edge_agent,
        ];
        let all = services.into_iter().chain(&mut self.origins);
        all.flatten()
    }

    /// The TCP sockets of the edge's kernel.
    pub async fn edge_sockets(&self) -> Result<Vec<Socket>, Failure> {
        let listed = self.edge.run(async { sockets::list() }).await?;
        listed.map_err(|error| unreadable("the edge's sockets", &error))
    }

    /// The listeners of the edge agent that connections are steered to.
    pub async fn steered_listeners(&self) -> Result<Vec<SocketAddr>, Failure> {
        let sockets = self.edge_sockets().await?;
        let pid = self.edge_agent.as_ref().and_then(Process::id);
        let held = pid.map_or(Ok(Vec::new()), |pid| sockets::held_by(pid, &sockets));
        let held = held.map_err(|error| unreadable("the edge agent's sockets", &error))?;
        let listeners = held.iter().filter(|socket| {
            socket.state == State::Listening && ![EDGE_LISTEN, EDGE_ADMIN].contains(&socket.local)
        });
        Ok(listeners.map(|socket| socket.local).collect())
    }

    /// The edge agent's metrics, as a scraper gets them.
    pub async fn edge_metrics(&self) -> Result<String, Failure> {
        let read = self.edge.run(admin::metrics(EDGE_ADMIN)).await?;
        read.map_err(|error| unreadable("the edge agent's metrics", &error))
    }

    /// Connections that the edge's kernel tracks; none without the module.
    pub fn edge_conntrack(&self) -> Result<Option<u64>, Failure> {
        let entries = counters::conntrack_entries(self.topology.edge());
        entries.map_err(|error| unreadable("the count of tracked connections", &error))
    }

    /// Ends everything and removes what it left on disk.
    ///
    /// # Errors
    /// The first thing that did not end as it should; all the others have been
    /// ended all the same.
    pub async fn stop(self) -> Result<(), Failure> {
        let services = [self.edge_agent, self.balancer, self.config_service];
        let processes = services.into_iter().chain(self.origins).flatten();
        let stopped = join_all(processes.map(Process::stop)).await;
        let removed = self.state.close().map_err(|error| {
            Failure::refused(format_args!(
                "cannot remove the temporary directory: {error}"
            ))
        });
        stopped.into_iter().collect::<Result<(), _>>().and(removed)
    }
}

fn unreadable(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::refused(format_args!("cannot read {what}: {}", whole(error)))
}

fn url(text: &str) -> Result<ServerUrl, Failure> {
    text.parse().map_err(Failure::refused)
}

/// An error with all its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
