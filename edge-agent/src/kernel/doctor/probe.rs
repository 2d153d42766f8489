//! Tries steering where it can do no harm: on a thread of its own, in a
//! network namespace that ends with it.

use std::{num::NonZeroU16, thread};

use nix::sched::{CloneFlags, unshare};
use tokio::sync::oneshot;

use super::facts::Fact;
use crate::kernel::{
    KernelError,
    desired::Desired,
    handle::Kernel,
    reconcile::Reconciler,
};

/// Makes our table, with claims of both families, and reads it back.
pub(super) async fn tproxy() -> Fact<()> {
    let (report, outcome) = oneshot::channel();
    let probe = thread::Builder::new().name("steering probe".to_owned());
    let spawned = probe.spawn(move || {
        // The doctor may have been given up on.
        let _ = report.send(in_new_namespace());
    });
    spawned.map_err(|error| format!("starting a thread: {error}"))?;
    match outcome.await {
        Ok(outcome) => outcome,
        Err(_) => Err("the probe ended without an answer".to_owned()),
    }
}

fn in_new_namespace() -> Fact<()> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|error| format!("making a network namespace to try it in: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("building a runtime: {error}"))?;
    runtime.block_on(steer()).map_err(|error| error.to_string())
}

async fn steer() -> Result<(), KernelError> {
    let (handle, reconciler) = Reconciler::open(|_, _| {})?;
    // No prefixes: in a new namespace `lo` is down, and takes no routes.
    let desired = Desired {
        prefixes: Vec::new(),
        tcp_claims: Vec::new(),
        listener_v4: NonZeroU16::MIN,
        listener_v6: Some(NonZeroU16::MIN),
    };
    let first = async {
        handle.apply(desired.clone()).await?;
        handle.apply(desired).await
    };
    tokio::select! {
        ended = reconciler.run() => ended,
        applied = first => applied.map(|_| ()),
    }
}
