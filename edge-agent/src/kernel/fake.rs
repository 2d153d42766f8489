//! A kernel that only remembers, for tests of what drives the real one.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{
    desired::Desired,
    error::KernelError,
    handle::{Applied, Kernel, Standing},
};

/// Grants every wish and remembers it, or refuses as it was told to.
#[derive(Debug, Default)]
pub(crate) struct FakeKernel {
    state: Mutex<State>,
    standing: watch::Sender<Standing>,
}

#[derive(Debug, Default)]
struct State {
    granted: Vec<Desired>,
    wanted: Option<Desired>,
    refuse: bool,
}

impl FakeKernel {
    /// The wishes that were granted, oldest first.
    pub(crate) fn granted(&self) -> Vec<Desired> {
        self.state().granted.clone()
    }

    /// From now on, refuse every wish.
    pub(crate) fn refuse(&self) {
        self.state().refuse = true;
    }

    /// From now on, grant every wish, and first the newest that was refused.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.refuse = false;
        let wanted = state.wanted.take();
        state.granted.extend(wanted);
        self.standing.send_replace(Standing::default());
    }

    /// As when another program takes away what was granted, for good.
    pub(crate) fn break_down(&self) {
        let fault = Some(KernelError::ForeignTable.to_string().into());
        self.standing.send_modify(|standing| standing.fault = fault);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Plain data; a panic elsewhere cannot have left it half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for Arc<FakeKernel> {
    async fn apply(&self, desired: Desired) -> Result<Applied, KernelError> {
        let mut state = self.state();
        if state.refuse {
            state.wanted = Some(desired);
            self.break_down();
            return Err(KernelError::ForeignTable);
        }
        state.granted.push(desired);
        self.standing.send_replace(Standing::default());
        Ok(Applied::default())
    }

    fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }
}
