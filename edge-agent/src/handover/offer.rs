//! The side of the agent that runs: answers successors, until one of them is
//! ready.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyport_model::names::Revision;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

use super::{
    SOCKET,
    estate::Estate,
    generations::Generations,
    key::Key,
    sys::FDS_MAX,
    wire::{Door, Message, PROMPTLY, Wire, WireError},
};
use crate::{
    control::Progress,
    kernel::{Kernel, KernelHandle},
};

/// From the offer until the successor is ready: it reads its configuration and
/// looks at the kernel. An agent stands still that long at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// To keep a configuration on disk. The successor waits for the offer.
const SETTLES: Duration = Duration::from_secs(10);

/// After a peer that could not be accepted, for want of descriptors as a rule.
const PAUSE: Duration = Duration::from_millis(100);

/// The parts that have to leave everything as it is while a successor starts.
pub struct Standstill {
    /// Held by whoever takes a configuration into use.
    pub configuring: Arc<Mutex<()>>,
    pub kernel: KernelHandle,
    pub progress: watch::Receiver<Progress>,
}

/// Dropping it lets them go on.
struct Still {
    _configuration: OwnedMutexGuard<()>,
    _kernel: OwnedMutexGuard<()>,
    revision: Revision,
}

impl Standstill {
    /// Waits until what is under way is done.
    async fn stand_still(&self) -> Still {
        let configuration = Arc::clone(&self.configuring).lock_owned().await;
        let kernel = self.kernel.pause().await;
        Still {
            _configuration: configuration,
            _kernel: kernel,
            revision: self.settled().await,
        }
    }

    /// The revision in use, once what the kernel said last is told and kept: a
    /// kernel that takes late what it had refused is followed under no lock.
    async fn settled(&self) -> Revision {
        let standing = self.kernel.standing().borrow().clone();
        let mut progress = self.progress.clone();
        let settled = progress.wait_for(|progress| progress.settled.as_ref() == Some(&standing));
        // On a disk that hangs, the successor is told what is in use, and finds
        // that it has another.
        let _ = tokio::time::timeout(SETTLES, settled).await;
        self.progress.borrow().revision
    }
}

/// What an agent offers to its successor.
pub struct Offering {
    door: Door,
    name: String,
    estate: Estate,
    generations: Generations,
    standstill: Standstill,
}

impl Offering {
    /// Listens for successors in the state directory, which the caller owns.
    pub fn open(
        directory: &Path,
        name: &str,
        estate: Estate,
        generations: Generations,
        standstill: Standstill,
    ) -> std::io::Result<Self> {
        Ok(Self {
            door: Door::open(&directory.join(SOCKET))?,
            name: name.to_owned(),
            estate,
            generations,
            standstill,
        })
    }

    /// Completes when a successor is ready and was told that all is its own. The
    /// caller then gives up everything that the successor has, and drops what
    /// this returns to say so.
    pub async fn taken(self) -> HandedOver {
        loop {
            let wire = match self.door.accept().await {
                Ok(wire) => wire,
                Err(error) => {
                    tracing::warn!(%error, "a hand-over was asked for and refused");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let pid = wire.pid();
            match self.hand_over(&wire).await {
                Ok(still) => {
                    return HandedOver {
                        pid,
                        _still: still,
                        _wire: wire,
                    };
                }
                Err(error) => tracing::warn!(
                    successor = pid, %error,
                    "the hand-over was broken off; this edge agent goes on"
                ),
            }
        }
    }

    async fn hand_over(&self, wire: &Wire) -> Result<Still, WireError> {
        let (hello, _) = wire.receive(PROMPTLY).await?;
        let Message::Hello {
            name,
            program_version,
        } = hello
        else {
            return Err(out_of_turn(&hello));
        };
        if let Some(reason) = self.refusal(&name) {
            let refused = Message::Refused {
                reason: reason.clone(),
            };
            wire.send(&refused, &[])?;
            return Err(WireError::Malformed(reason));
        }
        tracing::info!(successor = wire.pid(), %program_version, "a successor takes over");
        let still = self.standstill.stand_still().await;
        self.offer(wire, still.revision)?;
        match wire.receive(PATIENCE).await?.0 {
            Message::Ready => {}
            other => return Err(out_of_turn(&other)),
        }
        wire.send(&Message::Yours, &[])?;
        Ok(still)
    }

    fn refusal(&self, name: &str) -> Option<String> {
        if name != self.name {
            return Some(format!(
                "the agent that uses this state directory is named {:?}, not {name:?}; \
                 two agents need a directory and a network namespace each",
                self.name
            ));
        }
        self.generations.crowded()
    }

    fn offer(&self, wire: &Wire, revision: Revision) -> Result<(), WireError> {
        let generations = self.generations.list();
        let earlier = generations
            .iter()
            .map(|(pid, process)| (Key::Generation(*pid), process.as_fd()));
        let goods: Vec<(Key, BorrowedFd<'_>)> = self.estate.iter().chain(earlier).collect();
        let offer = Message::Offer {
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: revision.0,
            descriptors: goods.len(),
        };
        wire.send(&offer, &[])?;
        for part in goods.chunks(FDS_MAX) {
            let keys = part.iter().map(|(key, _)| key.to_string()).collect();
            let fds: Vec<_> = part.iter().map(|(_, fd)| *fd).collect();
            wire.send(&Message::Goods { keys }, &fds)?;
        }
        Ok(())
    }
}

/// A successor has taken over. Until this is dropped it waits for everything to be
/// given up.
pub struct HandedOver {
    pid: i32,
    // In this order: the connection ends last.
    _still: Still,
    _wire: Wire,
}

impl HandedOver {
    pub fn successor(&self) -> i32 {
        self.pid
    }
}

pub(super) fn out_of_turn(message: &Message) -> WireError {
    WireError::Malformed(format!("{message:?} is out of turn"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyport_node::ready::Readiness;
    use anyport_proto::v1;

    use super::*;
    use crate::{
        control::{Cache, Configured, InUse, Source},
        kernel::{KernelError, Standing},
        stats::Stats,
    };

    #[tokio::test]
    async fn a_successor_is_offered_what_is_on_disk_also_where_the_kernel_took_it_late() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let (kernel, _wishes, stand, _turn) = KernelHandle::channel();
        let in_use = Arc::new(InUse::new(
            kernel.standing(),
            cache.clone(),
            Arc::new(Stats::new(&prometheus::Registry::new()).unwrap()),
            Readiness::new().condition("configuration", "none was received yet"),
        ));
        let standstill = Standstill {
            configuring: Arc::default(),
            kernel,
            progress: in_use.progress(),
        };
        assert_eq!(standstill.stand_still().await.revision, Revision::EMPTY);
        stand.send_modify(|standing| {
            standing.fault = Some(KernelError::ForeignTable.to_string().into());
        });
        let update = v1::Update {
            revision: 2,
            ..Default::default()
        };
        let configured = Configured {
            revision: Revision(2),
            state_hash: Vec::new(),
            source: Source::ConfigService,
            rejections: Vec::new(),
            keep: Some(update.clone()),
        };
        in_use.conclude(configured).await;
        assert_eq!(cache.load().unwrap(), None);
        // Nobody has heard of it yet when the successor comes.
        stand.send_replace(Standing::default());
        let follower = tokio::spawn(async move { in_use.follow_kernel().await });
        let still = standstill.stand_still().await;
        assert_eq!(still.revision, Revision(2));
        assert_eq!(cache.load().unwrap(), Some(update));
        follower.abort();
    }
}
