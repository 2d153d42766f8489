//! Maglev's consistent hashing (Eisenbud et al., NSDI 2016), with weights: a
//! table of slots, each of which names an origin. Two edges with the same
//! origins have the same table, and a change of one origin moves little else.

use crate::sip::{Sip, mix};

/// Sizes of tables, primes, as the permutations need: the smallest that has a
/// hundred slots per origin, so that shares are right to a percent. The largest
/// is that of the paper.
const SIZES: [usize; 3] = [4099, 16_411, 65_537];
const SLOTS_PER_ORIGIN: usize = 100;

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
    /// slots.
    pub fn preferred(&self, hash: u64) -> impl Iterator<Item = usize> {
        let slot = |hash: u64| (hash % self.slots.len().max(1) as u64) as usize;
        let hashes = std::iter::successors(Some(hash), |hash| Some(mix(*hash)));
        let elsewhere = hashes.take(ELSEWHERE).map(slot);
        let elsewhere = elsewhere.filter_map(|slot| self.slots.get(slot));
        elsewhere.chain(&self.slots).map(|&at| usize::from(at))
    }
}

fn size(origins: usize) -> usize {
    let wanted = origins * SLOTS_PER_ORIGIN;
    let fits = SIZES.iter().find(|size| **size >= wanted);
    *fits.unwrap_or(&SIZES[SIZES.len() - 1])
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
    let size = size(origins.len());
    let mut walkers: Vec<Walker> = origins
        .iter()
        .map(|&(name, weight, at)| Walker {
            at,
            next: (OFFSET.hash(name.as_bytes()) % size as u64) as usize,
            skip: (SKIP.hash(name.as_bytes()) % (size as u64 - 1)) as usize + 1,
            weight: u64::from(weight),
            credit: 0,
        })
        .collect();
    let heaviest = walkers.iter().map(|w| w.weight).max().unwrap_or(1);
    let mut slots = vec![FREE; size];
    let mut left = size;
    let mut take = |walker: &mut Walker| {
        if left == 0 {
            return false;
        }
        // `skip` and the prime `size` have no common divisor, so the walk comes
        // to every slot, and one of them is free.
        while slots[walker.next] != FREE {
            walker.next = (walker.next + walker.skip) % size;
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
    fn the_table_grows_with_the_origins() {
        for (origins, size) in [(1, 4099), (40, 4099), (41, 16_411), (1000, 65_537)] {
            assert_eq!(table(&named(origins)).slots.len(), size, "{origins}");
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
            "2fbe7f864ebd8d5b"
        );
    }

    #[test]
    fn nothing_is_chosen_from_nothing() {
        let empty = Maglev::new([("a", 0)]);
        assert!(empty.is_empty());
        assert_eq!(empty.preferred(7).next(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

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
        fn an_origin_that_goes_moves_little_else(count in 2usize..60, gone: prop::sample::Index) {
            let before = named(count);
            let gone = gone.index(count);
            let mut after = before.clone();
            after[gone].1 = 0;
            let (one, two) = (table(&before), table(&after));
            prop_assume!(one.slots.len() == two.slots.len());
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
            let mut seen: Vec<usize> = table(&origins).preferred(hash).collect();
            seen.sort_unstable();
            seen.dedup();
            let with_weight = (0..weights.len()).filter(|&index| weights[index] > 0);
            prop_assert_eq!(seen, with_weight.collect::<Vec<_>>());
        }
    }
}
