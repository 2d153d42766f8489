//! A kernel that only remembers, for tests of what drives the real one.

use std::sync::{Mutex, PoisonError};

use super::{
    desired::Desired,
    error::KernelError,
    handle::{Applied, Kernel},
};

/// Grants every wish and remembers it, or refuses as it was told to.
#[derive(Debug, Default)]
pub struct FakeKernel {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    granted: Vec<Desired>,
    refuse: bool,
}

impl FakeKernel {
    /// The wishes that were granted, oldest first.
    pub fn granted(&self) -> Vec<Desired> {
        self.state().granted.clone()
    }

    /// From now on, refuse every wish, or none.
    pub fn refuse(&self, refuse: bool) {
        self.state().refuse = refuse;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Plain data; a panic elsewhere cannot have left it half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for FakeKernel {
    async fn apply(&self, desired: Desired) -> Result<Applied, KernelError> {
        let mut state = self.state();
        if state.refuse {
            return Err(KernelError::ForeignTable);
        }
        state.granted.push(desired);
        Ok(Applied::default())
    }
}
