//! Everything that is left to chance, from one seed.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};

/// Clones share the sequence.
#[derive(Debug, Clone)]
pub struct Chance(Arc<Mutex<StdRng>>);

impl Chance {
    pub fn of(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    pub fn number(&self) -> u64 {
        self.0.lock().unwrap().random()
    }

    /// 0 to `most`, that not included.
    pub fn below(&self, most: usize) -> usize {
        self.0.lock().unwrap().random_range(0..most)
    }

    /// Is it one of so many times?
    pub fn one_in(&self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Mostly short.
    pub fn milliseconds(&self, most: u64) -> Duration {
        let most = if self.one_in(4) { most } else { most / 10 + 1 };
        Duration::from_millis(self.0.lock().unwrap().random_range(0..=most))
    }
}
