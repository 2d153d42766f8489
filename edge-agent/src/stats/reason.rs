//! Why something went no further, by the words that metrics have for it.

use anyport_model::limits::Limit;

use crate::shield::Refusal;

/// Why a datagram went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// No app takes it.
    Unclaimed,
    /// Its source is no address and port that could be answered.
    Unanswerable,
    /// There are as many flows as may be.
    SessionsFull,
    /// Connections and flows have all descriptors that they may have.
    Descriptors,
    /// The edge was taken out of service a moment ago.
    Drained,
    /// The edge's address and port has as many flows as one may have.
    PlaceSessionsFull,
    /// The source has as many flows as one may have.
    SourceSessionsFull,
    /// The app's access rules do not let its client in.
    AccessDenied,
    /// One flow more is against a limit of the app.
    LimitConnections,
    LimitConnectionsPerSource,
    LimitNewConnectionsPerSource,
    /// The flow moves as many bytes a second as it may.
    LimitBytesPerSecond,
    /// The app has no origin that could be tried.
    NoOrigin,
    /// This host is out of descriptors, ports or memory.
    System,
    /// More would have gone back than the client has sent, and it has not yet
    /// shown that it is who it says.
    Amplification,
    /// On a flow's socket to its origin, and not from that origin.
    Stray,
    /// An origin's answer without the Simple Proxy Protocol header of its flow.
    SimpleHeader,
    /// The path, or UDP, takes nothing as large.
    TooLarge,
    /// A socket's buffer is full, or the system refuses.
    NotSent,
}

impl DropReason {
    pub const ALL: [DropReason; 19] = [
        DropReason::Unclaimed,
        DropReason::Unanswerable,
        DropReason::SessionsFull,
        DropReason::PlaceSessionsFull,
        DropReason::Descriptors,
        DropReason::Drained,
        DropReason::SourceSessionsFull,
        DropReason::AccessDenied,
        DropReason::LimitConnections,
        DropReason::LimitConnectionsPerSource,
        DropReason::LimitNewConnectionsPerSource,
        DropReason::LimitBytesPerSecond,
        DropReason::NoOrigin,
        DropReason::System,
        DropReason::Amplification,
        DropReason::Stray,
        DropReason::SimpleHeader,
        DropReason::TooLarge,
        DropReason::NotSent,
    ];

    /// The `reason` label.
    pub fn as_str(self) -> &'static str {
        match self {
            DropReason::Unclaimed => "unclaimed",
            DropReason::Unanswerable => "unanswerable",
            DropReason::SessionsFull => "sessions_full",
            DropReason::Descriptors => "descriptors",
            DropReason::Drained => "drained",
            DropReason::PlaceSessionsFull => "place_sessions_full",
            DropReason::SourceSessionsFull => "source_sessions_full",
            DropReason::AccessDenied => "access_denied",
            DropReason::LimitConnections => "limit_connections",
            DropReason::LimitConnectionsPerSource => "limit_connections_per_source",
            DropReason::LimitNewConnectionsPerSource => "limit_new_connections_per_source",
            DropReason::LimitBytesPerSecond => "limit_bytes_per_second",
            DropReason::NoOrigin => "no_origin",
            DropReason::System => "system",
            DropReason::Amplification => "amplification",
            DropReason::Stray => "stray",
            DropReason::SimpleHeader => "simple_header",
            DropReason::TooLarge => "too_large",
            DropReason::NotSent => "not_sent",
        }
    }
}

/// Why a connection was reset as soon as it was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// Connections and flows have all descriptors that they may have.
    Descriptors,
    /// The process, or the host, has none, whatever the agent counts.
    System,
    /// The edge was taken out of service a moment ago.
    Drained,
}

impl Shed {
    pub const ALL: [Shed; 3] = [Shed::Descriptors, Shed::System, Shed::Drained];

    /// The `reason` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Shed::Descriptors => "descriptors",
            Shed::System => "system",
            Shed::Drained => "drained",
        }
    }
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Access(_) => DropReason::AccessDenied,
            Refusal::Limit(reached) => match reached.limit {
                Limit::Connections => DropReason::LimitConnections,
                Limit::ConnectionsPerSource => DropReason::LimitConnectionsPerSource,
                Limit::NewConnectionsPerSource => DropReason::LimitNewConnectionsPerSource,
            },
        }
    }
}
