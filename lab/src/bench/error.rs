//! Why there is no comparison.

use std::io;
use std::process::ExitStatus;

use crate::load::{RunError, serve::ServeError};

/// The result of everything that can end a comparison.
pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not installed, or was not built.
    #[error("{program} is not there: looked for {looked_for}; {remedy}")]
    Missing {
        /// The program.
        program: &'static str,
        /// Which file, or where.
        looked_for: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The process may not open enough files.
    #[error(
        "the limit of open files is {limit}, and {needed} are needed; raise it (ulimit -Hn {needed})"
    )]
    Descriptors {
        /// The hard limit.
        limit: u64,
        /// What would do.
        needed: u64,
    },
    /// The network could not be made.
    #[error(transparent)]
    Network(#[from] anyport_netns::Error),
    /// The system refused something.
    #[error("{doing}")]
    System {
        /// What was being done.
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The origin could not be started.
    #[error("starting the origin")]
    Origin(#[from] ServeError),
    /// A load could not be run.
    #[error("running a load")]
    Load(#[from] RunError),
    /// A process ended by itself.
    #[error("{program} ended by itself, {status}; it said:\n{log}")]
    Ended {
        /// Which.
        program: &'static str,
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// Something did not come about in time.
    #[error("{contender}: not within {seconds} s: {what}; last seen: {last}\n{log}")]
    NotInTime {
        /// Whose turn it was.
        contender: &'static str,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        seconds: u64,
        /// The last look.
        last: String,
        /// The ends of the logs of its processes.
        log: String,
    },
    /// The caller asked for an early end.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        |source| Self::System { doing, source }
    }
}
