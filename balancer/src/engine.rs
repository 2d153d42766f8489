//! Everything the balancer knows, moved by events: a configuration, the outcome
//! of a probe, an edge's report, the passing of time. Pure: the clock and the
//! random source are arguments, and it starts no probe itself.
//!
//! What always holds between two events: every watched origin is either
//! scheduled or handed out as a [`Ticket`], and the weights of a pool are what it
//! and the verdicts come to, or it is to be weighed: many verdicts of a large
//! pool are one weighing, when [`Engine::weigh`] is called next.

mod reports;
mod settling;
mod sharing;
mod weighing;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyport_model::{
    health::{Now, Verdict},
    load::Balance,
    names::{NodeName, PoolName, Revision},
    opinion::{Opinion, majority},
    resource::Pool,
    weights::PoolWeights,
};

use self::{reports::OnlyEdge, settling::Phase};
use crate::{
    health::{Generation, Judged, Origins, Turn, Watched},
    membership::{Members, OriginKey, Target},
    peers::{Peers, Verdicts},
    probe::{
        Outcome,
        schedule::{Schedule, pause},
        vantage::{Probed, Vantage},
    },
    weights::{Pools, Table},
};

/// An origin without a verdict is probed this often, where its interval is
/// longer: connections already go there, so not knowing is not for long.
const UNKNOWN_INTERVAL: Duration = Duration::from_secs(1);

/// Two probes of an origin are at least this far apart where edges report it, or
/// others are suspected.
const ASKED_GAP: Duration = Duration::from_millis(500);

/// A probe that is to be made, or is under way.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    pub(crate) key: OriginKey,
    pub(crate) target: Target,
    generation: Generation,
    pub(crate) started: Instant,
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

    fn fade_later(&mut self, now: Now, key: &OriginKey) {
        let watched = self.origins.get(key);
        match watched.and_then(|watched| watched.health.next_fade(now.instant)) {
            Some(at) => self.fades.put(key.clone(), at),
            None => self.fades.remove(key),
        }
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

    fn probe_soon(&mut self, now: Now, key: &OriginKey) {
        let watched = self.origins.get(key);
        let started = watched.and_then(|watched| watched.started);
        let earliest = started.map_or(now.instant, |started| started + ASKED_GAP);
        self.schedule.hasten(key, earliest.max(now.instant));
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

    /// Why nothing can be said of any origin at present, in words.
    pub(crate) fn isolated(&self) -> Option<&str> {
        self.vantage.isolated()
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
}

#[cfg(test)]
mod chance;
#[cfg(test)]
mod fleet;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
