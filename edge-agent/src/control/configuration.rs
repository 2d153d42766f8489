//! Takes configuration into use, in this order:
//!
//! 1. make the new route table off to the side;
//! 2. publish it, so that what the kernel will newly steer finds its app;
//! 3. have the kernel steer what it says, and no longer what it does not say
//!    (in the moment between, a connection to an app that is being removed is
//!    reset instead of refused);
//! 4. keep it on disk as the last known good;
//! 5. acknowledge.
//!
//! Open connections are never touched.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyport_model::{
    names::Revision,
    replica::{Gap, Replica},
};
use anyport_node::{
    ready::Condition,
    telemetry::{current_traceparent, set_parent},
};
use anyport_proto::{
    convert::{ReadUpdate, read_update, write_full_update},
    sync::{Applied, Origin, Subscriber},
    v1,
};
use ipnet::IpNet;
use tokio::sync::watch;
use tracing::Instrument;

use super::{Cache, CacheError};
use crate::{
    kernel::{Desired, Kernel, KernelError},
    stats::Stats,
    table::{KernelNeeds, TableWriter},
};

/// The kernel may be busy with a change by somebody else; it is asked again
/// this often, after a pause.
const KERNEL_TRIES: u32 = 3;
const KERNEL_PAUSE: Duration = Duration::from_millis(200);

/// How far the agent is with its configuration.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    pub revision: Revision,
    pub state_hash: Vec<u8>,
    pub rejections: Vec<v1::Rejection>,
    pub source: Source,
    pub connected: bool,
}

/// Where the configuration in use came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Source {
    #[default]
    Nowhere,
    LastKnownGood,
    ConfigService,
}

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Nowhere => "none",
            Source::LastKnownGood => "last-known-good",
            Source::ConfigService => "config-service",
        }
    }
}

/// The ports that the kernel's rules lead to.
#[derive(Debug, Clone, Copy)]
pub struct ListenerPorts {
    pub v4: std::num::NonZeroU16,
    pub v6: Option<std::num::NonZeroU16>,
}

/// What the agent's parts do with configuration.
pub struct Applier<K> {
    pub kernel: K,
    pub table: SharedTable,
    pub cache: Cache,
    pub stats: Arc<Stats>,
    pub ports: ListenerPorts,
    /// Ready once a configuration is in use and the kernel steers by it.
    pub ready: Condition,
    pub progress: watch::Sender<Progress>,
    pub replica: Replica,
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
        let Some(saved) = self.cache.load()? else {
            return Ok(());
        };
        let read = match read_update(saved) {
            Ok(read) => read,
            Err(fault) => {
                tracing::warn!(%fault, "the last known good configuration is not used");
                return Ok(());
            }
        };
        // A full update has no base to miss.
        if self.replica.apply(read.update).is_ok() {
            let rejections = self.take_into_use().await;
            self.conclude(Source::LastKnownGood, rejections);
        }
        Ok(())
    }

    /// Publishes the table of what is held and has the kernel follow. Returns
    /// what could not be done.
    async fn take_into_use(&self) -> Vec<v1::Rejection> {
        let (needs, mut rejections) = {
            let mut table = self.table.lock();
            let mut prepared = table.prepare(self.replica.revision, &self.replica.resources);
            let rejections = std::mem::take(&mut prepared.rejections);
            let needs = prepared.kernel.clone();
            table.publish(prepared);
            (needs, rejections)
        };
        match self.steer(needs).await {
            Ok(taken) => {
                self.ready.set_ready();
                rejections.extend(taken.into_iter().map(already_routed));
            }
            Err(error) => {
                tracing::error!(%error, "the kernel does not steer as configured");
                let reason = format!("kernel: {error}");
                self.ready.set_not_ready(&reason);
                let resource = None;
                rejections.push(v1::Rejection { resource, reason });
            }
        }
        rejections
    }

    /// Has the kernel steer. Returns prefixes that somebody else's route has.
    async fn steer(&self, needs: KernelNeeds) -> Result<Vec<IpNet>, KernelError> {
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
            prefixes: needs.prefixes,
            tcp_claims: needs.claims,
            listener_v4: self.ports.v4,
            listener_v6: self.ports.v6,
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
        Ok(applied.conflicts)
    }

    /// Makes known what is in use now.
    fn conclude(&self, source: Source, rejections: Vec<v1::Rejection>) {
        let revision = self.replica.revision;
        let as_gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.stats.applied_revision.set(as_gauge(revision.0));
        self.stats
            .rejected_resources
            .set(as_gauge(rejections.len() as u64));
        self.progress.send_modify(|progress| {
            progress.revision = revision;
            progress.state_hash = self.replica.state_hash.clone();
            progress.rejections = rejections;
            progress.source = source;
        });
    }

    /// Keeps what is held for a start without the config service. That it
    /// could not be kept does not make it less in use.
    async fn save(&self) {
        let (cache, update) = (self.cache.clone(), write_full_update(&self.replica));
        let saved = tokio::task::spawn_blocking(move || cache.save(&update)).await;
        match saved {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the configuration is in use but not kept"),
            Err(error) => tracing::error!(%error, "the configuration is in use but not kept"),
        }
    }

    async fn apply_update(&mut self, update: ReadUpdate) -> Result<Applied, Gap> {
        let start = Instant::now();
        self.replica.apply(update.update)?;
        let revision = self.replica.revision;
        self.stats
            .revision
            .set(i64::try_from(revision.0).unwrap_or(i64::MAX));
        let rejections = self.take_into_use().await;
        self.save().await;
        let all = update
            .rejections
            .iter()
            .chain(&rejections)
            .cloned()
            .collect();
        self.conclude(Source::ConfigService, all);
        self.stats.apply_time.observe(start.elapsed().as_secs_f64());
        tracing::info!(%revision, resources = self.replica.resources.len(), "configuration in use");
        Ok(Applied {
            rejections,
            traceparent: current_traceparent().unwrap_or_default(),
        })
    }
}

/// The edge does not answer for a prefix that the host's owner has routed
/// otherwise.
fn already_routed(net: IpNet) -> v1::Rejection {
    let reference = v1::ResourceRef {
        kind: v1::Kind::Prefix.into(),
        name: net.to_string(),
    };
    v1::Rejection {
        resource: Some(reference),
        reason: format!(
            "the host's table local has a route of its own for {net}; remove it (ip route show table local {net}) and apply again"
        ),
    }
}

impl<K: Kernel> Subscriber for Applier<K> {
    fn held(&self) -> (Revision, Vec<u8>) {
        (self.replica.revision, self.replica.state_hash.clone())
    }

    fn apply(
        &mut self,
        update: ReadUpdate,
        origin: Origin,
    ) -> impl Future<Output = Result<Applied, Gap>> + Send {
        let span = tracing::info_span!("apply_revision", revision = update.update.revision.0);
        set_parent(&span, &origin.traceparent);
        self.apply_update(update).instrument(span)
    }

    fn connection(&mut self, state: Result<(), &tonic::Status>) {
        let was = self.progress.borrow().connected;
        match state {
            Ok(()) => tracing::info!("connected to the config service"),
            Err(status) if was => tracing::warn!(
                reason = status.message(),
                "the config service is gone; going on with what is in use"
            ),
            Err(status) => tracing::debug!(reason = status.message(), "no config service"),
        }
        self.progress
            .send_modify(|progress| progress.connected = state.is_ok());
    }
}
