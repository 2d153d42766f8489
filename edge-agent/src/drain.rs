//! Orders to drain: the edge goes out of service, and its process goes on.
//!
//! An edge that was told to drain is not ready from that moment, so that whoever
//! balances over edges sends it nothing more; until the order's grace is over it
//! takes all the same what comes. Then the kernel is made to steer nothing to it,
//! so its ports look closed, and what is open has each app's window of a drain,
//! as after SIGTERM. Prefixes stay, and so does everything of the control plane.
//!
//! An order is about the edge and not about the process: it is kept in the state
//! directory and outlives restarts and upgrades. [`Gate`] is what the kernel is
//! asked through.

mod gate;
mod kept;
mod stage;

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyport_node::ready::Condition;
use anyport_proto::v1::{self, DrainState};
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time::Instant,
};

pub use gate::Gate;
pub use kept::Kept;
pub use stage::{Stage, Wanted};

use crate::{
    kernel::Kernel,
    live::{Begins, Live, NamedWindows},
    tcp::Service,
};

/// How often it is looked whether the last connection has ended.
const LOOK: Duration = Duration::from_millis(500);

const NOT_READY: &str = "this edge was taken out of service; `anyport undrain edge` brings it back";

/// Takes orders to whoever carries them out.
#[derive(Clone)]
pub struct Drainer {
    orders: mpsc::Sender<(Wanted, oneshot::Sender<()>)>,
    stage: watch::Receiver<Stage>,
}

impl Drainer {
    /// Returns once it is under way; false where the agent is ending.
    pub async fn order(&self, wanted: Wanted) -> bool {
        let (done, carried_out) = oneshot::channel();
        self.orders.send((wanted, done)).await.is_ok() && carried_out.await.is_ok()
    }

    /// How far the edge is, with so many connections open.
    pub fn state(&self, open: u64) -> DrainState {
        match (*self.stage.borrow(), open) {
            (Stage::Serving, _) => DrainState::Serving,
            (Stage::Left, 0) => DrainState::Drained,
            _ => DrainState::Draining,
        }
    }

    /// How long connections are still taken, where that has an end.
    pub fn grace_left(&self) -> Option<Duration> {
        match *self.stage.borrow() {
            Stage::Leaving(at) => Some(at.saturating_duration_since(Instant::now())),
            Stage::Serving | Stage::Left => None,
        }
    }

    /// Tells the config service, without end; nothing as long as there is
    /// nothing to tell.
    pub async fn report(mut self, open: impl Fn() -> u64, to: watch::Sender<Option<v1::Report>>) {
        loop {
            let drain = self.state(open());
            to.send_if_modified(|told| {
                let known = match told.as_ref().map(v1::Report::drain) {
                    None | Some(DrainState::Unspecified) => DrainState::Serving,
                    Some(known) => known,
                };
                if known == drain {
                    return false;
                }
                told.get_or_insert_default().drain = drain.into();
                true
            });
            tokio::select! {
                changed = self.stage.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK), if drain != DrainState::Serving => {}
            }
        }
    }
}

/// Carries orders out.
pub struct Duty<K> {
    gate: Gate<K>,
    live: Live,
    service: Arc<Service>,
    kept: Kept,
    ready: Condition,
    /// Held while a configuration is taken into use, and by hand-overs.
    configuring: Arc<Mutex<()>>,
    limit: Option<Duration>,
    stage: watch::Sender<Stage>,
}

/// What orders act on.
pub struct Parts<K> {
    pub gate: Gate<K>,
    pub live: Live,
    pub service: Arc<Service>,
    pub ready: Condition,
    pub configuring: Arc<Mutex<()>>,
    /// How long a drain may take at most, whatever the apps say.
    pub limit: Option<Duration>,
}

impl<K: Kernel> Duty<K> {
    /// As the order that is kept in `directory` says, if one is. To be called
    /// before the kernel is asked for anything.
    pub async fn resume(directory: &Path, parts: Parts<K>) -> Self {
        let Parts {
            gate,
            live,
            service,
            ready,
            configuring,
            limit,
        } = parts;
        let kept = Kept::in_directory(directory);
        let stage = if let Some(grace) = kept.grace_left() {
            tracing::warn!(order = %kept, ?grace, "{NOT_READY}");
            ready.set_not_ready(NOT_READY);
            Stage::Serving.ordered(Wanted::Drain(grace), Instant::now())
        } else {
            ready.set_ready();
            Stage::Serving
        };
        if stage == Stage::Left {
            service.drained.store(true, Relaxed);
            gate.begin_shut().await;
        }
        Self {
            gate,
            live,
            service,
            kept,
            ready,
            configuring,
            limit,
            stage: watch::Sender::new(stage),
        }
    }

    /// Starts to carry out orders, until the agent ends.
    /// What is configured is in use by now.
    pub fn start(self) -> (Drainer, impl Future<Output = ()>) {
        if *self.stage.borrow() == Stage::Left {
            // There may be earlier agents that are yet to hear it.
            self.close_what_is_open(Begins::Before);
        }
        let (orders, ordered) = mpsc::channel(1);
        let stage = self.stage.subscribe();
        (Drainer { orders, stage }, self.obey(ordered))
    }

    async fn obey(self, mut orders: mpsc::Receiver<(Wanted, oneshot::Sender<()>)>) {
        loop {
            let stage = *self.stage.borrow();
            let leaves = async {
                match stage {
                    Stage::Leaving(at) => tokio::time::sleep_until(at).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                ordered = orders.recv() => match ordered {
                    Some((wanted, done)) => {
                        self.enter(stage.ordered(wanted, Instant::now())).await;
                        // Who asked may have stopped waiting.
                        let _ = done.send(());
                    }
                    None => return,
                },
                () = leaves => self.enter(stage.passed(Instant::now())).await,
            }
        }
    }

    async fn enter(&self, next: Stage) {
        let stage = *self.stage.borrow();
        if next == stage {
            return;
        }
        let _configuring = self.configuring.lock().await;
        match next {
            Stage::Serving => self.serve().await,
            Stage::Leaving(at) => {
                let grace = at.saturating_duration_since(Instant::now());
                self.give_notice(grace).await;
            }
            Stage::Left => {
                self.give_notice(Duration::ZERO).await;
                self.leave().await;
            }
        }
        self.stage.send_replace(next);
    }

    async fn give_notice(&self, grace: Duration) {
        self.kept.keep(grace).await;
        self.ready.set_not_ready(NOT_READY);
    }

    async fn leave(&self) {
        // First the kernel, so that nobody is accepted only to be reset.
        self.gate.shut().await;
        self.service.drained.store(true, Relaxed);
        self.close_what_is_open(Begins::Now);
        let open = self.service.stats.open_connections();
        tracing::info!(open, "this edge is out of service and closes what is open");
    }

    fn close_what_is_open(&self, begins: Begins) {
        let windows = self.service.drain_windows(self.limit);
        let named = NamedWindows {
            of_apps: self.service.table.load().named_drain_windows(),
            limit: self.limit,
        };
        self.live.drain(windows, named, begins);
    }

    async fn serve(&self) {
        self.live.undrain();
        self.service.drained.store(false, Relaxed);
        self.gate.open().await;
        self.kept.discard().await;
        self.ready.set_ready();
        tracing::info!("this edge is back in service");
    }
}
