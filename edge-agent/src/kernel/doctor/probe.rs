//! Tries steering where it can do no harm: on a thread of its own, in a
//! network namespace that ends with it.

use std::{num::NonZeroU16, thread};

use nix::sched::{CloneFlags, unshare};
use tokio::sync::oneshot;

use crate::kernel::{
    KernelError, SteeredSockets,
    desired::{Desired, FamilyPorts, ListenerPorts, Steering},
    handle::{Applied, Kernel},
    reconcile::Reconciler,
    sk_lookup::SkLookup,
};

/// What came of the trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Probe {
    Works,
    /// The kernel's answer.
    Refused(String),
    /// Why no trial could be made.
    NotTried(String),
}

/// Makes our table and reads it back.
pub(super) async fn tproxy() -> Probe {
    in_new_namespace(make_table).await
}

/// Attaches our program, and pins nothing.
pub(super) async fn sk_lookup() -> Probe {
    in_new_namespace(|| {
        let tried = SkLookup::open().and_then(|sk_lookup| sk_lookup.trial());
        match tried {
            Ok(()) => Probe::Works,
            Err(error) => Probe::Refused(error.to_string()),
        }
    })
    .await
}

async fn in_new_namespace(trial: fn() -> Probe) -> Probe {
    let (report, outcome) = oneshot::channel();
    let probe = thread::Builder::new().name("steering probe".to_owned());
    let spawned = probe.spawn(move || {
        // Nobody may be waiting any more.
        let _ = report.send(match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => trial(),
            Err(error) => {
                Probe::NotTried(format!("making a network namespace to try it in: {error}"))
            }
        });
    });
    if let Err(error) = spawned {
        return Probe::NotTried(format!("starting a thread: {error}"));
    }
    let lost = |_| Probe::NotTried("the trial ended without an answer".to_owned());
    outcome.await.unwrap_or_else(lost)
}

fn make_table() -> Probe {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime.map(|runtime| runtime.block_on(steer())) {
        Err(error) => Probe::NotTried(format!("building a runtime: {error}")),
        Ok(Err(error)) => Probe::Refused(error.to_string()),
        Ok(Ok(second)) if second == Applied::default() => Probe::Works,
        Ok(Ok(second)) => Probe::Refused(format!(
            "the table does not read back as it was written; a second pass still changed {second:?}"
        )),
    }
}

/// What a second wish for the same still changed.
async fn steer() -> Result<Applied, KernelError> {
    let (handle, reconciler) = Reconciler::open(|_, _| {})?;
    // No prefixes: in a new namespace `lo` is down, and takes no routes.
    let ports = FamilyPorts {
        tcp: NonZeroU16::MIN,
        udp: NonZeroU16::MIN,
    };
    let desired = Desired {
        steering: Steering::Tproxy,
        prefixes: Vec::new(),
        claims: Vec::new(),
        return_path: false,
        listeners: ListenerPorts {
            v4: ports,
            v6: Some(ports),
        },
        sockets: SteeredSockets::default(),
    };
    let twice = async {
        handle.apply(desired.clone()).await?;
        handle.apply(desired).await
    };
    tokio::select! {
        ended = reconciler.run() => ended.and(Err(KernelError::Ended)),
        second = twice => second,
    }
}
