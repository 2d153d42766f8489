use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use anyport_model::{
    access::{Access, Action, Verdict},
    names::{AppName, Revision},
    resource::Transport,
};

use crate::stats::PoolId;

/// One connection that an app has taken. Its task writes, others read.
pub struct Connection {
    /// Unique until the agent restarts.
    pub id: u64,
    pub transport: Transport,
    /// The address that the client dialled.
    pub edge: SocketAddr,
    pub accepted_at: SystemTime,
    /// Read from each side so far.
    from_client: AtomicU64,
    from_origin: AtomicU64,
    details: Mutex<Details>,
}

/// What is learned of a connection on its way.
#[derive(Clone)]
pub struct Details {
    pub app: AppName,
    pub config_revision: Revision,
    pub trace_id: Option<Box<str>>,
    /// Who the client is: its own address, or what a trusted sender says.
    pub client: SocketAddr,
    pub client_rtt: Duration,
    pub client_tls: Option<Box<ClientTls>>,
    pub pool: Option<PoolId>,
    /// The origin's name in its pool, and the address that was dialled.
    pub origin: Option<(Arc<str>, SocketAddr)>,
    pub origin_rtt: Duration,
    pub origin_tls: Option<Box<OriginTls>>,
    /// The header that the origin was sent.
    pub proxy_protocol: &'static str,
    pub firewall: Firewall,
    /// Both legs up.
    pub connected_at: Option<SystemTime>,
    /// Why it ended, where the status leaves something open.
    pub reason: Reason,
}

/// What the app's access rules say of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firewall {
    /// It has none.
    Off,
    /// They were not asked.
    Unasked,
    /// No rule holds it.
    Allowed,
    /// A rule says so.
    Listed,
    /// A rule or the default says so.
    Blocked,
}

impl Firewall {
    /// What `access` has decided.
    pub fn of(access: &Access, verdict: Verdict) -> Self {
        match (verdict.action, verdict.rule) {
            _ if access.is_open() => Firewall::Off,
            (Action::Deny, _) => Firewall::Blocked,
            (Action::Allow, Some(_)) => Firewall::Listed,
            (Action::Allow, None) => Firewall::Allowed,
        }
    }

    /// A word of `client_matched_ip_firewall`.
    pub fn as_str(self) -> &'static str {
        match self {
            Firewall::Off | Firewall::Unasked => "UNKNOWN",
            Firewall::Allowed => "ALLOW",
            Firewall::Listed => "WHITELIST_IP",
            Firewall::Blocked => "BLOCK_IP",
        }
    }
}

/// TLS between the client and the edge.
#[derive(Clone)]
pub struct ClientTls {
    /// In the ClientHello.
    pub server_name: Option<Box<str>>,
    pub protocol: &'static str,
    pub cipher: &'static str,
    /// A word of `client_tls_status`.
    pub status: &'static str,
}

/// TLS between the edge and the origin.
#[derive(Clone)]
pub struct OriginTls {
    /// The app's `tls`.
    pub mode: &'static str,
    pub protocol: &'static str,
    pub cipher: &'static str,
    /// A word of `client_tls_status`.
    pub status: &'static str,
}

/// Why a connection ended, kept as it came.
#[derive(Clone, Default)]
pub enum Reason {
    #[default]
    None,
    Word(&'static str),
    /// An error number of the system.
    Os(i32),
    Text(Box<str>),
}

impl Connection {
    pub fn new(id: u64, transport: Transport, edge: SocketAddr, details: Details) -> Self {
        Self {
            id,
            transport,
            edge,
            accepted_at: SystemTime::now(),
            from_client: AtomicU64::new(0),
            from_origin: AtomicU64::new(0),
            details: Mutex::new(details),
        }
    }

    /// Notes what was learned. Only the connection's own task does.
    pub fn learn<T>(&self, note: impl FnOnce(&mut Details) -> T) -> T {
        // Notes are plain assignments: one that panicked left a valid value.
        note(&mut self.details.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is known now.
    pub fn details(&self) -> Details {
        self.learn(|details| details.clone())
    }

    /// Bytes read from each side since it began.
    pub fn moved(&self, from_client: u64, from_origin: u64) {
        self.from_client.store(from_client, Relaxed);
        self.from_origin.store(from_origin, Relaxed);
    }

    /// Bytes read from the client and from the origin.
    pub fn bytes(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Relaxed);
        (of(&self.from_client), of(&self.from_origin))
    }
}

impl Details {
    pub fn new(app: AppName, config_revision: Revision, client: SocketAddr) -> Self {
        Self {
            app,
            config_revision,
            trace_id: None,
            client,
            client_rtt: Duration::ZERO,
            client_tls: None,
            pool: None,
            origin: None,
            origin_rtt: Duration::ZERO,
            origin_tls: None,
            proxy_protocol: "off",
            firewall: Firewall::Off,
            connected_at: None,
            reason: Reason::None,
        }
    }
}

impl Reason {
    pub fn of_error(error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Reason::Os(number),
            None => Reason::Text(error.to_string().into()),
        }
    }

    pub fn is_none(&self) -> bool {
        matches!(self, Reason::None)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::None => Ok(()),
            Reason::Word(word) => f.write_str(word),
            Reason::Os(number) => f.write_str(nix::errno::Errno::from_raw(*number).desc()),
            Reason::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each open connection, beside its task and its sockets.
    #[test]
    fn what_is_known_of_a_connection_fits_its_memory_budget() {
        let size = size_of::<Connection>();
        assert!(size <= 400, "{size} bytes");
    }
}
