//! A connection whose TLS ends here, from its ClientHello to both legs.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyport_model::{
    client_hello::ClientHello, dns::RecordType, outcome::Status, resource::OriginChoice,
};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tracing::Span;

use super::{
    connection::Legs,
    leg::Leg,
    unanswered::Unanswered,
    way::{AtOnce, Begin, Refused, Way},
};
use crate::{
    events::{ClientTls, Details, OriginTls},
    origin::{Held, Unbegun},
    tls::{self, ClientLeg, OriginLeg, Termination, ToOrigin},
};

/// A connection whose TLS ends here.
pub(super) struct Terminate<'a> {
    pub(super) way: Way<'a>,
    pub(super) ends: &'a Termination,
    pub(super) hello: ClientHello,
}

impl Terminate<'_> {
    pub(super) async fn join(self, client: Unanswered) -> Result<(Legs, Held), Refused> {
        let span = Span::current();
        if let Some(name) = &self.hello.server_name {
            span.record("server_name", name.as_str());
        }
        let name = self.hello.server_name.as_ref();
        let tls = Box::new(ClientTls {
            server_name: name.map(|name| name.as_str().into()),
            protocol: "unknown",
            cipher: "",
            status: "HANDSHAKE_FAILED",
        });
        let to_origin = Box::new(OriginTls {
            mode: self.way.target.app.app.tls.as_str(),
            protocol: "none",
            cipher: "",
            status: "UNKNOWN",
        });
        self.learn(|details| {
            details.client_tls = Some(tls);
            details.origin_tls = Some(to_origin);
        });
        match &self.ends.origin {
            // Nothing reaches the origin before the client has shaken hands.
            ToOrigin::Clear => {
                let client = self.accept(client, None).await?;
                let reached = self.way.reach(client.socket(), || false, AtOnce).await;
                let (origin, held) = reached?;
                Ok((Legs::Ended(client.release(), origin), held))
            }
            // The origin chooses the protocol (ALPN) that the client is told.
            ToOrigin::Tls(config) => {
                let (origin, held) = self.secure(&client, config).await?;
                let client = self.accept(client, origin.protocol()).await?;
                Ok((Legs::Renewed(client.release(), origin), held))
            }
        }
    }

    async fn secure(
        &self,
        client: &TcpStream,
        config: &Arc<ClientConfig>,
    ) -> Result<(OriginLeg, Held), Refused> {
        let securing = Securing {
            terminate: self,
            config,
        };
        let (origin, held) = self.way.reach(client, || true, securing).await?;
        self.learn(|details| {
            if let Some(tls) = &mut details.origin_tls {
                (tls.protocol, tls.cipher) = (origin.version(), origin.cipher());
                tls.status = "OK";
            }
        });
        Ok((origin, held))
    }

    async fn accept(
        &self,
        client: Unanswered,
        protocol: Option<&[u8]>,
    ) -> Result<Unanswered<ClientLeg>, Refused> {
        let start = Instant::now();
        let config = &self.ends.shown.config;
        match tls::accept(client, config, protocol, self.patience()).await {
            Ok(leg) => {
                self.shaken("client", start);
                let span = Span::current();
                span.record("tls_version", leg.version());
                span.record("tls_cipher", leg.cipher());
                self.learn(|details| {
                    if let Some(tls) = &mut details.client_tls {
                        (tls.protocol, tls.cipher) = (leg.version(), leg.cipher());
                        tls.status = "OK";
                    }
                });
                Ok(leg)
            }
            Err(error) => Err(Refused {
                status: match error.kind() {
                    io::ErrorKind::ConnectionReset => Status::ClientReset,
                    _ => Status::TlsHandshake,
                },
                reason: format!("TLS with the client: {error}"),
            }),
        }
    }

    fn learn(&self, note: impl FnOnce(&mut Details)) {
        self.way.connection.learn(note);
    }

    fn patience(&self) -> Duration {
        self.way.target.app.app.timeouts.tls_handshake
    }

    fn shaken(&self, side: &str, start: Instant) {
        let took = start.elapsed().as_secs_f64();
        let times = &self.way.service.stats.tls_handshake;
        times.with_label_values(&[side]).observe(took);
    }
}

/// TLS begins anew towards the origin.
struct Securing<'a> {
    terminate: &'a Terminate<'a>,
    config: &'a Arc<ClientConfig>,
}

impl Begin for Securing<'_> {
    type Leg = OriginLeg;

    async fn begin(
        &self,
        stream: TcpStream,
        limit: Option<Duration>,
    ) -> Result<OriginLeg, Unbegun> {
        let Self { terminate, config } = self;
        // The targets of SRV records have names of their own, which are not
        // those that people have certificates for.
        let found_by = match &terminate.way.target.app.app.origin {
            OriginChoice::Dns(dns) if dns.question().record != RecordType::Srv => {
                Some(dns.question().name.as_str())
            }
            _ => None,
        };
        let start = Instant::now();
        let patience = limit.unwrap_or(Duration::MAX).min(terminate.patience());
        match tls::connect(stream, config, &terminate.hello, found_by, patience).await {
            Ok(leg) => {
                terminate.shaken("origin", start);
                Ok(leg)
            }
            Err(error) => Err(Unbegun {
                status: error.status(),
                reason: error.to_string(),
                blames_origin: error.blames_origin(),
            }),
        }
    }
}
