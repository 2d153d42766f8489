//! The one task that owns the [`Engine`]: it has the clock, makes the probes,
//! and hands out what comes of them.
//!
//! One owner instead of a lock: an event is taken in whole, and what readers get
//! is a value of its own that nobody changes.

use std::{
    collections::HashMap,
    mem,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyport_model::{
    health::Now,
    names::{NodeName, PoolName, Revision},
};
use anyport_node::ready::{Condition, Readiness, Remark};
use anyport_proto::{convert::write_pool_health, v1};
use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{Id, JoinSet},
};

use crate::{
    engine::{Engine, Ticket},
    health::{DialReport, Turn},
    membership::{Members, OriginKey},
    metrics::Metrics,
    pace::{Pace, Rate},
    peers::{Heard, Set, Verdicts},
    probe::{
        Opener, Outcome,
        failure::{Blame, Failure},
        probe,
    },
    weights::Table,
};

/// Probes under way at once, at most; more wait. Each holds a descriptor, for at
/// most its attempts' timeouts.
const PROBES_MAX: u64 = 4096;
/// Of the descriptors that the process may have, probes take a part of this many:
/// `anyport up` needs the others for connections.
const PROBES_PART: u64 = 4;
/// Between two starts on average, however many are due: after the process was
/// stopped for a while, all are.
const START_GAP: Duration = Duration::from_micros(100);
/// Starts at once.
const STARTS: u32 = 64;
/// Events that may wait for the driver; then those who bring them wait.
const COMMANDS: usize = 64;
/// Between two tables: an outage turns many verdicts within milliseconds, and
/// every table goes to every edge.
const TABLE_GAP: Duration = Duration::from_millis(50);
/// Between two reports to the config service. How long probes took is no change
/// worth a report: it goes along with the next one.
const REPORT_GAP: Duration = Duration::from_secs(1);

/// Between two turns of the driver, at most.
const TURN_MAX: Duration = Duration::from_secs(1);
/// Who has made no turn for so long was stopped.
const STOPPED: Duration = Duration::from_secs(5);

/// How long it is told that a probe could not be made.
const HINDERED: Duration = Duration::from_secs(60);

/// The latest table; `None` until there is one to go by.
pub(crate) type Tables = watch::Receiver<Option<Arc<Table>>>;
/// The latest report for the config service.
pub(crate) type Reports = watch::Receiver<Option<v1::Report>>;

/// What a driver publishes.
#[derive(Clone)]
pub(crate) struct Publications {
    pub(crate) tables: Tables,
    pub(crate) reports: Reports,
    /// What other balancers are told; `None` until there are some.
    pub(crate) verdicts: watch::Receiver<Option<Arc<Verdicts>>>,
    /// The epoch that other balancers go by already, where that is a later one: edges
    /// are better off with them.
    pub(crate) superseded: watch::Receiver<Option<u64>>,
}

enum Command {
    Configure {
        revision: Revision,
        members: Members,
        done: oneshot::Sender<()>,
    },
    Reported {
        edge: NodeName,
        reports: Vec<DialReport>,
    },
    TakePart {
        me: NodeName,
        set: Set,
    },
    Heard {
        peer: NodeName,
        heard: Heard,
    },
    Unheard {
        peer: NodeName,
    },
    Health {
        pool: Option<PoolName>,
        answer: oneshot::Sender<Holdings>,
    },
}

/// What is held of pools, and the configuration that they are from.
#[derive(Debug)]
pub(crate) struct Holdings {
    pub(crate) revision: Revision,
    pub(crate) pools: Vec<v1::PoolHealth>,
}

/// Talks to the driver. Clones talk to the same one.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    has_configuration: watch::Receiver<bool>,
}

/// The driver's task has ended, so the process is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the balancer is stopping")]
pub(crate) struct Stopped;

impl Handle {
    /// Has there been a configuration since the process started?
    pub(crate) fn has_configuration(&self) -> bool {
        *self.has_configuration.borrow()
    }

    /// Returns once the configuration is in use, or the process stops.
    pub(crate) async fn configure(&self, revision: Revision, members: Members) {
        let (done, in_use) = oneshot::channel();
        let command = Command::Configure {
            revision,
            members,
            done,
        };
        if self.commands.send(command).await.is_ok() {
            let _ = in_use.await;
        }
    }

    pub(crate) async fn reported(
        &self,
        edge: NodeName,
        reports: Vec<DialReport>,
    ) -> Result<(), Stopped> {
        let command = Command::Reported { edge, reports };
        self.commands.send(command).await.map_err(|_| Stopped)
    }

    /// These take part from now on, `me` among them.
    pub(crate) async fn take_part(&self, me: NodeName, set: Set) {
        self.tell(Command::TakePart { me, set }).await;
    }

    /// Another balancer said something.
    pub(crate) async fn heard(&self, peer: NodeName, heard: Heard) {
        self.tell(Command::Heard { peer, heard }).await;
    }

    /// Another balancer says nothing any more.
    pub(crate) async fn unheard(&self, peer: NodeName) {
        self.tell(Command::Unheard { peer }).await;
    }

    /// To a process that stops, nothing matters any more.
    async fn tell(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    /// Of one pool, or of all.
    pub(crate) async fn health(&self, pool: Option<PoolName>) -> Result<Holdings, Stopped> {
        let (answer, holdings) = oneshot::channel();
        let command = Command::Health { pool, answer };
        self.commands.send(command).await.map_err(|_| Stopped)?;
        holdings.await.map_err(|_| Stopped)
    }
}

/// See the module.
pub(crate) struct Driver {
    engine: Engine,
    opener: Opener,
    commands: mpsc::Receiver<Command>,
    probes: JoinSet<Outcome>,
    under_way: HashMap<Id, Ticket>,
    /// At most so many are under way.
    room: usize,
    starts: Rate,
    /// When pools were last weighed.
    weighed: Option<Instant>,
    tables: watch::Sender<Option<Arc<Table>>>,
    /// As it was last told to edges.
    told: Arc<Table>,
    table_pace: Pace,
    reports: watch::Sender<Option<v1::Report>>,
    report_pace: Pace,
    verdicts: watch::Sender<Option<Arc<Verdicts>>>,
    verdicts_pace: Pace,
    superseded: watch::Sender<Option<u64>>,
    /// When the last turn was.
    turned: Option<Instant>,
    metrics: Metrics,
    configured: Condition,
    has_configuration: watch::Sender<bool>,
    network: Condition,
    isolated: Option<String>,
    host: Remark,
    /// When a probe last failed through this host's fault, and how.
    hindered: Option<(Instant, mem::Discriminant<Failure>)>,
}

impl Driver {
    pub(crate) fn new(
        opener: Opener,
        metrics: Metrics,
        readiness: &Readiness,
    ) -> (Self, Handle, Publications) {
        let (commands, obeyed) = mpsc::channel(COMMANDS);
        let (tables, latest_table) = watch::channel(None);
        let (reports, latest_report) = watch::channel(None);
        let (verdicts, latest_verdicts) = watch::channel(None);
        let (superseded, is_superseded) = watch::channel(None);
        let (configured_once, has_configuration) = watch::channel(false);
        let configured = readiness.condition("config", "no configuration received yet");
        let network = readiness.condition("network", "starting");
        network.set_ready();
        let driver = Self {
            engine: Engine::new(),
            opener,
            commands: obeyed,
            probes: JoinSet::new(),
            under_way: HashMap::new(),
            room: room(getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(limit, _)| limit)),
            starts: Rate::new(START_GAP, STARTS),
            weighed: None,
            tables,
            told: Arc::default(),
            table_pace: Pace::new(TABLE_GAP),
            reports,
            report_pace: Pace::new(REPORT_GAP),
            verdicts,
            verdicts_pace: Pace::new(TABLE_GAP),
            superseded,
            turned: None,
            metrics,
            configured,
            has_configuration: configured_once,
            network,
            isolated: None,
            host: readiness.remark("probes"),
            hindered: None,
        };
        let handle = Handle {
            commands,
            has_configuration,
        };
        let publications = Publications {
            tables: latest_table,
            reports: latest_report,
            verdicts: latest_verdicts,
            superseded: is_superseded,
        };
        (driver, handle, publications)
    }

    /// Runs until every [`Handle`] is gone.
    pub(crate) async fn run(mut self) {
        loop {
            let now = now();
            self.watch_time(now);
            self.start_probes(now);
            for turn in self.engine.step(now) {
                log_turn(&turn);
            }
            self.watch_epoch(now);
            let wake = [
                self.weigh(now),
                self.publish_table(now),
                self.publish_report(now),
                self.publish_verdicts(now),
                self.next_start(now),
                self.engine.next_step(),
                // So that a time without a turn is one in which it did not run.
                Some(now.instant + TURN_MAX),
            ];
            let wake = wake.into_iter().flatten().min();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                Some(ended) = self.probes.join_next_with_id() => match ended {
                    Ok((id, outcome)) => self.finish(id, outcome),
                    Err(error) => self.finish(error.id(), Err(Failure::Broken(error.to_string()))),
                },
                () = sleep_until(wake) => {}
            }
        }
    }

    /// A process that was stopped has missed what its probes would have shown.
    fn watch_time(&mut self, now: Now) {
        let before = self.turned.replace(now.instant);
        let passed = before.map(|before| now.instant.saturating_duration_since(before));
        if passed > Some(STOPPED) {
            tracing::warn!(
                ?passed,
                "did not run: what it held counts when probes bear it out"
            );
            for turn in self.engine.resume(now) {
                log_turn(&turn);
            }
        }
    }

    fn start_probes(&mut self, now: Now) {
        while self.probes.len() < self.room
            && self.starts.due(now.instant) <= now.instant
            && let Some(ticket) = self.engine.start_due(now)
        {
            self.starts.took(now.instant);
            let (opener, target) = (self.opener.clone(), ticket.target.clone());
            let task = self
                .probes
                .spawn(async move { probe(&opener, &target).await });
            self.under_way.insert(task.id(), ticket);
        }
    }

    /// `None` also while a probe must end before the next can start.
    fn next_start(&self, now: Now) -> Option<Instant> {
        let room = self.probes.len() < self.room;
        let due = self.engine.next_probe().filter(|_| room)?;
        Some(due.max(self.starts.due(now.instant)))
    }

    fn finish(&mut self, id: Id, outcome: Outcome) {
        let Some(ticket) = self.under_way.remove(&id) else {
            return;
        };
        let now = now();
        self.metrics.probed(now.instant - ticket.started, &outcome);
        self.watch_host(now, &ticket, &outcome);
        for turn in self.engine.finished(now, ticket, outcome, rand::random()) {
            log_turn(&turn);
        }
        self.watch_network();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Configure {
                revision,
                members,
                done,
            } => {
                self.engine.configure(now(), revision, members);
                self.watch_network();
                self.metrics.configured(revision);
                self.has_configuration.send_replace(true);
                self.configured.set_ready();
                // Nobody may be waiting any more.
                let _ = done.send(());
            }
            Command::Reported { edge, reports } => {
                for turn in self.engine.reported(now(), &edge, &reports) {
                    log_turn(&turn);
                }
            }
            Command::TakePart { me, set } => {
                let (epoch, members) = (set.epoch, set.members.len());
                for turn in self.engine.take_part(now(), &me, set) {
                    log_turn(&turn);
                }
                self.watch_network();
                self.metrics.takes_part(epoch, members);
                self.metrics.hears(self.engine.peers_heard());
                tracing::info!(epoch, members, "takes part with the balancers of this set");
            }
            Command::Heard { peer, heard } => {
                for turn in self.engine.heard(now(), &peer, heard) {
                    log_turn(&turn);
                }
                self.metrics.hears(self.engine.peers_heard());
            }
            Command::Unheard { peer } => {
                for turn in self.engine.unheard(now(), &peer) {
                    log_turn(&turn);
                }
                self.metrics.hears(self.engine.peers_heard());
            }
            Command::Health { pool, answer } => {
                let now = now();
                self.engine.weigh(now);
                let _ = answer.send(Holdings {
                    revision: self.engine.revision(),
                    pools: pool_health(&self.engine, pool.as_ref()),
                });
            }
        }
    }

    /// A probe that this host could not make leaves everything as it is, so who
    /// wonders why is told elsewhere.
    fn watch_host(&mut self, now: Now, ticket: &Ticket, outcome: &Outcome) {
        match outcome {
            Err(failure) if failure.blame() == Blame::Host => {
                let kind = mem::discriminant(failure);
                if self.hindered.is_none_or(|(_, told)| told != kind) {
                    let origin = &ticket.key;
                    tracing::warn!(%origin, "a probe says nothing of its origin: {failure}");
                    self.host.say(failure);
                }
                self.hindered = Some((now.instant, kind));
            }
            _ if self
                .hindered
                .is_some_and(|(at, _)| now.instant > at + HINDERED) =>
            {
                self.hindered = None;
                self.host.withdraw();
            }
            _ => {}
        }
    }

    fn watch_network(&mut self) {
        let reason = self.engine.isolated();
        if reason == self.isolated.as_deref() {
            return;
        }
        let reason = reason.map(str::to_owned);
        let before = std::mem::replace(&mut self.isolated, reason);
        self.metrics.isolated(self.isolated.is_some());
        match &self.isolated {
            Some(reason) => {
                let said = format!(
                    "no probe of any origin leaves this host ({reason}); all verdicts are held"
                );
                // As often as the reason is another one, which is said, it is no news.
                if before.is_none() {
                    tracing::warn!("{said}");
                }
                self.network.set_not_ready(said);
            }
            None => {
                tracing::info!("probes get through again");
                self.network.set_ready();
            }
        }
    }

    /// Weighs pools as often as tables may go out, however many verdicts there
    /// are meanwhile; returns when to do so next.
    fn weigh(&mut self, now: Now) -> Option<Instant> {
        if !self.engine.is_to_weigh() {
            return None;
        }
        let due = self.weighed.map_or(now.instant, |at| at + TABLE_GAP);
        if due > now.instant {
            return Some(due);
        }
        self.engine.weigh(now);
        self.weighed = Some(now.instant);
        None
    }

    /// Other balancers say at least once a second that they are there, so that this
    /// is looked at as often.
    fn watch_epoch(&mut self, now: Now) {
        let later = self.engine.superseded_by(now.instant);
        self.superseded.send_if_modified(|held| {
            let changed = held.is_some() != later.is_some();
            if let Some(epoch) = later.filter(|_| changed) {
                tracing::warn!(
                    epoch,
                    "other balancers go by a later set, of which this one was not told: \
                     edges are sent to them"
                );
            }
            *held = later;
            changed
        });
    }

    /// As [`publish_table`](Self::publish_table).
    fn publish_verdicts(&mut self, now: Now) -> Option<Instant> {
        let version = self.engine.verdicts_version();
        let due = self.verdicts_pace.due(version, now.instant)?;
        if due > now.instant {
            return Some(due);
        }
        self.verdicts_pace.acted(version, now.instant);
        self.verdicts
            .send_replace(self.engine.verdicts().map(Arc::new));
        None
    }

    /// Publishes what is due; returns when to look again.
    fn publish_table(&mut self, now: Now) -> Option<Instant> {
        if !self.engine.settle(now) {
            // Edges keep what they have. Who comes now is told nothing of before.
            self.tables.send_if_modified(|held| held.take().is_some());
            return self.engine.settles_at();
        }
        let version = self.engine.weights_version();
        let due = self.table_pace.due(version, now.instant)?;
        if due > now.instant {
            return Some(due);
        }
        self.engine.weigh(now);
        self.table_pace
            .acted(self.engine.weights_version(), now.instant);
        let table = Arc::new(self.engine.table());
        self.tables.send_replace(Some(Arc::clone(&table)));
        self.metrics.published(&table, &self.told);
        self.told = table;
        None
    }

    /// As [`publish_table`](Self::publish_table).
    fn publish_report(&mut self, now: Now) -> Option<Instant> {
        let version = self.engine.health_version();
        if version == 0 {
            return None;
        }
        let due = self.report_pace.due(version, now.instant)?;
        if due > now.instant {
            return Some(due);
        }
        self.engine.weigh(now);
        self.report_pace
            .acted(self.engine.health_version(), now.instant);
        let report = v1::Report {
            pools: pool_health(&self.engine, None),
            ..v1::Report::default()
        };
        self.reports.send_if_modified(|held| {
            let changed = held.as_ref() != Some(&report);
            *held = Some(report);
            changed
        });
        None
    }
}

#[cfg(test)]
impl Driver {
    /// After all that it was told so far.
    pub(crate) fn peers_heard(&mut self) -> usize {
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
        self.engine.peers_heard()
    }
}

/// How many probes may be under way where a process may have `descriptors` open.
fn room(descriptors: u64) -> usize {
    let part = (descriptors / PROBES_PART).clamp(16, PROBES_MAX);
    usize::try_from(part).unwrap_or(usize::MAX)
}

fn pool_health(engine: &Engine, only: Option<&PoolName>) -> Vec<v1::PoolHealth> {
    let wanted = |pool: &PoolName| only.is_none_or(|only| only == pool);
    let pools = engine.pools().filter(|(pool, _)| wanted(&pool.name));
    pools
        .map(|(pool, weights)| {
            write_pool_health(pool, weights, |origin| {
                engine.opinion(&OriginKey::of(&pool.name, origin))
            })
        })
        .collect()
}

fn log_turn(turn: &Turn) {
    let Turn {
        key,
        verdict,
        reason,
    } = turn;
    if reason.is_empty() {
        tracing::info!(origin = %key, ?verdict, "origin changed");
    } else {
        tracing::warn!(origin = %key, ?verdict, "origin changed: {reason}");
    }
}

fn now() -> Now {
    Now {
        instant: tokio::time::Instant::now().into_std(),
        wall: SystemTime::now(),
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyport_node::metrics::Registry;

    use super::*;
    use crate::membership::fixtures::*;

    /// Whether edges that come then are told weights: before a stop, right after it, and once
    /// all origins were probed.
    fn told_around_a_stop(members: &[&str]) -> [bool; 3] {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let opener = Opener::new().unwrap();
        let (mut driver, _handle, published) = Driver::new(opener, metrics, &Readiness::new());
        let mut now = now();
        let game = pool("game", Some("quick"), &[("a", "10.0.2.2:7000")]);
        let declared = Members::of(&resources([monitor("quick", 1, 1)], [game]));
        driver.engine.configure(now, Revision(1), declared);
        let url = |name: &&str| (name.parse().unwrap(), format!("http://{name}:7410"));
        let set = Set {
            epoch: 1,
            members: members.iter().map(url).collect(),
        };
        driver.engine.take_part(now, &"me".parse().unwrap(), set);
        let mut tell = |time| {
            now.instant += time;
            driver.watch_time(now);
            let mut turn = |probes| {
                while probes && let Some(ticket) = driver.engine.start_due(now) {
                    driver.engine.finished(now, ticket, Ok(TABLE_GAP), 0);
                }
                driver.engine.step(now);
                driver.publish_table(now);
                published.tables.borrow().is_some()
            };
            (turn(false), turn(true))
        };
        tell(Duration::ZERO);
        let (_, before) = tell(STOPPED);
        let (after, _) = tell(10 * STOPPED);
        let (_, once_probed) = tell(STOPPED);
        [before, after, once_probed]
    }

    #[test]
    fn who_comes_after_a_stop_is_not_told_what_was_before_where_others_may_know_better() {
        let others = told_around_a_stop(&["me", "b0"]);
        assert_eq!(others, [true, false, true]);
        assert_eq!(told_around_a_stop(&["me"]), [true; 3]);
    }

    #[test]
    fn probes_take_a_part_of_the_descriptors() {
        assert_eq!(room(0), 16);
        assert_eq!(room(1024), 256);
        assert_eq!(room(1 << 20), 4096);
        assert_eq!(room(u64::MAX), 4096);
    }
}
