//! How long revisions are kept, and what becomes of the others.
//!
//! Objects are shared among revisions, and a writer that dies leaves some that
//! no revision needs. So what is not needed is found by looking at all that is
//! needed, up to the head. Another replica may write meanwhile: the store deletes
//! only while the head is the one that was looked at, and a writer whose objects
//! may have been among the deleted ones writes them again (see
//! [`Store::forget`](crate::store::Store::forget)).

use std::{
    collections::HashSet,
    convert::Infallible,
    num::NonZeroU64,
    time::{Duration, SystemTime},
};

use anyport_model::{duration::parse_duration, names::Revision};
use tokio::time::Instant;

use super::{keeper::Keeper, layout::Layout};
use crate::{
    store::{Head, ObjectId, Record, StoreError},
    trouble::Trouble,
};

/// Between two looks at what is kept, at least and, where nothing is written, at
/// most. Replicas are spread over it, so that they do not all do the same work.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Objects that no revision needs are looked for this often, where no revision
/// was forgotten.
const SWEEP: Duration = Duration::from_secs(3600);
const RECORDS_AT_ONCE: usize = 250;
/// Writes that may come between while objects are deleted.
const ATTEMPTS: usize = 100;

/// How long revisions are kept. Both limits count: what is beyond either of them
/// goes. The present revision stays in any case, and the one before as long as
/// the present one is tried by some only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Retention {
    /// How many revisions are kept, to look at and to go back to; a tenth more may
    /// be there for a while. At least 10
    #[arg(
        long = "keep-revisions",
        env = "ANYPORT_KEEP_REVISIONS",
        value_name = "NUMBER",
        default_value = "1000",
        value_parser = at_least_ten
    )]
    pub revisions: NonZeroU64,
    /// How long a revision is kept after another one took its place, such as 30d;
    /// of --keep-revisions and this, the one that keeps less counts [default: for
    /// ever]
    #[arg(
        long = "keep-for",
        env = "ANYPORT_KEEP_FOR",
        value_name = "TIME",
        value_parser = parse_duration
    )]
    pub time: Option<Duration>,
}

fn at_least_ten(text: &str) -> Result<NonZeroU64, String> {
    let number: Option<NonZeroU64> = text.parse().ok();
    let number = number.filter(|number| number.get() >= 10);
    number.ok_or_else(|| "right is a whole number from 10".to_owned())
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            revisions: NonZeroU64::MIN.saturating_add(999),
            time: None,
        }
    }
}

impl Retention {
    /// The oldest revision to keep, of records with the newest first. `None`: of
    /// these, all.
    fn oldest_kept<'a>(
        &self,
        records: impl IntoIterator<Item = &'a Record>,
        now: SystemTime,
    ) -> Option<Revision> {
        let mut newer: Option<&Record> = None;
        for (index, record) in (0..).zip(records) {
            if let Some(newer) = newer
                && !(index == 1 && newer.rollout.is_some())
                && (index >= self.revisions.get() || self.is_expired(newer.committed_at, now))
            {
                return Some(newer.revision);
            }
            newer = Some(record);
        }
        None
    }

    fn is_expired(&self, replaced_at: SystemTime, now: SystemTime) -> bool {
        // A time to come is that of a clock that was ahead.
        let age = now.duration_since(replaced_at).unwrap_or_default();
        self.time.is_some_and(|time| age > time)
    }

    /// Is it worth the work? `replaced_at` is when the oldest revision was.
    fn is_due(
        &self,
        oldest: Revision,
        present: Revision,
        replaced_at: Option<SystemTime>,
        now: SystemTime,
    ) -> bool {
        let count = present.0.saturating_sub(oldest.0).saturating_add(1);
        let most = self.revisions.get();
        let patience = self.time.map_or(Duration::ZERO, |time| time / 10);
        let expired = |at| {
            let now = now.checked_sub(patience);
            now.is_some_and(|now| self.is_expired(at, now))
        };
        count > most.saturating_add(most / 10) || replaced_at.is_some_and(expired)
    }
}

/// What went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten {
    /// The oldest revision that is kept.
    pub oldest: Revision,
    pub objects: usize,
}

/// Forgets what is beyond `retention`, without end.
pub async fn tidy(keeper: &Keeper, retention: Retention) -> Infallible {
    let mut trouble = Trouble::new("forgetting old revisions");
    let mut present = keeper.subscribe();
    let mut swept = Instant::now();
    loop {
        let apart = SHORTEST_PAUSE.mul_f64(1.0 + rand::random::<f64>());
        tokio::time::sleep(apart).await;
        let now = SystemTime::now();
        let done = async {
            if swept.elapsed() < SWEEP && !is_due(keeper, retention, now).await? {
                return Ok(());
            }
            swept = Instant::now();
            if let Some(Forgotten { oldest, objects }) = forget(keeper, retention, now).await? {
                tracing::info!(oldest = oldest.0, objects, "forgot what is not kept");
            }
            Ok(())
        };
        let done: Result<(), StoreError> = done.await;
        match done {
            Ok(()) => trouble.over(),
            Err(error) => tokio::time::sleep(trouble.again(&error, rand::random())).await,
        }
        let moved = tokio::time::timeout(LONGEST_PAUSE, present.changed());
        // Cannot fail: `keeper` holds the sender.
        let _ = moved.await;
    }
}

async fn is_due(
    keeper: &Keeper,
    retention: Retention,
    now: SystemTime,
) -> Result<bool, StoreError> {
    let (Some(present), Some(oldest)) = (keeper.present(), keeper.store().oldest().await?) else {
        return Ok(false);
    };
    let replaced_at = match retention.time {
        None => None,
        Some(_) => {
            let next = keeper.store().record(oldest.revision.next()).await?;
            next.map(|record| record.committed_at)
        }
    };
    Ok(retention.is_due(oldest.revision, present.revision(), replaced_at, now))
}

/// Forgets what is beyond `retention`, and every object that no kept revision
/// needs. `None`: other writes came between too often, or another replica does the
/// same, and what is left is for the next time.
///
/// # Errors
/// Where the store cannot be read or written.
pub async fn forget(
    keeper: &Keeper,
    retention: Retention,
    now: SystemTime,
) -> Result<Option<Forgotten>, StoreError> {
    let store = keeper.store();
    let stored = store.stored().await?;
    let mut head = store.head().await?;
    let records = kept_records(keeper, &head, retention, now).await?;
    let Some(oldest) = records.last().map(|record| record.revision) else {
        return Ok(None);
    };
    let Some(mut needed) = needed(keeper, &records).await? else {
        return Ok(None);
    };
    let mut turn = None;
    for _ in 0..ATTEMPTS {
        let unused: Vec<ObjectId> = stored
            .iter()
            .filter(|id| !needed.contains(id))
            .copied()
            .collect();
        if store.forget(&head, oldest, &unused).await? {
            let objects = unused.len();
            return Ok(Some(Forgotten { oldest, objects }));
        }
        // Somebody wrote. Here nobody does any more meanwhile: who writes without end
        // would else come between without end.
        if turn.is_none() {
            turn = Some(keeper.turn().await?);
        }
        // What came between may need some of them.
        let seen = head.revision();
        head = store.head().await?;
        let newer = store
            .records_below(head.revision().next(), RECORDS_AT_ONCE)
            .await?;
        let newer = newer.into_iter().take_while(|r| r.revision > seen);
        let newer: Vec<Record> = newer.collect();
        if newer.len() == RECORDS_AT_ONCE || head.revision() <= seen {
            return Ok(None);
        }
        let Some(newly) = self::needed(keeper, &newer).await? else {
            return Ok(None);
        };
        needed.extend(newly);
    }
    Ok(None)
}

/// The records to keep, newest first.
async fn kept_records(
    keeper: &Keeper,
    head: &Head,
    retention: Retention,
    now: SystemTime,
) -> Result<Vec<Record>, StoreError> {
    let mut records: Vec<Record> = head.record.iter().cloned().collect();
    let mut below = head.revision();
    loop {
        let more = keeper.store().records_below(below, RECORDS_AT_ONCE).await?;
        let Some(last) = more.last() else {
            return Ok(records);
        };
        below = last.revision;
        records.extend(more);
        if let Some(oldest) = retention.oldest_kept(&records, now) {
            records.retain(|record| record.revision >= oldest);
            return Ok(records);
        }
    }
}

/// Every object that these revisions consist of. `None`: another replica, which
/// knows of later ones, forgot some of them meanwhile.
async fn needed(
    keeper: &Keeper,
    records: &[Record],
) -> Result<Option<HashSet<ObjectId>>, StoreError> {
    match objects_of(keeper, records).await {
        Ok(needed) => Ok(Some(needed)),
        Err(damaged @ StoreError::Corrupt { .. }) => {
            let oldest = keeper.store().oldest().await?;
            let is_kept = |record: &Record| {
                let oldest = oldest.as_ref().map(|oldest| oldest.revision);
                oldest.is_some_and(|oldest| record.revision >= oldest)
            };
            match records.iter().all(is_kept) {
                true => Err(damaged),
                false => Ok(None),
            }
        }
        Err(error) => Err(error),
    }
}

async fn objects_of(keeper: &Keeper, records: &[Record]) -> Result<HashSet<ObjectId>, StoreError> {
    let layouts: HashSet<ObjectId> = records.iter().map(|record| record.state_hash).collect();
    // The layout of no resources is known without being stored.
    let empty = Layout::empty().id();
    let layouts: Vec<ObjectId> = layouts.into_iter().filter(|id| *id != empty).collect();
    let mut needed = HashSet::new();
    for some in layouts.chunks(RECORDS_AT_ONCE) {
        for (id, bytes) in some.iter().zip(keeper.store().objects(some).await?) {
            let layout = Layout::decode(&bytes)
                .map_err(|error| StoreError::corrupt(format_args!("object {id}"), error))?;
            needed.extend(layout.objects());
        }
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use anyport_model::rollout::{Canary, Rollout};
    use anyport_proto::v1;

    use super::*;
    use crate::{
        admit::{Conditions, Intent, Writer, read_apply},
        store::{Store, embedded::Embedded},
    };

    const DAY: Duration = Duration::from_secs(86_400);

    /// Revisions 1 to `last`, each made a day after the one before, newest first.
    fn one_a_day(last: u64) -> Vec<Record> {
        let record = |revision: u64| Record {
            revision: Revision(revision),
            committed_at: at(revision),
            author: Default::default(),
            message: String::new(),
            created: 0,
            updated: 0,
            deleted: 0,
            rollback_of: None,
            rollout: None,
            promotion_of: None,
            state_hash: Layout::empty().id(),
            request: None,
            traceparent: String::new(),
            store: None,
        };
        (1..=last).rev().map(record).collect()
    }

    fn at(day: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * u32::try_from(day).unwrap()
    }

    fn keep(revisions: u64, days: Option<u32>) -> Retention {
        Retention {
            revisions: NonZeroU64::new(revisions).unwrap(),
            time: days.map(|days| DAY * days),
        }
    }

    #[test]
    fn the_limit_that_keeps_less_counts_and_the_present_stays() {
        let hour = DAY / 24;
        for (retention, now, oldest) in [
            (keep(1000, None), at(40), None),
            (keep(40, None), at(40), None),
            (keep(10, None), at(40), Some(31)),
            (keep(1, None), at(40), Some(40)),
            // Revision 29 was in force until day 30.
            (keep(1000, Some(10)), at(40), Some(29)),
            (keep(1000, Some(10)), at(40) + hour, Some(30)),
            (keep(15, Some(10)), at(40), Some(29)),
            (keep(5, Some(10)), at(40), Some(36)),
            (keep(1000, Some(10)), at(1000), Some(40)),
            // A clock that was ahead.
            (keep(1000, Some(10)), at(0), None),
        ] {
            let records = one_a_day(40);
            let found = retention.oldest_kept(&records, now);
            assert_eq!(found.map(|r| r.0), oldest, "{retention:?}");
        }
        assert_eq!(keep(10, None).oldest_kept(&[], at(0)), None);
    }

    #[test]
    fn what_all_others_have_stays_while_some_try_the_next() {
        let mut records = one_a_day(40);
        records[0].rollout = Some(Rollout {
            canary: Canary {
                edges: ["a".parse().unwrap()].into(),
                promote_after: None,
            },
            stable: Revision(39),
        });
        let found = keep(1, Some(1)).oldest_kept(&records, at(1000));
        assert_eq!(found, Some(Revision(39)));
    }

    #[test]
    fn it_is_due_when_a_tenth_more_is_there() {
        let due = |retention: Retention, oldest, present, replaced_at: Option<u64>, now| {
            let (oldest, present) = (Revision(oldest), Revision(present));
            retention.is_due(oldest, present, replaced_at.map(at), at(now))
        };
        assert!(!due(keep(100, None), 1, 110, None, 0));
        assert!(due(keep(100, None), 1, 111, None, 0));
        assert!(!due(keep(100, None), 12, 111, None, 0));
        assert!(!due(keep(100, Some(10)), 1, 2, Some(5), 16));
        assert!(due(keep(100, Some(10)), 1, 2, Some(5), 17));
        assert!(!due(keep(100, Some(10)), 2, 2, None, 1000), "the present");
    }

    #[test]
    fn fewer_than_ten_revisions_are_no_history() {
        for text in ["0", "9", "-1", "many"] {
            assert_eq!(
                at_least_ten(text).unwrap_err(),
                "right is a whole number from 10"
            );
        }
        assert_eq!(at_least_ten("10").unwrap().get(), 10);
    }

    #[tokio::test]
    async fn what_another_replica_forgot_meanwhile_is_no_damage() {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(directory.path()).unwrap());
        let keeper = Keeper::new(Arc::clone(&store));
        let writer = Writer::new(keeper.clone());
        for number in 1..=30 {
            let cidr = format!("198.51.100.{number}/32");
            let kind = v1::resource::Kind::Prefix(v1::Prefix { cidr });
            let intent = Intent::Apply {
                request: read_apply(vec![v1::Resource { kind: Some(kind) }]),
                prune: false,
            };
            let written = writer.write(intent, Conditions::default(), SystemTime::now);
            written.await.unwrap();
        }
        let records = store.records_below(Revision(31), 20).await.unwrap();
        assert!(needed(&keeper, &records).await.unwrap().is_some());
        let forgotten = forget(&keeper, keep(10, None), SystemTime::now()).await;
        assert_eq!(forgotten.unwrap().unwrap().oldest, Revision(21));
        assert_eq!(needed(&keeper, &records).await.unwrap(), None);

        let kept = store.records_below(Revision(31), 10).await.unwrap();
        let layouts: Vec<ObjectId> = kept.iter().map(|record| record.state_hash).collect();
        let head = store.head().await.unwrap();
        assert!(store.forget(&head, Revision(21), &layouts).await.unwrap());
        let damaged = needed(&keeper, &kept).await.unwrap_err();
        assert!(matches!(damaged, StoreError::Corrupt { .. }), "{damaged}");
    }
}
