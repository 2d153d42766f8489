//! A runtime that lives in a network namespace.

use std::{future::Future, panic::resume_unwind, thread};

use anyport_netns::Namespace;
use tokio::{runtime, sync::oneshot, task::JoinHandle};

use crate::failure::Failure;

/// One thread inside a namespace that drives whatever is spawned on it: the
/// sockets that it opens, and everything that those need, belong there.
pub struct Resident {
    runtime: runtime::Handle,
    /// Dropped, it ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<anyport_netns::Result<()>>>,
}

impl Resident {
    pub fn start(namespace: &Namespace) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            let label = namespace.label();
            Failure::refused(format_args!(
                "cannot work in the namespace {label:?}: {error}"
            ))
        };
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = namespace
            .spawn_thread(move || {
                // Either way it is over: told to, or forgotten.
                let _ = runtime.block_on(stopped);
            })
            .map_err(|error| failed(&error))?;
        Ok(Self {
            runtime: handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Starts `work` inside the namespace.
    pub fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.runtime.spawn(work)
    }

    /// Runs `work` inside the namespace; it goes on where the caller does not wait.
    pub async fn run<F>(&self, work: F) -> Result<F::Output, Failure>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        finished(self.spawn(work)).await
    }
}

/// What the work has come to. A panic in it continues in the caller.
pub async fn finished<T>(work: JoinHandle<T>) -> Result<T, Failure> {
    work.await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(_) => Failure::refused("the thread inside a namespace has ended"),
    })
}

impl Drop for Resident {
    /// Ends all that still runs there, and waits for it: a socket of a task would
    /// keep the namespace alive.
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of its own was handed to the caller of `run`.
            let _ = thread.join();
        }
    }
}
