//! Which refusals the event log is told of. A client that is turned away often
//! goes on trying, and whoever forges sources is turned away as fast as packets
//! come: all of it is counted, and little of it written.

use std::{
    collections::{HashSet, VecDeque},
    hash::Hash,
    time::{Duration, Instant},
};

/// Whom a key stands for is told of once in.
const QUIET: Duration = Duration::from_secs(60);

/// Refusals in that time, of all together.
const MOST: usize = 1024;

/// What was told of in the last minute.
pub struct Told<K> {
    keys: HashSet<K>,
    since: VecDeque<(Instant, K)>,
}

impl<K> Default for Told<K> {
    fn default() -> Self {
        Self {
            keys: HashSet::new(),
            since: VecDeque::new(),
        }
    }
}

impl<K: Clone + Eq + Hash> Told<K> {
    /// Whether to tell of it; it is taken for told then.
    pub fn is_news(&mut self, key: &K, now: Instant) -> bool {
        let is_old = |(at, _): &mut (Instant, K)| now.saturating_duration_since(*at) >= QUIET;
        while let Some((_, key)) = self.since.pop_front_if(is_old) {
            self.keys.remove(&key);
        }
        if self.keys.len() >= MOST || !self.keys.insert(key.clone()) {
            return false;
        }
        self.since.push_back((now, key.clone()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_news_once_a_minute_and_a_flood_is_not() {
        let (mut told, start) = (Told::default(), Instant::now());
        assert!(told.is_news(&0, start));
        assert!(!told.is_news(&0, start + QUIET / 2));
        let news = (0..10_000).filter(|n| told.is_news(n, start + QUIET / 2));
        assert_eq!(news.count(), MOST - 1);
        assert!(told.is_news(&0, start + QUIET));
        assert!(!told.is_news(&1, start + QUIET));
        assert_eq!((told.keys.len(), told.since.len()), (MOST, MOST));
        let after = start + 2 * QUIET;
        assert!(told.is_news(&1, after) && told.is_news(&10_000, after));
        assert_eq!((told.keys.len(), told.since.len()), (2, 2));
    }
}
