//! How connections of an app have ended, by status.

use anyport_model::{outcome::Status, rollout::Outcomes};

/// A count for each status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endings([u64; Status::ALL.len()]);

impl Default for Endings {
    fn default() -> Self {
        Self([0; Status::ALL.len()])
    }
}

impl Endings {
    pub fn add(&mut self, status: Status, count: u64) {
        if let Some(counted) = self.0.get_mut(status as usize) {
            *counted = counted.saturating_add(count);
        }
    }

    /// What is more than in `before`. An app that was removed and came back
    /// counts from nothing again.
    pub fn since(&self, before: &Self) -> Self {
        let mut since = Self::default();
        for status in Status::ALL {
            since.add(status, self.of(status).saturating_sub(before.of(status)));
        }
        since
    }

    fn of(&self, status: Status) -> u64 {
        self.0.get(status as usize).copied().unwrap_or_default()
    }

    pub fn outcomes(&self) -> Outcomes {
        let sum = |counted: fn(Status) -> bool| {
            let statuses = Status::ALL.into_iter().filter(|status| counted(*status));
            statuses.map(|status| self.of(status)).sum()
        };
        Outcomes {
            ended: sum(|_| true),
            failed: sum(Status::is_failure),
        }
    }

    /// The failure that there is most of; `None` where there is none.
    pub fn worst(&self) -> Option<Status> {
        let failures = Status::ALL.into_iter().filter(|status| status.is_failure());
        let worst = failures.max_by_key(|status| self.of(*status))?;
        (self.of(worst) > 0).then_some(worst)
    }
}
