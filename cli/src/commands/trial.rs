//! A revision that some edges try before all others get it.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use anyport_model::backoff::Backoff;
use anyport_proto::{
    convert::{read_duration, write_duration},
    v1,
};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::{
    Context,
    wait::{self, Edges, may_come_back},
};
use crate::{
    ages::age,
    connection::Client,
    console::{Mood, printable},
    failure::{Exit, Failure},
    manifest,
};

/// Who is to try a change first.
#[derive(Debug, Default, clap::Args)]
pub(super) struct CanaryArgs {
    /// Give the change to these edges first, and to all others once it has gone well
    /// there; it is taken back if one of them rejects it or is gone, or if an app's
    /// connections fail there clearly more often than before
    #[arg(long, value_name = "EDGE[,EDGE…]", value_delimiter = ',')]
    canary: Vec<String>,
    /// How long it has to go well until all others get it [default: 60s]; never: by
    /// `anyport promote` only
    #[arg(long, value_name = "TIME|never", requires = "canary", value_parser = promote_after)]
    promote_after: Option<PromoteAfter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PromoteAfter {
    Never,
    Time(Duration),
}

fn promote_after(text: &str) -> Result<PromoteAfter, String> {
    if text == "never" {
        return Ok(PromoteAfter::Never);
    }
    let time = manifest::parse_duration(text);
    time.map(PromoteAfter::Time)
        .map_err(|error| format!("{error}, or never"))
}

impl CanaryArgs {
    pub(super) fn is_given(&self) -> bool {
        !self.canary.is_empty()
    }

    pub(super) fn to_wire(&self) -> Option<v1::Canary> {
        self.is_given().then(|| v1::Canary {
            edges: self.canary.clone(),
            promote_after: match self.promote_after {
                Some(PromoteAfter::Time(time)) => Some(write_duration(time)),
                Some(PromoteAfter::Never) | None => None,
            },
            manual: self.promote_after == Some(PromoteAfter::Never),
        })
    }
}

/// A trial, as JSON and YAML have it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Trial {
    edges: Vec<String>,
    /// What all others have.
    stable_revision: u64,
    /// When all others get it, by `anyport promote` only where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    promote_after: Option<String>,
    /// Why its end is not decided by itself any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    stuck: Option<String>,
}

impl From<v1::Rollout> for Trial {
    fn from(wire: v1::Rollout) -> Self {
        let canary = wire.canary.unwrap_or_default();
        let after = canary
            .promote_after
            .and_then(|after| read_duration(after).ok());
        Self {
            edges: canary.edges,
            stable_revision: wire.stable_revision,
            promote_after: after.map(manifest::write_duration),
            stuck: Some(wire.stuck).filter(|stuck| !stuck.is_empty()),
        }
    }
}

impl Trial {
    pub(super) fn edges(&self) -> String {
        let edges: Vec<String> = self.edges.iter().map(|edge| printable(edge)).collect();
        edges.join(", ")
    }
}

/// How a trial fares, as JSON and YAML have it.
#[derive(Debug, Serialize)]
pub(super) struct TrialStatus {
    #[serde(flatten)]
    trial: Trial,
    /// Connections that ended there since, and how many of them failed.
    ended: u64,
    failed: u64,
    #[serde(skip)]
    since: Option<prost_types::Timestamp>,
}

impl From<v1::RolloutStatus> for TrialStatus {
    fn from(wire: v1::RolloutStatus) -> Self {
        Self {
            trial: wire.rollout.unwrap_or_default().into(),
            ended: wire.ended,
            failed: wire.failed,
            since: wire.committed_at,
        }
    }
}

impl TrialStatus {
    pub(super) fn line(&self, revision: u64, now: SystemTime) -> String {
        let Self {
            trial,
            ended,
            failed,
            ..
        } = self;
        let (edges, stable, since) = (trial.edges(), trial.stable_revision, age(now, self.since));
        let then = match (&trial.stuck, &trial.promote_after) {
            (Some(stuck), _) => format!(
                "{}; `anyport promote` or `anyport rollback` decides: all others",
                printable(stuck)
            ),
            (None, Some(after)) => format!("all others get it after {after}, and"),
            (None, None) => "all others get it by `anyport promote`, and".to_owned(),
        };
        format!(
            "revision {revision} is tried by {edges} for {since}, {failed} of {ended} connections \
             failed; {then} have {stable} till then"
        )
    }
}

/// Tells that a trial has begun with `revision`; `None` where it has not, since
/// nothing was changed.
pub(super) async fn begun(context: &mut Context, revision: u64) -> Result<Option<Trial>, Failure> {
    // It may have been decided on since.
    let request = v1::HistoryRequest {
        page_size: 1,
        page_token: (revision + 1).to_string(),
    };
    let call = async |mut client: Client, request| client.history(request).await;
    let page = context
        .connection
        .read("read the history", request, call)
        .await?;
    let record = page.revisions.into_iter().next();
    let Some(rollout) = record
        .filter(|record| record.revision == revision)
        .and_then(|record| record.rollout)
    else {
        return Ok(None);
    };
    let trial: Trial = rollout.into();
    let then = match &trial.promote_after {
        Some(after) => format!("after {after} of it going well all others get it"),
        None => "all others get it by `anyport promote`".to_owned(),
    };
    context
        .console
        .line(format_args!("tried by {}; {then}", trial.edges()))?;
    Ok(Some(trial))
}

/// Follows a trial to its end, and has all edges apply what it came to.
///
/// # Errors
/// Where it was taken back, with why; or the time ran out.
pub(super) async fn follow(
    context: &mut Context,
    revision: u64,
    trial: &Trial,
    limit: Duration,
) -> Result<(), Failure> {
    wait::until_applied(context, revision, limit, Edges::AnyNumber).await?;
    let Some(after) = &trial.promote_after else {
        return Ok(());
    };
    let hold = manifest::parse_duration(after).unwrap_or_default();
    let deadline = Instant::now() + hold.saturating_add(limit);
    let record = match timeout_at(deadline, decided(context, revision)).await {
        Ok(record) => record?,
        Err(_) => {
            let ran_out = format!("revision {revision} is still being tried; see `anyport status`");
            return Err(Failure::new(Exit::WaitRanOut, ran_out));
        }
    };
    let (decided, why) = (record.revision, printable(&record.message));
    if record.promotion_of != revision {
        return Err(Failure::refused(format_args!(
            "{why}; revision {decided} is as {} was",
            record.rollback_of
        )));
    }
    let word = context.console.paint("promoted", Mood::Good);
    context
        .console
        .line(format_args!("{word} as revision {decided}: {why}"))?;
    wait::until_applied(context, decided, limit, Edges::AnyNumber).await
}

/// The revision that came next.
async fn decided(context: &Context, revision: u64) -> Result<v1::RevisionRecord, Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    loop {
        match next_revision(context, revision).await {
            Ok(Some(record)) => return Ok(record),
            Ok(None) => {}
            Err(status) if may_come_back(&status) => context.connection.turn_to_next(),
            Err(status) => return Err(context.connection.failure("follow the trial", &status)),
        }
        tokio::time::sleep(backoff.pause(rand::random())).await;
    }
}

async fn next_revision(
    context: &Context,
    revision: u64,
) -> Result<Option<v1::RevisionRecord>, tonic::Status> {
    let mut client: Client = context.connection.client();
    let request = v1::WatchNodesRequest {
        role: v1::NodeRole::Edge.into(),
    };
    let mut updates = client.watch_nodes(request).await?.into_inner();
    while let Some(update) = updates.message().await? {
        if update.revision > revision {
            // The page ends with the revision that came next.
            let request = v1::HistoryRequest {
                page_size: 1,
                page_token: (revision + 2).to_string(),
            };
            let page = client.history(request).await?.into_inner();
            return Ok(page.revisions.into_iter().next());
        }
    }
    Ok(None)
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stuck = self.stuck.as_ref().map_or("", |_| ", stuck");
        write!(f, "tried by {}{stuck}", self.edges())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn how_long_is_a_time_or_never() {
        assert_eq!(promote_after("never"), Ok(PromoteAfter::Never));
        let time = PromoteAfter::Time(Duration::from_secs(90));
        assert_eq!(promote_after("90s"), Ok(time));
        let fault = promote_after("soon").unwrap_err();
        assert!(fault.ends_with("30d, or never"), "{fault}");
    }

    #[test]
    fn who_tries_and_who_has_what_is_in_one_line() {
        let wire = v1::RolloutStatus {
            rollout: Some(v1::Rollout {
                canary: Some(v1::Canary {
                    edges: vec!["fra1".to_owned(), "ams1".to_owned()],
                    promote_after: Some(write_duration(Duration::from_secs(60))),
                    manual: false,
                }),
                stable_revision: 11,
                stuck: String::new(),
            }),
            committed_at: Some(SystemTime::UNIX_EPOCH.into()),
            ended: 120,
            failed: 1,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(34);
        let mut stuck = wire.clone();
        stuck.rollout.as_mut().unwrap().stuck = "to go back to 11 is refused: it is odd".to_owned();
        assert_eq!(
            TrialStatus::from(stuck).line(12, now),
            "revision 12 is tried by fra1, ams1 for 34s, 1 of 120 connections failed; to go back \
             to 11 is refused: it is odd; `anyport promote` or `anyport rollback` decides: all \
             others have 11 till then"
        );
        assert_eq!(
            TrialStatus::from(wire).line(12, now),
            "revision 12 is tried by fra1, ams1 for 34s, 1 of 120 connections failed; all others \
             get it after 1m, and have 11 till then"
        );
    }
}
