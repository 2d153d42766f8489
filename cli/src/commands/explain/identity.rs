//! Who the client is taken to be, and what its origin is told.

use std::net::IpAddr;

use anyport_model::{
    identity::{ClientIp, ProxyProtocol},
    resource::App,
};
use ipnet::IpNet;

use crate::{console::Console, failure::Failure};

/// What a connection from an address is to an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// The client itself.
    Client(IpAddr),
    /// It has to say who the client is.
    Trusted(IpAddr),
    /// It may not say, and the app hears nobody else.
    Untrusted(IpAddr),
}

impl Sender {
    pub(super) fn of(app: &App, from: IpAddr) -> Self {
        let trusted = &app.identity.trusted_senders;
        if trusted.is_empty() {
            Self::Client(from)
        } else if trusted.iter().any(|net| net.contains(&from)) {
            Self::Trusted(from)
        } else {
            Self::Untrusted(from)
        }
    }

    /// Whom rules and the choice of an origin are about, where that is known.
    pub(super) fn client(self) -> Option<IpAddr> {
        match self {
            Self::Client(client) => Some(client),
            Self::Trusted(_) | Self::Untrusted(_) => None,
        }
    }
}

pub(super) fn explain_sender(
    console: &mut Console,
    app: &App,
    sender: Option<Sender>,
) -> Result<(), Failure> {
    let senders = &app.identity.trusted_senders;
    if senders.is_empty() {
        return Ok(());
    }
    let senders: Vec<_> = senders.iter().map(IpNet::to_string).collect();
    let senders = senders.join(", ");
    let line = match sender {
        Some(Sender::Trusted(from)) => format!(
            "{from} is a trusted sender: its connection has to start with a PROXY header, or is \
             reset; rules and limits are applied to the client that the header names"
        ),
        Some(Sender::Untrusted(from)) => format!(
            "{from} is no trusted sender, so its connection is reset, status 403, with a PROXY \
             header or without; trusted are {senders}"
        ),
        Some(Sender::Client(_)) | None => format!(
            "is who a PROXY header says, and a connection without one, or not from {senders}, \
             is refused"
        ),
    };
    Ok(console.line(format_args!("  client   {line}"))?)
}

pub(super) fn explain_told(console: &mut Console, app: &App) -> Result<(), Failure> {
    let identity = &app.identity;
    if identity.proxy_protocol != ProxyProtocol::Off {
        let form = identity.proxy_protocol.as_str();
        console.line(format_args!(
            "  tells    the origin by PROXY protocol {form}"
        ))?;
    }
    if identity.client_ip == ClientIp::Transparent {
        console.line("  shows    the origin the client's own address")?;
    }
    Ok(())
}
