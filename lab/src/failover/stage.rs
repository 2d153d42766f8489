//! The network of one turn, with three origins and the contender in it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::thread;
use std::time::{Duration, Instant};

use anyport_netns::{Namespace, Topology, link, sysctl};

use super::way::{self, CHECKED, NAMES, PORT, Proxy, Way};
use crate::bench::proxy::{self, Proxy as Running};
use crate::bench::{Error, Programs, Result, SERVICE, SETTINGS};
use crate::delay::{Delayed, far_end};
use crate::load::Load;
use crate::load::connect::{Close, Request};
use crate::load::paced::{self, Visit};
use crate::load::serve::{self, Mode, Server};

/// How long the contender may take until it has sent a client to each origin.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a client waits for anything: longer than any proxy here does.
const CLIENT: Duration = Duration::from_secs(20);

/// The network of one turn, ready for load.
pub(super) struct Stage {
    // In the order of their end: processes before their network.
    proxy: Running,
    servers: [Option<Server>; 3],
    cables: Vec<Delayed>,
    topology: Topology,
}

impl Stage {
    /// With origins at these distances, there and back, or on the usual links; returns when each has
    /// had a client.
    pub(super) fn set(
        way: Way,
        programs: &Programs,
        distances: Option<[Duration; 3]>,
    ) -> Result<Self> {
        let topology = Topology::new(NAMES.len())?;
        let hosts = topology.origins().iter().map(|origin| &origin.namespace);
        for namespace in hosts.chain([topology.client(), topology.edge()]) {
            for (name, value) in SETTINGS {
                sysctl::set(namespace, name, value)?;
            }
        }
        let cables = distances.into_iter().flatten().enumerate();
        let cables = cables
            .map(|(index, distance)| Delayed::to_origin(&topology, index, distance))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(Error::system("laying cables to the origins"))?;
        let addresses = [0, 1, 2].map(|index| match distances {
            Some(_) => far_end(index),
            None => topology.origins()[index].v4,
        });
        let [a, b, c] = [0, 1, 2].map(|index| serve(&topology, index, addresses[index]));
        let servers = [Some(a?), Some(b?), Some(c?)];
        let proxy = match way.proxy {
            Proxy::Anyport { policy } => {
                proxy::anyport::start(programs, &topology, &way::anyport(addresses, policy))?
            }
            Proxy::Haproxy {
                balance,
                redispatch,
                server,
            } => {
                link::add_address(topology.edge(), "lo", IpAddr::from(SERVICE).into())?;
                let configuration = way::haproxy(addresses, (balance, redispatch, server));
                proxy::haproxy::start(programs, &topology, &configuration)?
            }
        };
        let mut stage = Self {
            proxy,
            servers,
            cables,
            topology,
        };
        stage.await_all(way)?;
        Ok(stage)
    }

    fn await_all(&mut self, way: Way) -> Result<()> {
        let (started, mut seen) = (Instant::now(), BTreeSet::new());
        while seen.len() < NAMES.len() {
            self.proxy.check()?;
            for visit in self.load(100, Duration::from_millis(100))? {
                seen.extend(visit.outcome.ok().flatten());
            }
            if started.elapsed() >= PATIENCE {
                return Err(Error::NotInTime {
                    contender: way.name,
                    what: "a client for each origin",
                    seconds: PATIENCE.as_secs(),
                    last: format!("{seen:?}"),
                    log: self.proxy.log_tails(),
                });
            }
        }
        Ok(())
    }

    /// Clients that come for so long.
    pub(super) fn load(&self, per_second: u32, duration: Duration) -> Result<Vec<Visit>> {
        let plan = plan(per_second, duration);
        let (_, visits) = self.topology.client().run(|| paced::run(&plan))??;
        Ok(visits)
    }

    /// The same, while `meanwhile` is done.
    pub(super) fn load_while<T>(
        &mut self,
        per_second: u32,
        duration: Duration,
        meanwhile: impl FnOnce(&mut Self) -> T,
    ) -> Result<(Vec<Visit>, T)> {
        let client = self.topology.client().clone();
        let plan = plan(per_second, duration);
        thread::scope(|scope| {
            let load = scope.spawn(|| client.run(|| paced::run(&plan)));
            let done = meanwhile(self);
            let joined = load.join();
            let joined = joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let (_, visits) = joined??;
            self.proxy.check()?;
            Ok((visits, done))
        })
    }

    pub(super) fn host(&self, index: usize) -> &Namespace {
        &self.topology.origins()[index].namespace
    }

    pub(super) fn take_server(&mut self, index: usize) -> Option<Server> {
        self.servers[index].take()
    }

    pub(super) fn cable(&self, index: usize) -> &Delayed {
        &self.cables[index]
    }
}

fn plan(per_second: u32, duration: Duration) -> paced::Plan {
    paced::Plan {
        load: Load {
            duration,
            timeout: CLIENT,
            ..Load::on(std::net::SocketAddr::from((SERVICE, PORT)))
        },
        per_second,
        request: Request::Who,
        close: Close::Fin,
    }
}

fn serve(topology: &Topology, index: usize, address: Ipv4Addr) -> Result<Server> {
    let plan = serve::Plan {
        listen: [PORT, CHECKED].map(|port| (address, port).into()).to_vec(),
        mode: Mode::Echo {
            tag: NAMES[index].parse().ok(),
        },
        threads: NonZeroUsize::MIN,
    };
    let namespace = &topology.origins()[index].namespace;
    Ok(namespace.run(|| serve::start(&plan))??)
}
