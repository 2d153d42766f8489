//! Something that is tried until it works, and told of twice: when it stops
//! working, and when it works again.

use std::{error::Error, time::Duration};

use anyport_model::backoff::Backoff;

/// A store that restarts is back within a second or two.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How one thing goes.
#[derive(Debug)]
pub(crate) struct Trouble {
    with: &'static str,
    backoff: Backoff,
    told: bool,
}

impl Trouble {
    pub(crate) fn new(with: &'static str) -> Self {
        Self {
            with,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            told: false,
        }
    }

    /// It did not work. Returns how long to wait; `random` is uniform over all
    /// 64 bits.
    pub(crate) fn again(&mut self, error: &dyn Error, random: u64) -> Duration {
        if self.told {
            tracing::debug!(%error, "{}: still failing", self.with);
        } else {
            tracing::warn!(%error, "{}: failing; trying again until it works", self.with);
            self.told = true;
        }
        self.backoff.pause(random)
    }

    /// It works.
    pub(crate) fn over(&mut self) {
        if self.told {
            tracing::info!("{}: works again", self.with);
            self.told = false;
        }
        self.backoff.reset();
    }
}
