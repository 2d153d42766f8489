//! How connections fare with a revision that only some edges have yet, this one
//! among them.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc, time::Duration};

use anyport_model::{
    names::{AppName, Revision},
    rollout::Outcomes,
};
use anyport_proto::{
    convert::{read_outcomes, write_outcomes},
    v1,
};
use tokio::sync::watch;

use crate::{endings::Endings, stats::Stats};

const PACE: Duration = Duration::from_secs(1);

/// Apps of one report.
const APPS_MAX: usize = 100;

/// What the connections of a revision on trial are held against.
#[derive(Debug, Clone)]
pub struct Trial {
    pub revision: Revision,
    /// What this process had counted when it got the revision.
    counted: BTreeMap<AppName, Endings>,
    /// How connections had ended when this edge got it, in this process or in
    /// one before.
    before: BTreeMap<AppName, Outcomes>,
}

impl Trial {
    /// This edge gets the revision now.
    pub fn begin(revision: Revision, counted: BTreeMap<AppName, Endings>) -> Self {
        let before = counted
            .iter()
            .map(|(app, endings)| (app.clone(), endings.outcomes()))
            .filter(|(_, outcomes)| outcomes.ended > 0)
            .collect();
        Self {
            revision,
            counted,
            before,
        }
    }

    /// An agent before this one had got the revision.
    pub fn resume(begun: &v1::TrialReport, counted: BTreeMap<AppName, Endings>) -> Self {
        let before = begun.apps.iter().filter_map(|app| {
            let name = app.app.parse().ok()?;
            Some((name, read_outcomes(app.before)))
        });
        Self {
            revision: Revision(begun.revision),
            counted,
            before: before.collect(),
        }
    }

    /// What an agent after this one needs to know.
    pub fn begun(&self) -> v1::TrialReport {
        let apps = self.before.iter().map(|(app, before)| v1::AppTrial {
            app: app.to_string(),
            before: Some(write_outcomes(*before)),
            ..Default::default()
        });
        v1::TrialReport {
            revision: self.revision.0,
            apps: apps.collect(),
            since: None,
        }
    }

    /// What is new, by how connections have ended now.
    fn report(&self, now: &BTreeMap<AppName, Endings>) -> v1::TrialReport {
        let mut all = Outcomes::default();
        let mut apps: Vec<(u64, v1::AppTrial)> = Vec::new();
        for (app, now) in now {
            let counted = self.counted.get(app).copied().unwrap_or_default();
            let before = self.before.get(app).copied().unwrap_or_default();
            let since = now.since(&counted);
            let outcomes = since.outcomes();
            all.ended += outcomes.ended;
            all.failed += outcomes.failed;
            if let Some(status) = since.worst() {
                let app = v1::AppTrial {
                    app: app.to_string(),
                    since: Some(write_outcomes(outcomes)),
                    before: Some(write_outcomes(before)),
                    status: status.code().into(),
                };
                apps.push((outcomes.failed, app));
            }
        }
        apps.sort_by_key(|(failed, _)| Reverse(*failed));
        apps.truncate(APPS_MAX);
        v1::TrialReport {
            revision: self.revision.0,
            since: Some(write_outcomes(all)),
            apps: apps.into_iter().map(|(_, app)| app).collect(),
        }
    }
}

/// Tells the config service, without end, while there is a trial.
pub async fn tell_trial(
    stats: Arc<Stats>,
    mut trial: watch::Receiver<Option<Trial>>,
    to: watch::Sender<Option<v1::Report>>,
) {
    loop {
        let report = {
            let trial = trial.borrow_and_update();
            trial.as_ref().map(|trial| trial.report(&stats.endings()))
        };
        let under_way = report.is_some();
        to.send_if_modified(|told| {
            if told.as_ref().and_then(|told| told.trial.as_ref()) == report.as_ref() {
                return false;
            }
            told.get_or_insert_default().trial = report;
            true
        });
        tokio::select! {
            changed = trial.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PACE), if under_way => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyport_model::outcome::Status;

    use super::*;

    fn endings(of: &[(Status, u64)]) -> Endings {
        let mut endings = Endings::default();
        of.iter()
            .for_each(|(status, count)| endings.add(*status, *count));
        endings
    }

    #[test]
    fn only_what_is_new_is_told_and_of_apps_only_those_that_fail() {
        let app = |name: &str| name.parse::<AppName>().unwrap();
        let before = BTreeMap::from([
            (
                app("web"),
                endings(&[(Status::Closed, 90), (Status::ConnectRefused, 10)]),
            ),
            (app("dns"), endings(&[(Status::Closed, 5)])),
        ]);
        let trial = Trial::begin(Revision(7), before);
        let now = BTreeMap::from([
            (
                app("web"),
                endings(&[
                    (Status::Closed, 91),
                    (Status::ConnectRefused, 12),
                    (Status::ConnectTimedOut, 5),
                ]),
            ),
            (app("dns"), endings(&[(Status::Closed, 9)])),
            (
                app("new"),
                endings(&[(Status::NoOrigin, 9), (Status::ClientReset, 1)]),
            ),
        ]);
        let report = trial.report(&now);
        let outcomes = |ended, failed| Some(v1::Outcomes { ended, failed });
        assert_eq!(report.revision, 7);
        assert_eq!(report.since, outcomes(1 + 7 + 4 + 10, 7 + 9));
        let apps: Vec<_> = report
            .apps
            .iter()
            .map(|app| (app.app.as_str(), app.since, app.before, app.status))
            .collect();
        assert_eq!(
            apps,
            [
                ("new", outcomes(10, 9), outcomes(0, 0), 530),
                ("web", outcomes(8, 7), outcomes(100, 10), 522),
            ]
        );
    }

    #[test]
    fn an_agent_that_starts_during_a_trial_holds_it_against_what_the_one_before_it_saw() {
        let app = |name: &str| name.parse::<AppName>().unwrap();
        let before = BTreeMap::from([
            (app("web"), endings(&[(Status::ConnectRefused, 10)])),
            (app("idle"), endings(&[])),
        ]);
        let begun = Trial::begin(Revision(7), before).begun();
        assert_eq!(begun.apps.len(), 1, "{begun:?}");
        let counted = BTreeMap::from([(app("web"), endings(&[(Status::ConnectRefused, 1)]))]);
        let resumed = Trial::resume(&begun, counted);
        assert_eq!(resumed.begun(), begun);
        let now = BTreeMap::from([(app("web"), endings(&[(Status::ConnectRefused, 3)]))]);
        let report = resumed.report(&now);
        let failed = |count| {
            let (ended, failed) = (count, count);
            Some(v1::Outcomes { ended, failed })
        };
        assert_eq!(report.since, failed(2));
        assert_eq!(
            (report.apps[0].since, report.apps[0].before),
            (failed(2), failed(10))
        );
    }
}
