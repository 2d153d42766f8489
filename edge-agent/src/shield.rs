//! Whom an app lets in: its access rules are asked first, then its limits.
//!
//! What limits count ([`Tally`]) lives with the app's counters and not in the
//! route table, so no change of the configuration resets it, and all workers
//! share it: a limit of 100 lets in 100, whoever asks at the same time. What is
//! counted for the whole app is counted for every app, so that a limit which is
//! set later knows what is open; sources are counted from when an app first has
//! a limit on them.

mod pace;
mod sources;
mod tally;
mod waiting;

use std::{fmt, net::IpAddr, sync::Arc, time::Instant};

use anyport_model::{
    access::{Action, Verdict},
    limits::{Limit, Limits, Reached, Source},
};

use crate::stats::AppStats;

pub use pace::{DatagramPaces, StreamPace, StreamPaces};
pub use tally::Tally;
pub use waiting::{Crowded, wait_for_name};

/// Why a client is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Access(Verdict),
    Limit(Reached),
}

/// All there can be in the label `cause` of `anyport_connections_refused_total`.
pub fn causes() -> impl Iterator<Item = &'static str> {
    let limits = Limit::ALL.into_iter().map(Limit::as_str);
    limits.chain([ACCESS, Crowded::CAUSE])
}

impl Refusal {
    pub fn cause(&self) -> &'static str {
        match self {
            Refusal::Access(_) => ACCESS,
            Refusal::Limit(reached) => reached.limit.as_str(),
        }
    }
}

const ACCESS: &str = "access";

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Access(verdict) => write!(f, "access: {verdict}"),
            Refusal::Limit(reached) => fmt::Display::fmt(reached, f),
        }
    }
}

/// A connection that its app's limits count, until this is dropped.
pub struct Inside {
    app: Arc<AppStats>,
    /// Where it is counted by its source too. Boxed: few apps have such a limit.
    source: Option<Box<Source>>,
}

/// Lets a client in of whom the app's access rules have said `verdict`, or says
/// why not.
pub fn admit(
    verdict: Verdict,
    limits: &Limits,
    app: &Arc<AppStats>,
    client: IpAddr,
) -> Result<Inside, Refusal> {
    let entered = if verdict.action == Action::Deny {
        Err(Refusal::Access(verdict))
    } else {
        let entered = app.tally.enter(limits, client.into(), Instant::now());
        entered.map_err(Refusal::Limit)
    };
    let source = entered.inspect_err(|refusal| app.refused(refusal.cause()))?;
    let app = Arc::clone(app);
    Ok(Inside { app, source })
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.app.tally.leave(self.source.take());
    }
}
