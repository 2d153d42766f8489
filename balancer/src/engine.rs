//! Everything the balancer knows, moved by events: a configuration, the outcome
//! of a probe, an edge's report, the passing of time. Pure: the clock and the
//! random source are arguments, and it starts no probe itself.
//!
//! What always holds between two events: every watched origin is either
//! scheduled or handed out as a [`Ticket`], and the weights of a pool are what it
//! and the verdicts come to, or it is to be weighed: many verdicts of a large
//! pool are one weighing, when [`Engine::weigh`] is called next.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyport_model::{
    evidence::Accusation,
    health::{Now, Verdict},
    load::{self, Balance},
    names::{NodeName, OriginName, PoolName, Revision},
    opinion::{Opinion, majority},
    resource::{Pool, Weight},
    slow_start,
    weights::{Known, PoolWeights},
};

use crate::{
    health::{DialReport, Generation, Judged, Origins, Turn, Watched},
    membership::{Members, OriginKey, Target},
    peers::{Heard, Peers, Set, Verdicts},
    probe::{
        Outcome,
        schedule::{Schedule, first_pause, pause},
        vantage::{Probed, Vantage},
    },
    weights::{Pools, Table},
};

/// An origin without a verdict is probed this often, where its interval is
/// longer: connections already go there, so not knowing is not for long.
const UNKNOWN_INTERVAL: Duration = Duration::from_secs(1);

/// After the first configuration, nothing is published until every origin has a
/// verdict, or had the time for one, but for at most this long. Edges keep the
/// weights they have meanwhile; a balancer that restarts must not bring back
/// origins that are down.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// Two probes of an origin are at least this far apart where edges report it, or
/// others are suspected.
const ASKED_GAP: Duration = Duration::from_millis(500);

/// How often it is looked whether all origins are spoken for.
const LOOK: Duration = Duration::from_secs(5);

/// An edge that has not reported for so long is gone: it does so every second.
const EDGE_FRESH: Duration = Duration::from_secs(10);

/// A probe that is to be made, or is under way.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    pub(crate) key: OriginKey,
    pub(crate) target: Target,
    generation: Generation,
    pub(crate) started: Instant,
}

/// The one edge that reports, and since when there is no other.
#[derive(Debug)]
struct OnlyEdge {
    name: NodeName,
    since: Instant,
}

#[derive(Debug)]
enum Phase {
    Unconfigured,
    Settling {
        undecided: BTreeSet<OriginKey>,
        until: Instant,
    },
    Settled,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Engine {
    phase: Phase,
    revision: Revision,
    pools: BTreeMap<PoolName, Arc<Pool>>,
    origins: Origins,
    weights: Pools,
    unweighed: BTreeSet<PoolName>,
    schedule: Schedule<OriginKey>,
    /// Pools whose weights change by the passing of time alone.
    steps: Schedule<PoolName>,
    /// What the moments of these steps are counted from.
    first_beat: Option<Instant>,
    /// Origins of which less is told by the passing of time alone.
    fades: Schedule<OriginKey>,
    /// Pools of which edges report load and latency.
    measures: Schedule<PoolName>,
    balances: BTreeMap<PoolName, Balance>,
    /// When each edge last reported.
    edges: BTreeMap<NodeName, Instant>,
    only_edge: Option<OnlyEdge>,
    vantage: Vantage,
    peers: Peers,
    /// Origins that others probe from now on, which this balancer goes on to probe
    /// until they had the time for a verdict.
    leaving: Schedule<OriginKey>,
    /// Origins that none of those who are to probe them speaks of: since the last
    /// look, and those that this balancer probes for that reason.
    unspoken: BTreeSet<OriginKey>,
    adopted: BTreeSet<OriginKey>,
    next_look: Option<Instant>,
    /// When it last went on after a stop.
    resumed: Option<Instant>,
    weights_version: u64,
    health_version: u64,
    verdicts_version: u64,
}

impl Engine {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Unconfigured,
            revision: Revision::EMPTY,
            pools: BTreeMap::new(),
            origins: Origins::default(),
            weights: Pools::new(),
            unweighed: BTreeSet::new(),
            schedule: Schedule::new(),
            steps: Schedule::new(),
            first_beat: None,
            fades: Schedule::new(),
            measures: Schedule::new(),
            balances: BTreeMap::new(),
            edges: BTreeMap::new(),
            only_edge: None,
            vantage: Vantage::default(),
            peers: Peers::default(),
            leaving: Schedule::new(),
            unspoken: BTreeSet::new(),
            adopted: BTreeSet::new(),
            next_look: None,
            resumed: None,
            weights_version: 0,
            health_version: 0,
            verdicts_version: 0,
        }
    }

    /// Takes a configuration into use.
    pub(crate) fn configure(&mut self, now: Now, revision: Revision, members: Members) {
        self.rearrange(now, members.targets);
        self.revision = revision;
        self.pools = members.pools;
        let pools = &self.pools;
        self.weights.retain(|name, _| pools.contains_key(name));
        self.balances.retain(|name, _| pools.contains_key(name));
        self.unweighed = pools.keys().cloned().collect();
        self.weigh(now);
        self.weights_version += 1;
        self.health_version += 1;
        if let Phase::Unconfigured = self.phase {
            self.hold_back(now);
        }
    }

    /// Nothing is published until each origin is judged anew, or had the time for it.
    fn hold_back(&mut self, now: Now) {
        // Then all of it, to who has come meanwhile.
        self.weights_version += 1;
        let until = now.instant + self.time_for_verdicts();
        self.phase = Phase::Settling {
            undecided: self.origins.iter().map(|(key, _)| key).collect(),
            until: until.max(self.peers.listens_until().unwrap_or(until)),
        };
    }

    /// How long an origin may take to be found down if it gives no answer at
    /// all: the longest of all.
    fn time_for_verdicts(&self) -> Duration {
        let longest = self.origins.iter().map(|(_, watched)| {
            let monitor = &watched.target.monitor;
            let attempts = monitor.retries.saturating_add(1);
            let probe = monitor.timeout.saturating_mul(attempts);
            let probe = probe.saturating_add(UNKNOWN_INTERVAL);
            probe.saturating_mul(monitor.thresholds.down.get())
        });
        longest.max().unwrap_or_default().min(SETTLE_MAX)
    }

    fn rearrange(&mut self, now: Now, targets: BTreeMap<OriginKey, Target>) {
        let changes = self.origins.watch(now.wall, targets);
        for key in &changes.gone {
            self.schedule.remove(key);
            self.fades.remove(key);
            self.vantage.remove(key);
            self.decided(key);
            self.leaving.remove(key);
            self.adopted.remove(key);
            self.verdicts_version += 1;
        }
        let missed = self.missed(&changes.fresh);
        let beat = self.next_beat(now.instant);
        for key in &changes.fresh {
            self.schedule.remove(key);
            self.vantage.remove(key);
            self.fades.remove(key);
            if let Some(watched) = self.origins.get_mut(key).filter(|_| missed.contains(key)) {
                watched.starts_slowly(beat);
            }
        }
        self.share_out(now, changes.fresh);
        // One that was to wait for a long interval does not wait for it.
        for key in changes.repaced {
            if let Some(watched) = self.origins.get(&key) {
                let interval = watched.target.monitor.interval;
                self.schedule.hasten(&key, now.instant + interval);
            }
        }
    }

    /// Probes of `keys` those that are this balancer's to probe, and no others.
    fn share_out(&mut self, now: Now, keys: Vec<OriginKey>) -> Vec<Turn> {
        let mut fresh = Vec::new();
        let mut turns = Vec::new();
        let mut had_time = None;
        for key in keys {
            let mine = self.is_mine(&key);
            let was_mine = self.origins.get(&key).is_some_and(|o| o.own.is_some());
            match (was_mine, mine) {
                (true, false) if !self.leaving.contains(&key) => {
                    let had_time =
                        had_time.get_or_insert_with(|| now.instant + self.time_for_verdicts());
                    self.leaving.put(key.clone(), *had_time);
                }
                (false, true) => {
                    self.origins.assign(now, &key, true);
                    self.verdicts_version += 1;
                    fresh.push(key.clone());
                }
                (_, true) => self.leaving.remove(&key),
                (_, false) => {}
            }
            turns.extend(self.judge(now, &key));
        }
        let count = fresh.len();
        for (index, key) in fresh.into_iter().enumerate() {
            if let Some(watched) = self.origins.get(&key) {
                let wait = first_pause(index, count, watched.target.monitor.interval);
                self.vantage.add(key.clone(), watched.target.origin.ip());
                self.schedule.put(key, now.instant + wait);
            }
        }
        turns
    }

    /// Others have probed it for long enough.
    fn leave(&mut self, now: Now, key: &OriginKey) -> Option<Turn> {
        if !self.is_mine(key) && self.origins.assign(now, key, false) {
            self.verdicts_version += 1;
            self.schedule.remove(key);
            self.vantage.remove(key);
            self.fades.remove(key);
        }
        self.judge(now, key)
    }

    /// Takes the set of balancers that take part into use; returns the verdicts that
    /// it turned.
    pub(crate) fn take_part(&mut self, now: Now, me: &NodeName, set: Set) -> Vec<Turn> {
        if !self.peers.take_part(now.instant, me, set) {
            return Vec::new();
        }
        self.weights_version += 1;
        self.verdicts_version += 1;
        self.next_look = self.peers.share_work().then(|| now.instant + LOOK);
        let all: Vec<_> = self.origins.iter().map(|(key, _)| key).collect();
        if self.peers.listens_until().is_some() {
            for key in &all {
                self.origins.wait_for_others(now, key);
            }
            if !matches!(self.phase, Phase::Unconfigured) {
                self.hold_back(now);
            }
        }
        let mut turns = self.share_out(now, all);
        turns.extend(self.listen(now));
        turns
    }

    /// Once all were heard who may know more, what probes from here showed counts.
    fn listen(&mut self, now: Now) -> Vec<Turn> {
        if !self.peers.have_been_heard(now.instant) {
            return Vec::new();
        }
        let proven = self
            .origins
            .iter()
            .filter(|(_, watched)| watched.is_proven());
        let proven: Vec<_> = proven.map(|(key, _)| key).collect();
        for key in &proven {
            self.count(now, key);
        }
        self.judge_all(now, proven)
    }

    /// What probes showed of an origin counts from now on, unless others are to be heard
    /// first.
    fn count(&mut self, now: Now, key: &OriginKey) {
        let Some(watched) = self.origins.get(key) else {
            return;
        };
        if !watched.is_proven() || self.peers.listens_until().is_some() {
            return;
        }
        let others = majority(self.peers.of(key, watched.asked));
        if self.origins.count(now, key, others.as_ref()) {
            self.verdicts_version += 1;
            self.fade_later(now, key);
        }
    }

    /// Takes in what another balancer says; returns the verdicts that it turned.
    pub(crate) fn heard(&mut self, now: Now, peer: &NodeName, heard: Heard) -> Vec<Turn> {
        let touched = self.peers.heard(now.instant, peer, heard);
        let mut turns = self.judge_all(now, touched);
        turns.extend(self.listen(now));
        turns
    }

    /// Another balancer says nothing any more.
    pub(crate) fn unheard(&mut self, now: Now, peer: &NodeName) -> Vec<Turn> {
        let touched = self.peers.unheard(now.instant, peer);
        self.judge_all(now, touched)
    }

    fn is_mine(&self, key: &OriginKey) -> bool {
        self.peers.is_mine(key) || self.adopted.contains(key)
    }

    /// Those who are to probe an origin may all be out of this balancer's hearing: it
    /// probes for itself then, until one of them is heard.
    fn look_who_is_spoken_for(&mut self, now: Now) -> Vec<Turn> {
        self.next_look = Some(now.instant + LOOK);
        let of_others = self
            .origins
            .iter()
            .filter(|(key, _)| !self.peers.is_mine(key));
        let (spoken, unspoken): (Vec<_>, Vec<_>) =
            of_others.partition(|(key, watched)| self.peers.is_spoken_for(key, watched.asked));
        let mut changed = Vec::new();
        for (key, _) in spoken {
            if self.adopted.contains(&key) {
                changed.push((key, false));
            }
        }
        let mut still_unspoken = BTreeSet::new();
        for (key, _) in unspoken {
            if self.unspoken.contains(&key) && !self.adopted.contains(&key) {
                changed.push((key.clone(), true));
            }
            still_unspoken.insert(key);
        }
        self.unspoken = still_unspoken;
        let keys = changed.into_iter().map(|(key, adopts)| {
            match adopts {
                true => self.adopted.insert(key.clone()),
                false => self.adopted.remove(&key),
            };
            key
        });
        let keys = keys.collect();
        self.share_out(now, keys)
    }

    /// This balancer did not run, or saw nothing, for a while: what it held is of
    /// before, and counts again when a probe bears it out.
    pub(crate) fn outdate(&mut self, now: Now) -> Vec<Turn> {
        let all: Vec<_> = self.origins.iter().map(|(key, _)| key).collect();
        for key in &all {
            self.origins.outdate(now, key);
        }
        self.verdicts_version += 1;
        self.judge_all(now, all)
    }

    /// As [`outdate`](Self::outdate), where this balancer did not run: everything is
    /// probed at once. Others may have gone by another set since then, and what is
    /// published from now on is taken for as new as the set is: where there are others,
    /// weights are held back as at the start. One that is alone still tells what all
    /// its edges hold anyway, who have nobody that knows better.
    pub(crate) fn resume(&mut self, now: Now) -> Vec<Turn> {
        self.resumed = Some(now.instant);
        self.peers.resume(now.instant);
        let turns = self.outdate(now);
        let all: Vec<_> = self.origins.iter().map(|(key, _)| key).collect();
        for key in &all {
            self.probe_soon(now, key);
        }
        if matches!(self.phase, Phase::Settled) && self.peers.are_there() {
            self.hold_back(now);
        }
        turns
    }

    fn judge_all(&mut self, now: Now, keys: impl IntoIterator<Item = OriginKey>) -> Vec<Turn> {
        let turns = keys.into_iter().filter_map(|key| self.judge(now, &key));
        turns.collect()
    }

    /// Puts together what all balancers hold of an origin. Where nobody knows
    /// anything, what was held stays.
    fn judge(&mut self, now: Now, key: &OriginKey) -> Option<Turn> {
        let isolated = self.vantage.isolated().is_some();
        let watched = self.origins.get_mut(key)?;
        let own = watched.own.clone();
        let others = || self.peers.of(key, watched.asked);
        // Others see more than who has lost its own network.
        let by_others = isolated.then(|| majority(others())).flatten();
        let all = || majority(own.as_deref().into_iter().chain(others()));
        let joint = by_others.or_else(all);
        let is_known = joint.is_some();
        let unknown = || match watched.joint.verdict {
            Verdict::Unknown => own.as_deref().cloned(),
            Verdict::Up | Verdict::Down => None,
        };
        let joint = joint.or_else(unknown)?;
        let judged = watched.judge(now, key, joint);
        if is_known {
            self.decided(key);
        }
        match judged {
            Judged::Same => None,
            Judged::SaysOther => {
                self.health_version += 1;
                None
            }
            Judged::Passes => {
                self.health_version += 1;
                self.mark(&key.pool);
                None
            }
            Judged::Turned(turn) => {
                self.health_version += 1;
                self.turned(now, &turn);
                Some(turn)
            }
        }
    }

    /// Hands out a probe that is due. [`finished`](Self::finished) must follow.
    pub(crate) fn start_due(&mut self, now: Now) -> Option<Ticket> {
        let key = self.schedule.take_due(now.instant)?;
        let watched = self.origins.get_mut(&key)?;
        watched.started = Some(now.instant);
        Some(Ticket {
            key,
            target: watched.target.clone(),
            generation: watched.generation,
            started: now.instant,
        })
    }

    /// Takes the outcome of a probe in; returns the verdicts that it turned.
    /// `random` is uniform over all 64 bits.
    pub(crate) fn finished(
        &mut self,
        now: Now,
        ticket: Ticket,
        outcome: Outcome,
        random: u64,
    ) -> Vec<Turn> {
        let current = self.origins.get(&ticket.key);
        if current.is_none_or(|watched| watched.generation != ticket.generation) {
            return Vec::new();
        }
        if self.resumed > Some(ticket.started) {
            // The answer may have come before this balancer was stopped.
            self.schedule_next(now, &ticket, random);
            self.probe_soon(now, &ticket.key);
            return Vec::new();
        }
        let was_isolated = self.vantage.isolated().is_some();
        if was_isolated {
            self.settle_later(now);
        }
        let sighting = self.vantage.observe(Probed {
            key: ticket.key.clone(),
            started: ticket.started,
            finished: now.instant,
            outcome,
        });
        let mut turns = Vec::new();
        for (key, evidence) in sighting.evidence {
            turns.extend(self.observe(now, &key, evidence));
        }
        if was_isolated != self.vantage.isolated().is_some() {
            turns.extend(match was_isolated {
                true => self.outdate(now),
                false => {
                    self.verdicts_version += 1;
                    let all: Vec<_> = self.origins.iter().map(|(key, _)| key).collect();
                    self.judge_all(now, all)
                }
            });
        }
        self.schedule_next(now, &ticket, random);
        if let Some(witness) = sighting.witness {
            self.probe_soon(now, &witness);
        }
        turns
    }

    /// While nothing can be said of any origin, no time passes towards a verdict.
    fn settle_later(&mut self, now: Now) {
        let Phase::Settling { .. } = self.phase else {
            return;
        };
        let later = now.instant + self.time_for_verdicts();
        if let Phase::Settling { until, .. } = &mut self.phase {
            *until = later;
        }
    }

    fn observe(
        &mut self,
        now: Now,
        key: &OriginKey,
        evidence: Result<Duration, String>,
    ) -> Option<Turn> {
        if self.origins.observe(now, key, evidence) {
            self.verdicts_version += 1;
            self.fade_later(now, key);
        }
        self.count(now, key);
        self.judge(now, key)
    }

    fn turned(&mut self, now: Now, turn: &Turn) {
        let beat = self.next_beat(now.instant);
        let returns = turn.verdict == Verdict::Up && self.was_missed(&turn.key);
        if let Some(watched) = self.origins.get_mut(&turn.key).filter(|_| returns) {
            watched.starts_slowly(beat);
        }
        self.mark(&turn.key.pool);
    }

    fn fade_later(&mut self, now: Now, key: &OriginKey) {
        let watched = self.origins.get(key);
        match watched.and_then(|watched| watched.health.next_fade(now.instant)) {
            Some(at) => self.fades.put(key.clone(), at),
            None => self.fades.remove(key),
        }
    }

    fn next_beat(&mut self, now: Instant) -> Instant {
        slow_start::next_beat(*self.first_beat.get_or_insert(now), now)
    }

    /// Did the origin get no connections, while others of its pool got some? If
    /// none did, there is nobody to share them with while it takes them up.
    fn was_missed(&self, key: &OriginKey) -> bool {
        let (Some(watched), Some(weights)) = (self.origins.get(key), self.weights.get(&key.pool))
        else {
            return false;
        };
        let own = weights.origins.get(watched.target.place);
        let gets_none = own.is_some_and(|own| own.weight == Weight::ZERO);
        gets_none && weights.origins.iter().any(|o| o.weight > Weight::ZERO)
    }

    /// Those of which that is so, where weights are of the configuration before.
    fn missed(&self, fresh: &[OriginKey]) -> BTreeSet<OriginKey> {
        let mut takers: BTreeMap<&PoolName, BTreeSet<&OriginName>> = BTreeMap::new();
        let missed = fresh.iter().filter(|key| {
            let takers = takers.entry(&key.pool).or_insert_with(|| {
                let weights = self.weights.get(&key.pool);
                let origins = weights.into_iter().flat_map(|weights| &weights.origins);
                let takes = origins.filter(|origin| origin.weight > Weight::ZERO);
                takes.map(|origin| &origin.name).collect()
            });
            !takers.is_empty() && !takers.contains(&key.origin)
        });
        missed.cloned().collect()
    }

    fn schedule_next(&mut self, now: Now, ticket: &Ticket, random: u64) {
        if let Some(watched) = self.origins.get(&ticket.key) {
            let interval = watched.target.monitor.interval;
            let interval = match watched.health.verdict() {
                _ if watched.is_stale() => interval.min(UNKNOWN_INTERVAL),
                Verdict::Unknown => interval.min(UNKNOWN_INTERVAL),
                Verdict::Up => interval,
                // The first pass after that is what brings it back.
                Verdict::Down => match watched.health.held_for(now.instant) {
                    Some(held) if !held.is_zero() => interval.min(held),
                    _ => interval,
                },
            };
            let next = ticket.started + pause(interval, random);
            self.schedule.put(ticket.key.clone(), next.max(now.instant));
        }
    }

    /// Takes in what an edge saw of real dials. Probes that are called for are
    /// brought forward, and where most edges agree that connections fail, that
    /// decides; returns the verdicts that it turned.
    pub(crate) fn reported(
        &mut self,
        now: Now,
        edge: &NodeName,
        reports: &[DialReport],
    ) -> Vec<Turn> {
        self.reports(now.instant, edge);
        let mut turns = Vec::new();
        for report in reports {
            let Some(watched) = self.origins.get_mut(&report.key) else {
                continue;
            };
            watched.saw(now.instant, edge, report);
            if !self.measures.contains(&report.key.pool) {
                let at = now.instant + load::STEP;
                self.measures.put(report.key.pool.clone(), at);
            }
            self.look_closer(now, report);
            turns.extend(self.accused(now, report));
        }
        turns
    }

    /// Keeps which edges there are, and since when one is the only one.
    fn reports(&mut self, now: Instant, edge: &NodeName) {
        let fresh = |last: &Instant| now.saturating_duration_since(*last) < EDGE_FRESH;
        self.edges.retain(|_, last| fresh(last));
        let went_on = self.edges.insert(edge.clone(), now).is_some();
        let since = match self.only_edge.take() {
            Some(only) if went_on && only.name == *edge => only.since,
            _ => now,
        };
        let only_edge = OnlyEdge {
            name: edge.clone(),
            since,
        };
        self.only_edge = (self.edges.len() == 1).then_some(only_edge);
    }

    fn look_closer(&mut self, now: Now, report: &DialReport) {
        let Some(watched) = self.origins.get(&report.key) else {
            return;
        };
        if report.is_alarming() && watched.health.verdict() != Verdict::Down {
            self.probe_soon(now, &report.key);
        }
    }

    fn probe_soon(&mut self, now: Now, key: &OriginKey) {
        let watched = self.origins.get(key);
        let started = watched.and_then(|watched| watched.started);
        let earliest = started.map_or(now.instant, |started| started + ASKED_GAP);
        self.schedule.hasten(key, earliest.max(now.instant));
    }

    /// One edge may take an origin away where it is the only one, which takes some
    /// time to be known.
    fn accusers_least(&self, now: Now) -> usize {
        let known =
            |only: &OnlyEdge| now.instant.saturating_duration_since(only.since) >= EDGE_FRESH;
        match self.only_edge.as_ref().is_some_and(known) {
            true => 1,
            false => 2,
        }
    }

    /// A balancer that cannot look for itself holds what it knows.
    fn accused(&mut self, now: Now, report: &DialReport) -> Option<Turn> {
        if report.failures == 0 || self.isolated().is_some() {
            return None;
        }
        let watched = self.origins.get(&report.key)?;
        let accusation = watched.accuse(now.instant, self.accusers_least(now))?;
        let why = accused_of(accusation, &report.last_failure);
        if self.origins.eject(now, &report.key, &why) {
            self.verdicts_version += 1;
            self.fade_later(now, &report.key);
        }
        self.judge(now, &report.key)
    }

    /// When the next probe is due.
    pub(crate) fn next_probe(&self) -> Option<Instant> {
        self.schedule.next()
    }

    /// Moves what the passing of time moves; returns the verdicts that it turned.
    pub(crate) fn step(&mut self, now: Now) -> Vec<Turn> {
        while let Some(pool) = self.measures.take_due(now.instant) {
            self.measure(now.instant, &pool);
        }
        let mut turns = self.listen(now);
        while let Some(key) = self.leaving.take_due(now.instant) {
            turns.extend(self.leave(now, &key));
        }
        if self.next_look.is_some_and(|at| at <= now.instant) {
            turns.extend(self.look_who_is_spoken_for(now));
        }
        while let Some(key) = self.fades.take_due(now.instant) {
            if self.origins.fade(now, &key) {
                self.verdicts_version += 1;
            }
            self.fade_later(now, &key);
            turns.extend(self.judge(now, &key));
        }
        while let Some(pool) = self.steps.take_due(now.instant) {
            self.mark(&pool);
        }
        turns
    }

    /// Moves what load and latency make of weights by one step.
    fn measure(&mut self, now: Instant, name: &PoolName) {
        let (Some(pool), Some(weights)) = (self.pools.get(name), self.weights.get(name)) else {
            return;
        };
        let measured = pool.origins.iter().map(|origin| {
            let watched = self.origins.get_mut(&key_of(name, &origin.name))?;
            let measured = watched.measure(now)?;
            let counts = !weights.panic && origin.weight > Weight::ZERO;
            counts.then_some((origin.weight, measured))
        });
        let measured: Vec<_> = measured.collect();
        let balance = self.balances.entry(name.clone()).or_default();
        let wanted = balance.wanted(pool.policy, &measured);
        let mut all_at_rest = true;
        for (origin, wanted) in pool.origins.iter().zip(wanted) {
            if let Some(watched) = self.origins.get_mut(&key_of(name, &origin.name)) {
                all_at_rest &= watched.follow(wanted);
            }
        }
        if !all_at_rest {
            self.measures.put(name.clone(), now + load::STEP);
        }
        self.mark(name);
    }

    /// When [`step`](Self::step) has something to do.
    pub(crate) fn next_step(&self) -> Option<Instant> {
        let next = [
            self.steps.next(),
            self.measures.next(),
            self.fades.next(),
            self.leaving.next(),
            self.next_look,
            self.peers.listens_until(),
        ];
        next.into_iter().flatten().min()
    }

    /// Until when weights are held back for want of verdicts; `None` while they
    /// are not, or time alone does not end it.
    pub(crate) fn settles_at(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Settling { until, .. } if self.isolated().is_none() => Some(*until),
            Phase::Settling { .. } | Phase::Unconfigured | Phase::Settled => None,
        }
    }

    /// May the weights be published?
    pub(crate) fn settle(&mut self, now: Now) -> bool {
        if let Phase::Settling { undecided, until } = &self.phase
            && (undecided.is_empty() || (now.instant >= *until && self.isolated().is_none()))
        {
            self.phase = Phase::Settled;
            self.verdicts_version += 1;
        }
        matches!(self.phase, Phase::Settled)
    }

    /// Why nothing can be said of any origin at present, in words.
    pub(crate) fn isolated(&self) -> Option<&str> {
        self.vantage.isolated()
    }

    fn mark(&mut self, pool: &PoolName) {
        // Most have been already.
        if !self.unweighed.contains(pool) {
            self.unweighed.insert(pool.clone());
        }
    }

    /// May [`weigh`](Self::weigh) change something?
    pub(crate) fn is_to_weigh(&self) -> bool {
        !self.unweighed.is_empty()
    }

    /// Makes the weights what all that happened until now comes to.
    pub(crate) fn weigh(&mut self, now: Now) {
        for name in std::mem::take(&mut self.unweighed) {
            self.weigh_pool(now.instant, &name);
        }
    }

    /// Grows with every change of [`table`](Self::table); 0 before the first.
    pub(crate) fn weights_version(&self) -> u64 {
        self.weights_version
    }

    /// Grows with every change of what [`pools`](Self::pools) and
    /// [`health`](Self::health) tell, except how long probes took.
    pub(crate) fn health_version(&self) -> u64 {
        self.health_version
    }

    pub(crate) fn table(&self) -> Table {
        Table {
            epoch: self.peers.epoch(),
            revision: self.revision,
            pools: self.weights.clone(),
        }
    }

    /// Grows with every change of [`verdicts`](Self::verdicts).
    pub(crate) fn verdicts_version(&self) -> u64 {
        self.verdicts_version
    }

    /// What other balancers are told; `None` while no set is known.
    pub(crate) fn verdicts(&self) -> Option<Verdicts> {
        let own = |watched: &Watched| Some((watched.asked, Arc::clone(watched.own.as_ref()?)));
        // Who is alone still says by which set, to who is left behind.
        let origins = self.peers.are_there().then(|| self.origins.iter());
        let origins = origins.into_iter().flatten();
        let own = origins.filter_map(|(key, watched)| Some((key, own(watched)?)));
        self.peers.are_known().then(|| Verdicts {
            epoch: self.peers.epoch(),
            isolated: self.vantage.isolated().is_some(),
            serves: matches!(self.phase, Phase::Settled),
            own: own.collect(),
        })
    }

    pub(crate) fn peers_heard(&self) -> usize {
        self.peers.heard_of()
    }

    /// Others go by a later set of balancers for some time already: what this one
    /// says is out of date.
    pub(crate) fn superseded_by(&self, now: Instant) -> Option<u64> {
        self.peers.superseded_by(now)
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn pools(&self) -> impl Iterator<Item = (&Pool, &PoolWeights)> {
        self.pools.iter().filter_map(|(name, pool)| {
            let weights = self.weights.get(name)?;
            Some((pool.as_ref(), weights.as_ref()))
        })
    }

    pub(crate) fn opinion(&self, key: &OriginKey) -> Option<&Opinion> {
        self.origins.get(key).map(|watched| &watched.joint)
    }

    fn decided(&mut self, key: &OriginKey) {
        if let Phase::Settling { undecided, .. } = &mut self.phase {
            undecided.remove(key);
        }
    }

    fn weigh_pool(&mut self, now: Instant, name: &PoolName) {
        let Some(pool) = self.pools.get(name) else {
            return;
        };
        let watched = self.origins.of_pool(pool);
        let known = |watched: &Option<&Watched>| match watched {
            Some(watched) => watched.known(now),
            None => Known::from(None),
        };
        let weights = PoolWeights::weigh_in_order(pool, watched.iter().map(known));
        let next = watched.iter().flatten();
        match next.filter_map(|watched| watched.next_step(now)).min() {
            Some(at) => self.steps.put(name.clone(), at),
            None => self.steps.remove(name),
        }
        if self.weights.get(name).is_none_or(|held| **held != weights) {
            self.weights.insert(name.clone(), Arc::new(weights));
            self.weights_version += 1;
            self.health_version += 1;
        }
    }
}

/// Of the last failure, what an edge says is shown up to so many characters.
const FAILURE_SHOWN: usize = 200;

fn accused_of(accusation: Accusation, last_failure: &str) -> String {
    let Accusation {
        accusers,
        edges,
        failures,
    } = accusation;
    let last: String = last_failure.chars().take(FAILURE_SHOWN).collect();
    format!("{failures} connections failed at {accusers} of {edges} edges ({last})")
}

fn key_of(pool: &PoolName, origin: &OriginName) -> OriginKey {
    OriginKey {
        pool: pool.clone(),
        origin: origin.clone(),
    }
}

#[cfg(test)]
mod chance;
#[cfg(test)]
mod fleet;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
