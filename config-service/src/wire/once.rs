//! What many need at once, made once.

use std::{
    collections::VecDeque,
    fmt,
    panic::resume_unwind,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{sync::OnceCell, task::JoinError};

/// Values by key, the latest of them. Whoever needs one that is being made waits for it.
pub(crate) struct Once<K, V> {
    most: usize,
    kept: Mutex<VecDeque<(K, Arc<OnceCell<V>>)>>,
}

impl<K: PartialEq, V: Clone + Send + Sync + 'static> Once<K, V> {
    /// Keeps so many.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            kept: Mutex::default(),
        }
    }

    /// The value of this key; `make` is polled only where there is none. It goes on where
    /// who asked does not wait for its end, so that the next does not begin it anew
    /// while the work of the first is not over.
    pub(crate) async fn get(&self, key: K, make: impl Future<Output = V> + Send + 'static) -> V {
        let slot = self.slot(key);
        if let Some(made) = slot.get() {
            return made.clone();
        }
        let making = tokio::spawn(async move { slot.get_or_init(|| make).await.clone() });
        made(making.await).await
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

/// As if it were done here, so that a panic ends who asked.
pub(crate) async fn made<T>(done: Result<T, JoinError>) -> T {
    match done.map_err(JoinError::try_into_panic) {
        Ok(made) => made,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime is being taken down, and whoever waits with it.
        Err(Err(_)) => std::future::pending().await,
    }
}

impl<K, V> fmt::Debug for Once<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Once")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{pin::pin, task::Poll};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_is_being_made_is_made_once_although_who_asked_first_has_left() {
        let once = Once::new(1);
        let (finish, finished) = oneshot::channel::<u8>();
        let (begun, begins) = oneshot::channel();
        {
            let first = once.get((), async move {
                let _ = begun.send(());
                finished.await.ok()
            });
            let mut first = pin!(first);
            tokio::select! {
                biased;
                _ = &mut first => unreachable!(),
                begun = begins => begun.unwrap(),
            }
        }
        let mut second = pin!(once.get((), async { None }));
        assert_eq!(once_polled(second.as_mut()).await, Poll::Pending);
        finish.send(7).unwrap();
        assert_eq!(second.await, Some(7));
    }

    async fn once_polled<F: Future>(mut future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
    }
}
