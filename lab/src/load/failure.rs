//! How an operation can fail, in the few kinds that a reader tells apart.

use std::{fmt, io};

/// The kind of a failure, by which failures are counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nobody listens there: a connection was answered by a reset.
    Refused,
    /// The connection was reset, or had been when more was sent.
    Reset,
    /// No progress within the plan's timeout.
    Timeout,
    /// The connection was closed before everything had come.
    Eof,
    /// Something else came than was sent, or more.
    Mismatch,
    /// Anything else, in the system's words.
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => Self::Refused,
            Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => Self::Reset,
            Kind::TimedOut => Self::Timeout,
            Kind::UnexpectedEof => Self::Eof,
            _ => Self::Other(error.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::Reset => f.write_str("reset"),
            Self::Timeout => f.write_str("timeout"),
            Self::Eof => f.write_str("eof"),
            Self::Mismatch => f.write_str("mismatch"),
            Self::Other(text) => write!(f, "other: {text}"),
        }
    }
}
