//! The latest of something, and news of it.
//!
//! As tokio's `watch`, but for this: those who wait are woken in the order in which
//! they began to, and not in one by chance, so that a simulation can be replayed.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Holds the latest. Clones share it.
#[derive(Clone)]
pub struct Latest<T>(Arc<Shared<T>>);

/// Follows the latest.
pub struct News<T> {
    of: Latest<T>,
    seen: u64,
}

struct Shared<T> {
    /// How often it was replaced, with what.
    held: Mutex<(u64, T)>,
    replaced: Notify,
}

impl<T: Clone> Latest<T> {
    pub fn new(first: T) -> Self {
        Self(Arc::new(Shared {
            held: Mutex::new((0, first)),
            replaced: Notify::new(),
        }))
    }

    pub fn get(&self) -> T {
        self.held().1.clone()
    }

    pub fn replace(&self, with: T) {
        let before = {
            let mut held = self.held();
            held.0 += 1;
            std::mem::replace(&mut held.1, with)
        };
        self.0.replaced.notify_waiters();
        // Not while others wait for the lock.
        drop(before);
    }

    /// What is there now has been seen.
    pub fn news(&self) -> News<T> {
        News {
            of: self.clone(),
            seen: self.held().0,
        }
    }

    fn held(&self) -> MutexGuard<'_, (u64, T)> {
        // Every change to it is a single step, so a panic leaves it sound.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> News<T> {
    /// The latest; it has been seen now.
    pub fn latest(&mut self) -> T {
        let held = self.of.held();
        self.seen = held.0;
        held.1.clone()
    }

    /// Waits until there is one that was not seen; it has been then. Dropped half-way,
    /// it has not.
    pub async fn changed(&mut self) {
        let mut replaced = pin!(self.of.0.replaced.notified());
        loop {
            // Before looking: one that comes in between wakes it.
            replaced.as_mut().enable();
            let now = self.of.held().0;
            if now != self.seen {
                self.seen = now;
                return;
            }
            replaced.as_mut().await;
            replaced.set(self.of.0.replaced.notified());
        }
    }
}

impl<T: Clone + fmt::Debug> fmt::Debug for Latest<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Latest").field(&self.get()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_waits_is_woken_in_turn_and_misses_nothing() {
        let latest = Latest::new(0);
        let (order, mut woken) = tokio::sync::mpsc::unbounded_channel();
        for waiter in 0..20 {
            let (mut news, order) = (latest.news(), order.clone());
            tokio::spawn(async move {
                news.changed().await;
                let _ = order.send((waiter, news.latest()));
            });
            tokio::task::yield_now().await;
        }
        latest.replace(1);
        for waiter in 0..20 {
            assert_eq!(woken.recv().await, Some((waiter, 1)));
        }
        // What came before the wait is news too, and only once.
        let mut news = latest.news();
        latest.replace(2);
        latest.replace(3);
        news.changed().await;
        assert_eq!(news.latest(), 3);
        let again = tokio::time::timeout(std::time::Duration::from_millis(10), news.changed());
        again.await.expect_err("it was seen");
    }
}
