//! What can go wrong with a cluster, in words for whoever reads the failed test.

use std::fmt;
use std::io;

use super::command::Said;
use super::metrics::MetricsError;
use super::service::Service;

/// A result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. Its `Debug` is its text with all causes, since that is what a failed `unwrap`
/// shows.
#[derive(thiserror::Error)]
pub enum Error {
    /// The network could not be made or entered.
    #[error("making or entering the network")]
    Network(#[from] anyport_netns::Error),
    /// Cargo did not build the programs.
    #[error("building the programs under test: {0}")]
    Build(String),
    /// Cargo built no such program, and the system has none.
    #[error("there is no program {0:?}; etcd has to be installed, the others are built by cargo")]
    NoProgram(String),
    /// The system refused something.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A process did not become ready in time.
    #[error("{service} is not ready: {last}\n---- its log\n{log}")]
    NotReady {
        /// Which.
        service: Service,
        /// What it said last.
        last: String,
        /// The end of its log.
        log: String,
    },
    /// A process that is needed does not run.
    #[error("{service} does not run")]
    NotRunning {
        /// Which.
        service: Service,
    },
    /// A command did not exit with 0.
    #[error("the command was refused: {said}")]
    Refused {
        /// What it said.
        said: Said,
    },
    /// A command had to be killed.
    #[error("the command did not end: {said}")]
    NoEnd {
        /// What it said until then.
        said: Said,
    },
    /// An admin server answered something else than 200.
    #[error("{service} answered {status} for {path}: {body}")]
    Status {
        /// Which.
        service: Service,
        /// What was asked for.
        path: String,
        /// The HTTP status.
        status: u16,
        /// The answer.
        body: String,
    },
    /// Metrics that cannot be read.
    #[error("the metrics of {service}")]
    Metrics {
        /// Whose.
        service: Service,
        /// Why not.
        source: MetricsError,
    },
}

impl Error {
    pub(super) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }
}

/// An error and what caused it, on one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&with_causes(self))
    }
}
