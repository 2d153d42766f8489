//! What several balancers hold of one origin, and what comes of it.
//!
//! Each of them probes for itself and has a [`Health`] of its own. A balancer that
//! sees the origin by a bad way, or is not told of its own network's trouble, must
//! not take it from everybody, so the majority decides. Where it is a tie, the
//! origin is up: edges leave alone by themselves what refuses them, and an origin
//! that is wrongly down has nobody who finds out.

use std::time::{Duration, Instant, SystemTime};

use crate::health::{Health, Verdict, flaps};

/// What one balancer holds of an origin, or all of them together.
#[derive(Debug, Clone, PartialEq)]
pub struct Opinion {
    pub verdict: Verdict,
    /// When the verdict last changed.
    pub since: SystemTime,
    /// Why the verdict is what it is; empty: there is nothing to say.
    pub reason: String,
    /// It is down only because it is held down.
    pub passes_while_held: bool,
    /// Until when it stays down, whatever probes say.
    pub held_until: Option<SystemTime>,
    /// How often it turned down lately.
    pub recent_downs: u32,
    /// How long the last passed probe took.
    pub last_pass: Option<Duration>,
}

impl Opinion {
    /// Nothing is known.
    pub fn none(since: SystemTime) -> Self {
        Self {
            verdict: Verdict::Unknown,
            since,
            reason: "not probed yet".to_owned(),
            passes_while_held: false,
            held_until: None,
            recent_downs: 0,
            last_pass: None,
        }
    }

    /// As a balancer's own probes have it now.
    pub fn of(health: &Health, now: Instant) -> Self {
        Self {
            verdict: health.verdict(),
            since: health.since(),
            reason: health.reason().to_owned(),
            passes_while_held: health.passes_while_held(),
            held_until: health.held_until(now),
            recent_downs: health.recent_downs(now),
            last_pass: health.last_pass(),
        }
    }

    /// Does it say the same, whatever the last probe took?
    pub fn says_as(&self, other: &Opinion) -> bool {
        let told = |opinion: &Opinion| {
            let Opinion {
                verdict,
                since,
                passes_while_held,
                held_until,
                recent_downs,
                ..
            } = *opinion;
            (verdict, since, passes_while_held, held_until, recent_downs)
        };
        told(self) == told(other) && self.reason == other.reason
    }

    /// How long it stays down whatever probes say, by the clock here: no longer than the
    /// whole of it, however far that one is from the clock of who holds it down.
    pub(crate) fn held_for(&self, now: SystemTime) -> Duration {
        let until = self.held_until.unwrap_or(self.since);
        let since = |at| until.duration_since(at).unwrap_or_default();
        since(now).min(since(self.since)).min(flaps::LONGEST)
    }

    /// Could connections go there, were it not held down?
    fn would_do(&self) -> bool {
        self.verdict == Verdict::Up || self.passes_while_held
    }
}

/// What those come to that know something; `None` where nobody does. The first that
/// is of the majority is the one who speaks for it.
pub fn majority<'a>(opinions: impl Iterator<Item = &'a Opinion>) -> Option<Opinion> {
    let known: Vec<&Opinion> = opinions
        .filter(|opinion| opinion.verdict != Verdict::Unknown)
        .collect();
    let known = known.iter().copied();
    let count = |counts: &dyn Fn(&Opinion) -> bool| known.clone().filter(|o| counts(o)).count();
    let all = known.len();
    let down = count(&|opinion| opinion.verdict == Verdict::Down);
    let verdict = match down * 2 > all {
        true => Verdict::Down,
        false => Verdict::Up,
    };
    let speaks = known.clone().find(|opinion| opinion.verdict == verdict)?;
    let dissent = known.clone().find(|opinion| opinion.verdict != verdict);
    let accuser = if verdict == Verdict::Down {
        Some(speaks)
    } else {
        dissent
    };
    let reason = match (dissent, accuser) {
        (Some(_), Some(accuser)) => {
            format!("down to {down} of {all} balancers: {}", accuser.reason)
        }
        _ => speaks.reason.clone(),
    };
    Some(Opinion {
        reason,
        passes_while_held: verdict == Verdict::Down && count(&Opinion::would_do) * 2 >= all,
        ..speaks.clone()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn opinion(verdict: Verdict, passes_while_held: bool) -> Opinion {
        Opinion {
            verdict,
            passes_while_held,
            reason: match verdict {
                Verdict::Down => "refused".to_owned(),
                _ => String::new(),
            },
            ..Opinion::none(SystemTime::UNIX_EPOCH)
        }
    }

    fn of(verdicts: &[Verdict]) -> Option<Opinion> {
        let opinions: Vec<_> = verdicts.iter().map(|v| opinion(*v, false)).collect();
        majority(opinions.iter())
    }

    #[test]
    fn two_of_three_decide_and_a_tie_is_up() {
        use Verdict::{Down, Unknown, Up};
        let verdict = |verdicts: &[Verdict]| of(verdicts).map(|opinion| opinion.verdict);
        assert_eq!(verdict(&[]), None);
        assert_eq!(verdict(&[Unknown, Unknown]), None);
        assert_eq!(verdict(&[Unknown, Down]), Some(Down));
        assert_eq!(verdict(&[Down, Up]), Some(Up));
        assert_eq!(verdict(&[Down, Up, Unknown]), Some(Up));
        assert_eq!(verdict(&[Down, Up, Down]), Some(Down));
        assert_eq!(verdict(&[Down, Up, Up]), Some(Up));
    }

    #[test]
    fn who_disagrees_is_counted_in_the_reason() {
        use Verdict::{Down, Up};
        let reason = |verdicts: &[Verdict]| of(verdicts).unwrap().reason;
        assert_eq!(reason(&[Up, Up]), "");
        assert_eq!(reason(&[Down, Down]), "refused");
        assert_eq!(reason(&[Up, Down]), "down to 1 of 2 balancers: refused");
        assert_eq!(
            reason(&[Up, Down, Down]),
            "down to 2 of 3 balancers: refused"
        );
    }

    #[test]
    fn one_that_is_held_down_passes_where_most_would_have_it_up() {
        let held = opinion(Verdict::Down, true);
        let dead = opinion(Verdict::Down, false);
        let passes = |opinions: &[&Opinion]| {
            let joint = majority(opinions.iter().copied()).unwrap();
            (joint.verdict, joint.passes_while_held)
        };
        assert_eq!(passes(&[&held, &held, &dead]), (Verdict::Down, true));
        assert_eq!(passes(&[&held, &dead, &dead]), (Verdict::Down, false));
        let up = opinion(Verdict::Up, false);
        assert_eq!(passes(&[&held, &dead, &up]), (Verdict::Down, true));
    }

    #[test]
    fn a_hold_lasts_no_longer_than_all_of_it_whatever_the_clocks() {
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let held = |since, until| Opinion {
            held_until: Some(at(until)),
            ..Opinion::none(at(since))
        };
        let left = |opinion: Opinion, now| opinion.held_for(at(now)).as_secs();
        assert_eq!(left(held(100, 120), 105), 15);
        assert_eq!(left(held(100, 120), 120), 0);
        assert_eq!(left(held(100, 120), 4000), 0);
        assert_eq!(left(held(100, 120), 0), 20, "the clock here is behind");
        assert_eq!(left(held(120, 100), 0), 0);
        assert_eq!(left(held(0, 100_000), 0), flaps::LONGEST.as_secs());
        assert_eq!(left(Opinion::none(at(100)), 0), 0);
    }

    fn any_opinion() -> impl Strategy<Value = Opinion> {
        let verdict = prop::sample::select(vec![Verdict::Unknown, Verdict::Up, Verdict::Down]);
        (verdict, any::<bool>())
            .prop_map(|(verdict, held)| opinion(verdict, held && verdict == Verdict::Down))
    }

    proptest! {
        /// Whoever goes through the others in another order comes to the same verdict.
        #[test]
        fn all_balancers_come_to_the_same(
            opinions in prop::collection::vec(any_opinion(), 0..4), turned in 0usize..4,
        ) {
            let mut others = opinions.clone();
            others.rotate_left(turned.min(opinions.len()));
            let one = majority(opinions.iter());
            let other = majority(others.iter());
            let says = |joint: &Option<Opinion>| {
                joint.as_ref().map(|joint| (joint.verdict, joint.passes_while_held))
            };
            prop_assert_eq!(says(&one), says(&other));
        }

        /// One alone never turns a verdict that two others share.
        #[test]
        fn one_of_three_is_not_believed(other in any_opinion(), first in any::<bool>()) {
            let shared = if first { Verdict::Up } else { Verdict::Down };
            let two = opinion(shared, false);
            let joint = majority([&other, &two, &two].into_iter()).unwrap();
            prop_assert_eq!(joint.verdict, shared);
        }
    }
}
