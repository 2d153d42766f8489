//! What many need at once, made once.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OnceCell;

/// Values by key, the latest of them. Whoever needs one that is being made waits for it.
pub(crate) struct Once<K, V> {
    most: usize,
    kept: Mutex<VecDeque<(K, Arc<OnceCell<V>>)>>,
}

impl<K: PartialEq, V: Clone> Once<K, V> {
    /// Keeps so many.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            kept: Mutex::default(),
        }
    }

    /// The value of this key; `make` is polled only where there is none.
    pub(crate) async fn get(&self, key: K, make: impl Future<Output = V>) -> V {
        let slot = self.slot(key);
        slot.get_or_init(|| make).await.clone()
    }

    fn slot(&self, key: K) -> Arc<OnceCell<V>> {
        // Every change to it is a single step, so a panic leaves it sound.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, slot)) = kept.iter().find(|(other, _)| *other == key) {
            return Arc::clone(slot);
        }
        let slot = Arc::default();
        kept.push_back((key, Arc::clone(&slot)));
        if kept.len() > self.most {
            kept.pop_front();
        }
        slot
    }
}

impl<K, V> fmt::Debug for Once<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Once")
    }
}
