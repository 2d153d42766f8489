//! The health of one origin as a machine over evidence.
//!
//! Unknown turns up with the first pass, because refusing traffic to an origin
//! that answers helps nobody; it turns down only after as many failures in a
//! row as an origin that was up gets, so that one lost packet at start-up is
//! no outage. Between up and down the thresholds of the monitor decide, and
//! what [`flaps`] is held down for longer.

pub mod flaps;

use std::time::{Duration, Instant, SystemTime};

use crate::{opinion::Opinion, resource::Thresholds};
use flaps::Flaps;

/// The same moment by both clocks: one for intervals, one to show to people.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    pub wall: SystemTime,
}

/// What is held of an origin that is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Unknown,
    Up,
    Down,
}

/// What one probe, or one real dial, showed: the time it took, or why it
/// failed.
pub type Evidence = Result<Duration, String>;

/// The health machine of one origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    verdict: Verdict,
    since: SystemTime,
    turned: Option<Instant>,
    passes: u32,
    failures: u32,
    reason: String,
    last_pass: Option<Duration>,
    flaps: Flaps,
    hold: Option<Hold>,
}

/// Down until then, whatever probes say.
#[derive(Debug, Clone, PartialEq)]
struct Hold {
    until: Instant,
    until_wall: SystemTime,
    why: String,
    /// What probes alone would say meanwhile: that it is up.
    passes: bool,
}

impl Hold {
    fn lasts(&self, now: Instant) -> bool {
        self.until > now
    }
}

impl Health {
    pub fn new(now: SystemTime) -> Self {
        Self {
            verdict: Verdict::Unknown,
            since: now,
            turned: None,
            passes: 0,
            failures: 0,
            reason: "not probed yet".to_owned(),
            last_pass: None,
            flaps: Flaps::default(),
            hold: None,
        }
    }

    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// When the verdict last changed.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Why the verdict is what it is; for an origin that is up with failures
    /// already counted, the last of them.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// How long the last passed probe took.
    pub fn last_pass(&self) -> Option<Duration> {
        self.last_pass
    }

    /// How often it turned down lately: what is forgiven by now is not counted.
    pub fn recent_downs(&self, now: Instant) -> u32 {
        let up_for = self.up_for(now).unwrap_or_default();
        self.flaps.after(up_for).count()
    }

    /// Until when it stays down, whatever probes say; for people.
    pub fn held_until(&self, now: Instant) -> Option<SystemTime> {
        let hold = self.hold.as_ref().filter(|hold| hold.lasts(now))?;
        Some(hold.until_wall)
    }

    /// When one of these two changes by the passing of time alone.
    pub fn next_fade(&self, now: Instant) -> Option<Instant> {
        match (&self.hold, self.turned) {
            (Some(hold), _) if hold.lasts(now) => Some(hold.until),
            (_, Some(turned)) if self.recent_downs(now) > 0 => {
                let up_for = self.up_for(now)?;
                Some(turned + flaps::next_forgiven(up_for))
            }
            _ => None,
        }
    }

    /// How long it is still held down, whatever probes say.
    pub fn held_for(&self, now: Instant) -> Option<Duration> {
        let hold = self.hold.as_ref()?;
        Some(hold.until.saturating_duration_since(now))
    }

    /// Would it be up, were it not held down?
    pub fn passes_while_held(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.passes)
    }

    /// Takes evidence in; returns the new verdict if it changed.
    pub fn observe(
        &mut self,
        now: Now,
        thresholds: Thresholds,
        evidence: Evidence,
    ) -> Option<Verdict> {
        match evidence {
            Ok(took) => self.pass(now, thresholds, took),
            Err(reason) => self.fail(now, thresholds, reason),
        }
    }

    /// From now on the origin is watched again: passes and failures of before are of no
    /// run that begins now.
    pub fn watched_anew(&mut self) {
        self.passes = 0;
        self.failures = 0;
    }

    /// Others have watched the origin while it was not watched from here, and hold this
    /// of it. What flapped, is held down, or has not passed often enough to come back is
    /// so whoever has just begun to watch.
    pub fn take_over(&mut self, now: Now, thresholds: Thresholds, held: &Opinion) {
        self.flaps = self.flaps.at_least(held.recent_downs);
        let left = held.held_for(now.wall);
        let passes = self.passes >= thresholds.up.get();
        if held.verdict != Verdict::Down || (left.is_zero() && passes) {
            return;
        }
        if self.verdict != Verdict::Down {
            self.turn(now, Verdict::Down);
            self.since = held.since;
            self.reason = held.reason.clone();
        }
        if self.held_for(now.instant).unwrap_or_default() < left {
            let why = "held down since before it was watched from here".to_owned();
            self.hold(now, left, why);
            if let Some(hold) = &mut self.hold {
                hold.passes = passes;
            }
        }
    }

    fn pass(&mut self, now: Now, thresholds: Thresholds, took: Duration) -> Option<Verdict> {
        self.failures = 0;
        self.passes = self.passes.saturating_add(1);
        self.last_pass = Some(took);
        let enough = match self.verdict {
            Verdict::Unknown => true,
            Verdict::Up => false,
            Verdict::Down => self.passes >= thresholds.up.get() || self.passes_while_held(),
        };
        if let Some(hold) = self.hold.as_mut().filter(|hold| hold.lasts(now.instant)) {
            if enough {
                hold.passes = true;
                self.reason = format!("probes pass, but it is {}", hold.why);
            }
            return None;
        }
        if self.verdict == Verdict::Up || enough {
            self.reason = String::new();
        }
        enough.then(|| self.turn(now, Verdict::Up))
    }

    /// Edges say that connections fail, whatever probes say: it is held down for
    /// a while. Only one that is up is; returns the new verdict then.
    pub fn eject(&mut self, now: Now, why: &str) -> Option<Verdict> {
        let time = self.flaps.ejected(self.up_for(now.instant)?);
        self.passes = 0;
        self.failures = 0;
        self.reason = why.to_owned();
        self.hold(
            now,
            time,
            format!("held down for {} s: {why}", time.as_secs()),
        );
        Some(self.turn(now, Verdict::Down))
    }

    fn fail(&mut self, now: Now, thresholds: Thresholds, reason: String) -> Option<Verdict> {
        self.passes = 0;
        self.failures = self.failures.saturating_add(1);
        self.reason = reason;
        if self.failures < thresholds.down.get() {
            return None;
        }
        if self.verdict == Verdict::Down {
            if let Some(hold) = &mut self.hold {
                hold.passes = false;
            }
            return None;
        }
        if let Some(up_for) = self.up_for(now.instant)
            && let Some(time) = self.flaps.turned_down(up_for)
        {
            let count = self.flaps.count();
            let why = format!(
                "held down for {} s: it turned down {count} times lately",
                time.as_secs()
            );
            self.hold(now, time, why);
        }
        Some(self.turn(now, Verdict::Down))
    }

    fn hold(&mut self, now: Now, time: Duration, why: String) {
        self.hold = Some(Hold {
            until: now.instant + time,
            until_wall: now.wall + time,
            why,
            passes: false,
        });
    }

    fn up_for(&self, now: Instant) -> Option<Duration> {
        let turned = self.turned.filter(|_| self.verdict == Verdict::Up)?;
        Some(now.saturating_duration_since(turned))
    }

    fn turn(&mut self, now: Now, verdict: Verdict) -> Verdict {
        self.verdict = verdict;
        self.since = now.wall;
        self.turned = Some(now.instant);
        if verdict != Verdict::Down {
            self.hold = None;
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::num::NonZeroU32;

    fn thresholds(up: u32, down: u32) -> Thresholds {
        Thresholds {
            up: NonZeroU32::new(up).unwrap(),
            down: NonZeroU32::new(down).unwrap(),
        }
    }

    const PASS: Evidence = Ok(Duration::from_millis(1));

    fn fail() -> Evidence {
        Err("connect: connection refused".to_owned())
    }

    /// Seconds after one moment.
    struct Clock(Instant);

    impl Clock {
        fn new() -> Self {
            Self(Instant::now())
        }

        fn at(&self, second: u64) -> Now {
            let passed = Duration::from_secs(second);
            Now {
                instant: self.0 + passed,
                wall: SystemTime::UNIX_EPOCH + passed,
            }
        }
    }

    #[test]
    fn the_first_pass_ends_unknown() {
        let (clock, mut health) = (Clock::new(), Health::new(SystemTime::UNIX_EPOCH));
        assert_eq!(
            health.observe(clock.at(1), thresholds(5, 5), PASS),
            Some(Verdict::Up)
        );
        assert_eq!((health.since(), health.reason()), (clock.at(1).wall, ""));
    }

    #[test]
    fn unknown_turns_down_after_the_threshold() {
        let (clock, mut health) = (Clock::new(), Health::new(SystemTime::UNIX_EPOCH));
        assert_eq!(health.observe(clock.at(1), thresholds(1, 2), fail()), None);
        assert_eq!(
            health.observe(clock.at(2), thresholds(1, 2), fail()),
            Some(Verdict::Down)
        );
        assert_eq!(health.reason(), "connect: connection refused");
    }

    #[test]
    fn a_pass_in_between_starts_the_count_again() {
        let (clock, mut health) = (Clock::new(), Health::new(SystemTime::UNIX_EPOCH));
        health.observe(clock.at(0), thresholds(1, 3), PASS);
        for second in 0..10 {
            assert_eq!(
                health.observe(clock.at(second), thresholds(1, 3), fail()),
                None
            );
            assert_eq!(
                health.observe(clock.at(second), thresholds(1, 3), fail()),
                None
            );
            assert_eq!(
                health.observe(clock.at(second), thresholds(1, 3), PASS),
                None
            );
        }
        assert_eq!(health.verdict(), Verdict::Up);
    }

    /// Downs and ups of an origin that is down for 1 s and up for `up` s, in
    /// turn, as probes see it once a second: when each of its ups began.
    fn ups(clock: &Clock, health: &mut Health, up: u64, until: u64) -> Vec<u64> {
        let one = thresholds(1, 1);
        let passes = |second: u64| !second.is_multiple_of(up + 1);
        let seconds = 1..until;
        let turned = seconds.filter(|&second| {
            let evidence = if passes(second) { PASS } else { fail() };
            health.observe(clock.at(second), one, evidence) == Some(Verdict::Up)
        });
        turned.collect()
    }

    #[test]
    fn an_origin_that_flaps_is_held_down_longer_and_longer_up_to_a_bound() {
        let (clock, mut health) = (Clock::new(), Health::new(SystemTime::UNIX_EPOCH));
        let ups = ups(&clock, &mut health, 3, 3000);
        let gaps: Vec<u64> = ups.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(gaps[..6], [4, 4, 13, 23, 44, 84]);
        let longest = flaps::LONGEST.as_secs();
        assert!(gaps.iter().all(|gap| *gap <= longest + 8), "{gaps:?}");
        assert!(gaps.last().unwrap() + 8 > longest, "{gaps:?}");
    }

    #[test]
    fn what_is_held_down_says_why_and_until_when() {
        let (clock, mut health) = (Clock::new(), Health::new(SystemTime::UNIX_EPOCH));
        let one = thresholds(1, 1);
        for second in 0..3 {
            health.observe(clock.at(2 * second), one, PASS);
            health.observe(clock.at(2 * second + 1), one, fail());
        }
        assert_eq!(health.reason(), "connect: connection refused");
        assert_eq!(
            health.held_until(clock.at(14).instant),
            Some(clock.at(15).wall)
        );
        assert_eq!(health.observe(clock.at(14), one, PASS), None);
        assert_eq!(
            health.reason(),
            "probes pass, but it is held down for 10 s: it turned down 3 times lately"
        );
        let left = health.held_for(clock.at(14).instant);
        assert_eq!(left, Some(Duration::from_secs(1)));
        assert_eq!(health.observe(clock.at(15), one, PASS), Some(Verdict::Up));
        let held = health.held_until(clock.at(15).instant);
        assert_eq!((held, health.reason()), (None, ""));
    }

    #[test]
    fn what_edges_cannot_connect_to_is_held_down_and_let_back() {
        let (clock, mut health) = (Clock::new(), Health::new(SystemTime::UNIX_EPOCH));
        let two = thresholds(2, 1);
        assert_eq!(health.eject(clock.at(0), "no"), None, "not known yet");
        health.observe(clock.at(0), two, PASS);
        assert_eq!(health.eject(clock.at(1), "dials fail"), Some(Verdict::Down));
        assert_eq!(health.eject(clock.at(1), "dials fail"), None);
        assert_eq!(health.reason(), "dials fail");
        for second in 2..11 {
            assert_eq!(health.observe(clock.at(second), two, PASS), None);
            assert_eq!(health.passes_while_held(), second > 2, "{second}");
        }
        assert_eq!(
            health.reason(),
            "probes pass, but it is held down for 10 s: dials fail"
        );
        assert_eq!(health.observe(clock.at(11), two, PASS), Some(Verdict::Up));
        assert!(!health.passes_while_held(), "it is up");
        assert_eq!(health.eject(clock.at(12), "again"), Some(Verdict::Down));
        assert_eq!(
            health.held_until(clock.at(12).instant),
            Some(clock.at(32).wall),
            "longer each time"
        );
    }

    #[test]
    fn what_would_be_up_but_is_held_stops_passing_after_as_many_failures_as_any_other() {
        let (clock, mut health) = (Clock::new(), Health::new(SystemTime::UNIX_EPOCH));
        let thresholds = thresholds(2, 3);
        health.observe(clock.at(0), thresholds, PASS);
        health.eject(clock.at(0), "dials fail");
        let mut passes = |second, evidence| {
            let turned = health.observe(clock.at(second), thresholds, evidence);
            (health.passes_while_held(), turned)
        };
        assert_eq!(passes(1, PASS), (false, None));
        assert_eq!(passes(2, PASS), (true, None));
        assert_eq!(passes(3, fail()), (true, None), "one failure");
        assert_eq!(passes(4, fail()), (true, None));
        assert_eq!(passes(5, PASS), (true, None), "as if it had not failed");
        assert_eq!(passes(6, fail()), (true, None));
        assert_eq!(passes(7, fail()), (true, None));
        assert_eq!(passes(8, fail()), (false, None));
        assert_eq!(passes(9, PASS), (false, None));
        assert_eq!(passes(10, PASS), (false, Some(Verdict::Up)));
    }

    fn held(verdict: Verdict, now: Now, seconds: u64) -> Opinion {
        let hold = Some(Duration::from_secs(seconds)).filter(|hold| !hold.is_zero());
        Opinion {
            verdict,
            held_until: hold.map(|hold| now.wall + hold),
            recent_downs: 3,
            reason: "refused".to_owned(),
            ..Opinion::none(now.wall)
        }
    }

    #[test]
    fn who_begins_to_watch_takes_over_what_others_hold() {
        let (clock, two) = (Clock::new(), thresholds(2, 2));
        let begun = |passes: u64, of: &Opinion| {
            let mut health = Health::new(SystemTime::UNIX_EPOCH);
            for second in 0..passes {
                health.observe(clock.at(100 + second), two, PASS);
            }
            health.take_over(clock.at(102), two, of);
            health
        };
        let said = |health: &Health| (health.verdict(), health.passes_while_held());
        let down = |hold| held(Verdict::Down, clock.at(90), hold);

        let up = begun(1, &held(Verdict::Up, clock.at(90), 0));
        assert_eq!(said(&up), (Verdict::Up, false));
        assert_eq!(up.recent_downs(clock.at(102).instant), 3, "the next costs");

        let mut one_pass = begun(1, &down(0));
        assert_eq!(said(&one_pass), (Verdict::Down, false));
        assert_eq!(one_pass.since(), clock.at(90).wall);
        assert_eq!(one_pass.reason(), "refused");
        let turned = one_pass.observe(clock.at(103), two, PASS);
        assert_eq!(turned, Some(Verdict::Up), "the second one");
        assert_eq!(said(&begun(2, &down(0))), (Verdict::Up, false));

        let mut health = begun(2, &down(20));
        assert_eq!(said(&health), (Verdict::Down, true));
        let until = health.held_until(clock.at(102).instant);
        assert_eq!(until, Some(clock.at(110).wall));
        assert_eq!(health.observe(clock.at(109), two, PASS), None);
        assert_eq!(
            health.reason(),
            "probes pass, but it is held down since before it was watched from here"
        );
        let turned = health.observe(clock.at(110), two, PASS);
        assert_eq!(turned, Some(Verdict::Up));
        assert_eq!(said(&begun(1, &down(20))), (Verdict::Down, false));
    }

    #[test]
    fn a_hold_of_its_own_that_lasts_longer_stays() {
        let (clock, one) = (Clock::new(), thresholds(1, 1));
        let mut health = Health::new(SystemTime::UNIX_EPOCH);
        health.observe(clock.at(0), one, PASS);
        health.eject(clock.at(1), "dials fail");
        health.take_over(clock.at(2), one, &held(Verdict::Down, clock.at(0), 5));
        let until = |health: &Health| health.held_until(clock.at(3).instant);
        assert_eq!(until(&health), Some(clock.at(11).wall));
        health.take_over(clock.at(3), one, &held(Verdict::Down, clock.at(0), 60));
        assert_eq!(until(&health), Some(clock.at(60).wall));
    }

    #[test]
    fn what_is_over_is_told_no_longer_and_when_that_is() {
        let (clock, mut health) = (Clock::new(), Health::new(SystemTime::UNIX_EPOCH));
        let one = thresholds(1, 1);
        for second in 0..3 {
            health.observe(clock.at(2 * second), one, PASS);
            health.observe(clock.at(2 * second + 1), one, fail());
        }
        let told = |health: &Health, second| {
            let now = clock.at(second).instant;
            let next = health.next_fade(now).map(|at| (at - clock.0).as_secs());
            let held = health.held_until(now).is_some();
            (held, health.recent_downs(now), next)
        };
        assert_eq!(told(&health, 14), (true, 3, Some(15)));
        // It fails on.
        assert_eq!(told(&health, 15), (false, 3, None));
        health.observe(clock.at(100), one, PASS);
        assert_eq!(told(&health, 100), (false, 3, Some(400)));
        assert_eq!(told(&health, 399), (false, 3, Some(400)));
        assert_eq!(told(&health, 400), (false, 2, Some(700)));
        assert_eq!(told(&health, 999), (false, 1, Some(1000)));
        assert_eq!(told(&health, 1000), (false, 0, None));
    }

    #[test]
    fn an_origin_that_went_down_now_and_then_is_not_held() {
        let (clock, mut health) = (Clock::new(), Health::new(SystemTime::UNIX_EPOCH));
        let up = flaps::FORGIVEN_AFTER.as_secs() + 1;
        let ups = ups(&clock, &mut health, up, 40 * up);
        assert!(ups.len() > 30);
        assert!(
            ups.windows(2).all(|pair| pair[1] - pair[0] == up + 1),
            "{ups:?}"
        );
    }

    #[test]
    fn a_start_that_failed_is_no_flap() {
        let (clock, mut health) = (Clock::new(), Health::new(SystemTime::UNIX_EPOCH));
        health.observe(clock.at(0), thresholds(1, 1), fail());
        assert_eq!(
            (health.verdict(), health.recent_downs(clock.at(0).instant)),
            (Verdict::Down, 0)
        );
    }

    proptest! {
        #[test]
        fn only_a_full_run_changes_the_verdict(
            up in 1u32..5, down in 1u32..5, evidence in prop::collection::vec((any::<bool>(), 0u8..30), 0..200)
        ) {
            let (clock, mut health) = (Clock::new(), Health::new(SystemTime::UNIX_EPOCH));
            let (mut run, mut last, mut second) = (0u32, None, 0);
            // Whether it would be up, were it not held.
            let mut passes = false;
            for (passed, pause) in evidence {
                run = if last == Some(passed) { run + 1 } else { 1 };
                last = Some(passed);
                second += u64::from(pause);
                let before = health.verdict();
                let left = health.held_for(clock.at(second).instant);
                let held = left.is_some_and(|left| !left.is_zero());
                prop_assert!(left.is_none_or(|left| left <= flaps::LONGEST && before == Verdict::Down));
                let turned = health.observe(clock.at(second), thresholds(up, down), if passed { PASS } else { fail() });
                passes = match passed {
                    true => passes || run >= up,
                    false => passes && run < down,
                };
                let expected = match (before, passed) {
                    (Verdict::Unknown, true) => Some(Verdict::Up),
                    (Verdict::Down, true) if passes && !held => Some(Verdict::Up),
                    (Verdict::Unknown | Verdict::Up, false) if run >= down => Some(Verdict::Down),
                    _ => None,
                };
                prop_assert_eq!(turned, expected);
                prop_assert_eq!(health.verdict(), expected.unwrap_or(before));
                let is_held = health.verdict() == Verdict::Down && health.hold.is_some();
                prop_assert_eq!(health.passes_while_held(), is_held && passes);
            }
        }
    }
}
