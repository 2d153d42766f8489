//! Does this service do its job, and if not, what is it waiting for?
//!
//! Each part that the service cannot work without holds a [`Condition`]. The service
//! is ready when all of them are. `/readyz` and `grpc.health.v1` both read the one
//! [`Report`], so they cannot disagree.

use std::{collections::BTreeMap, fmt};

use tokio::sync::watch;

use crate::drain::Drain;

/// The conditions of one service. Clones share them.
#[derive(Clone, Debug)]
pub struct Readiness {
    state: watch::Sender<State>,
}

/// One thing the service cannot work without. Starts out not ready.
///
/// Dropping it makes it not ready: if the task that keeps a condition true is gone,
/// so is the condition. Keep it for as long as it should hold.
#[derive(Debug)]
#[must_use = "a condition that is dropped keeps the service from being ready"]
pub struct Condition {
    id: u64,
    state: watch::Sender<State>,
}

/// What whoever asks for readiness should know of a part of the service, and what
/// takes nothing from it. Starts out with nothing to say.
#[derive(Debug)]
pub struct Remark {
    id: u64,
    part: &'static str,
    state: watch::Sender<State>,
}

/// What a service is still waiting for; nothing when it is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order in which the conditions were made.
    pub waiting: Vec<Waiting>,
    /// Each with the name of its part in front.
    pub remarks: Vec<String>,
}

/// One unmet condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Short name of the condition, such as `config`.
    pub condition: String,
    /// Why it is unmet, in words, such as `no configuration received yet`.
    pub reason: String,
}

/// Notices every change of readiness.
#[derive(Clone, Debug)]
pub struct Changes {
    state: watch::Receiver<State>,
    // Without a sender of its own the stream of changes would end with the last
    // `Readiness`, which no follower could tell from a change.
    _keep_open: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    conditions: BTreeMap<u64, Entry>,
    remarks: BTreeMap<u64, String>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    unmet: Option<String>,
}

impl Readiness {
    /// No conditions yet, hence ready.
    pub fn new() -> Self {
        Self {
            state: watch::Sender::new(State::default()),
        }
    }

    /// Adds a condition that is not met yet, because of `reason`.
    pub fn condition(&self, name: impl Into<String>, reason: impl Into<String>) -> Condition {
        let entry = Entry {
            name: name.into(),
            unmet: Some(reason.into()),
        };
        let mut id = 0;
        self.state.send_modify(|state| {
            id = state.next_id;
            state.next_id += 1;
            state.conditions.insert(id, entry);
        });
        Condition {
            id,
            state: self.state.clone(),
        }
    }

    /// A part that may have something to say.
    pub fn remark(&self, part: &'static str) -> Remark {
        let mut id = 0;
        self.state.send_modify(|state| {
            id = state.next_id;
            state.next_id += 1;
        });
        Remark {
            id,
            part,
            state: self.state.clone(),
        }
    }

    /// What is being waited for now.
    pub fn report(&self) -> Report {
        self.state.borrow().report()
    }

    /// Are all conditions met?
    pub fn is_ready(&self) -> bool {
        self.report().is_ready()
    }

    /// Completes when all conditions are met.
    pub async fn ready(&self) {
        let mut changes = self.changes();
        while !changes.report().is_ready() {
            changes.next().await;
        }
    }

    /// Follows readiness from now on.
    pub fn changes(&self) -> Changes {
        Changes {
            state: self.state.subscribe(),
            _keep_open: self.state.clone(),
        }
    }

    /// As [`report`](Self::report), where draining counts as one more unmet condition:
    /// a service that was asked to stop must get no new work.
    pub(crate) fn report_unless_draining(&self, drain: &Drain) -> Report {
        let mut report = self.report();
        if drain.is_started() {
            report.waiting.push(Waiting {
                condition: "drain".to_owned(),
                reason: "the process was asked to stop and takes no new work".to_owned(),
            });
        }
        report
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Changes {
    /// What is being waited for now; marks it as seen.
    pub fn report(&mut self) -> Report {
        self.state.borrow_and_update().report()
    }

    /// Completes when something changed since the last [`report`](Self::report).
    pub async fn next(&mut self) {
        // Cannot fail: this value itself holds a sender.
        let _ = self.state.changed().await;
    }
}

impl Condition {
    /// The condition is met.
    pub fn set_ready(&self) {
        self.set(None);
    }

    /// The condition is not met (any more), because of `reason`.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, unmet: Option<String>) {
        self.state.send_if_modified(|state| {
            let Some(entry) = state.conditions.get_mut(&self.id) else {
                return false;
            };
            let changed = entry.unmet != unmet;
            entry.unmet = unmet;
            changed
        });
    }
}

impl Drop for Condition {
    fn drop(&mut self) {
        self.state.send_modify(|state| {
            if let Some(entry) = state.conditions.get_mut(&self.id) {
                let was = match entry.unmet.take() {
                    Some(reason) => reason,
                    None => "was ready".to_owned(),
                };
                entry.unmet = Some(format!("the part that keeps it has ended ({was})"));
            }
        });
    }
}

impl Remark {
    /// Says this from now on, in place of what was said before.
    pub fn say(&self, what: impl fmt::Display) {
        let line = format!("{}: {what}", self.part);
        self.state.send_modify(|state| {
            state.remarks.insert(self.id, line);
        });
    }

    /// There is nothing to say any more.
    pub fn withdraw(&self) {
        self.state
            .send_if_modified(|state| state.remarks.remove(&self.id).is_some());
    }
}

impl Drop for Remark {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl State {
    fn report(&self) -> Report {
        let waiting = self.conditions.values().filter_map(|entry| {
            let reason = entry.unmet.clone()?;
            Some(Waiting {
                condition: entry.name.clone(),
                reason,
            })
        });
        Report {
            waiting: waiting.collect(),
            remarks: self.remarks.values().cloned().collect(),
        }
    }
}

impl Report {
    /// Nothing is being waited for.
    pub fn is_ready(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// `ready`, or `not ready` and a line for each condition; and a line for each remark.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.is_ready() {
            "ready"
        } else {
            "not ready"
        };
        f.write_str(word)?;
        for Waiting { condition, reason } in &self.waiting {
            write!(f, "\n{condition}: {reason}")?;
        }
        for remark in &self.remarks {
            write!(f, "\n{remark}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_every_condition_is() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready(), "nothing to wait for");
        let config = readiness.condition("config", "no configuration received yet");
        let kernel = readiness.condition("kernel", "rules not installed yet");
        config.set_ready();
        assert_eq!(
            readiness.report().to_string(),
            "not ready\nkernel: rules not installed yet"
        );
        kernel.set_ready();
        assert_eq!(readiness.report().to_string(), "ready");
        config.set_not_ready("rejected");
        assert_eq!(
            readiness.report().to_string(),
            "not ready\nconfig: rejected"
        );
    }

    #[test]
    fn a_dropped_condition_is_not_ready() {
        let readiness = Readiness::new();
        let config = readiness.condition("config", "starting");
        config.set_ready();
        drop(config);
        let report = readiness.report().to_string();
        assert!(
            report.contains("config: the part that keeps it has ended"),
            "{report}"
        );
    }

    #[test]
    fn a_remark_is_told_and_takes_nothing_from_readiness() {
        let readiness = Readiness::new();
        let remark = readiness.remark("descriptors");
        assert_eq!(readiness.report().to_string(), "ready");
        remark.say("few are left");
        remark.say("none are left");
        assert!(readiness.is_ready());
        assert_eq!(
            readiness.report().to_string(),
            "ready\ndescriptors: none are left"
        );
        remark.withdraw();
        assert_eq!(readiness.report().to_string(), "ready");
        remark.say("none are left");
        drop(remark);
        assert_eq!(readiness.report().to_string(), "ready");
    }

    #[test]
    fn draining_is_one_more_thing_to_wait_for() {
        let (readiness, drain) = (Readiness::new(), Drain::new());
        assert!(readiness.report_unless_draining(&drain).is_ready());
        drain.begin();
        let report = readiness.report_unless_draining(&drain);
        assert_eq!(report.waiting[0].condition, "drain");
    }

    #[tokio::test]
    async fn ready_wakes_up_when_the_last_condition_is_met() {
        let readiness = Readiness::new();
        let one = readiness.condition("one", "later");
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        one.set_ready();
        waiting.await.expect("no panic");
    }

    #[tokio::test]
    async fn setting_what_is_already_set_is_no_change() {
        let readiness = Readiness::new();
        let one = readiness.condition("one", "later");
        let mut changes = readiness.changes();
        changes.report();
        one.set_not_ready("later");
        assert!(!changes.state.has_changed().expect("open"));
        one.set_ready();
        changes.next().await;
        assert!(changes.report().is_ready());
    }
}
