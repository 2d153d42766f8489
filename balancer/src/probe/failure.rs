//! Why a probe failed: for people in words, for the balancer by whose fault it
//! may be.

use std::{
    fmt,
    io::{self, ErrorKind},
    net::IpAddr,
    time::Duration,
};

use anyport_model::target::Forbidden;

/// Longest part of `expect` that is shown, in bytes.
const SHOWN: usize = 40;

/// Why one probe failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("connect: {}", words(.0))]
    Connect(#[source] io::Error),
    #[error("connect: no answer within {0:?}")]
    ConnectTimeout(Duration),
    #[error("send: {}", words(.0))]
    Send(#[source] io::Error),
    #[error("send: the peer took nothing for {0:?}")]
    SendTimeout(Duration),
    #[error("reply: {}", words(.0))]
    Reply(#[source] io::Error),
    #[error("no reply containing {expected} within {within:?}")]
    ReplyTimeout {
        expected: Expected,
        within: Duration,
    },
    #[error("closed after {received} bytes, no reply containing {expected}")]
    Closed { expected: Expected, received: usize },
    #[error("no reply containing {expected} in the first {limit} bytes")]
    TooLong { expected: Expected, limit: usize },
    /// It is never connected to, neither by edges nor to look at it.
    #[error("{0} {1}")]
    Forbidden(IpAddr, Forbidden),
    #[error("the probe itself failed: {0}")]
    Broken(String),
}

/// Whose fault a failure may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The origin's, or that of the way there.
    Origin,
    /// The balancer's network has no way there: as likely ours as the origin's.
    Path,
    /// This host's: out of descriptors, ports or memory. Says nothing of origins.
    Host,
}

/// What a failure is counted as in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Refused,
    Timeout,
    Reply,
    Network,
    Local,
}

impl Failure {
    /// Whether a further attempt at once makes sense: a lost packet looks so, a
    /// refusal does not.
    pub(crate) fn is_timeout(&self) -> bool {
        self.cause() == Cause::Timeout
    }

    pub(crate) fn blame(&self) -> Blame {
        match self {
            Failure::Connect(error) | Failure::Send(error) | Failure::Reply(error) => {
                blame_of(error)
            }
            Failure::Broken(_) => Blame::Host,
            _ => Blame::Origin,
        }
    }

    pub(crate) fn cause(&self) -> Cause {
        match (self, self.blame()) {
            (_, Blame::Host | Blame::Path) => Cause::Local,
            (
                Failure::ConnectTimeout(_) | Failure::SendTimeout(_) | Failure::ReplyTimeout { .. },
                _,
            ) => Cause::Timeout,
            (Failure::Connect(error), _) if error.kind() == ErrorKind::ConnectionRefused => {
                Cause::Refused
            }
            (Failure::Closed { .. } | Failure::TooLong { .. }, _) => Cause::Reply,
            _ => Cause::Network,
        }
    }
}

impl Cause {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Cause::Refused => "refused",
            Cause::Timeout => "timeout",
            Cause::Reply => "reply",
            Cause::Network => "network",
            Cause::Local => "local",
        }
    }
}

/// "Host unreachable" is the origin's: a router or the neighbour's silence said
/// so of that one host.
fn blame_of(error: &io::Error) -> Blame {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::AddrNotAvailable | ErrorKind::OutOfMemory, _)
        | (_, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS)) => Blame::Host,
        // What a missing route, a downed link and a local firewall say.
        (
            ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown | ErrorKind::PermissionDenied,
            _,
        ) => Blame::Path,
        _ => Blame::Origin,
    }
}

/// "connection refused" of "Connection refused (os error 111)".
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text
        .split_once(" (os error")
        .map_or(text.as_str(), |(said, _)| said);
    let mut rest = text.chars();
    match rest.next() {
        Some(first) => first.to_lowercase().chain(rest).collect(),
        None => "unknown error".to_owned(),
    }
}

/// What was to be in the reply, fit to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected(String);

impl Expected {
    pub(crate) fn of(expect: &[u8]) -> Self {
        let shown = expect.get(..SHOWN).unwrap_or(expect);
        let more = if expect.len() > SHOWN { "…" } else { "" };
        Self(format!("\"{}\"{more}", shown.escape_ascii()))
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(code: i32) -> Failure {
        Failure::Connect(io::Error::from_raw_os_error(code))
    }

    #[test]
    fn whose_fault_an_error_may_be() {
        let table = [
            (libc::ECONNREFUSED, Blame::Origin, Cause::Refused),
            (libc::EHOSTUNREACH, Blame::Origin, Cause::Network),
            (libc::ECONNRESET, Blame::Origin, Cause::Network),
            (libc::ENETUNREACH, Blame::Path, Cause::Local),
            (libc::ENETDOWN, Blame::Path, Cause::Local),
            (libc::EPERM, Blame::Path, Cause::Local),
            (libc::EACCES, Blame::Path, Cause::Local),
            (libc::EMFILE, Blame::Host, Cause::Local),
            (libc::ENFILE, Blame::Host, Cause::Local),
            (libc::ENOBUFS, Blame::Host, Cause::Local),
            (libc::ENOMEM, Blame::Host, Cause::Local),
            (libc::EADDRNOTAVAIL, Blame::Host, Cause::Local),
        ];
        for (code, blame, cause) in table {
            let failure = connect(code);
            assert_eq!(
                (failure.blame(), failure.cause()),
                (blame, cause),
                "{failure}"
            );
        }
    }

    #[test]
    fn only_timeouts_are_worth_another_attempt() {
        let within = Duration::from_millis(500);
        let expected = Expected::of(b"PONG");
        assert!(Failure::ConnectTimeout(within).is_timeout());
        assert!(Failure::SendTimeout(within).is_timeout());
        assert!(Failure::ReplyTimeout { expected, within }.is_timeout());
        assert!(!connect(libc::ECONNREFUSED).is_timeout());
        assert!(!connect(libc::ENETUNREACH).is_timeout());
    }

    #[test]
    fn failures_read_as_words() {
        let said = connect(libc::ECONNREFUSED).to_string();
        assert_eq!(said, "connect: connection refused");
        let said = connect(libc::EMFILE).to_string();
        assert_eq!(said, "connect: too many open files");
        let expected = Expected::of(b"+PONG\r\n");
        let within = Duration::from_millis(500);
        let said = Failure::ReplyTimeout { expected, within }.to_string();
        assert_eq!(said, r#"no reply containing "+PONG\r\n" within 500ms"#);
    }

    #[test]
    fn a_long_expectation_is_shown_in_part() {
        let shown = Expected::of(&[b'x'; 4096]).to_string();
        assert_eq!(shown, format!("\"{}\"…", "x".repeat(SHOWN)));
    }
}
