//! The network of one turn, with the origin and the contender in it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU64, NonZeroUsize};
use std::thread;
use std::time::{Duration, Instant};

use anyport_netns::route::{self, NextHop};
use anyport_netns::topology::EDGE_TO_CLIENT_V4;
use anyport_netns::{Namespace, Topology};
use anyport_netns::{link, sysctl};

use super::contender::Contender;
use super::error::{Error, Result};
use super::programs::Programs;
use super::proxy::{self, Proxy};
use super::usage::Usage;
use crate::load::serve::{self, Mode, Server, datagram};
use crate::load::{Load, connect};

/// Where the proxies are reached: an address of one of the prefixes that the client has a route for.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// Where what is sent comes back, on the service's address and the origin's.
pub(super) const ECHO_PORT: u16 = 7000;
/// Where a stream comes from.
pub(super) const SOURCE_PORT: u16 = 7001;

/// Threads or processes of each proxy, of the origin, and of the load.
pub(crate) const WORKERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

/// How long anything may take that should be a matter of moments.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// What every host of a busy proxy has: all the ports there are for outgoing connections, and the use
/// of those in TIME_WAIT again after a second.
pub(crate) const SETTINGS: [(&str, &str); 2] = [
    ("net/ipv4/ip_local_port_range", "1024 65535"),
    ("net/ipv4/tcp_tw_reuse", "1"),
];

/// The network of one turn, ready for load.
pub(super) struct Stage {
    // In the order of their end: processes before their network.
    proxy: Option<Proxy>,
    _servers: [Server; 2],
    _datagrams: datagram::Server,
    topology: Topology,
    contender: Contender,
    /// What is connected to.
    address: IpAddr,
}

impl Stage {
    /// Makes the network, starts the origin and the contender with room for `sockets` connections,
    /// and waits until a byte comes back through it.
    pub(super) fn set(contender: Contender, programs: &Programs, sockets: usize) -> Result<Self> {
        let topology = Topology::new(1)?;
        let origin = &topology.origins()[0];
        for namespace in [topology.client(), topology.edge(), &origin.namespace] {
            for (name, value) in SETTINGS {
                sysctl::set(namespace, name, value)?;
            }
        }
        let serve = |mode, port| -> Result<Server> {
            let plan = serve::Plan {
                listen: vec![(origin.v4, port).into()],
                mode,
                threads: WORKERS,
            };
            Ok(origin.namespace.run(|| serve::start(&plan))??)
        };
        let servers = [
            serve(Mode::Echo { tag: None }, ECHO_PORT)?,
            serve(Mode::Source, SOURCE_PORT)?,
        ];
        let plan = datagram::Plan {
            listen: vec![(origin.v4, ECHO_PORT).into()],
            tag: None,
            threads: WORKERS,
        };
        let datagrams = origin.namespace.run(|| datagram::start(&plan))??;
        let address = match contender {
            Contender::Plain => origin.v4,
            _ => SERVICE,
        };
        match contender {
            Contender::Plain => forward(&topology)?,
            // The agent makes the whole prefix local itself.
            Contender::Anyport => {}
            Contender::Haproxy | Contender::Nginx | Contender::Bare => {
                link::add_address(topology.edge(), "lo", IpAddr::from(SERVICE).into())?;
            }
        }
        let proxy = match contender {
            Contender::Plain => None,
            Contender::Haproxy => {
                let configuration = proxy::haproxy::configuration(origin.v4, sockets);
                Some(proxy::haproxy::start(programs, &topology, &configuration)?)
            }
            Contender::Nginx => Some(proxy::nginx::start(programs, &topology, sockets)?),
            Contender::Bare => Some(proxy::bare::start(programs, &topology)?),
            Contender::Anyport => {
                let manifest = proxy::anyport::manifest(origin.v4);
                Some(proxy::anyport::start(programs, &topology, &manifest)?)
            }
        };
        let mut stage = Self {
            proxy,
            _servers: servers,
            _datagrams: datagrams,
            topology,
            contender,
            address: address.into(),
        };
        stage.wait("a byte through it", |stage| stage.visit())?;
        Ok(stage)
    }

    /// Where the client is.
    pub(super) fn client(&self) -> &Namespace {
        self.topology.client()
    }

    /// A load on a port of the service.
    pub(super) fn load(&self, port: u16, connections: NonZeroUsize, duration: Duration) -> Load {
        Load {
            connections,
            threads: WORKERS,
            duration,
            ..Load::on(SocketAddr::new(self.address, port))
        }
    }

    /// What the proxy has used so far; `None` where there is none.
    pub(super) fn usage(&self) -> Result<Option<Usage>> {
        let Some(proxy) = &self.proxy else {
            return Ok(None);
        };
        let what = format!("reading what {} uses", self.contender);
        let usage = Usage::of_family(proxy.counted());
        usage.map(Some).map_err(Error::system(what))
    }

    /// Fails where a process of the contender has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        self.proxy.as_mut().map_or(Ok(()), Proxy::check)
    }

    /// Looks again and again until there is what is looked for.
    pub(super) fn wait<T>(
        &mut self,
        what: &'static str,
        mut look: impl FnMut(&mut Self) -> Result<std::result::Result<T, String>>,
    ) -> Result<T> {
        let started = Instant::now();
        loop {
            self.check()?;
            match look(self)? {
                Ok(found) => return Ok(found),
                Err(last) if started.elapsed() >= PATIENCE => {
                    return Err(Error::NotInTime {
                        contender: self.contender.name(),
                        what,
                        seconds: PATIENCE.as_secs(),
                        last,
                        log: self
                            .proxy
                            .as_ref()
                            .map(Proxy::log_tails)
                            .unwrap_or_default(),
                    });
                }
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    fn visit(&self) -> Result<std::result::Result<(), String>> {
        let plan = connect::Plan {
            load: Load {
                count: Some(NonZeroU64::MIN),
                timeout: Duration::from_secs(1),
                ..self.load(ECHO_PORT, NonZeroUsize::MIN, Duration::from_secs(2))
            },
            request: connect::Request::Echo(NonZeroU64::MIN),
            close: connect::Close::Fin,
        };
        let report = self.client().run(|| connect::run(&plan))??;
        Ok(match report.failures().keys().next() {
            None if report.operations() == 1 => Ok(()),
            None => Err("no answer".to_owned()),
            Some(failure) => Err(failure.to_string()),
        })
    }
}

/// Lets the proxy's host forward, and tells the client the way to the origin.
fn forward(topology: &Topology) -> Result<()> {
    sysctl::set(topology.edge(), "net/ipv4/ip_forward", "1")?;
    let origin = IpAddr::from(topology.origins()[0].v4).into();
    let gateway = NextHop::Gateway(EDGE_TO_CLIENT_V4.into());
    route::add(topology.client(), origin, gateway)?;
    Ok(())
}
