//! What is in use, as far as the kernel follows: tells readiness, metrics and
//! status, and keeps it on disk. The kernel may refuse what was configured and
//! take it later, or lose what it had, so each of them changes with the kernel
//! as well as with the configuration.

use std::sync::Arc;

use anyport_model::{
    names::Revision,
    resource::{Prefix, ResourceRef},
};
use anyport_node::ready::Condition;
use anyport_proto::{convert::write_reference, v1};
use tokio::sync::{Mutex, watch};

use super::Cache;
use crate::{
    kernel::{Conflict, KernelError, Standing},
    stats::Stats,
};

/// How far the agent is with its configuration.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The newest that the kernel steers by.
    pub revision: Revision,
    pub state_hash: Vec<u8>,
    pub rejections: Vec<v1::Rejection>,
    pub source: Source,
    pub connected: bool,
    /// What the kernel had said when all that follows from it was told and kept;
    /// `None` while that is under way.
    pub settled: Option<Standing>,
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

/// A configuration that the kernel was asked to steer by.
#[derive(Debug)]
pub struct Configured {
    pub revision: Revision,
    pub state_hash: Vec<u8>,
    pub source: Source,
    /// What is not in use of it, whatever the kernel says.
    pub rejections: Vec<v1::Rejection>,
    /// To be kept on disk once the kernel has taken it.
    pub keep: Option<v1::Update>,
}

/// Where everything about it is told. Shared by what configures and by
/// [`follow_kernel`](Self::follow_kernel).
pub struct InUse {
    kernel: watch::Receiver<Standing>,
    cache: Cache,
    stats: Arc<Stats>,
    /// Ready while a configuration is in use and the kernel steers by it.
    ready: Condition,
    progress: watch::Sender<Progress>,
    /// None while the kernel is being asked. Held while one is told and kept,
    /// so that no older one is kept after it.
    configured: Mutex<Option<Configured>>,
}

impl InUse {
    pub fn new(
        kernel: watch::Receiver<Standing>,
        cache: Cache,
        stats: Arc<Stats>,
        ready: Condition,
    ) -> Self {
        let progress = Progress {
            settled: Some(kernel.borrow().clone()),
            ..Progress::default()
        };
        Self {
            kernel,
            cache,
            stats,
            ready,
            progress: watch::Sender::new(progress),
            configured: Mutex::default(),
        }
    }

    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub fn connected(&self, connected: bool) {
        self.progress
            .send_modify(|progress| progress.connected = connected);
    }

    /// The kernel is about to be asked for something else: what it says from
    /// now on is not about the configuration before.
    pub async fn begin(&self) {
        *self.configured.lock().await = None;
    }

    /// The kernel was asked, and has answered. Returns everything that is not
    /// in use.
    pub async fn conclude(&self, configured: Configured) -> Vec<v1::Rejection> {
        let mut current = self.configured.lock().await;
        *current = Some(configured);
        self.tell(&mut current).await;
        self.progress.borrow().rejections.clone()
    }

    /// Tells what the kernel says of itself later, until it ends.
    pub async fn follow_kernel(&self) {
        let mut kernel = self.kernel.clone();
        loop {
            let ended = kernel.changed().await.is_err();
            self.tell(&mut *self.configured.lock().await).await;
            if ended {
                return;
            }
        }
    }

    async fn tell(&self, configured: &mut Option<Configured>) {
        self.settled(None);
        let standing = self.kernel.borrow().clone();
        if let Some(configured) = configured {
            self.tell_of(configured, standing.clone()).await;
        }
        self.settled(Some(standing));
    }

    fn settled(&self, standing: Option<Standing>) {
        self.progress
            .send_modify(|progress| progress.settled = standing);
    }

    async fn tell_of(&self, configured: &mut Configured, standing: Standing) {
        let Standing { fault, conflicts } = standing;
        let ended = self.kernel.has_changed().err();
        let fault = fault.or(ended.map(|_| KernelError::Ended.to_string().into()));
        let mut rejections = configured.rejections.clone();
        rejections.extend(conflicts.iter().map(not_answered_for));
        match &fault {
            None => self.ready.set_ready(),
            Some(fault) => {
                let reason = format!("kernel: {fault}");
                self.ready.set_not_ready(&reason);
                let resource = None;
                rejections.push(v1::Rejection { resource, reason });
            }
        }
        let as_gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.stats
            .rejected_resources
            .set(as_gauge(rejections.len() as u64));
        if fault.is_none() {
            let revision = as_gauge(configured.revision.0);
            self.stats.applied_revision.set(revision);
        }
        self.progress.send_modify(|progress| {
            progress.rejections = rejections;
            if fault.is_none() {
                progress.revision = configured.revision;
                progress.state_hash = configured.state_hash.clone();
                progress.source = configured.source;
            }
        });
        if fault.is_none()
            && let Some(update) = configured.keep.take()
        {
            self.save(update).await;
        }
    }

    /// That it could not be kept does not make it less in use.
    async fn save(&self, update: v1::Update) {
        let cache = self.cache.clone();
        let saved = tokio::task::spawn_blocking(move || cache.save(&update)).await;
        match saved {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the configuration is in use but not kept"),
            Err(error) => tracing::error!(%error, "the configuration is in use but not kept"),
        }
    }
}

fn not_answered_for(conflict: &Conflict) -> v1::Rejection {
    let reference = Prefix::new(conflict.net).ok().map(ResourceRef::Prefix);
    v1::Rejection {
        resource: reference.as_ref().map(write_reference),
        reason: conflict.reason.clone(),
    }
}
