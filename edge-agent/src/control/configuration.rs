//! Takes configuration into use, in this order:
//!
//! 1. make the new route table off to the side;
//! 2. publish it, so that what the kernel will newly steer finds its app;
//! 3. have the kernel steer what it says, and no longer what it does not say
//!    (in the moment between, a connection to an app that is being removed is
//!    reset instead of refused);
//! 4. keep on disk what is in use now, as the last known good, unless the
//!    kernel refused it;
//! 5. acknowledge.
//!
//! Open connections go on, whatever becomes of their app and their prefix,
//! unless the app is disabled and says otherwise.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyport_model::{
    names::Revision,
    replica::{Gap, Replica, Update},
};
use anyport_node::telemetry::{current_traceparent, set_parent};
use anyport_proto::{
    convert::{read_update, write_full_update, write_rejections},
    sync::{Applied, Origin, Subscriber},
    v1,
};
use tokio::{sync::watch, task::JoinHandle};
use tracing::Instrument;

use super::{
    Cache, CacheError,
    cache::TrialBegun,
    in_use::{Configured, InUse, Source},
    trial::Trial,
};
use crate::{
    kernel::{Desired, Kernel, KernelError, ListenerPorts, SteeredSockets, Steering},
    live::Live,
    protect::Protected,
    stats::Stats,
    table::{KernelNeeds, TableWriter},
};

/// The kernel may be busy with a change by somebody else; it is asked again
/// this often, after a pause.
const KERNEL_TRIES: u32 = 3;
const KERNEL_PAUSE: Duration = Duration::from_millis(200);

/// What the agent's parts do with configuration.
pub struct Applier<K> {
    pub kernel: K,
    pub table: SharedTable,
    pub cache: Cache,
    pub stats: Arc<Stats>,
    pub steering: Steering,
    /// What the kernel steers to.
    pub listeners: ListenerPorts,
    pub sockets: SteeredSockets,
    pub protected: Protected,
    pub in_use: Arc<InUse>,
    pub live: Live,
    /// Held while a configuration is taken into use.
    pub configuring: Arc<tokio::sync::Mutex<()>>,
    pub replica: Replica,
    /// What connections are held against while only some edges have the revision.
    pub trial: watch::Sender<Option<Trial>>,
    /// The latest trial of an agent before this one.
    pub begun: Option<TrialBegun>,
}

/// The table's writer, for configuration and for weights. Never held across an
/// await.
#[derive(Clone)]
pub struct SharedTable(Arc<Mutex<TableWriter>>);

impl SharedTable {
    pub fn new(writer: TableWriter) -> Self {
        Self(Arc::new(Mutex::new(writer)))
    }

    pub fn lock(&self) -> MutexGuard<'_, TableWriter> {
        // The writer swaps whole snapshots, so one that panicked left a whole
        // one behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Kernel> Applier<K> {
    /// Takes the last known good configuration into use, if there is one.
    pub async fn restore(&mut self) -> Result<(), CacheError> {
        // No edge stays away for it.
        self.begun = self.cache.load_trial().unwrap_or_else(|error| {
            tracing::error!(%error, "what a trial is held against cannot be read");
            None
        });
        let Some(saved) = self.cache.load()? else {
            return Ok(());
        };
        let update = match read_update(saved) {
            Ok(update) => update,
            Err(fault) => {
                tracing::warn!(%fault, "the last known good configuration is not used");
                return Ok(());
            }
        };
        // A full update has no base to miss.
        if self.replica.apply(update).is_ok() {
            self.take_into_use(Source::LastKnownGood).await;
        }
        Ok(())
    }

    /// Publishes the table of what is held, has the kernel follow, and keeps
    /// on disk what is in use then. Returns what is not.
    async fn take_into_use(&mut self, source: Source) -> Vec<v1::Rejection> {
        let guarded = self.protected.now().await;
        let replica = &self.replica;
        let mut rejections = write_rejections(replica);
        self.in_use.begin().await;
        let (needs, in_use) = {
            let mut table = self.table.lock();
            table.protect(guarded);
            let mut prepared = table.prepare(replica.revision, &replica.resources);
            rejections.append(&mut prepared.rejections);
            let needs = prepared.kernel.clone();
            let in_use = std::mem::take(&mut prepared.in_use);
            // What is accepted after it is published is turned away already.
            let to_close = prepared.snapshot.to_close();
            table.publish(prepared);
            self.live.close(to_close);
            (needs, in_use)
        };
        let keep = (source == Source::ConfigService).then(|| {
            // By the hash, the same state would not be sent again.
            let whole = rejections.is_empty();
            let hash = whole.then(|| replica.state_hash.clone());
            write_full_update(replica.revision, hash.unwrap_or_default(), &in_use)
        });
        if let Err(error) = self.steer(needs).await {
            tracing::error!(%error, "the kernel does not steer as configured");
        }
        let configured = Configured {
            revision: replica.revision,
            state_hash: replica.state_hash.clone(),
            source,
            rejections,
            keep,
        };
        self.in_use.conclude(configured).await
    }

    /// Has the kernel steer.
    async fn steer(&self, needs: KernelNeeds) -> Result<(), KernelError> {
        let span = tracing::info_span!(
            "kernel",
            prefixes = needs.prefixes.len(),
            claims = needs.claims.len(),
            routes_added = tracing::field::Empty,
            routes_removed = tracing::field::Empty,
            elements_added = tracing::field::Empty,
            elements_removed = tracing::field::Empty,
        );
        let desired = Desired {
            steering: self.steering,
            prefixes: needs.prefixes,
            claims: needs.claims,
            listeners: self.listeners,
            sockets: self.sockets.clone(),
            return_path: needs.return_path,
        };
        let steered = async {
            let mut tries = 1;
            loop {
                match self.kernel.apply(desired.clone()).await {
                    Err(error) if tries < KERNEL_TRIES => {
                        tracing::warn!(%error, "the kernel refused; trying again");
                        tries += 1;
                        tokio::time::sleep(KERNEL_PAUSE).await;
                    }
                    done => return done,
                }
            }
        };
        let applied = steered.instrument(span.clone()).await?;
        span.record("routes_added", applied.routes_added);
        span.record("routes_removed", applied.routes_removed);
        span.record("elements_added", applied.elements_added);
        span.record("elements_removed", applied.elements_removed);
        Ok(())
    }

    /// An agent that starts during a trial has seen nothing of how connections
    /// ended before; `held` says whether all that it has seen is part of it. A
    /// trial that is new is being kept on disk.
    fn begin_trial(&mut self, held: (Revision, Vec<u8>)) -> (Trial, Option<JoinHandle<()>>) {
        let counted = self.stats.endings();
        let (revision, state_hash) = (self.replica.revision, self.replica.state_hash.clone());
        let begun = self.begun.take();
        let begun = begun.filter(|begun| begun.state_hash == state_hash);
        let before = begun.and_then(|begun| begun.before);
        if let Some(before) = before.filter(|before| before.revision == revision.0) {
            let is_part = held == (revision, state_hash);
            let counted = if is_part { BTreeMap::new() } else { counted };
            return (Trial::resume(&before, counted), None);
        }
        let trial = Trial::begin(revision, counted);
        let before = Some(trial.begun());
        let cache = self.cache.clone();
        let keeping = tokio::task::spawn_blocking(move || {
            let begun = TrialBegun { state_hash, before };
            if let Err(error) = cache.save_trial(&begun) {
                tracing::error!(%error, "what a trial is held against is not kept");
            }
        });
        (trial, Some(keeping))
    }

    async fn apply_update(&mut self, update: Update, trial: bool) -> Result<Applied, Gap> {
        let start = Instant::now();
        let configuring = Arc::clone(&self.configuring);
        let _configuring = configuring.lock().await;
        let held = (self.replica.revision, self.replica.state_hash.clone());
        self.replica.apply(update)?;
        let revision = self.replica.revision;
        // Before any connection goes by it.
        let tried = trial.then_some(revision);
        let mut keeping = None;
        if self.trial.borrow().as_ref().map(|trial| trial.revision) != tried {
            let begun = trial.then(|| self.begin_trial(held));
            let (begun, kept) = begun.unzip();
            keeping = kept.flatten();
            self.trial.send_replace(begun);
        }
        self.stats
            .revision
            .set(i64::try_from(revision.0).unwrap_or(i64::MAX));
        let rejections = self.take_into_use(Source::ConfigService).await;
        self.stats.apply_time.observe(start.elapsed().as_secs_f64());
        // No connection waits for the disk, but the next trial does, and so does a
        // hand-over: both write the same file.
        if let Some(keeping) = keeping
            && let Err(error) = keeping.await
        {
            tracing::error!(%error, "what a trial is held against is not kept");
        }
        tracing::info!(%revision, resources = self.replica.resources.len(), "configuration in use");
        Ok(Applied {
            rejections,
            traceparent: current_traceparent().unwrap_or_default(),
        })
    }
}

impl<K: Kernel> Subscriber for Applier<K> {
    fn held(&self) -> (Revision, Vec<u8>) {
        self.replica.held()
    }

    fn apply(
        &mut self,
        update: Update,
        origin: Origin,
    ) -> impl Future<Output = Result<Applied, Gap>> + Send {
        let span = tracing::info_span!("apply_revision", revision = update.revision.0);
        set_parent(&span, &origin.traceparent);
        self.apply_update(update, origin.trial).instrument(span)
    }

    fn connection(&mut self, state: Result<(), &tonic::Status>) {
        let was = self.in_use.progress().borrow().connected;
        match state {
            Ok(()) => tracing::info!("connected to the config service"),
            Err(status) if was => tracing::warn!(
                reason = status.message(),
                "the config service is gone; going on with what is in use"
            ),
            Err(status) => tracing::debug!(reason = status.message(), "no config service"),
        }
        self.in_use.connected(state.is_ok());
    }
}

#[cfg(test)]
mod tests;
