//! How a connection ended: the status codes of Cloudflare Spectrum's event
//! log (they are not HTTP codes), so that its users are at home.

use std::{fmt, io::ErrorKind};

/// How a connection ended.
///
/// Spectrum's 0 (opened) is no end and 503 (keyless TLS) has no counterpart here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Both sides were done, or the agent was asked to end.
    Closed,
    /// Turned away at the edge: an access rule, a limit, or a PROXY header that
    /// does not come from where it may or not at all.
    Denied,
    /// Apps are told apart by name here, and none has the name that the client
    /// asked for.
    InvalidSni,
    /// The client's TLS handshake failed or was not there in time.
    TlsHandshake,
    OriginReset,
    OriginTimedOut,
    OriginUnreachable,
    OriginRefusedRead,
    OriginBrokenPipe,
    /// The client broke TLS, or its stream ended without saying so.
    ClientTls,
    /// Nothing came from either side for the idle timeout, or the client's
    /// kernel stopped answering.
    ClientTimedOut,
    /// An ICMP message said that no socket of the client is there.
    ClientRefused,
    ClientUnreachable,
    ClientBrokenPipe,
    ClientReset,
    /// A fault of the agent itself: what served the connection panicked.
    Internal,
    ConnectUnknown,
    ConnectRefused,
    ConnectTimedOut,
    ConnectUnreachable,
    /// The agent's own system refused: out of descriptors, ports or memory.
    ConnectSystem,
    /// There was no origin to connect to.
    NoOrigin,
    /// The origin's name has no address.
    Unresolvable,
    /// The origin's address is one that is never connected to
    /// ([`crate::target::Forbidden`]).
    Blocked,
    /// The name servers could not be asked, or have not answered in the time for
    /// connecting.
    ResolveFailed,
    /// The origin's TLS handshake failed, or its certificate is not what the
    /// app asks for.
    TlsConfiguration,
    /// The system's error is none of the above, as where the network says that a
    /// host does not speak TCP.
    Unknown,
}

impl Status {
    pub const ALL: [Status; 27] = [
        Status::Closed,
        Status::InvalidSni,
        Status::Denied,
        Status::TlsHandshake,
        Status::OriginReset,
        Status::OriginTimedOut,
        Status::OriginUnreachable,
        Status::OriginRefusedRead,
        Status::OriginBrokenPipe,
        Status::ClientTls,
        Status::ClientTimedOut,
        Status::ClientRefused,
        Status::ClientUnreachable,
        Status::ClientBrokenPipe,
        Status::ClientReset,
        Status::Internal,
        Status::ConnectUnknown,
        Status::ConnectRefused,
        Status::ConnectTimedOut,
        Status::ConnectUnreachable,
        Status::ConnectSystem,
        Status::NoOrigin,
        Status::Unresolvable,
        Status::Blocked,
        Status::ResolveFailed,
        Status::TlsConfiguration,
        Status::Unknown,
    ];

    /// Spectrum's code.
    pub fn code(self) -> u16 {
        match self {
            Status::Closed => 200,
            Status::InvalidSni => 400,
            Status::Denied => 403,
            Status::TlsHandshake => 443,
            Status::OriginReset => 444,
            Status::OriginTimedOut => 445,
            Status::OriginUnreachable => 446,
            Status::OriginRefusedRead => 447,
            Status::OriginBrokenPipe => 448,
            Status::ClientTls => 490,
            Status::ClientRefused => 495,
            Status::ClientUnreachable => 496,
            Status::ClientTimedOut => 497,
            Status::ClientBrokenPipe => 498,
            Status::ClientReset => 499,
            Status::Internal => 500,
            Status::ConnectUnknown => 520,
            Status::ConnectRefused => 521,
            Status::ConnectTimedOut => 522,
            Status::ConnectUnreachable => 523,
            Status::ConnectSystem => 524,
            Status::NoOrigin => 530,
            Status::Unresolvable => 531,
            Status::Blocked => 532,
            Status::ResolveFailed => 533,
            Status::TlsConfiguration => 540,
            Status::Unknown => 999,
        }
    }

    /// Because of the origin, or of what the edge was to do with the connection,
    /// and neither of the client nor of a rule or limit that is against it. A TLS
    /// handshake that fails is not: whoever looks whether a port is open makes one.
    pub fn is_failure(self) -> bool {
        matches!(self.code(), 444..=448 | 500..)
    }

    /// An error while reading from or writing to the client.
    pub fn of_client_error(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::ConnectionReset => Status::ClientReset,
            ErrorKind::TimedOut => Status::ClientTimedOut,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Status::ClientUnreachable,
            ErrorKind::ConnectionRefused => Status::ClientRefused,
            ErrorKind::BrokenPipe => Status::ClientBrokenPipe,
            // Only TLS says these.
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => Status::ClientTls,
            _ => Status::Unknown,
        }
    }

    /// An error while reading from or writing to the origin.
    pub fn of_origin_error(kind: ErrorKind) -> Self {
        match kind {
            // Only TLS says the other two: the stream is cut short as well.
            ErrorKind::ConnectionReset | ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                Status::OriginReset
            }
            ErrorKind::TimedOut => Status::OriginTimedOut,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Status::OriginUnreachable,
            ErrorKind::ConnectionRefused => Status::OriginRefusedRead,
            ErrorKind::BrokenPipe => Status::OriginBrokenPipe,
            _ => Status::Unknown,
        }
    }

    /// An error while connecting to an origin, where the agent's own system did
    /// not refuse ([`Status::ConnectSystem`]).
    pub fn of_connect_error(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Status::ConnectRefused,
            ErrorKind::TimedOut => Status::ConnectTimedOut,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                Status::ConnectUnreachable
            }
            _ => Status::ConnectUnknown,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.code(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_statuses_share_a_code() {
        let codes: HashSet<u16> = Status::ALL.iter().map(|status| status.code()).collect();
        assert_eq!(codes.len(), Status::ALL.len());
    }
}
