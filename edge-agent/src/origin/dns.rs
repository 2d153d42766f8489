//! Following the names of `origin_dns`: asked on the control runtime, before
//! what is known runs out, and never on the way of a connection, unless it
//! comes before the first answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyport_model::{
    backoff::Backoff,
    dns::{Answer, Question, refresh_after},
    outcome::Status,
};
use anyport_node::metrics::registered;
use arc_swap::ArcSwap;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use tokio::{
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{Resolver, resolver::Resolved};
use crate::{
    control::SharedTable,
    stats::Stats,
    table::{Snapshot, Target, Unknown},
};

/// Questions that are asked at the same time.
const AT_ONCE: usize = 64;

/// Between attempts, while the servers do not answer or know no such name.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why a name stands for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    pub status: Status,
    pub reason: Arc<str>,
}

/// What is known of a name.
#[derive(Debug, Clone)]
pub enum Standing {
    /// It was not asked yet. Closed when it was.
    Pending(watch::Receiver<()>),
    Answered(Arc<Answer>),
    /// It was never answered.
    Failed(Failed),
}

/// What is known of all names in use.
pub struct Names {
    known: BTreeMap<Question, Known>,
    wanted: watch::Sender<Arc<BTreeSet<Question>>>,
}

struct Known {
    standing: Standing,
    /// For those who wait; gone with the first answer.
    waiters: Waiters,
}

/// Dropped, it lets those go on who wait for the first answer.
pub struct Waiters(
    #[expect(dead_code, reason = "dropping it is its use")] Option<watch::Sender<()>>,
);

impl Default for Names {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            wanted: watch::Sender::new(Arc::default()),
        }
    }
}

impl Names {
    /// The questions that have to be asked.
    pub fn wanted(&self) -> watch::Receiver<Arc<BTreeSet<Question>>> {
        self.wanted.subscribe()
    }

    /// From now on, the name is one of them.
    pub fn want(&mut self, question: &Question) {
        if !self.known.contains_key(question) {
            let (waiters, first) = watch::channel(());
            let known = Known {
                standing: Standing::Pending(first),
                waiters: Waiters(Some(waiters)),
            };
            self.known.insert(question.clone(), known);
        }
    }

    pub fn standing(&self, question: &Question) -> Standing {
        match self.known.get(question) {
            Some(known) => known.standing.clone(),
            None => Standing::Failed(Failed {
                status: Status::Internal,
                reason: "nobody asks for this name".into(),
            }),
        }
    }

    /// Takes what was said of a name. `Some` where that changes what is known:
    /// to be dropped when the change is in use.
    pub fn take(&mut self, question: &Question, said: Result<Answer, Failed>) -> Option<Waiters> {
        let known = self.known.get_mut(question)?;
        match (&known.standing, &said) {
            // The last good answer outlives all failures.
            (Standing::Answered(_), Err(_)) => return None,
            (Standing::Answered(old), Ok(new)) if **old == *new => return None,
            (Standing::Failed(old), Err(new)) if old == new => return None,
            _ => {}
        }
        known.standing = match said {
            Ok(answer) => Standing::Answered(Arc::new(answer)),
            Err(failed) => Standing::Failed(failed),
        };
        Some(std::mem::replace(&mut known.waiters, Waiters(None)))
    }

    /// Only these are in use.
    pub fn retain(&mut self, used: &BTreeSet<Question>) {
        self.known.retain(|question, _| used.contains(question));
        self.wanted.send_if_modified(|wanted| {
            let changed = !wanted.iter().eq(self.known.keys());
            if changed {
                *wanted = Arc::new(self.known.keys().cloned().collect());
            }
            changed
        });
    }
}

/// Where the target's name is not resolved yet: waits for that, as long as the
/// app's connect timeout allows, and gives the table that has it.
pub async fn resolved(
    target: Target<'_>,
    table: &ArcSwap<Snapshot>,
    since: Instant,
) -> Option<Arc<Snapshot>> {
    let Some(Unknown::Pending(first)) = &target.pool.unknown else {
        return None;
    };
    let mut first = first.clone();
    let left = target
        .app
        .app
        .timeouts
        .connect
        .saturating_sub(since.elapsed());
    // That nobody sends any more is what is waited for.
    let _ = timeout(left, first.changed()).await;
    Some(table.load_full())
}

/// Counters of the questions. Apps that ask the same share a series.
pub struct DnsStats {
    lookups: IntCounterVec,
    places: IntGaugeVec,
    answered: GaugeVec,
}

impl DnsStats {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let labels = &["name", "type"];
        Ok(Self {
            lookups: registered(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "anyport_dns_lookups_total",
                        "Lookups for origin_dns, by outcome: answered, no_record, failed.",
                    ),
                    &["name", "type", "outcome"],
                ),
            )?,
            places: registered(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "anyport_dns_origins",
                        "Origins that a name stands for, by the answer in use.",
                    ),
                    labels,
                ),
            )?,
            answered: registered(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "anyport_dns_answered_timestamp_seconds",
                        "When the answer in use was last confirmed, in Unix time.",
                    ),
                    labels,
                ),
            )?,
        })
    }

    fn said(&self, question: &Question, said: &Result<Resolved, Failed>) {
        let labels = [question.name.as_str(), question.record.as_str()];
        let outcome = match said {
            Ok(resolved) => {
                let count = resolved.answer.places().len();
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.places.with_label_values(&labels).set(count);
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let now = now.unwrap_or_default().as_secs_f64();
                self.answered.with_label_values(&labels).set(now);
                "answered"
            }
            Err(failed) if failed.status == Status::Unresolvable => "no_record",
            Err(_) => "failed",
        };
        let [name, record] = labels;
        let labels = [name, record, outcome];
        self.lookups.with_label_values(&labels).inc();
    }

    /// An absent series is what is wanted, so that it was absent is no error.
    fn forget(&self, question: &Question) {
        let labels = [question.name.as_str(), question.record.as_str()];
        let _ = self.places.remove_label_values(&labels);
        let _ = self.answered.remove_label_values(&labels);
        let [name, record] = labels;
        for outcome in ["answered", "no_record", "failed"] {
            let _ = self.lookups.remove_label_values(&[name, record, outcome]);
        }
    }
}

/// Asks for all that is wanted, again and again, without end.
pub async fn follow_dns(
    mut wanted: watch::Receiver<Arc<BTreeSet<Question>>>,
    resolver: Resolver,
    table: SharedTable,
    stats: Arc<Stats>,
) {
    let asker = Arc::new(Asker {
        resolver,
        table,
        stats,
        turns: Semaphore::new(AT_ONCE),
    });
    let mut tasks = JoinSet::new();
    let mut asked: BTreeMap<Question, AbortHandle> = BTreeMap::new();
    loop {
        let questions = Arc::clone(&wanted.borrow_and_update());
        asked.retain(|question, task| {
            let keep = questions.contains(question);
            if !keep {
                task.abort();
                asker.stats.dns.forget(question);
            }
            keep
        });
        for question in questions.iter() {
            if !asked.contains_key(question) {
                let follow = Arc::clone(&asker).follow(question.clone());
                asked.insert(question.clone(), tasks.spawn(follow));
            }
        }
        while tasks.try_join_next().is_some() {}
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

struct Asker {
    resolver: Resolver,
    table: SharedTable,
    stats: Arc<Stats>,
    turns: Semaphore,
}

impl Asker {
    async fn follow(self: Arc<Self>, question: Question) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut failing = false;
        let mut answered = false;
        loop {
            let said = {
                // Never closed, so there is always a turn.
                let _turn = self.turns.acquire().await;
                self.resolver.ask(&question).await
            };
            self.stats.dns.said(&question, &said);
            let pause = match &said {
                Ok(resolved) => {
                    if failing {
                        tracing::info!(%question, "the name is resolved again");
                    }
                    (failing, answered) = (false, true);
                    backoff.reset();
                    refresh_after(question.lifetime(resolved.ttl), rand::random())
                }
                Err(failed) => {
                    if !failing {
                        let reason = &failed.reason;
                        let stays = if answered {
                            "the last answer stays"
                        } else {
                            "no origin"
                        };
                        tracing::warn!(%question, %reason, "the name is not resolved; {stays}");
                    }
                    failing = true;
                    backoff.pause(rand::random())
                }
            };
            let said = said.map(|resolved| resolved.answer);
            self.table.lock().resolved(&question, said);
            sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use anyport_model::dns::RecordType;

    fn question(name: &str) -> Question {
        Question {
            name: name.parse().unwrap(),
            record: RecordType::A,
            ttl: None,
        }
    }

    fn answer(host: u8) -> Answer {
        Answer::of_addresses([[10, 0, 2, host].into()]).unwrap()
    }

    fn failed(status: Status) -> Failed {
        Failed {
            status,
            reason: "so".into(),
        }
    }

    #[test]
    fn the_last_good_answer_outlives_every_failure() {
        let mut names = Names::default();
        let question = question("game.internal");
        names.want(&question);
        assert!(
            names
                .take(&question, Err(failed(Status::ResolveFailed)))
                .is_some()
        );
        assert!(
            names
                .take(&question, Err(failed(Status::ResolveFailed)))
                .is_none()
        );
        assert!(names.take(&question, Ok(answer(2))).is_some());
        assert!(names.take(&question, Ok(answer(2))).is_none(), "no change");
        for status in [Status::ResolveFailed, Status::Unresolvable] {
            assert!(names.take(&question, Err(failed(status))).is_none());
        }
        names.want(&question);
        let standing = names.standing(&question);
        assert!(matches!(standing, Standing::Answered(a) if *a == answer(2)));
        assert!(names.take(&question, Ok(answer(3))).is_some());
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_the_answer_is_in_use() {
        let mut names = Names::default();
        let question = question("game.internal");
        names.want(&question);
        let Standing::Pending(mut first) = names.standing(&question) else {
            panic!("nothing was said");
        };
        let waiters = names.take(&question, Ok(answer(2))).unwrap();
        assert!(
            timeout(Duration::from_millis(20), first.changed())
                .await
                .is_err()
        );
        drop(waiters);
        assert!(first.changed().await.is_err());
    }

    #[test]
    fn names_that_nobody_uses_are_no_longer_asked() {
        let mut names = Names::default();
        let mut wanted = names.wanted();
        let both = [question("a.internal"), question("b.internal")];
        both.iter().for_each(|question| names.want(question));
        names.retain(&both.clone().into());
        assert_eq!(wanted.borrow_and_update().len(), 2);
        names.retain(&both.clone().into());
        assert!(!wanted.has_changed().unwrap(), "nothing new");
        names.retain(&[both[1].clone()].into());
        assert_eq!(**wanted.borrow_and_update(), [both[1].clone()].into());
        assert!(names.take(&both[0], Ok(answer(2))).is_none());
    }
}
