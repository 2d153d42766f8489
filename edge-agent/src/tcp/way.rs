//! From an app to one of its origins.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyport_model::{
    identity::{ClientIp, ProxyProtocol},
    outcome::Status,
};
use tokio::net::TcpStream;
use tracing::Span;

use super::{
    connection::Service,
    identity::{self, Identity},
};
use crate::{
    events::Connection,
    origin::{Dialled, Dialling, Held, Incoming, NoOrigin, Unbegun, resolved},
    table::Target,
};

/// Why there are no two legs.
pub(super) struct Refused {
    pub(super) status: Status,
    pub(super) reason: String,
}

/// What has to be done on a connection to an origin before it can be relayed to.
pub(super) trait Begin {
    type Leg;

    /// Takes no longer than `limit`, if there is one.
    fn begin(
        &self,
        stream: TcpStream,
        limit: Option<Duration>,
    ) -> impl Future<Output = Result<Self::Leg, Unbegun>> + Send;
}

/// Nothing.
pub(super) struct AtOnce;

impl Begin for AtOnce {
    type Leg = TcpStream;

    async fn begin(&self, stream: TcpStream, _: Option<Duration>) -> Result<TcpStream, Unbegun> {
        Ok(stream)
    }
}

/// From an app to its origin.
pub(super) struct Way<'a> {
    pub(super) service: &'a Service,
    pub(super) connection: &'a Connection,
    pub(super) target: Target<'a>,
    /// As a trusted sender said.
    pub(super) identity: Option<Identity>,
    /// What the client dialled.
    pub(super) destination: SocketAddr,
}

impl Way<'_> {
    /// Dials an origin and tells it who the client is, where it wants to know;
    /// `more` says whether something follows at once. Then `begin` does what has
    /// to be done first, in the time that it is given, if any; where it fails,
    /// the next origin is tried.
    pub(super) async fn reach<B: Begin>(
        &self,
        client: &TcpStream,
        more: impl Fn() -> bool,
        begin: B,
    ) -> Result<(B::Leg, Held), Refused> {
        let Service { table, stats, .. } = self.service;
        let wanted = &self.target.app.app.identity;
        let identity = self.identity(client)?;
        let since = Instant::now();
        // A name that is not resolved yet makes a newer table when it is.
        let newer = resolved(self.target, table, since).await;
        let again = newer.as_ref().and_then(|newer| newer.again(self.target));
        let target = again.unwrap_or(self.target);
        let incoming = Incoming {
            client: self.asked_for(target, client),
            edge_port: self.destination.port(),
            shown: match wanted.client_ip {
                ClientIp::Edge => None,
                ClientIp::Transparent => identity.map(|identity| identity.client()),
            },
            since,
        };
        let header = identity.and_then(|identity| identity.header(wanted.proxy_protocol));
        let mut dialling = Dialling::new(target, incoming, stats)?;
        loop {
            let Dialled {
                stream,
                held,
                pool,
                origin,
                address,
                seen,
            } = dialling.next().await?;
            let span = Span::current();
            if pool != target.pool.id {
                span.record("pool", pool.label());
            }
            span.record("origin", origin.as_ref());
            self.connection.learn(|details| {
                details.pool = Some(pool);
                details.origin = Some((origin, address));
                details.proxy_protocol = wanted.proxy_protocol.as_str();
            });
            let announced = match &header {
                Some(header) => announce(&stream, header, more()),
                None => Ok(()),
            };
            let begun = match announced {
                Ok(()) => begin.begin(stream, dialling.patience()).await,
                Err(unbegun) => Err(unbegun),
            };
            match begun {
                Ok(leg) => {
                    seen.succeeded();
                    return Ok((leg, held));
                }
                Err(why) => dialling.failed(address, &seen, why),
            }
        }
    }

    /// The client's address, where the choice of its origin goes by it: to
    /// others it is not worth a system call.
    fn asked_for(&self, target: Target<'_>, client: &TcpStream) -> IpAddr {
        let known = self.identity.as_ref().map(|known| known.client().ip());
        let is_by_client = target.pools().any(|pool| pool.is_by_client);
        let asked = || match is_by_client {
            // A client that is gone is like any other.
            true => client.peer_addr().ok().map(|peer| peer.ip()),
            false => None,
        };
        known.or_else(asked).unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    /// Who the client is, where the origin is to know.
    fn identity(&self, client: &TcpStream) -> Result<Option<Identity>, Refused> {
        let wanted = &self.target.app.app.identity;
        if wanted.proxy_protocol == ProxyProtocol::Off && wanted.client_ip == ClientIp::Edge {
            return Ok(None);
        }
        if self.identity.is_some() {
            return Ok(self.identity);
        }
        let peer = client.peer_addr().map_err(|error| Refused {
            status: Status::of_client_error(error.kind()),
            reason: error.to_string(),
        })?;
        Ok(Some(Identity::of(peer, self.destination)))
    }
}

fn announce(stream: &TcpStream, header: &[u8], more: bool) -> Result<(), Unbegun> {
    identity::announce(stream, header, more).map_err(|error| Unbegun {
        status: Status::of_origin_error(error.kind()),
        reason: format!("sending the PROXY header: {error}"),
        blames_origin: true,
    })
}

impl From<NoOrigin> for Refused {
    fn from(none: NoOrigin) -> Self {
        let NoOrigin { status, reason } = none;
        Self { status, reason }
    }
}
