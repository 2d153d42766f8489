//! What is held of each probed origin, here and by all balancers together, and which
//! reports of edges ask for a closer look.
//!
//! A verdict belongs to one server that is asked one thing. When the address or
//! the question changes, what was known is void and the origin is unknown again;
//! when only the pace or the patience changes, or the weight, it stays: a change
//! of the interval must not bring traffic back to a server that is down.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyport_model::{
    damped::Damped,
    evidence::{Accusation, Dials},
    health::{Evidence, Health, Now, Verdict},
    load::{Measured, Observed, Wanted},
    names::{NodeName, OriginName, PoolName},
    opinion::Opinion,
    resource::Pool,
    slow_start,
    weights::{Factor, Factors, Known},
};

use crate::membership::{OriginKey, Target};

/// Failed dials in one report, at least, that make an edge's word worth a probe.
const FAILURES_MIN: u64 = 2;

/// A report tells of as much time as this, at most: an edge makes one a second.
const REPORT_SPAN: Duration = Duration::from_secs(2);

/// What an edge saw of an origin since its last report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DialReport {
    pub(crate) key: OriginKey,
    pub(crate) dials: u64,
    pub(crate) failures: u64,
    /// In words; empty: none.
    pub(crate) last_failure: String,
    /// Connections open now.
    pub(crate) open: u64,
    /// Mean of the dials that succeeded.
    pub(crate) took: Option<Duration>,
}

impl DialReport {
    /// Did so much fail that the origin should be probed now?
    pub(crate) fn is_alarming(&self) -> bool {
        self.failures >= FAILURES_MIN && self.failures >= self.dials / 2
    }
}

/// One run of probes against one target. A new number for each, so that the
/// outcome of a probe that was under way when its target changed is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Generation(u64);

/// Whether what probes from here show counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It was not watched from here, or not for a while, and is to be borne out.
    Unproven,
    /// It is borne out, and may be less than others know who have watched meanwhile.
    Proven,
    Counts,
}

/// An origin that is probed.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) target: Target,
    /// Tells targets apart, alike on every balancer.
    pub(crate) asked: u64,
    /// What probes from here showed.
    pub(crate) health: Health,
    /// What of that counts; `None`: others probe it, and not this balancer.
    pub(crate) own: Option<Arc<Opinion>>,
    standing: Standing,
    /// What all balancers together hold of it.
    pub(crate) joint: Opinion,
    pub(crate) generation: Generation,
    /// When its latest probe began.
    pub(crate) started: Option<Instant>,
    /// When it came back to a pool that others carried meanwhile.
    returned: Option<Instant>,
    /// When its verdict last changed.
    turned: Option<Instant>,
    dials: Dials<NodeName>,
    observed: Observed<NodeName>,
    load: Damped,
    latency: Damped,
}

impl Watched {
    fn new(target: Target, now: SystemTime, generation: Generation) -> Self {
        Self {
            asked: target.fingerprint(),
            target,
            health: Health::new(now),
            own: None,
            standing: Standing::Unproven,
            joint: Opinion::none(now),
            generation,
            started: None,
            returned: None,
            turned: None,
            dials: Dials::default(),
            observed: Observed::default(),
            load: Damped::default(),
            latency: Damped::default(),
        }
    }

    /// What an edge saw of it.
    pub(crate) fn saw(&mut self, now: Instant, edge: &NodeName, report: &DialReport) {
        let is_of_before = |at| now.saturating_duration_since(at) < REPORT_SPAN;
        if !self.turned.is_some_and(is_of_before) {
            self.dials.saw(now, edge, report.dials, report.failures);
        }
        self.observed.saw(now, edge, report.open, report.took);
    }

    /// Whether edges, at least so many, agree that it cannot be connected to.
    pub(crate) fn accuse(&self, now: Instant, least: usize) -> Option<Accusation> {
        self.dials.accuse(now, least)
    }

    /// What edges measure of it, where it takes all that it is to have, so that
    /// it can be compared with others.
    pub(crate) fn measure(&mut self, now: Instant) -> Option<Measured> {
        let measured = self.observed.measure(now);
        let factors = self.known(now).factors;
        let takes_all = factors.slow_start == Factor::ONE;
        (takes_all && self.joint.verdict != Verdict::Down).then_some(measured)
    }

    /// Moves what load and latency make of its weight; whether that is nothing.
    pub(crate) fn follow(&mut self, wanted: Wanted) -> bool {
        self.load.step(wanted.load);
        self.latency.step(wanted.latency);
        self.load.is_at_rest() && self.latency.is_at_rest()
    }

    /// From now on it is this balancer's to probe, or not any more; whether that is
    /// a change.
    fn assign(&mut self, now: Now, generation: Generation, mine: bool) -> bool {
        if mine == self.own.is_some() {
            return false;
        }
        self.health = Health::new(now.wall);
        self.generation = generation;
        self.standing = Standing::Unproven;
        self.own = mine.then(|| Arc::new(Opinion::of(&self.health, now.instant)));
        true
    }

    /// What it held is still to be borne out.
    pub(crate) fn is_stale(&self) -> bool {
        self.standing == Standing::Unproven
    }

    /// A probe has borne it out, and it does not count yet.
    pub(crate) fn is_proven(&self) -> bool {
        self.standing == Standing::Proven
    }

    /// After the machine moved; whether it says anything else now.
    fn form_opinion(&mut self, now: Instant) -> bool {
        let mut opinion = Opinion::of(&self.health, now);
        if self.standing != Standing::Counts {
            opinion.verdict = Verdict::Unknown;
        }
        let Some(own) = &mut self.own else {
            return false;
        };
        let says_other = !own.says_as(&opinion);
        *own = Arc::new(opinion);
        says_other
    }

    /// Takes what all balancers together hold of it now.
    pub(crate) fn judge(&mut self, now: Now, key: &OriginKey, joint: Opinion) -> Judged {
        let before = std::mem::replace(&mut self.joint, joint);
        if self.joint.verdict != before.verdict {
            return Judged::Turned(self.turn(now, key));
        }
        if self.joint.passes_while_held != before.passes_while_held {
            return Judged::Passes;
        }
        match self.joint.says_as(&before) {
            true => Judged::Same,
            false => Judged::SaysOther,
        }
    }

    /// What was seen before says nothing of what it is now. One that was added has
    /// not taken up its load with its first pass.
    fn turn(&mut self, now: Now, key: &OriginKey) -> Turn {
        let verdict = self.joint.verdict;
        self.turned = Some(now.instant);
        if verdict == Verdict::Down {
            self.returned = None;
        }
        self.dials.forget();
        self.load = Damped::default();
        self.latency = Damped::default();
        Turn {
            key: key.clone(),
            verdict,
            reason: self.joint.reason.clone(),
        }
    }

    /// It comes back, and takes up its load little by little from then on.
    pub(crate) fn starts_slowly(&mut self, from: Instant) {
        self.returned = Some(from);
    }

    pub(crate) fn known(&self, now: Instant) -> Known {
        let passed = |at| now.saturating_duration_since(at);
        let slow_start = self.returned.map(|at| slow_start::part(passed(at)));
        Known {
            verdict: Some(self.joint.verdict),
            passes_while_held: self.joint.passes_while_held,
            factors: Factors {
                slow_start: slow_start.unwrap_or(Factor::ONE),
                load: self.load.factor(),
                latency: self.latency.factor(),
            },
        }
    }

    /// When its weight changes by the passing of time alone.
    pub(crate) fn next_step(&self, now: Instant) -> Option<Instant> {
        let at = self.returned?;
        let next = slow_start::next_step(now.saturating_duration_since(at))?;
        (self.joint.verdict != Verdict::Down).then(|| at + next)
    }
}

/// What became of an origin when all opinions were put together again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judged {
    Same,
    /// Only why it is so, and since when.
    SaysOther,
    /// It is held down as before, and its probes pass now, or no more.
    Passes,
    Turned(Turn),
}

/// A verdict that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) key: OriginKey,
    pub(crate) verdict: Verdict,
    pub(crate) reason: String,
}

/// What [`Origins::watch`] changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rearranged {
    /// New, or to be asked something else: unknown until probed.
    pub(crate) fresh: Vec<OriginKey>,
    /// As before, but at another pace.
    pub(crate) repaced: Vec<OriginKey>,
    pub(crate) gone: Vec<OriginKey>,
}

/// All origins that are probed.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    pools: BTreeMap<PoolName, BTreeMap<OriginName, Watched>>,
    last_generation: Generation,
}

impl Origins {
    pub(crate) fn get(&self, key: &OriginKey) -> Option<&Watched> {
        self.pools.get(&key.pool)?.get(&key.origin)
    }

    pub(crate) fn get_mut(&mut self, key: &OriginKey) -> Option<&mut Watched> {
        self.pools.get_mut(&key.pool)?.get_mut(&key.origin)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (OriginKey, &Watched)> {
        let pools = self.pools.iter();
        pools.flat_map(|(pool, watched)| {
            watched.iter().map(|(origin, watched)| {
                let (pool, origin) = (pool.clone(), origin.clone());
                (OriginKey { pool, origin }, watched)
            })
        })
    }

    /// Those of one pool, in its order; `None`: it is not probed.
    pub(crate) fn of_pool(&self, pool: &Pool) -> Vec<Option<&Watched>> {
        let mut in_order = vec![None; pool.origins.len()];
        for watched in self
            .pools
            .get(&pool.name)
            .into_iter()
            .flat_map(BTreeMap::values)
        {
            if let Some(place) = in_order.get_mut(watched.target.place) {
                *place = Some(watched);
            }
        }
        in_order
    }

    /// Watches exactly `targets` from now on.
    pub(crate) fn watch(
        &mut self,
        now: SystemTime,
        targets: BTreeMap<OriginKey, Target>,
    ) -> Rearranged {
        let gone = self.iter().map(|(key, _)| key);
        let mut changes = Rearranged {
            gone: gone.filter(|key| !targets.contains_key(key)).collect(),
            ..Rearranged::default()
        };
        for key in &changes.gone {
            self.remove(key);
        }
        for (key, target) in targets {
            match self.get_mut(&key) {
                Some(watched) if watched.target.asks_the_same(&target) => {
                    if watched.target.monitor.interval != target.monitor.interval {
                        changes.repaced.push(key);
                    }
                    watched.target = target;
                }
                _ => {
                    self.last_generation.0 += 1;
                    let watched = Watched::new(target, now, self.last_generation);
                    let of_pool = self.pools.entry(key.pool.clone()).or_default();
                    of_pool.insert(key.origin.clone(), watched);
                    changes.fresh.push(key);
                }
            }
        }
        changes
    }

    fn remove(&mut self, key: &OriginKey) {
        if let Some(of_pool) = self.pools.get_mut(&key.pool) {
            of_pool.remove(&key.origin);
            if of_pool.is_empty() {
                self.pools.remove(&key.pool);
            }
        }
    }

    /// See [`Watched::assign`].
    pub(crate) fn assign(&mut self, now: Now, key: &OriginKey, mine: bool) -> bool {
        let generation = Generation(self.last_generation.0 + 1);
        let watched = self.get_mut(key);
        let changed = watched.is_some_and(|watched| watched.assign(now, generation, mine));
        if changed {
            self.last_generation = generation;
        }
        changed
    }

    /// Takes evidence of one origin in; whether this balancer says anything else of
    /// it now.
    pub(crate) fn observe(&mut self, now: Now, key: &OriginKey, evidence: Evidence) -> bool {
        let Some(watched) = self.get_mut(key) else {
            return false;
        };
        let thresholds = watched.target.monitor.thresholds;
        let confirms = match watched.health.verdict() {
            Verdict::Up => evidence.is_ok(),
            Verdict::Down => evidence.is_err(),
            Verdict::Unknown => false,
        };
        let turned = watched.health.observe(now, thresholds, evidence).is_some();
        if watched.is_stale() && (confirms || turned) {
            watched.standing = Standing::Proven;
        }
        watched.form_opinion(now.instant)
    }

    /// From now on what probes showed counts, with what others hold who have watched
    /// the origin meanwhile; as [`observe`](Self::observe).
    pub(crate) fn count(&mut self, now: Now, key: &OriginKey, others: Option<&Opinion>) -> bool {
        let Some(watched) = self.get_mut(key) else {
            return false;
        };
        if let Some(held) = others {
            let thresholds = watched.target.monitor.thresholds;
            watched.health.take_over(now, thresholds, held);
        }
        watched.standing = Standing::Counts;
        watched.form_opinion(now.instant)
    }

    /// What counts is not to count until others are heard; as
    /// [`observe`](Self::observe).
    pub(crate) fn wait_for_others(&mut self, now: Now, key: &OriginKey) -> bool {
        let Some(watched) = self.get_mut(key) else {
            return false;
        };
        if watched.standing == Standing::Counts {
            watched.standing = Standing::Proven;
        }
        watched.form_opinion(now.instant)
    }

    /// This balancer could not look for a while: until a probe bears out what it
    /// held, that does not count. As [`observe`](Self::observe).
    pub(crate) fn outdate(&mut self, now: Now, key: &OriginKey) -> bool {
        let Some(watched) = self.get_mut(key) else {
            return false;
        };
        watched.standing = Standing::Unproven;
        watched.health.watched_anew();
        watched.form_opinion(now.instant)
    }

    /// What was held against an origin is over or forgiven by now; as
    /// [`observe`](Self::observe).
    pub(crate) fn fade(&mut self, now: Now, key: &OriginKey) -> bool {
        let watched = self.get_mut(key);
        watched.is_some_and(|watched| watched.form_opinion(now.instant))
    }

    /// Takes an origin from all edges for a while, if others see it so; as
    /// [`observe`](Self::observe).
    pub(crate) fn eject(&mut self, now: Now, key: &OriginKey, why: &str) -> bool {
        let Some(watched) = self.get_mut(key) else {
            return false;
        };
        watched.health.eject(now, why);
        watched.form_opinion(now.instant)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyport_model::{
        check::{Check, Exchange},
        resource::{Monitor, Pool, Weight},
    };

    use super::*;
    use crate::membership::{Members, fixtures::*};

    fn watch(origins: &mut Origins, monitor: Monitor, pool: Pool) -> Rearranged {
        let members = Members::of(&resources([monitor], [pool]));
        origins.watch(SystemTime::UNIX_EPOCH, members.targets)
    }

    fn game() -> Pool {
        pool("game", Some("quick"), &[("a", "10.0.2.2:7000")])
    }

    /// `game/a`, found to be down.
    fn down() -> Origins {
        let mut origins = Origins::default();
        watch(&mut origins, monitor("quick", 2, 1), game());
        let now = Now {
            instant: Instant::now(),
            wall: SystemTime::UNIX_EPOCH,
        };
        let a = key("game", "a");
        origins.assign(now, &a, true);
        assert!(origins.observe(now, &a, Err("dead".into())));
        assert_eq!(verdict(&origins), Verdict::Down);
        origins
    }

    fn verdict(origins: &Origins) -> Verdict {
        origins.get(&key("game", "a")).unwrap().health.verdict()
    }

    #[test]
    fn another_pace_patience_weight_or_monitor_name_keeps_the_verdict() {
        let mut origins = down();
        let mut other = monitor("renamed", 3, 3);
        other.interval = Duration::from_secs(1);
        other.timeout = Duration::from_millis(100);
        other.retries = 2;
        let mut pool = game();
        pool.monitor = Some("renamed".parse().unwrap());
        pool.origins[0].weight = Weight::new(7.0).unwrap();
        let changes = watch(&mut origins, other, pool);
        assert_eq!(changes.repaced, [key("game", "a")]);
        assert!(changes.fresh.is_empty() && changes.gone.is_empty());
        assert_eq!(verdict(&origins), Verdict::Down);
    }

    #[test]
    fn another_address_port_or_question_starts_anew() {
        let ask = Monitor {
            check: Check::Tcp(Exchange {
                send: b"PING\r\n".to_vec(),
                expect: b"+PONG".to_vec(),
            }),
            ..monitor("quick", 2, 1)
        };
        let elsewhere = Monitor {
            port: Some(9000),
            ..monitor("quick", 2, 1)
        };
        let moved = pool("game", Some("quick"), &[("a", "10.0.2.3:7000")]);
        let replaced = [
            (monitor("quick", 2, 1), moved),
            (ask, game()),
            (elsewhere, game()),
        ];
        for (monitor, pool) in replaced {
            let mut origins = down();
            let before = origins.get(&key("game", "a")).unwrap().generation;
            let changes = watch(&mut origins, monitor, pool);
            assert_eq!(changes.fresh, [key("game", "a")]);
            assert_eq!(verdict(&origins), Verdict::Unknown);
            assert_ne!(
                origins.get(&key("game", "a")).unwrap().generation,
                before,
                "an old probe's outcome would count"
            );
        }
    }

    #[test]
    fn an_origin_that_was_disabled_meanwhile_starts_anew() {
        let mut origins = down();
        let mut disabled = game();
        disabled.origins[0].enabled = false;
        let changes = watch(&mut origins, monitor("quick", 2, 1), disabled);
        assert_eq!(changes.gone, [key("game", "a")]);
        watch(&mut origins, monitor("quick", 2, 1), game());
        assert_eq!(verdict(&origins), Verdict::Unknown);
    }

    #[test]
    fn only_many_failed_dials_are_alarming() {
        let alarming = |dials, failures| {
            let key = key("game", "a");
            DialReport {
                key,
                dials,
                failures,
                last_failure: String::new(),
                open: 0,
                took: None,
            }
            .is_alarming()
        };
        assert!(alarming(2, 2) && alarming(10, 5) && alarming(u64::MAX, u64::MAX));
        assert!(!alarming(0, 0) && !alarming(1, 1) && !alarming(1000, 40));
    }
}
