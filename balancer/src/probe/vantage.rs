//! Does a failed probe say something of the origin, or of the balancer's own
//! place in the network?
//!
//! A balancer whose uplink is gone, or that is out of descriptors, sees every
//! origin fail. Taking that for evidence would mark the whole fleet down. So:
//!
//! - Failures of this host ([`Blame::Host`]) are never evidence.
//! - A failure that may be our network's ([`Blame::Path`]) is a *suspicion* until
//!   a probe that began later got an answer (any answer, a refusal too) from
//!   another address. Then our network is sound and the failure is evidence.
//! - When no origin gives any answer, and more than one address was tried, the
//!   balancer is *isolated*: suspicions are not evidence, nor when it ends.
//!
//! With a single address there is no second opinion, so its failures count as
//! they come.
//!
//! What this does not see: a network that swallows packets. Timeouts are blamed
//! on the origins, because dead origins look just like that.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Bound,
    time::{Duration, Instant},
};

use anyport_model::health::Evidence;

use super::failure::{Blame, Failure};
use crate::membership::OriginKey;

/// What the latest probe of an origin said of our network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// Not probed yet.
    Unseen,
    /// Something came back, or was at least sent.
    Answered,
    /// The probe never left, or need not have.
    Blocked,
}

#[derive(Debug)]
struct Suspicion {
    ip: IpAddr,
    at: Instant,
    reason: String,
}

/// The outcome of one probe.
#[derive(Debug)]
pub(crate) struct Probed {
    pub(crate) key: OriginKey,
    pub(crate) started: Instant,
    pub(crate) finished: Instant,
    pub(crate) outcome: Result<Duration, Failure>,
}

/// What is to be made of it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Sighting {
    /// Evidence to be counted, which may be of other origins too.
    pub(crate) evidence: Vec<(OriginKey, Evidence)>,
    /// An origin whose answer would settle a suspicion: probe it now.
    pub(crate) witness: Option<OriginKey>,
}

/// The balancer's own place in the network, judged by all probes together.
#[derive(Debug, Default)]
pub(crate) struct Vantage {
    views: BTreeMap<OriginKey, (IpAddr, View)>,
    addresses: BTreeMap<IpAddr, usize>,
    /// Origins whose latest probe was answered, by address.
    answering: BTreeMap<IpAddr, BTreeSet<OriginKey>>,
    /// Where the latest witness is.
    heard: Option<IpAddr>,
    suspicions: BTreeMap<OriginKey, Suspicion>,
    isolated: Option<String>,
}

impl Vantage {
    /// `key` will be probed at `ip`; what was known of it before is void.
    pub(crate) fn add(&mut self, key: OriginKey, ip: IpAddr) {
        self.forget(&key);
        *self.addresses.entry(ip).or_default() += 1;
        self.views.insert(key, (ip, View::Unseen));
    }

    /// `key` is not probed any more.
    pub(crate) fn remove(&mut self, key: &OriginKey) {
        self.forget(key);
        if self.isolated.is_some() && !self.is_cut_off() {
            self.isolated = None;
        }
    }

    /// Why nothing can be said of any origin at present, in words; `None` where
    /// something can.
    pub(crate) fn isolated(&self) -> Option<&str> {
        self.isolated.as_deref()
    }

    pub(crate) fn observe(&mut self, probed: Probed) -> Sighting {
        let Some(&(ip, _)) = self.views.get(&probed.key) else {
            return Sighting::default();
        };
        match probed.outcome {
            Ok(took) => self.answered(probed.key, ip, probed.started, Ok(took)),
            Err(failure) => match failure.blame() {
                Blame::Origin => {
                    let evidence = Err(failure.to_string());
                    self.answered(probed.key, ip, probed.started, evidence)
                }
                Blame::Path => self.suspected(probed.key, ip, probed.finished, failure.to_string()),
                Blame::Host => {
                    self.see(&probed.key, View::Blocked);
                    self.suspicions.remove(&probed.key);
                    self.judge(&failure.to_string());
                    Sighting::default()
                }
            },
        }
    }

    fn answered(
        &mut self,
        key: OriginKey,
        ip: IpAddr,
        started: Instant,
        evidence: Evidence,
    ) -> Sighting {
        self.see(&key, View::Answered);
        self.suspicions.remove(&key);
        let mut sighting = Sighting {
            evidence: vec![(key, evidence)],
            witness: None,
        };
        if self.isolated.take().is_some() {
            self.suspicions.clear();
        } else if !self.suspicions.is_empty() {
            let settled = self
                .suspicions
                .extract_if(.., |_, suspicion| {
                    suspicion.ip != ip && suspicion.at <= started
                })
                .map(|(key, suspicion)| (key, Err(suspicion.reason)));
            sighting.evidence.extend(settled);
        }
        sighting
    }

    fn suspected(&mut self, key: OriginKey, ip: IpAddr, at: Instant, reason: String) -> Sighting {
        self.see(&key, View::Blocked);
        if self.addresses.len() < 2 {
            return Sighting {
                evidence: vec![(key, Err(reason))],
                witness: None,
            };
        }
        self.judge(&reason);
        self.suspicions.insert(key, Suspicion { ip, at, reason });
        Sighting {
            evidence: Vec::new(),
            witness: self.witness(ip),
        }
    }

    /// An origin elsewhere that last gave an answer: each address in its turn, as
    /// there may be a thousand suspicions at once.
    fn witness(&mut self, ip: IpAddr) -> Option<OriginKey> {
        let after = match self.heard {
            Some(heard) => Bound::Excluded(heard),
            None => Bound::Unbounded,
        };
        let later = self.answering.range((after, Bound::Unbounded));
        let mut in_turn = later.chain(&self.answering);
        let (address, origins) = in_turn.find(|(address, _)| **address != ip)?;
        self.heard = Some(*address);
        origins.first().cloned()
    }

    fn judge(&mut self, reason: &str) {
        if self.is_cut_off() {
            self.isolated = Some(reason.to_owned());
        }
    }

    fn is_cut_off(&self) -> bool {
        if !self.answering.is_empty() {
            return false;
        }
        let blocked = self.views.values().filter(|view| view.1 == View::Blocked);
        let mut seen = BTreeSet::new();
        blocked
            .map(|view| view.0)
            .any(|ip| seen.insert(ip) && seen.len() > 1)
    }

    fn see(&mut self, key: &OriginKey, now: View) {
        let Some((ip, view)) = self.views.get_mut(key) else {
            return;
        };
        let before = std::mem::replace(view, now);
        match (before == View::Answered, now == View::Answered) {
            (false, true) => {
                self.answering.entry(*ip).or_default().insert(key.clone());
            }
            (true, false) => {
                if let Some(origins) = self.answering.get_mut(ip) {
                    origins.remove(key);
                    if origins.is_empty() {
                        self.answering.remove(ip);
                    }
                }
            }
            _ => {}
        }
    }

    fn forget(&mut self, key: &OriginKey) {
        self.see(key, View::Unseen);
        self.suspicions.remove(key);
        if let Some((ip, _)) = self.views.remove(key)
            && let Some(count) = self.addresses.get_mut(&ip)
        {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;

    use super::*;
    use crate::membership::fixtures::key;

    /// A vantage on origins `game/<name>` at 10.0.2.<index>, and the clock.
    struct Scene {
        vantage: Vantage,
        now: Instant,
    }

    impl Scene {
        fn of(names: &[&str]) -> Self {
            let mut vantage = Vantage::default();
            for (index, name) in names.iter().enumerate() {
                let ip = format!("10.0.2.{index}").parse().unwrap();
                vantage.add(key("game", name), ip);
            }
            Self {
                vantage,
                now: Instant::now(),
            }
        }

        /// A probe that starts and ends now; returns whose evidence came of it.
        fn probe(&mut self, name: &str, outcome: Result<Duration, Failure>) -> Vec<(String, bool)> {
            self.sight(name, outcome)
                .evidence
                .into_iter()
                .map(|(key, evidence)| (key.origin.to_string(), evidence.is_ok()))
                .collect()
        }

        fn sight(&mut self, name: &str, outcome: Result<Duration, Failure>) -> Sighting {
            self.now += Duration::from_millis(10);
            self.vantage.observe(Probed {
                key: key("game", name),
                started: self.now,
                finished: self.now,
                outcome,
            })
        }
    }

    const PASSED: Result<Duration, Failure> = Ok(Duration::from_millis(1));

    fn failed(code: i32) -> Result<Duration, Failure> {
        Err(Failure::Connect(io::Error::from_raw_os_error(code)))
    }

    fn unreachable() -> Result<Duration, Failure> {
        failed(libc::ENETUNREACH)
    }

    fn evidence(of: &[(&str, bool)]) -> Vec<(String, bool)> {
        of.iter()
            .map(|(name, passed)| ((*name).to_owned(), *passed))
            .collect()
    }

    #[test]
    fn what_the_origin_itself_says_counts_at_once() {
        let mut scene = Scene::of(&["a", "b"]);
        assert_eq!(scene.probe("a", PASSED), evidence(&[("a", true)]));
        let refused = failed(libc::ECONNREFUSED);
        assert_eq!(scene.probe("a", refused), evidence(&[("a", false)]));
    }

    #[test]
    fn no_way_to_one_origin_counts_once_another_answers() {
        let mut scene = Scene::of(&["a", "b"]);
        scene.probe("b", PASSED);
        let sighting = scene.sight("a", unreachable());
        assert_eq!(sighting.evidence, []);
        assert_eq!(sighting.witness, Some(key("game", "b")));
        assert_eq!(
            scene.probe("b", PASSED),
            evidence(&[("b", true), ("a", false)])
        );
        assert_eq!(scene.probe("b", PASSED), evidence(&[("b", true)]));
        assert_eq!(scene.vantage.isolated(), None);
    }

    #[test]
    fn witnesses_take_turns_and_are_never_at_the_same_address() {
        let mut scene = Scene::of(&["a", "b", "c", "d"]);
        scene
            .vantage
            .add(key("mail", "d"), "10.0.2.3".parse().unwrap());
        for name in ["a", "b", "c", "d"] {
            scene.probe(name, PASSED);
        }
        let mut called = |name| {
            let witness = scene.sight(name, unreachable()).witness;
            witness.map(|key| key.origin.to_string())
        };
        let witnesses = [(); 6].map(|()| called("d").unwrap());
        assert_eq!(witnesses, ["a", "b", "c", "a", "b", "c"]);
        assert_eq!(called("a").unwrap(), "b", "a answers no more");
        assert_eq!([called("c").unwrap(), called("c").unwrap()], ["b", "b"]);
        assert_eq!(called("b"), None, "nobody is left");
    }

    #[test]
    fn an_answer_that_was_asked_for_earlier_settles_nothing() {
        let mut scene = Scene::of(&["a", "b"]);
        let before = scene.now;
        scene.probe("b", PASSED);
        scene.probe("a", unreachable());
        let sighting = scene.vantage.observe(Probed {
            key: key("game", "b"),
            started: before,
            finished: scene.now,
            outcome: PASSED,
        });
        assert_eq!(sighting.evidence.len(), 1, "{sighting:?}");
    }

    #[test]
    fn when_all_ways_are_gone_nobody_is_blamed_and_nobody_afterwards() {
        let mut scene = Scene::of(&["a", "b", "c"]);
        for name in ["a", "b", "c"] {
            scene.probe(name, PASSED);
        }
        for _ in 0..5 {
            for name in ["a", "b", "c"] {
                assert_eq!(scene.probe(name, unreachable()), []);
            }
            assert_eq!(
                scene.vantage.isolated(),
                Some("connect: network is unreachable")
            );
        }
        assert_eq!(scene.probe("b", PASSED), evidence(&[("b", true)]));
        assert_eq!(scene.vantage.isolated(), None);
        assert_eq!(scene.probe("c", PASSED), evidence(&[("c", true)]));
    }

    #[test]
    fn a_host_out_of_descriptors_blames_nobody() {
        let mut scene = Scene::of(&["a", "b"]);
        scene.probe("a", PASSED);
        assert_eq!(scene.probe("b", failed(libc::EMFILE)), []);
        assert_eq!(scene.vantage.isolated(), None);
        assert_eq!(scene.probe("a", failed(libc::EMFILE)), []);
        assert_eq!(
            scene.vantage.isolated(),
            Some("connect: too many open files")
        );
        assert_eq!(scene.probe("a", PASSED), evidence(&[("a", true)]));
    }

    #[test]
    fn a_lone_address_has_no_witness_so_its_failures_count() {
        let mut scene = Scene::of(&["a"]);
        assert_eq!(scene.probe("a", unreachable()), evidence(&[("a", false)]));
        assert_eq!(scene.vantage.isolated(), None);
    }

    #[test]
    fn two_origins_on_one_address_are_no_second_opinion() {
        let mut scene = Scene::of(&["a"]);
        scene
            .vantage
            .add(key("mail", "a"), "10.0.2.0".parse().unwrap());
        assert_eq!(scene.probe("a", unreachable()), evidence(&[("a", false)]));
    }

    #[test]
    fn an_origin_that_is_gone_is_neither_witness_nor_suspect() {
        let mut scene = Scene::of(&["a", "b"]);
        scene.probe("a", unreachable());
        scene.probe("b", unreachable());
        assert!(scene.vantage.isolated().is_some());
        scene.vantage.remove(&key("game", "b"));
        assert_eq!(scene.vantage.isolated(), None);
        assert_eq!(scene.probe("b", PASSED), []);
    }
}
