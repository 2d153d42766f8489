//! Why a probe failed: for people in words, for the balancer by whose fault it
//! may be.

use std::{
    error::Error,
    fmt,
    io::{self, ErrorKind},
    net::IpAddr,
    time::Duration,
};

use anyport_model::target::Forbidden;

/// Longest part of a text that is shown, in bytes.
const SHOWN: usize = 40;

const CUT_SHORT: &str = "closed before the answer was whole";

/// Why one probe failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("connect: {}", words(.0))]
    Connect(#[source] io::Error),
    /// The connection, not what is said in TLS.
    #[error("tls handshake: {}", words(.0))]
    Handshake(#[source] io::Error),
    #[error("tls handshake: {}", tls_words(.0))]
    Tls(#[source] rustls::Error),
    #[error("send: {}", words(.0))]
    Send(#[source] io::Error),
    #[error("reply: {}", words(.0))]
    Reply(#[source] io::Error),
    /// TLS broke after the handshake.
    #[error("tls: {}", tls_words(.0))]
    Broke(#[source] rustls::Error),
    #[error("udp: {}", udp_words(.0))]
    Datagram(#[source] io::Error),
    #[error("echo: {}", words(.0))]
    Echo(#[source] io::Error),
    #[error("{}", timeout_words(.waiting, .expected.as_ref(), *.within, .heard.as_ref()))]
    Timeout {
        waiting: Waiting,
        expected: Option<Quote>,
        within: Duration,
        heard: Option<Quote>,
    },
    #[error(
        "closed after {received} bytes, no reply containing {expected}{}",
        heard_words(.heard.as_ref())
    )]
    Closed {
        expected: Quote,
        received: usize,
        heard: Option<Quote>,
    },
    #[error("no reply containing {expected} in the first {limit} bytes, which begin {heard}")]
    TooLong {
        expected: Quote,
        limit: usize,
        heard: Quote,
    },
    #[error("http: {0}")]
    Http(String),
    #[error("status {status}, which is not in {expected}")]
    Status { status: u16, expected: String },
    #[error("{}", body_words(.expected, *.whole, .heard.as_ref()))]
    Body {
        expected: Quote,
        /// Or the first part of it.
        whole: bool,
        heard: Option<Quote>,
    },
    #[error("grpc.health.v1 says {0}")]
    NotServing(&'static str),
    #[error("grpc: {0}")]
    Grpc(String),
    /// It is never connected to, neither by edges nor to look at it.
    #[error("forbidden target: {0} {1}")]
    Forbidden(IpAddr, Forbidden),
    #[error(
        "this host lets the balancer send no echo request: give it CAP_NET_RAW, or its group \
         net.ipv4.ping_group_range"
    )]
    NoRight,
    #[error("this host is too busy to judge others: a timer was {0:?} late")]
    Busy(Duration),
    #[error("the probe itself failed: {0}")]
    Broken(String),
}

/// What a probe waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    Connect,
    Handshake,
    Send,
    /// One that contains what is expected.
    Reply,
    /// To a request; the head of it, with HTTP.
    Answer,
    Body,
    Echo,
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
    Tls,
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
            Failure::Connect(error)
            | Failure::Handshake(error)
            | Failure::Send(error)
            | Failure::Reply(error)
            | Failure::Datagram(error)
            | Failure::Echo(error) => blame_of(error),
            Failure::NoRight | Failure::Busy(_) | Failure::Broken(_) => Blame::Host,
            Failure::Tls(_)
            | Failure::Broke(_)
            | Failure::Timeout { .. }
            | Failure::Closed { .. }
            | Failure::TooLong { .. }
            | Failure::Http(_)
            | Failure::Status { .. }
            | Failure::Body { .. }
            | Failure::NotServing(_)
            | Failure::Grpc(_)
            | Failure::Forbidden(..) => Blame::Origin,
        }
    }

    pub(crate) fn cause(&self) -> Cause {
        match (self, self.blame()) {
            (_, Blame::Host | Blame::Path) => Cause::Local,
            (Failure::Timeout { .. }, _) => Cause::Timeout,
            (Failure::Connect(error) | Failure::Datagram(error), _)
                if error.kind() == ErrorKind::ConnectionRefused =>
            {
                Cause::Refused
            }
            (Failure::Handshake(_) | Failure::Tls(_) | Failure::Broke(_), _) => Cause::Tls,
            (
                Failure::Closed { .. }
                | Failure::TooLong { .. }
                | Failure::Http(_)
                | Failure::Status { .. }
                | Failure::Body { .. }
                | Failure::NotServing(_)
                | Failure::Grpc(_),
                _,
            ) => Cause::Reply,
            _ => Cause::Network,
        }
    }

    pub(super) fn handshake(error: io::Error) -> Self {
        in_tls(error).map_or_else(Failure::Handshake, Failure::Tls)
    }

    pub(super) fn send(error: io::Error) -> Self {
        in_tls(error).map_or_else(Failure::Send, Failure::Broke)
    }

    pub(super) fn reply(error: io::Error) -> Self {
        in_tls(error).map_or_else(Failure::Reply, Failure::Broke)
    }

    pub(super) fn http(error: hyper::Error) -> Self {
        Self::of_http(&error)
    }

    /// Of HTTP/1.1 and of HTTP/2.
    pub(super) fn of_http(error: &hyper::Error) -> Self {
        let mut last: &(dyn Error + 'static) = error;
        loop {
            match last.downcast_ref::<io::Error>() {
                // So it calls the end of the stream.
                Some(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Failure::Http(CUT_SHORT.to_owned());
                }
                Some(error) => return Self::reply(again(error)),
                None => {}
            }
            match last.source() {
                Some(source) => last = source,
                None => break,
            }
        }
        Failure::Http(if error.is_incomplete_message() {
            CUT_SHORT.to_owned()
        } else {
            format!("the answer is none: {last}")
        })
    }
}

/// What rustls says, where it is what failed.
fn in_tls(error: io::Error) -> Result<rustls::Error, io::Error> {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.cloned().ok_or(error)
}

/// The same error once more: it cannot be cloned.
fn again(error: &io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match (error.raw_os_error(), inner) {
        (Some(code), _) => io::Error::from_raw_os_error(code),
        (None, Some(inner)) => io::Error::new(error.kind(), rustls::Error::clone(inner)),
        (None, None) => io::Error::new(error.kind(), error.to_string()),
    }
}

impl Cause {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Cause::Refused => "refused",
            Cause::Timeout => "timeout",
            Cause::Tls => "tls",
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
    if error.kind() == ErrorKind::UnexpectedEof {
        return "closed by the peer".to_owned();
    }
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

fn udp_words(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "the port is unreachable".to_owned(),
        _ => words(error),
    }
}

fn tls_words(error: &rustls::Error) -> String {
    use rustls::Error;
    match error {
        Error::AlertReceived(alert) => format!("the server sent the alert {alert:?}"),
        Error::InvalidMessage(_) => "what the server sent is no TLS".to_owned(),
        Error::PeerIncompatible(why) => format!("nothing in common with the server ({why:?})"),
        error => error.to_string(),
    }
}

fn timeout_words(
    waiting: &Waiting,
    expected: Option<&Quote>,
    within: Duration,
    heard: Option<&Quote>,
) -> String {
    let expected = expected.map_or(String::new(), ToString::to_string);
    let heard = heard_words(heard);
    match waiting {
        Waiting::Connect => format!("connect: no answer within {within:?}"),
        Waiting::Handshake => format!("tls handshake: not finished within {within:?}"),
        Waiting::Send => format!("send: the peer took nothing for {within:?}"),
        Waiting::Reply => format!("no reply containing {expected} within {within:?}{heard}"),
        Waiting::Answer => format!("no answer to the request within {within:?}"),
        Waiting::Body => {
            format!("the body was not whole within {within:?}, nor contained {expected}{heard}")
        }
        Waiting::Echo => format!("no echo reply within {within:?}"),
    }
}

fn body_words(expected: &Quote, whole: bool, heard: Option<&Quote>) -> String {
    match (heard, whole) {
        (None, _) => format!("the body is empty and lacks {expected}"),
        (Some(heard), true) => format!("the body lacks {expected}; it begins {heard}"),
        (Some(heard), false) => {
            format!("the first 64 KiB of the body lack {expected}; it begins {heard}")
        }
    }
}

fn heard_words(heard: Option<&Quote>) -> String {
    heard.map_or(String::new(), |heard| format!("; heard {heard}"))
}

/// The first bytes of a text, fit to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quote(String);

impl Quote {
    pub(crate) fn of(text: &[u8]) -> Self {
        let shown = text.get(..SHOWN).unwrap_or(text);
        let more = if text.len() > SHOWN { "…" } else { "" };
        Self(format!("\"{}\"{more}", shown.escape_ascii()))
    }

    /// `None` where there is nothing.
    pub(crate) fn of_any(text: &[u8]) -> Option<Self> {
        (!text.is_empty()).then(|| Self::of(text))
    }
}

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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

    fn timeout(waiting: Waiting) -> Failure {
        Failure::Timeout {
            waiting,
            expected: Some(Quote::of(b"+PONG\r\n")),
            within: Duration::from_millis(500),
            heard: Some(Quote::of(b"-LOADING")),
        }
    }

    #[test]
    fn only_timeouts_are_worth_another_attempt() {
        assert!(timeout(Waiting::Connect).is_timeout());
        assert!(timeout(Waiting::Echo).is_timeout());
        assert!(!connect(libc::ECONNREFUSED).is_timeout());
        assert!(!connect(libc::ENETUNREACH).is_timeout());
        assert!(!Failure::Busy(Duration::from_secs(1)).is_timeout());
    }

    #[test]
    fn what_is_wrong_with_this_host_is_held_against_nobody() {
        for failure in [
            Failure::NoRight,
            Failure::Busy(Duration::from_secs(1)),
            Failure::Broken("panicked".to_owned()),
            Failure::Echo(io::Error::from_raw_os_error(libc::EMFILE)),
            Failure::Datagram(io::Error::from_raw_os_error(libc::ENFILE)),
        ] {
            let said = (failure.blame(), failure.cause());
            assert_eq!(said, (Blame::Host, Cause::Local), "{failure}");
        }
    }

    #[test]
    fn a_network_that_is_gone_is_told_by_probes_of_every_kind() {
        let gone = || io::Error::from_raw_os_error(libc::ENETUNREACH);
        for failure in [
            Failure::Connect(gone()),
            Failure::Handshake(gone()),
            Failure::Send(gone()),
            Failure::Reply(gone()),
            Failure::Datagram(gone()),
            Failure::Echo(gone()),
        ] {
            assert_eq!(failure.blame(), Blame::Path, "{failure}");
        }
    }

    #[test]
    fn failures_read_as_words() {
        for (failure, said) in [
            (connect(libc::ECONNREFUSED), "connect: connection refused"),
            (connect(libc::EMFILE), "connect: too many open files"),
            (
                Failure::Datagram(io::Error::from_raw_os_error(libc::ECONNREFUSED)),
                "udp: the port is unreachable",
            ),
            (
                timeout(Waiting::Handshake),
                "tls handshake: not finished within 500ms",
            ),
            (
                timeout(Waiting::Reply),
                r#"no reply containing "+PONG\r\n" within 500ms; heard "-LOADING""#,
            ),
            (
                Failure::Tls(rustls::Error::AlertReceived(
                    rustls::AlertDescription::HandshakeFailure,
                )),
                "tls handshake: the server sent the alert HandshakeFailure",
            ),
            (
                Failure::Forbidden("169.254.169.254".parse().unwrap(), Forbidden::Metadata),
                "forbidden target: 169.254.169.254 is a cloud's metadata service, which is never \
                 an origin",
            ),
        ] {
            assert_eq!(failure.to_string(), said);
        }
    }

    #[test]
    fn a_long_text_is_shown_in_part() {
        let shown = Quote::of(&[b'x'; 4096]).to_string();
        assert_eq!(shown, format!("\"{}\"…", "x".repeat(SHOWN)));
    }
}
