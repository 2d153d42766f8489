//! How connections fare with a revision that only some edges have yet, this one
//! among them.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc, time::Duration};

use anyport_model::{
    names::{AppName, Revision},
    rollout::Outcomes,
};
use anyport_proto::{convert::write_outcomes, v1};
use tokio::sync::watch;

use crate::{endings::Endings, stats::Stats};

const PACE: Duration = Duration::from_secs(1);

/// Apps of one report.
const APPS_MAX: usize = 100;

/// How connections had ended when this edge got the revision.
#[derive(Debug, Clone)]
pub struct Trial {
    pub revision: Revision,
    before: BTreeMap<AppName, Endings>,
}

impl Trial {
    pub fn begin(revision: Revision, before: BTreeMap<AppName, Endings>) -> Self {
        Self { revision, before }
    }

    /// What is new, by how connections have ended now.
    fn report(&self, now: &BTreeMap<AppName, Endings>) -> v1::TrialReport {
        let mut all = Outcomes::default();
        let mut apps: Vec<(u64, v1::AppTrial)> = Vec::new();
        for (app, now) in now {
            let before = self.before.get(app).copied().unwrap_or_default();
            let since = now.since(&before);
            let outcomes = since.outcomes();
            all.ended += outcomes.ended;
            all.failed += outcomes.failed;
            if let Some(status) = since.worst() {
                let app = v1::AppTrial {
                    app: app.to_string(),
                    since: Some(write_outcomes(outcomes)),
                    before: Some(write_outcomes(before.outcomes())),
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
}
