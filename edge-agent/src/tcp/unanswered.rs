//! A client that nobody has answered yet.

use std::{
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    ptr,
};

use tokio::net::TcpStream;

use super::leg::Leg;

/// The client's side while there is no origin to relay it to. It is reset when
/// it is dropped, by a refusal or with the connection's task: the client should
/// learn that at once and not take it for an empty answer.
pub struct Unanswered<L: Leg = TcpStream>(L);

impl<L: Leg> Unanswered<L> {
    pub fn new(client: L) -> Self {
        Self(client)
    }

    /// There is an origin, or the client was told that there is none: how this
    /// side ends is somebody else's matter from now on.
    pub(crate) fn release(self) -> L {
        let kept = ManuallyDrop::new(self);
        // SAFETY: what is kept is neither dropped nor looked at again, so this
        // is the only one.
        unsafe { ptr::read(&kept.0) }
    }
}

impl<L: Leg> Deref for Unanswered<L> {
    type Target = L;

    fn deref(&self) -> &L {
        &self.0
    }
}

impl<L: Leg> DerefMut for Unanswered<L> {
    fn deref_mut(&mut self) -> &mut L {
        &mut self.0
    }
}

impl<L: Leg> Drop for Unanswered<L> {
    fn drop(&mut self) {
        // The socket goes: there is nobody left to tell of an error.
        let _ = self.0.socket().set_zero_linger();
    }
}
