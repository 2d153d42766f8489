//! `anyport explain`: which app would take a connection, why, and where it would
//! go. Decided by the same table that edges look connections up in.

mod guards;
mod identity;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::SystemTime,
};

use anyport_model::{
    access::Action,
    names::OriginName,
    pick::{Candidate, Draw, Load, Wheel},
    positions::Positions,
    resource::{App, Disable, Origin, OriginChoice, Policy, Pool, Resource, Transport, Weight},
    route::RouteTable,
    server_name::ServerName,
    steering::{Claim, claims_of},
    tls::{OriginTls, Roots, Tls},
};
use anyport_proto::{convert::read_resource, v1};
use ipnet::IpNet;

use self::identity::Sender;
use super::{
    Context,
    pools::{self, PoolHealth},
};
use crate::{
    console::{Cell, Console, Mood},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the connection goes to: tcp/198.51.100.10:25565, udp/[2001:db8::1]:53
    #[arg(value_name = "tcp|udp/ADDR:PORT")]
    destination: Destination,
    /// Where the connection comes from: the client's address, or that of a proxy
    /// in front of the edge
    #[arg(long, value_name = "ADDR")]
    from: Option<IpAddr>,
    /// The name in the client's ClientHello, where apps are told apart by it
    #[arg(long, value_name = "NAME")]
    sni: Option<ServerName>,
}

/// What a connection is made to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    transport: Transport,
    address: SocketAddr,
}

/// A text that is no [`Destination`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("right is tcp/198.51.100.10:25565 or udp/[2001:db8::1]:53")]
pub struct DestinationError;

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let (transport, address) = text.split_once('/').ok_or(DestinationError)?;
        let transport = transport.parse().map_err(|_| DestinationError)?;
        let address: SocketAddr = address.parse().map_err(|_| DestinationError)?;
        if address.port() == 0 {
            return Err(DestinationError);
        }
        let ip = address.ip().to_canonical();
        Ok(Self {
            transport,
            address: SocketAddr::new(ip, address.port()),
        })
    }
}

pub async fn run(args: Args, mut context: Context) -> Result<(), Failure> {
    let (listed, nodes) = tokio::try_join!(
        context.connection.list(None),
        context.connection.nodes(v1::NodeRole::Balancer)
    )?;
    let world = World::new(listed.resources, pools::by_name(&nodes.nodes));
    let console = &mut context.console;
    world.explain(console, &args, SystemTime::now())
}

/// What is declared and known.
struct World {
    apps: Vec<Arc<App>>,
    pools: BTreeMap<String, (Arc<Pool>, PoolHealth)>,
    prefixes: Vec<IpNet>,
}

impl World {
    /// What this version cannot read, it cannot explain; edges reject that too.
    fn new(resources: Vec<v1::Resource>, mut health: BTreeMap<String, PoolHealth>) -> Self {
        let mut world = Self {
            apps: Vec::new(),
            pools: BTreeMap::new(),
            prefixes: Vec::new(),
        };
        for wire in resources {
            match read_resource(wire.clone()) {
                Ok(Resource::App(app)) => world.apps.push(app),
                Ok(Resource::Pool(pool)) => {
                    let name = pool.name.to_string();
                    let known = health.remove(&name);
                    let known = known.or_else(|| match &wire.kind {
                        Some(v1::resource::Kind::Pool(pool)) => Some(PoolHealth::unheard(pool)),
                        _ => None,
                    });
                    let known = known.map(|known| (pool, known));
                    world.pools.extend(known.map(|known| (name, known)));
                }
                Ok(Resource::Prefix(prefix)) => world.prefixes.push(prefix.net()),
                Ok(Resource::Monitor(_) | Resource::Certificate(_)) | Err(_) => {}
            }
        }
        world
    }

    fn explain(&self, console: &mut Console, args: &Args, now: SystemTime) -> Result<(), Failure> {
        let Destination { transport, address } = args.destination;
        let from = args.from;
        let from_words = from.map(|from| format!(" from {from}")).unwrap_or_default();
        let name_words = match &args.sni {
            Some(name) => format!(" asking for {name}"),
            None => String::new(),
        };
        let title = format!("{transport}/{address}{from_words}{name_words}");
        let table = RouteTable::new(self.apps.clone());
        let candidates = table.candidates(transport, address);
        let route = candidates.and_then(|candidates| candidates.of_name(args.sni.as_ref()));
        let Some(route) = route else {
            let refused = console.paint("refused", Mood::Bad);
            console.line(format_args!("{title}: {refused}"))?;
            match candidates {
                Some(candidates) => self.explain_names(console, address, candidates.first().app)?,
                None => self.explain_refusal(console, args.destination)?,
            }
            return Err(Failure::refused(format_args!("{title} would be refused")));
        };
        if let Some(disable) = route.app.disable {
            let refused = console.paint("refused", Mood::Bad);
            let name = &route.app.name;
            console.line(format_args!("{title}: {refused}"))?;
            console.line(format_args!(
                "  app {name} has it and is disabled, so the port looks closed; {}",
                match disable {
                    Disable::KeepOpen => "its open connections go on",
                    Disable::CloseNow => "its open connections were reset",
                }
            ))?;
            return Err(Failure::refused(format_args!("{title} would be refused")));
        }
        let sender = from.map(|from| Sender::of(route.app, from));
        let client = sender.and_then(Sender::client);
        let denied = |client: IpAddr| route.app.access.decide(client).action == Action::Deny;
        let untrusted = matches!(sender, Some(Sender::Untrusted(_)));
        if untrusted || client.is_some_and(denied) {
            let refused = console.paint("refused", Mood::Bad);
            let name = &route.app.name;
            console.line(format_args!("{title}: {refused} by app {name}"))?;
            self.explain_claims(console, args.destination, route.app)?;
            identity::explain_sender(console, route.app, sender)?;
            if client.is_some() {
                guards::explain_access(console, route.app, client)?;
            }
            return Err(Failure::refused(format_args!("{title} would be refused")));
        }
        let name = console.paint(&route.app.name, Mood::Good);
        console.line(format_args!("{title}: app {name}"))?;
        self.explain_claims(console, args.destination, route.app)?;
        identity::explain_sender(console, route.app, sender)?;
        guards::explain_access(console, route.app, client)?;
        guards::explain_limits(console, &route.app.limits)?;
        explain_tls(console, route.app)?;
        identity::explain_told(console, route.app)?;
        self.explain_origins(console, route.app, address.port(), client, now)
    }

    fn explain_refusal(
        &self,
        console: &mut Console,
        destination: Destination,
    ) -> Result<(), Failure> {
        let Destination { transport, address } = destination;
        let ip = address.ip();
        let Some(prefix) = self.prefixes.iter().find(|net| net.contains(&ip)) else {
            console.line(format_args!(
                "  {ip} is in no declared prefix, so the edges do not answer for it"
            ))?;
            return Ok(());
        };
        let answer = match transport {
            Transport::Tcp => "resets the connection",
            Transport::Udp => "answers ICMP port unreachable",
        };
        console.line(format_args!(
            "  {ip} is in the prefix {prefix}, but no app has port {} there,\n  \
             so the edge {answer}, as a host does where nothing listens",
            address.port()
        ))?;
        let mut there: Vec<String> = claims(&self.apps)
            .filter(|(_, claim)| claim.transport == transport && claim.net.contains(&ip))
            .map(|(app, claim)| format!("  {} has {}", app.name, words(app, &claim)))
            .collect();
        there.sort();
        for line in there {
            console.line(line)?;
        }
        Ok(())
    }

    /// Apps have the place, but none for the name.
    fn explain_names(
        &self,
        console: &mut Console,
        address: SocketAddr,
        one: &Arc<App>,
    ) -> Result<(), Failure> {
        console.line(
            "  the apps there are told apart by the name that the client asks for (--sni NAME),\n  \
             and none has this one; the connection is reset, status 400",
        )?;
        for (app, claim) in claims(&self.apps) {
            let holds = claim.net.contains(&address.ip()) && app.ports == one.ports;
            if holds && !app.tls.sni().is_empty() {
                let names = names(app);
                console.line(format_args!(
                    "  {} has {names} at {}",
                    app.name,
                    words(app, &claim)
                ))?;
            }
        }
        Ok(())
    }

    /// The claim that decided and those that it beat, the next best first.
    fn explain_claims(
        &self,
        console: &mut Console,
        destination: Destination,
        winner: &Arc<App>,
    ) -> Result<(), Failure> {
        let Destination { transport, address } = destination;
        let holds = |claim: &Claim| {
            claim.transport == transport
                && claim.net.contains(&address.ip())
                && claim.ports.contains(address.port())
        };
        let mut held: Vec<(&Arc<App>, Claim)> = claims(&self.apps)
            .filter(|(_, claim)| holds(claim))
            .collect();
        held.sort_by_key(|(app, claim)| {
            let longest_first = std::cmp::Reverse(claim.net.prefix_len());
            (longest_first, claim.ports, !Arc::ptr_eq(app, winner))
        });
        let Some(((app, won), beaten)) = held.split_first() else {
            return Ok(());
        };
        if winner.tls.sni().is_empty() {
            console.line(format_args!("  because  it has {}", words(app, won)))?;
        } else {
            let names = names(winner);
            console.line(format_args!(
                "  because  it has {names} at {}",
                words(app, won)
            ))?;
        }
        for (app, lost) in beaten {
            let why = if lost.net == won.net && lost.ports == won.ports {
                if app.tls.sni().is_empty() {
                    "it has what no name fits"
                } else {
                    "another name"
                }
            } else if lost.net.prefix_len() < won.net.prefix_len() {
                "a shorter network"
            } else if lost.ports > won.ports {
                "a wider range of ports"
            } else {
                "no more specific, and later in order"
            };
            let words = words(app, lost);
            console.line(format_args!("  beats    {} with {words}: {why}", app.name))?;
        }
        Ok(())
    }

    fn explain_origins(
        &self,
        console: &mut Console,
        app: &App,
        edge_port: u16,
        client: Option<IpAddr>,
        now: SystemTime,
    ) -> Result<(), Failure> {
        let (first, port) = match &app.origin {
            OriginChoice::Direct(origins) => {
                console.line("  goes to  one of its own origins, all alike")?;
                let share = format!("{:.0}%", 100.0 / origins.len() as f64);
                let rows = origins.iter().map(|origin| {
                    let to = SocketAddr::new(origin.ip, origin.port.origin_port(edge_port));
                    vec![Cell::from(to), Cell::from(&share)]
                });
                return Ok(console.table("    ", &["ADDRESS", "SHARE"], rows.collect())?);
            }
            OriginChoice::Dns(dns) => {
                let port = match dns.port() {
                    Some(port) => format!("on port {}", port.origin_port(edge_port)),
                    None => "on the ports of the records".to_owned(),
                };
                let question = dns.question();
                let line = format!("  goes to  what {question} stands for at the edge, {port}");
                return Ok(console.line(line)?);
            }
            OriginChoice::Pool { pool, port } => (pool, *port),
        };
        let chain = self.fallbacks(first.as_str());
        let up = chain.iter().find(|(_, health)| !health.is_down());
        let Some((pool, health)) = up.or(chain.first()) else {
            let line = format!("  goes to  pool {first}, which this version cannot read");
            return Ok(console.line(line)?);
        };
        for (passed, health) in chain.iter().take_while(|(_, health)| health.is_down()) {
            let words = console.paint(health.words(), Mood::Bad);
            console.line(format_args!("  passes   pool {}: {words}", passed.name))?;
        }
        let state = match up {
            Some(_) => console.paint(health.words(), health.mood()),
            None => "as a last resort: an origin held to be down is tried all the same".to_owned(),
        };
        let policy = pool.policy.as_str();
        console.line(format_args!(
            "  goes to  pool {} ({state}), {policy}",
            pool.name
        ))?;
        if let (Policy::Hash, Some(client)) = (pool.policy, client)
            && let Some(origin) = origin_of(pool, health, client)
        {
            let origin = console.paint(origin, Mood::Good);
            let line = format!("  always   {client} goes to {origin}, on every edge");
            console.line(line)?;
        }
        let rows = health.origins.iter().map(|origin| {
            let address = match (origin.address.parse::<SocketAddr>(), port) {
                (Ok(own), Some(map)) => {
                    SocketAddr::new(own.ip(), map.origin_port(edge_port)).to_string()
                }
                (Ok(own), None) => own.to_string(),
                (Err(_), _) => origin.address.clone(),
            };
            vec![
                Cell::from(&origin.name),
                Cell::from(address),
                Cell::new(origin.health, origin.mood()),
                Cell::from(origin.share_words()),
                origin.why(now),
            ]
        });
        let header = ["ORIGIN", "ADDRESS", "HEALTH", "SHARE", "WHY"];
        Ok(console.table("    ", &header, rows.collect())?)
    }

    /// A pool and its fallbacks in order, each once.
    fn fallbacks(&self, first: &str) -> Vec<&(Arc<Pool>, PoolHealth)> {
        let mut chain: Vec<&(Arc<Pool>, PoolHealth)> = Vec::new();
        let mut next = self.pools.get(first);
        while let Some(link) = next {
            if chain.iter().any(|(pool, _)| pool.name == link.0.name) {
                break;
            }
            chain.push(link);
            let fallback = link.0.fallback.as_ref();
            next = fallback.and_then(|name| self.pools.get(name.as_str()));
        }
        chain
    }
}

/// Where TLS passes through by name or ends.
fn explain_tls(console: &mut Console, app: &App) -> Result<(), Failure> {
    let to_origin = match &app.tls {
        Tls::Off { sni } if sni.is_empty() => return Ok(()),
        Tls::Off { .. } => return Ok(console.line("  tls      passes through untouched")?),
        Tls::Terminate { origin, .. } => match origin {
            OriginTls::Clear => "clear text to the origin",
            OriginTls::Unchecked => "TLS to the origin, whose certificate is not checked",
            OriginTls::Verified(Roots::System) => {
                "TLS to the origin, with a certificate that the edge's host trusts"
            }
            OriginTls::Verified(Roots::Given(_)) => {
                "TLS to the origin, with a certificate of the app's origin_ca"
            }
        },
    };
    let certificate = app.tls.certificate().map(ToString::to_string);
    let certificate = certificate.unwrap_or_default();
    let mode = app.tls.as_str();
    Ok(console.line(format_args!(
        "  tls      {mode}: ends at the edge with certificate {certificate}; {to_origin}"
    ))?)
}

/// `*.example.com, mail.example.com`.
fn names(app: &App) -> String {
    let names: Vec<String> = app.tls.sni().iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// Where `hash` sends a client, chosen as edges choose.
fn origin_of<'a>(pool: &'a Pool, health: &PoolHealth, client: IpAddr) -> Option<&'a OriginName> {
    let enabled = |origin: &Origin| {
        if origin.enabled {
            origin.weight
        } else {
            Weight::ZERO
        }
    };
    let now = |origin: &Origin| {
        let known = health
            .origins
            .iter()
            .find(|known| known.name == origin.name.as_str());
        let known = known.and_then(|known| Weight::new(known.weight).ok());
        known.unwrap_or(enabled(origin))
    };
    let candidates = pool.origins.iter().map(|origin| Candidate {
        name: origin.name.as_str(),
        weight: now(origin),
        declared: enabled(origin),
    });
    let wheel = Wheel::new(pool.policy, &candidates.collect::<Vec<_>>());
    let draw = Draw {
        turn: 0,
        random: 0,
        client,
    };
    let index = wheel.choose(draw, |_| Load::default(), &Positions::NONE)?;
    pool.origins.get(index).map(|origin| &origin.name)
}

fn claims(apps: &[Arc<App>]) -> impl Iterator<Item = (&Arc<App>, Claim)> {
    apps.iter()
        .flat_map(|app| claims_of(app).map(move |claim| (app, claim)))
}

/// `tcp/25565 on 198.51.100.10/32`.
fn words(app: &App, claim: &Claim) -> String {
    format!("{}/{} on {}", app.transport, claim.ports, claim.net)
}
