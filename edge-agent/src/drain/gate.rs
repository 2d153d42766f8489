//! What the kernel is asked for, and what it is asked for while the edge takes
//! no connections: the same, without a claim.

use std::sync::Arc;

use tokio::sync::{Mutex, watch};

use crate::kernel::{Applied, Desired, Kernel, KernelError, Standing};

/// Between those who configure and the kernel. Clones share it.
#[derive(Clone)]
pub struct Gate<K> {
    kernel: K,
    /// Held while the kernel is being asked: what it has last is what was wanted
    /// last.
    wish: Arc<Mutex<Wish>>,
}

#[derive(Default)]
struct Wish {
    shut: bool,
    /// While the gate is open.
    desired: Option<Desired>,
}

impl<K: Kernel> Gate<K> {
    pub fn new(kernel: K) -> Self {
        Self {
            kernel,
            wish: Arc::default(),
        }
    }

    /// Before the kernel was asked for anything.
    pub async fn begin_shut(&self) {
        self.wish.lock().await.shut = true;
    }

    pub async fn shut(&self) {
        self.set(true).await;
    }

    pub async fn open(&self) {
        self.set(false).await;
    }

    async fn set(&self, shut: bool) {
        let mut wish = self.wish.lock().await;
        wish.shut = shut;
        let Some(desired) = wish.desired.clone() else {
            return;
        };
        if let Err(error) = self.ask(shut, desired).await {
            tracing::error!(%error, "the kernel does not steer as ordered; it is asked again");
        }
    }

    async fn ask(&self, shut: bool, mut desired: Desired) -> Result<Applied, KernelError> {
        if shut {
            desired.claims.clear();
        }
        self.kernel.apply(desired).await
    }
}

impl<K: Kernel> Kernel for Gate<K> {
    async fn apply(&self, desired: Desired) -> Result<Applied, KernelError> {
        let mut wish = self.wish.lock().await;
        wish.desired = Some(desired.clone());
        self.ask(wish.shut, desired).await
    }

    fn standing(&self) -> watch::Receiver<Standing> {
        self.kernel.standing()
    }
}
