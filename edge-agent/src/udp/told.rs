//! Which refusals the event log is told of. A client that is turned away often
//! goes on sending, and whoever forges sources is turned away as fast as
//! datagrams come: all of it is counted, and little of it written.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use super::sessions::Key;

/// What a client is told of once in.
const QUIET: Duration = Duration::from_secs(60);

/// Refusals in that time, of a worker.
const MOST: usize = 1024;

#[derive(Default)]
pub(super) struct Told {
    keys: HashSet<Key>,
    since: VecDeque<(Instant, Key)>,
}

impl Told {
    /// Whether to tell of it; it is taken for told then.
    pub(super) fn is_news(&mut self, key: &Key, now: Instant) -> bool {
        let is_old = |(at, _): &mut (Instant, Key)| now.saturating_duration_since(*at) >= QUIET;
        while let Some((_, key)) = self.since.pop_front_if(is_old) {
            self.keys.remove(&key);
        }
        if self.keys.len() >= MOST || !self.keys.insert(*key) {
            return false;
        }
        self.since.push_back((now, *key));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    fn nth(n: u16) -> Key {
        Key {
            client: SocketAddr::from((Ipv4Addr::new(203, 0, 113, 5), n)),
            edge: SocketAddr::from((Ipv4Addr::new(198, 51, 100, 1), 53)),
        }
    }

    #[test]
    fn a_client_is_news_once_a_minute_and_a_flood_is_not() {
        let (mut told, start) = (Told::default(), Instant::now());
        assert!(told.is_news(&nth(0), start));
        assert!(!told.is_news(&nth(0), start + QUIET / 2));
        let news = (0..10_000).filter(|n| told.is_news(&nth(*n), start + QUIET / 2));
        assert_eq!(news.count(), MOST - 1);
        assert!(told.is_news(&nth(0), start + QUIET));
        assert!(!told.is_news(&nth(1), start + QUIET));
        assert_eq!((told.keys.len(), told.since.len()), (MOST, MOST));
        let after = start + 2 * QUIET;
        assert!(told.is_news(&nth(1), after) && told.is_news(&nth(10_000), after));
        assert_eq!((told.keys.len(), told.since.len()), (2, 2));
    }
}
