//! What simulations have in common: chance from a seed, and which seeds.

#![allow(clippy::unwrap_used)]

use std::{env, panic::catch_unwind};

/// SplitMix64.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % bound
    }

    pub(super) fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }
}

/// Tells so many stories, or as `ANYPORT_STORIES` and `ANYPORT_SEED` say; names the seed
/// of one that fails.
pub(super) fn tell_stories(count: u64, tell: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let number = |name| env::var(name).ok().map(|number| number.parse().unwrap());
    let stories = 0..number("ANYPORT_STORIES").unwrap_or(count);
    let seeds = number("ANYPORT_SEED").map_or(stories, |seed| seed..seed + 1);
    for seed in seeds {
        assert!(catch_unwind(|| tell(seed)).is_ok(), "ANYPORT_SEED={seed}");
    }
}
