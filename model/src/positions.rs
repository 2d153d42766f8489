//! A set of positions in a list: origins of a pool that were tried, or are to
//! be left alone.

/// Small numbers, each there or not. The first 64 take no memory of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    first: u64,
    /// Of 64 each, those after the first.
    more: Vec<u64>,
}

const WORD: usize = u64::BITS as usize;

impl Positions {
    pub const NONE: Positions = Positions {
        first: 0,
        more: Vec::new(),
    };

    pub fn contains(&self, position: usize) -> bool {
        let word = match (position / WORD).checked_sub(1) {
            None => self.first,
            Some(at) => self.more.get(at).copied().unwrap_or(0),
        };
        word >> (position % WORD) & 1 == 1
    }

    pub fn insert(&mut self, position: usize) {
        let bit = 1 << (position % WORD);
        let Some(at) = (position / WORD).checked_sub(1) else {
            self.first |= bit;
            return;
        };
        if self.more.len() <= at {
            self.more.resize(at + 1, 0);
        }
        if let Some(word) = self.more.get_mut(at) {
            *word |= bit;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.words().map(|word| word.count_ones() as usize).sum()
    }

    /// How many are not among `others`.
    pub fn count_without(&self, others: &Positions) -> usize {
        let others = others.words().chain(std::iter::repeat(0));
        let left = self
            .words()
            .zip(others)
            .map(|(word, others)| word & !others);
        left.map(|word| word.count_ones() as usize).sum()
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }
}

impl Extend<usize> for Positions {
    fn extend<T: IntoIterator<Item = usize>>(&mut self, positions: T) {
        positions
            .into_iter()
            .for_each(|position| self.insert(position));
    }
}

impl FromIterator<usize> for Positions {
    fn from_iter<T: IntoIterator<Item = usize>>(positions: T) -> Self {
        let mut set = Self::default();
        set.extend(positions);
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Positions;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_set(inserted in prop::collection::btree_set(0usize..300, 0..40)) {
            let set: Positions = inserted.iter().copied().collect();
            let found: BTreeSet<usize> = (0..400).filter(|&at| set.contains(at)).collect();
            prop_assert_eq!(set.len(), inserted.len());
            prop_assert_eq!(set.is_empty(), inserted.is_empty());
            prop_assert_eq!(found, inserted);
        }

        #[test]
        fn those_that_are_not_among_others_are_counted(
            one in prop::collection::btree_set(0usize..300, 0..40),
            other in prop::collection::btree_set(0usize..300, 0..40),
        ) {
            let set = |of: &BTreeSet<usize>| of.iter().copied().collect::<Positions>();
            let count = set(&one).count_without(&set(&other));
            prop_assert_eq!(count, one.difference(&other).count());
        }
    }
}
