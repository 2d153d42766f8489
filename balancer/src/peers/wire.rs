//! Between verdicts and their messages.

use std::sync::Arc;

use anyport_model::{fault::Fault, health::Verdict, opinion::Opinion};
use anyport_proto::{
    convert::{read_duration, write_duration, write_timestamp},
    v1,
};

use super::{Heard, Own, Verdicts};
use crate::membership::OriginKey;

/// So many resources may be declared.
const ORIGINS_MAX: usize = 200_000;
/// In characters.
const REASON_MAX: usize = 500;

impl Verdicts {
    /// What brings one who was told `told` here; of `None` all.
    pub(crate) fn write(&self, balancer: &str, told: Option<&Verdicts>) -> v1::VerdictsUpdate {
        let nothing = Own::new();
        // A sign of life says nothing of any origin, however many there are.
        let (own, old) = match told {
            Some(told) if std::ptr::eq(told, self) => (&nothing, &nothing),
            Some(told) => (&self.own, &told.own),
            None => (&self.own, &nothing),
        };
        let is_told = |(key, (asked, opinion)): &(&OriginKey, &(u64, Arc<Opinion>))| {
            let held = old.get(*key).filter(|(of, _)| of == asked);
            held.is_some_and(|(_, held)| Arc::ptr_eq(held, opinion) || held.says_as(opinion))
        };
        let news = own.iter().filter(|entry| !is_told(entry));
        let withdrawn = old.keys().filter(|key| !own.contains_key(*key));
        v1::VerdictsUpdate {
            balancer: balancer.to_owned(),
            epoch: self.epoch,
            isolated: self.isolated,
            serves: self.serves,
            full: told.is_none(),
            verdicts: news
                .map(|(key, (asked, opinion))| write(key, *asked, opinion))
                .collect(),
            withdrawn: withdrawn.map(write_name).collect(),
        }
    }
}

fn write_name(key: &OriginKey) -> v1::OriginName {
    v1::OriginName {
        pool: key.pool.to_string(),
        origin: key.origin.to_string(),
    }
}

fn write(key: &OriginKey, asked: u64, opinion: &Opinion) -> v1::OriginVerdict {
    let health = match opinion.verdict {
        Verdict::Unknown => v1::HealthState::Unknown,
        Verdict::Up => v1::HealthState::Up,
        Verdict::Down => v1::HealthState::Down,
    };
    v1::OriginVerdict {
        name: Some(write_name(key)),
        asked,
        health: health.into(),
        reason: opinion.reason.clone(),
        since: Some(write_timestamp(opinion.since)),
        passes_while_held: opinion.passes_while_held,
        held_until: opinion.held_until.map(write_timestamp),
        recent_downs: opinion.recent_downs,
        last_pass: opinion.last_pass.map(write_duration),
    }
}

impl Heard {
    /// # Errors
    /// The first field that cannot be read; then nothing of the update counts.
    pub(crate) fn read(update: v1::VerdictsUpdate) -> Result<Self, Fault> {
        let count = update.verdicts.len();
        if count > ORIGINS_MAX {
            let problem = format!("{count} verdicts; right is at most {ORIGINS_MAX}");
            return Err(Fault::new("verdicts", problem));
        }
        let said = update.verdicts.into_iter().enumerate();
        let withdrawn = update.withdrawn.into_iter().enumerate();
        Ok(Self {
            epoch: update.epoch,
            isolated: update.isolated,
            serves: update.serves,
            full: update.full,
            said: said
                .map(|(index, verdict)| read(&format!("verdicts[{index}]"), verdict))
                .collect::<Result<_, _>>()?,
            withdrawn: withdrawn
                .map(|(index, name)| read_name(&format!("withdrawn[{index}]"), &name))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn read_name(path: &str, name: &v1::OriginName) -> Result<OriginKey, Fault> {
    let fault = |field: &str, problem: &dyn std::fmt::Display| {
        Fault::new(format!("{path}.{field}"), problem)
    };
    Ok(OriginKey {
        pool: name.pool.parse().map_err(|e| fault("pool", &e))?,
        origin: name.origin.parse().map_err(|e| fault("origin", &e))?,
    })
}

fn read(path: &str, wire: v1::OriginVerdict) -> Result<(OriginKey, (u64, Arc<Opinion>)), Fault> {
    let key = read_name(&format!("{path}.name"), &wire.name.unwrap_or_default())?;
    let fault = |field: &str, problem: &dyn std::fmt::Display| {
        Fault::new(format!("{path}.{field}"), problem)
    };
    let verdict = match v1::HealthState::try_from(wire.health) {
        Ok(v1::HealthState::Unknown) => Verdict::Unknown,
        Ok(v1::HealthState::Up) => Verdict::Up,
        Ok(v1::HealthState::Down) => Verdict::Down,
        Ok(other) => {
            return Err(fault(
                "health",
                &format!("{} is no verdict", other.as_str_name()),
            ));
        }
        Err(error) => return Err(fault("health", &error)),
    };
    let since = wire.since.unwrap_or_default().try_into();
    let held_until = wire.held_until.map(TryInto::try_into).transpose();
    let last_pass = wire.last_pass.map(read_duration).transpose();
    let opinion = Opinion {
        verdict,
        since: since.map_err(|e: prost_types::TimestampError| fault("since", &e))?,
        reason: wire.reason.chars().take(REASON_MAX).collect(),
        passes_while_held: wire.passes_while_held,
        held_until: held_until.map_err(|e: prost_types::TimestampError| fault("held_until", &e))?,
        recent_downs: wire.recent_downs,
        last_pass: last_pass.map_err(|e| fault("last_pass", &e))?,
    };
    Ok((key, (wire.asked, Arc::new(opinion))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::membership::fixtures::key;

    fn any_opinion() -> impl Strategy<Value = Opinion> {
        let verdict = prop::sample::select(vec![Verdict::Unknown, Verdict::Up, Verdict::Down]);
        (
            verdict,
            0u64..3,
            "[a-z]{0,2}",
            any::<bool>(),
            prop::option::of(0u64..3),
            0u32..2,
        )
            .prop_map(
                |(verdict, since, reason, passes_while_held, other, recent_downs)| Opinion {
                    verdict,
                    since: SystemTime::UNIX_EPOCH + Duration::from_secs(since),
                    reason,
                    passes_while_held,
                    held_until: other.map(|at| SystemTime::UNIX_EPOCH + Duration::from_secs(at)),
                    recent_downs,
                    last_pass: None,
                },
            )
    }

    fn any_verdicts() -> impl Strategy<Value = Verdicts> {
        let spoken = (0u64..2, any_opinion().prop_map(Arc::new));
        let own = prop::collection::btree_map(0u8..6, spoken, 0..6);
        (0u64..3, any::<bool>(), own).prop_map(|(epoch, isolated, own)| Verdicts {
            epoch,
            isolated,
            serves: !isolated,
            own: own
                .into_iter()
                .map(|(n, said)| (key("game", &format!("o{n}")), said))
                .collect(),
        })
    }

    proptest! {
        #[test]
        fn who_follows_the_updates_holds_what_was_said(
            states in prop::collection::vec(any_verdicts(), 1..5),
        ) {
            let mut told: Option<&Verdicts> = None;
            let mut held = Own::new();
            for state in &states {
                let update = state.write("b", told);
                let heard = Heard::read(update).unwrap();
                prop_assert_eq!((heard.epoch, heard.isolated), (state.epoch, state.isolated));
                prop_assert_eq!(heard.serves, state.serves);
                prop_assert_eq!(heard.full, told.is_none());
                let wanted = told.map(|told| &told.own);
                for (key, said) in &heard.said {
                    prop_assert_ne!(wanted.and_then(|own| own.get(key)), Some(said), "said twice");
                }
                held.retain(|key, _| !heard.withdrawn.contains(key));
                held.extend(heard.said);
                prop_assert_eq!(&held, &state.own);
                let sign_of_life = Heard::read(state.write("b", Some(state))).unwrap();
                prop_assert!(!sign_of_life.full && sign_of_life.said.is_empty());
                prop_assert!(sign_of_life.withdrawn.is_empty());
                told = Some(state);
            }
        }
    }

    #[test]
    fn what_is_said_has_bounds() {
        let mut opinion = Opinion::none(SystemTime::UNIX_EPOCH);
        opinion.reason = "é".repeat(10_000);
        let own = [(key("game", "a"), (7, Arc::new(opinion)))].into();
        let verdicts = Verdicts {
            own,
            ..Verdicts::default()
        };
        let mut update = verdicts.write("b", None);
        let heard = Heard::read(update.clone()).unwrap();
        let (_, (_, opinion)) = heard.said.first_key_value().unwrap();
        assert_eq!(opinion.reason.chars().count(), REASON_MAX);
        update.verdicts = vec![v1::OriginVerdict::default(); ORIGINS_MAX + 1];
        assert_eq!(Heard::read(update).unwrap_err().field, "verdicts");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let good = || {
            let opinion = Arc::new(Opinion::none(SystemTime::UNIX_EPOCH));
            let own = [(key("game", "a"), (7, opinion))].into();
            let verdicts = Verdicts {
                epoch: 1,
                isolated: false,
                serves: true,
                own,
            };
            verdicts.write("b", None)
        };
        let field = |spoil: &dyn Fn(&mut v1::OriginVerdict)| {
            let mut update = good();
            spoil(&mut update.verdicts[0]);
            Heard::read(update).unwrap_err().field
        };
        assert_eq!(
            field(&|verdict| verdict.name = None),
            "verdicts[0].name.pool"
        );
        let disabled = v1::HealthState::Disabled.into();
        assert_eq!(
            field(&|verdict| verdict.health = disabled),
            "verdicts[0].health"
        );
        let endless = prost_types::Duration {
            seconds: -1,
            nanos: 0,
        };
        assert_eq!(
            field(&|verdict| verdict.last_pass = Some(endless)),
            "verdicts[0].last_pass"
        );
        let mut update = good();
        update.withdrawn.push(v1::OriginName::default());
        assert_eq!(Heard::read(update).unwrap_err().field, "withdrawn[0].pool");
    }
}
