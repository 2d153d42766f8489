//! How a command fails: what did not work, why, what to do, and the exit status
//! that scripts go by.

use std::{error::Error, fmt, io, process::ExitCode};

use anyport_node::rpc::ServerUrl;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{connection::causes, console::printable};

/// Exit statuses other than 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Invalid, in conflict with something, not found, not allowed.
    Refused = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// No server there, or one that cannot do its work.
    Unreachable = 3,
    /// `--wait` ran out.
    WaitRanOut = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// A command that did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    what: String,
    /// One line each.
    details: Vec<String>,
    remedy: Option<String>,
}

impl Failure {
    pub fn new(exit: Exit, what: impl fmt::Display) -> Self {
        Self {
            exit,
            what: what.to_string(),
            details: Vec::new(),
            remedy: None,
        }
    }

    pub fn refused(what: impl fmt::Display) -> Self {
        Self::new(Exit::Refused, what)
    }

    pub fn details(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(details);
        self
    }

    /// What the user can do about it.
    pub fn remedy(mut self, remedy: impl fmt::Display) -> Self {
        self.remedy = Some(remedy.to_string());
        self
    }

    /// The answer of the server at `url` to a call that was to do `what`
    /// ("apply the manifest").
    pub fn of_call(what: &str, url: &ServerUrl, status: &Status) -> Self {
        let message = status.message();
        let at_server = format!("the config service at {url}");
        match status.code() {
            Code::Unavailable if status.source().is_some() => Self::unreachable(what, url, status),
            Code::Unavailable => Self::new(
                Exit::Unreachable,
                format_args!("cannot {what}: {at_server} cannot do its work: {message}"),
            )
            .remedy("its log and its /readyz say what it waits for; try again once it is ready"),
            Code::DeadlineExceeded | Code::Cancelled => Self::new(
                Exit::Unreachable,
                format_args!("cannot {what}: {at_server} did not answer in time"),
            )
            .remedy("check that it is not overloaded, and try again"),
            Code::InvalidArgument => {
                let request = status.get_details_bad_request();
                let violations = request.map(|request| request.field_violations);
                let lines = violations.into_iter().flatten().map(|violation| {
                    match violation.field.as_str() {
                        "" => violation.description,
                        field => format!("{field}: {}", violation.description),
                    }
                });
                // A message about one fault only is that very line.
                let lines = lines.filter(|line| line != message);
                Self::refused(format_args!("cannot {what}: {message}")).details(lines)
            }
            Code::Aborted => Self::refused(format_args!("cannot {what}: {message}")).remedy(
                "someone else changed the configuration meanwhile; look at it and try again",
            ),
            Code::Unauthenticated => Self::strangers(what, message),
            Code::PermissionDenied => Self::forbidden(what, &at_server, message),
            Code::Unimplemented => Self::refused(format_args!(
                "cannot {what}: the server at {url} does not offer this"
            ))
            .remedy(
                "check that --server names a config service, and that it is as new as this command",
            ),
            Code::NotFound | Code::FailedPrecondition | Code::AlreadyExists => {
                Self::refused(format_args!("cannot {what}: {message}"))
            }
            // Of the transport, and not of a server.
            Code::Internal | Code::Unknown if status.source().is_some() && !url.is_https() => {
                Self::new(
                    Exit::Unreachable,
                    format_args!(
                        "cannot {what}: what answers at {url} speaks no gRPC in clear text: {}",
                        innermost(status)
                    ),
                )
                .remedy(
                    "where it is in TLS, give --server https://…, --tls-cert, --tls-key and \
                     --tls-ca",
                )
            }
            code => Self::refused(format_args!("cannot {what}: {message} ({code:?})"))
                .remedy(format_args!("the log of {at_server} may say more")),
        }
    }

    /// What came of asking several replicas for the same, none of which could do it.
    pub fn of_all(failures: Vec<Self>) -> Self {
        let mut failures = failures.into_iter();
        let Some(first) = failures.next() else {
            return Self::refused("there is nobody to ask");
        };
        let others: Vec<String> = failures.map(|other| other.what).collect();
        first.details(others)
    }

    /// The answer of the edge `name` at `url` to a call that was to do `what`.
    pub fn of_edge(what: &str, name: &str, url: &ServerUrl, status: &Status) -> Self {
        let message = status.message();
        let edge = format!("edge {name} at {url}");
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::DeadlineExceeded | Code::Cancelled => {
                let innermost = innermost(status);
                Self::new(
                    Exit::Unreachable,
                    format_args!("cannot {what}: cannot reach {edge}: {innermost}"),
                )
                .remedy(
                    "check that it can be reached from here: its --listen and --advertise say \
                     where; or run this on its host",
                )
            }
            Code::Unimplemented => {
                Self::refused(format_args!("cannot {what}: {edge} does not offer this"))
                    .remedy("check that it is an edge agent, and as new as this command")
            }
            Code::Unauthenticated => Self::strangers(what, message),
            Code::PermissionDenied => Self::forbidden(what, &edge, message),
            code => Self::refused(format_args!("cannot {what}: {edge}: {message} ({code:?})")),
        }
    }

    /// A write that was sent to do `what`, and that the server at `url` last
    /// answered in a way that does not say whether it did.
    pub fn of_unknown_outcome(what: &str, url: &ServerUrl, status: &Status) -> Self {
        let why = match status.code() {
            Code::DeadlineExceeded | Code::Cancelled => "did not answer in time".to_owned(),
            _ => format!("did not confirm it: {}", innermost(status)),
        };
        Self::new(
            Exit::Unreachable,
            format_args!(
                "unknown whether this was done: {what}: the config service at {url} {why}"
            ),
        )
        .remedy("it may have been stored; see `anyport history`")
    }

    /// One side does not accept the other's certificate; `message` begins with the
    /// URL.
    fn strangers(what: &str, message: &str) -> Self {
        Self::refused(format_args!("cannot {what}: {message}")).remedy(
            "both certificates have to come from the authority of --tls-ca, be in date, and be \
             for what they are used for; `anyport certs show` tells",
        )
    }

    fn forbidden(what: &str, server: &str, message: &str) -> Self {
        Self::refused(format_args!(
            "cannot {what}: {server} does not allow it: {message}"
        ))
        .remedy("give a certificate that may, with --tls-cert, --tls-key and --tls-ca")
    }

    fn unreachable(what: &str, url: &ServerUrl, status: &Status) -> Self {
        let innermost = innermost(status);
        Self::new(
            Exit::Unreachable,
            format_args!("cannot {what}: cannot reach the config service at {url}: {innermost}"),
        )
        .remedy(
            "check that it runs and listens there; `anyport up` starts one on this machine, \
             --server or ANYPORT_SERVER names another",
        )
    }
}

/// The first cause of all, which is where the words are.
fn innermost(status: &Status) -> String {
    let innermost = causes(status).last();
    innermost.map_or_else(|| status.message().to_owned(), ToString::to_string)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = self.details.iter().chain(&self.remedy);
        let mut lines = self.what.lines().chain(rest.flat_map(|text| text.lines()));
        // Some of the words are a server's.
        f.write_str(&printable(lines.next().unwrap_or_default()))?;
        lines.try_for_each(|line| write!(f, "\n  {}", printable(line.trim_start())))
    }
}

/// Standard output that cannot be written to.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::refused(format_args!("cannot write to standard output: {error}"))
    }
}
