//! Maglev's consistent hashing (Eisenbud et al., NSDI 2016), with weights: a
//! table of slots, each of which names an origin. Two edges with the same
//! origins have the same table, and a change of one origin moves little else.

use crate::sip::{Sip, mix};

/// Slots of a table: a prime, as the permutations need, and that of the paper.
/// One for any number of origins, since in a table of another size nearly all
/// clients would be elsewhere. With a thousand origins, shares are right to two
/// percent.
const SIZE: usize = 65_537;

/// Slots that are looked at for a client: where one origin of a hundred is left,
/// half of the clients have found it by then.
const ELSEWHERE: usize = 64;

/// The keys are no secret: every edge has to have the same ones.
const OFFSET: Sip = Sip::new(0x616e_7970_6f72_7420, 0x6f66_6673_6574_2031);
const SKIP: Sip = Sip::new(0x616e_7970_6f72_7420, 0x736b_6970_2020_2031);

/// Which origin, by its position, has each slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maglev {
    slots: Box<[u16]>,
}

impl Maglev {
    /// A table of the origins with a weight; empty where there is none.
    /// An origin is known by its `name`, so that its position does not matter.
    pub fn new<'a>(origins: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let all = origins.into_iter().enumerate();
        let mut origins: Vec<(&str, u32, u16)> = all
            .filter(|(_, (_, weight))| *weight > 0)
            .filter_map(|(at, (name, weight))| Some((name, weight, u16::try_from(at).ok()?)))
            .collect();
        // Origins take slots in turn, so the order has to be the same for all.
        origins.sort_unstable();
        Self {
            slots: fill(&origins),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The origins for `hash` in the order of preference, some of them more
    /// than once: its slot's, then those of slots elsewhere, so that the clients
    /// of one that is passed over are spread by weight. (Walks have steps of one
    /// length, so a slot's neighbours are of few origins.) In the end, those of all
    /// slots, from one of its own on.
    pub fn preferred(&self, hash: u64) -> impl Iterator<Item = usize> {
        let hashes = move || std::iter::successors(Some(hash), |hash| Some(mix(*hash)));
        let elsewhere = hashes().take(ELSEWHERE);
        let elsewhere = elsewhere.filter_map(|hash| self.slots.get(self.slot(hash)));
        let around = std::iter::once_with(move || {
            let last = hashes().nth(ELSEWHERE).unwrap_or(hash);
            let (before, after) = self.slots.split_at(self.slot(last));
            after.iter().chain(before)
        });
        elsewhere.chain(around.flatten()).map(|&at| usize::from(at))
    }

    fn slot(&self, hash: u64) -> usize {
        (hash % self.slots.len().max(1) as u64) as usize
    }
}

/// An origin's walk over the slots, and how often it may take one: by its
/// weight relative to the heaviest, which takes one each round.
struct Walker {
    at: u16,
    next: usize,
    skip: usize,
    weight: u64,
    credit: u64,
}

fn fill(origins: &[(&str, u32, u16)]) -> Box<[u16]> {
    const FREE: u16 = u16::MAX;
    if origins.is_empty() {
        return Box::default();
    }
    let mut walkers: Vec<Walker> = origins
        .iter()
        .map(|&(name, weight, at)| Walker {
            at,
            next: (OFFSET.hash(name.as_bytes()) % SIZE as u64) as usize,
            skip: (SKIP.hash(name.as_bytes()) % (SIZE as u64 - 1)) as usize + 1,
            weight: u64::from(weight),
            credit: 0,
        })
        .collect();
    let heaviest = walkers.iter().map(|w| w.weight).max().unwrap_or(1);
    let mut slots = vec![FREE; SIZE];
    let mut left = SIZE;
    let mut take = |walker: &mut Walker| {
        if left == 0 {
            return false;
        }
        // `skip` and the prime `SIZE` have no common divisor, so the walk comes
        // to every slot, and one of them is free.
        while slots[walker.next] != FREE {
            walker.next = (walker.next + walker.skip) % SIZE;
        }
        slots[walker.next] = walker.at;
        left -= 1;
        true
    };
    // However light an origin is, it has a slot.
    let mut filling = walkers.iter_mut().all(&mut take);
    while filling {
        for walker in &mut walkers {
            walker.credit += walker.weight;
            if walker.credit >= heaviest {
                walker.credit -= heaviest;
                filling = take(walker);
            }
            if !filling {
                break;
            }
        }
    }
    slots.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(count: usize) -> Vec<(String, u32)> {
        (0..count)
            .map(|index| (format!("origin-{index}"), 1000))
            .collect()
    }

    fn table(origins: &[(String, u32)]) -> Maglev {
        Maglev::new(
            origins
                .iter()
                .map(|(name, weight)| (name.as_str(), *weight)),
        )
    }

    /// Who has each slot, by name.
    fn owners<'a>(maglev: &Maglev, origins: &'a [(String, u32)]) -> Vec<&'a str> {
        let name = |at: &u16| origins[usize::from(*at)].0.as_str();
        maglev.slots.iter().map(name).collect()
    }

    fn share(maglev: &Maglev, at: usize) -> f64 {
        let has = maglev.slots.iter().filter(|&&slot| usize::from(slot) == at);
        has.count() as f64 / maglev.slots.len() as f64
    }

    #[test]
    fn slots_follow_the_weights_to_a_percent() {
        for weights in [
            vec![1, 1],
            vec![1000, 3000],
            vec![1, 2, 3, 4],
            vec![1000; 99],
        ] {
            let origins: Vec<(String, u32)> = weights
                .iter()
                .enumerate()
                .map(|(index, weight)| (format!("o{index}"), *weight))
                .collect();
            let maglev = table(&origins);
            let total: u32 = weights.iter().sum();
            for (index, weight) in weights.iter().enumerate() {
                let right = f64::from(*weight) / f64::from(total);
                let got = share(&maglev, index);
                assert!(
                    (got - right).abs() < 0.01,
                    "{got} for {right} of {weights:?}"
                );
            }
        }
    }

    #[test]
    fn of_a_thousand_none_has_much_more_than_its_share() {
        let maglev = table(&named(1000));
        let mut slots = [0u32; 1000];
        for at in &maglev.slots {
            slots[usize::from(*at)] += 1;
        }
        assert!(slots.iter().all(|has| (65..=66).contains(has)), "{slots:?}");
    }

    /// Most of the clients find none of the few by slots elsewhere.
    #[test]
    fn where_few_of_many_are_left_they_share_the_clients() {
        let (maglev, mut random) = (table(&named(1000)), 1);
        let mut clients = [0u32; 4];
        for _ in 0..4000 {
            random = mix(random);
            let of_the_few = |at: &usize| at.is_multiple_of(250);
            clients[maglev.preferred(random).find(of_the_few).unwrap_or(0) / 250] += 1;
        }
        assert!(
            clients.iter().all(|has| (700..1300).contains(has)),
            "{clients:?}"
        );
    }

    /// `cargo test -p anyport-model --lib -- --ignored --nocapture table_costs`
    #[test]
    #[ignore = "a measurement"]
    #[allow(clippy::print_stdout)]
    fn what_a_table_costs() {
        for count in [3, 40, 1000] {
            let origins = named(count);
            let start = std::time::Instant::now();
            let slots = table(&origins).slots;
            let (took, bytes) = (start.elapsed(), size_of_val(&*slots));
            println!("{count} origins: {took:?}, {bytes} bytes");
        }
    }

    #[test]
    fn the_lightest_origin_has_a_slot() {
        let origins = [("light".to_owned(), 1), ("heavy".to_owned(), 1_000_000)];
        assert!(share(&table(&origins), 0) > 0.0);
    }

    /// The table is what all edges have to agree on, so it must not change from
    /// version to version.
    #[test]
    fn the_table_is_what_it_was() {
        let maglev = table(&[("a".to_owned(), 1000), ("b".to_owned(), 2000)]);
        let bytes: Vec<u8> = maglev
            .slots
            .iter()
            .flat_map(|slot| slot.to_le_bytes())
            .collect();
        assert_eq!(
            format!("{:016x}", Sip::new(0, 0).hash(&bytes)),
            "cc455fb9090379d8"
        );
    }

    #[test]
    fn nothing_is_chosen_from_nothing() {
        let empty = Maglev::new([("a", 0)]);
        assert!(empty.is_empty());
        assert_eq!(empty.preferred(7).next(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn two_builds_agree_in_any_order(
            weights in prop::collection::vec(1u32..100_000, 1..60),
            seed: u64,
        ) {
            let origins: Vec<(String, u32)> = weights
                .iter()
                .enumerate()
                .map(|(index, weight)| (format!("o{index}"), *weight))
                .collect();
            let mut other = origins.clone();
            let by = |origin: &(String, u32)| Sip::new(seed, 0).hash(origin.0.as_bytes());
            other.sort_by_key(by);
            let (one, two) = (table(&origins), table(&other));
            prop_assert_eq!(owners(&one, &origins), owners(&two, &other));
        }

        /// One origin less: its own slots have to go elsewhere; of the others,
        /// Maglev moves a few.
        #[test]
        fn an_origin_that_goes_moves_little_else(
            count in prop_oneof![2usize..60, Just(41), Just(164), Just(400)],
            gone: prop::sample::Index,
        ) {
            let before = named(count);
            let gone = gone.index(count);
            let mut after = before.clone();
            after[gone].1 = 0;
            let (one, two) = (table(&before), table(&after));
            prop_assert_eq!(one.slots.len(), two.slots.len());
            let stayed = one.slots.iter().zip(&two.slots);
            let moved = stayed.filter(|(old, new)| usize::from(**old) != gone && old != new);
            let moved = moved.count() as f64 / one.slots.len() as f64;
            prop_assert!(moved < 0.1, "{moved} of the slots moved for nothing");
        }

        #[test]
        fn every_origin_is_preferred_some_time(weights in prop::collection::vec(0u32..5000, 0..40), hash: u64) {
            let origins: Vec<(String, u32)> = weights
                .iter()
                .enumerate()
                .map(|(index, weight)| (format!("o{index}"), *weight))
                .collect();
            let mut seen = vec![false; weights.len()];
            table(&origins).preferred(hash).for_each(|index| seen[index] = true);
            let with_weight = weights.iter().map(|weight| *weight > 0);
            prop_assert_eq!(seen, with_weight.collect::<Vec<_>>());
        }
    }
}
