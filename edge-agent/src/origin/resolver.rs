//! Asking name servers.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use anyport_model::{
    dns::{Answer, Question, RecordType, Service},
    outcome::Status,
};
use futures_util::future::join_all;
use hickory_resolver::{
    ConnectionProvider, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, RecordType as Wire},
};

use super::Failed;

/// Of one query to one server, and how often it is sent.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;

/// SRV records of one name whose targets are looked up.
const TARGETS_MAX: usize = 64;

/// Where the system says how names are resolved.
const SYSTEM: &str = "/etc/resolv.conf";

/// `--resolver`: name servers by address; none: the system's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameServers(Vec<SocketAddr>);

/// The text is no list of name servers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name server; right is 10.0.0.53, 10.0.0.53:5353 or [2001:db8::53]:53")]
pub struct NameServersError(String);

impl FromStr for NameServers {
    type Err = NameServersError;

    fn from_str(text: &str) -> Result<Self, NameServersError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let read = |text: &str| {
            let bare = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
            let found = text.parse::<SocketAddr>().or(bare);
            found.map_err(|_| NameServersError(text.to_owned()))
        };
        text.split(',')
            .map(read)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for NameServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

/// Asks the name servers that were given, or those that the system has now.
pub struct Resolver {
    given: NameServers,
    made: Mutex<Option<Made>>,
}

/// A resolver, and of when the system's configuration was that it is made of.
struct Made {
    resolver: TokioResolver,
    of: Option<SystemTime>,
}

/// What a name server said, and for how long that may be kept.
pub struct Resolved {
    pub answer: Answer,
    pub ttl: Duration,
}

impl Resolver {
    pub fn new(given: NameServers) -> Self {
        Self {
            given,
            made: Mutex::default(),
        }
    }

    /// Asks once, with the attempts that this takes.
    pub async fn ask(&self, question: &Question) -> Result<Resolved, Failed> {
        let resolver = self.current()?;
        let name = question.name.as_str();
        match question.record {
            RecordType::A => addresses(&resolver, name, &[Wire::A]).await,
            RecordType::Aaaa => addresses(&resolver, name, &[Wire::AAAA]).await,
            RecordType::Addresses => addresses(&resolver, name, &BOTH).await,
            RecordType::Srv => services(&resolver, name).await,
        }
    }

    /// Made again when the system's configuration has changed.
    fn current(&self) -> Result<TokioResolver, Failed> {
        // Whoever panicked with it left it whole.
        let mut made = self
            .made
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let of = if self.given.0.is_empty() {
            std::fs::metadata(SYSTEM)
                .and_then(|file| file.modified())
                .ok()
        } else {
            None
        };
        if let Some(made) = made.as_ref().filter(|made| made.of == of) {
            return Ok(made.resolver.clone());
        }
        let resolver = self
            .make()
            .map_err(|error| not_asked(format!("{SYSTEM}: {error}")))?;
        *made = Some(Made {
            resolver: resolver.clone(),
            of,
        });
        Ok(resolver)
    }

    fn make(&self) -> Result<TokioResolver, NetError> {
        let mut builder = if self.given.0.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = self.given.0.iter().map(name_server).collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            let mut builder =
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
            builder
        };
        limit(builder.options_mut());
        builder.build()
    }
}

/// Answers are kept by who asks, with their own idea of how long.
fn limit(options: &mut ResolverOpts) {
    options.cache_size = 0;
    options.timeout = TIMEOUT;
    options.attempts = ATTEMPTS;
    options.max_active_requests = 1024;
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let on_port = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    server.connections = vec![
        on_port(ConnectionConfig::udp()),
        on_port(ConnectionConfig::tcp()),
    ];
    server
}

const BOTH: [Wire; 2] = [Wire::A, Wire::AAAA];

/// The addresses of one name. Of two families, one is enough: many names have
/// no other.
async fn addresses<P: ConnectionProvider>(
    resolver: &hickory_resolver::Resolver<P>,
    name: &str,
    families: &[Wire],
) -> Result<Resolved, Failed> {
    let asked = families
        .iter()
        .map(|family| lookup(resolver, name, *family));
    let mut found = Vec::new();
    let mut ttl = Duration::MAX;
    let mut failed = None;
    for said in join_all(asked).await {
        match said {
            Ok(lookup) => {
                found.extend(ips(&lookup));
                ttl = ttl.min(time_to_live(&lookup));
            }
            // That the servers do not answer is worse than that there is none.
            Err(error) if failed.as_ref().is_none_or(is_no_record) => failed = Some(error),
            Err(_) => {}
        }
    }
    match (Answer::of_addresses(found), failed) {
        (Some(answer), _) => Ok(Resolved { answer, ttl }),
        (None, Some(failed)) => Err(failed),
        (None, None) => Err(no_record(name, "address")),
    }
}

/// The SRV records of a name, and the addresses of their targets.
async fn services<P: ConnectionProvider>(
    resolver: &hickory_resolver::Resolver<P>,
    name: &str,
) -> Result<Resolved, Failed> {
    let said = lookup(resolver, name, Wire::SRV).await?;
    let mut ttl = time_to_live(&said);
    let records = said
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            // A target of "." says that there is no such service (RFC 2782).
            RData::SRV(srv) if !srv.target.is_root() => Some(srv.clone()),
            _ => None,
        });
    let records: Vec<_> = records.take(TARGETS_MAX).collect();
    let targets = records.iter().map(|srv| async {
        let target = srv.target.to_ascii();
        addresses(resolver, target.trim_end_matches('.'), &BOTH).await
    });
    let mut services = Vec::new();
    let mut failed = no_record(name, "SRV");
    for (srv, said) in records.iter().zip(join_all(targets).await) {
        match said {
            Ok(Resolved {
                answer,
                ttl: of_target,
            }) => {
                ttl = ttl.min(of_target);
                services.push(Service {
                    priority: srv.priority,
                    weight: srv.weight,
                    port: srv.port,
                    addresses: answer.places().iter().map(|place| place.ip).collect(),
                });
            }
            Err(error) => failed = error,
        }
    }
    match Answer::of_services(services) {
        Some(answer) => Ok(Resolved { answer, ttl }),
        None => Err(failed),
    }
}

async fn lookup<P: ConnectionProvider>(
    resolver: &hickory_resolver::Resolver<P>,
    name: &str,
    record: Wire,
) -> Result<Lookup, Failed> {
    // The dot keeps the system's search list out of it, which another edge may
    // not have.
    let said = resolver.lookup(format!("{name}."), record).await;
    said.map_err(|error| {
        if error.is_nx_domain() {
            Failed {
                status: Status::Unresolvable,
                reason: format!("there is no name {name}").into(),
            }
        } else if error.is_no_records_found() {
            no_record(name, &record.to_string())
        } else {
            not_asked(format!("asking for {name} ({record}): {error}"))
        }
    })
}

fn ips(lookup: &Lookup) -> impl Iterator<Item = IpAddr> {
    lookup
        .answers()
        .iter()
        .filter_map(|record| record.data.ip_addr())
}

/// Of all records that the answer rests on.
fn time_to_live(lookup: &Lookup) -> Duration {
    let ttls = lookup.answers().iter().map(|record| record.ttl);
    Duration::from_secs(ttls.min().unwrap_or(0).into())
}

fn no_record(name: &str, what: &str) -> Failed {
    Failed {
        status: Status::Unresolvable,
        reason: format!("{name} has no {what} record").into(),
    }
}

fn is_no_record(failed: &Failed) -> bool {
    failed.status == Status::Unresolvable
}

fn not_asked(reason: String) -> Failed {
    Failed {
        status: Status::ResolveFailed,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn name_servers_are_addresses() {
        let servers: NameServers = "10.0.0.53,10.0.0.54:5353,[2001:db8::53]:53,2001:db8::54"
            .parse()
            .unwrap();
        let all = "10.0.0.53:53,10.0.0.54:5353,[2001:db8::53]:53,[2001:db8::54]:53";
        assert_eq!(servers.to_string(), all);
        assert_eq!("".parse(), Ok(NameServers::default()));
        for bad in ["dns.example", "10.0.0.53,", "10.0.0.53:x", " "] {
            assert!(bad.parse::<NameServers>().is_err(), "{bad:?}");
        }
    }
}
