//! Writes, one after the other.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyport_model::{
    backoff::Backoff,
    names::Revision,
    rollout::{Canary, Rollout},
};
use anyport_node::telemetry;
use anyport_proto::sync::UPDATE_MAX;
use tracing::Instrument;

use super::{
    MassDeletion,
    intent::{Change, Intent, Plan, Refusal, Violation},
};
use crate::{
    offload::offload,
    state::{Draft, Keeper, Snapshot, Turn},
    store::{Author, ObjectId, Record, RequestMark, StoreError, StoreName},
};

/// Another replica may be first a few times, but not for ever.
const ATTEMPTS: usize = 16;
/// Two that try again at once would be in each other's way again.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// All resources together, in bytes: an update must hold them with room for its
/// own fields.
pub const STATE_MAX: u64 = (UPDATE_MAX - (1 << 20)) as u64;

/// Writes to the state that a keeper holds.
#[derive(Debug, Clone)]
pub struct Writer {
    keeper: Keeper,
}

/// How a write is to be done, whatever it is.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    /// Report only.
    pub dry_run: bool,
    /// Refuse unless this is the latest revision.
    pub expected: Option<Revision>,
    /// The write is done once for all requests of this mark.
    pub request: Option<RequestMark>,
    pub author: Author,
    pub message: String,
    /// Much may be deleted without being named.
    pub allow_mass_deletion: bool,
    /// Who tries it before all others get it; `None`: all get it at once.
    pub canary: Option<Canary>,
}

/// A write that was done, now or before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The latest revision after it.
    pub revision: Revision,
    pub state_hash: ObjectId,
    /// Empty for a repeated one, where the revision before it is not kept any
    /// more.
    pub changes: Vec<Change>,
    /// What a dry run would not be allowed.
    pub mass_deletion: Option<MassDeletion>,
    pub outcome: Outcome,
}

/// What a write that was not refused came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    /// The state was already so.
    Unchanged,
    DryRun,
    /// The same request was done before.
    Repeated,
}

impl Outcome {
    /// One word, for metrics and the audit.
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Committed => "committed",
            Outcome::Unchanged => "unchanged",
            Outcome::DryRun => "dry_run",
            Outcome::Repeated => "repeated",
        }
    }
}

/// A write was not done, or nothing is known of it.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(
        "the latest revision is {latest}, and {expected} was expected; look at what changed and try again"
    )]
    Outdated {
        expected: Revision,
        latest: Revision,
    },
    #[error("request_id {id:?} was used for another request, which made revision {revision}")]
    RequestIdReused { id: String, revision: Revision },
    #[error("other writes came first {ATTEMPTS} times; try again")]
    Contended,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("planning the write failed")]
    Panicked(#[source] tokio::task::JoinError),
}

impl WriteError {
    /// One word, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            WriteError::Refused(_) | WriteError::RequestIdReused { .. } => "refused",
            WriteError::Outdated { .. } => "outdated",
            WriteError::Contended => "contended",
            WriteError::Store(_) => "store_error",
            WriteError::Panicked(_) => "internal_error",
        }
    }
}

impl Writer {
    pub fn new(keeper: Keeper) -> Self {
        Self { keeper }
    }

    /// Does a write, whole or not at all. `now` is the time of its commit.
    ///
    /// Dropping the future leaves it open whether the write is done; a repeated
    /// one with the same request id finds out.
    pub async fn write(
        &self,
        intent: Intent,
        conditions: Conditions,
        now: impl Fn() -> SystemTime + Send,
    ) -> Result<Written, WriteError> {
        let intent = Arc::new(intent);
        let turn = self.keeper.turn().await?;
        // Another replica's write may not have come here yet, and even what
        // changes nothing must be judged by the latest state.
        let mut present = turn.refresh().await?;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        for _ in 0..ATTEMPTS {
            if let Some(repeated) = self.repeated(&intent, &conditions, &present).await? {
                return Ok(repeated);
            }
            if let Some(expected) = conditions.expected
                && expected != present.revision()
            {
                let latest = present.revision();
                return Err(WriteError::Outdated { expected, latest });
            }
            if !conditions.dry_run {
                intent.fits(present.revision(), present.rollout())?;
            }
            let mut plan = admit(&intent, &present).await?;
            let forbidden = plan
                .mass_deletion
                .take_if(|_| !conditions.allow_mass_deletion);
            if !conditions.dry_run
                && let Some(forbidden) = forbidden
            {
                return Err(Refusal::MassDeletion(forbidden).into());
            }
            let outcome = if conditions.dry_run {
                Some(Outcome::DryRun)
            } else if !plan.changes.iter().any(Change::is_change)
                && present.rollout().is_none()
                && intent.stored_anew(present.resources()).is_empty()
            {
                Some(Outcome::Unchanged)
            } else {
                None
            };
            if let Some(outcome) = outcome {
                return Ok(Written {
                    revision: present.revision(),
                    state_hash: present.hash(),
                    changes: plan.changes,
                    mass_deletion: forbidden,
                    outcome,
                });
            }
            let commit = Commit {
                turn: &turn,
                present: &present,
                intent: &intent,
                conditions: &conditions,
                now: now(),
            };
            let span = tracing::info_span!(
                "commit",
                revision = present.revision().next().0.cast_signed()
            );
            match commit.run(plan).instrument(span).await? {
                Some(written) => return Ok(written),
                None => {
                    tokio::time::sleep(backoff.pause(self.keeper.random())).await;
                    present = turn.refresh().await?;
                }
            }
        }
        Err(WriteError::Contended)
    }

    /// The answer to a request that was done before.
    async fn repeated(
        &self,
        intent: &Arc<Intent>,
        conditions: &Conditions,
        present: &Snapshot,
    ) -> Result<Option<Written>, WriteError> {
        let Some(mark) = conditions.request.as_ref().filter(|_| !conditions.dry_run) else {
            return Ok(None);
        };
        let Some(done) = present.written_by(&mark.id) else {
            return Ok(None);
        };
        if done.request.digest != mark.digest {
            return Err(WriteError::RequestIdReused {
                id: mark.id.clone(),
                revision: done.revision,
            });
        }
        // Planning is pure, so the same intent on the same state says the same.
        let before = Revision(done.revision.0.saturating_sub(1));
        let changes = match self.keeper.at(before).await {
            Ok(Some(before)) => intent.plan(&before.resources)?.changes,
            // It is not kept any more, or a store key that it needs is not.
            Ok(None) | Err(StoreError::Sealed(_)) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Some(Written {
            revision: done.revision,
            state_hash: done.state_hash,
            changes,
            mass_deletion: None,
            outcome: Outcome::Repeated,
        }))
    }
}

async fn admit(intent: &Arc<Intent>, present: &Arc<Snapshot>) -> Result<Plan, WriteError> {
    let span = tracing::info_span!("admit", against = present.revision().0.cast_signed());
    let (intent, present) = (Arc::clone(intent), Arc::clone(present));
    let plan = move || span.in_scope(|| intent.plan(present.resources()));
    Ok(offload(plan).await.map_err(WriteError::Panicked)??)
}

/// One attempt to make a plan the latest revision.
struct Commit<'a> {
    turn: &'a Turn<'a>,
    present: &'a Snapshot,
    intent: &'a Intent,
    conditions: &'a Conditions,
    now: SystemTime,
}

impl Commit<'_> {
    /// `None` where another replica was first.
    async fn run(self, plan: Plan) -> Result<Option<Written>, WriteError> {
        let Plan {
            resources, changes, ..
        } = plan;
        let changed = changes.iter().filter(|change| change.is_change());
        let mut changed: Vec<_> = changed.map(Change::reference).collect();
        let stored_anew = self.intent.stored_anew(&resources);
        changed.extend(stored_anew.iter().cloned());
        let keeper = self.turn.keeper();
        let draft = keeper.draft(self.present.state(), resources, &changed);
        let bytes = draft.state().layout.bytes();
        if bytes > STATE_MAX {
            return Err(Refusal::Invalid(vec![Violation {
                path: "resources".to_owned(),
                problem: format!(
                    "all resources together would take {bytes} bytes; right is at most {STATE_MAX}"
                ),
            }])
            .into());
        }
        if !stored_anew.is_empty() && draft.state().hash() == self.present.hash() {
            return Ok(Some(Written {
                revision: self.present.revision(),
                state_hash: self.present.hash(),
                changes,
                mass_deletion: None,
                outcome: Outcome::Unchanged,
            }));
        }
        let record = self.record(&draft, &changes);
        let (created, updated, deleted) = (record.created, record.updated, record.deleted);
        let committed = self.turn.commit(self.present, draft, record).await?;
        Ok(committed.map(|committed| {
            tracing::info!(
                revision = committed.revision().0,
                author = self.conditions.author.name,
                created,
                updated,
                deleted,
                "committed"
            );
            Written {
                revision: committed.revision(),
                state_hash: committed.hash(),
                changes,
                mass_deletion: None,
                outcome: Outcome::Committed,
            }
        }))
    }

    /// The first revision of a store names it.
    fn store(&self) -> StoreName {
        let keeper = self.turn.keeper();
        let name = || StoreName::new([keeper.random(), keeper.random()]);
        self.present.store().unwrap_or_else(name)
    }

    fn record(&self, draft: &Draft, changes: &[Change]) -> Record {
        let count = |wanted: fn(&Change) -> bool| {
            let count = changes.iter().filter(|change| wanted(change)).count();
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        Record {
            revision: draft.state().revision,
            committed_at: self.now,
            author: self.conditions.author.clone(),
            message: self.conditions.message.clone(),
            created: count(|change| matches!(change, Change::Created(_))),
            updated: count(|change| matches!(change, Change::Updated { .. })),
            deleted: count(|change| matches!(change, Change::Deleted(_))),
            rollback_of: self.intent.rollback_of(),
            rollout: self.conditions.canary.clone().map(|canary| Rollout {
                canary,
                stable: self.present.revision(),
            }),
            promotion_of: matches!(self.intent, Intent::Promote(_))
                .then(|| self.present.revision()),
            state_hash: draft.state().hash(),
            request: self.conditions.request.clone(),
            traceparent: telemetry::current_traceparent().unwrap_or_default(),
            store: Some(self.store()),
        }
    }
}
