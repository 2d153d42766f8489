//! The side of the agent that starts: owns a state directory that is free, or
//! takes over from the agent that has it.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyport_model::names::Revision;
use tokio::time::Instant;

use super::{
    SOCKET,
    estate::{Estate, StateLock},
    generations::Generations,
    key::{Key, UnknownKey},
    offer::out_of_turn,
    wire::{Message, PROMPTLY, Wire, WireError},
};

/// An agent that has the directory and does not answer is starting, ending or
/// in the middle of a hand-over.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(50);

/// The other agent may wait for the kernel before it stands still.
const STANDSTILL: Duration = Duration::from_secs(30);

/// Between "yours" and the end of the connection the other agent only stops.
const RELEASE: Duration = Duration::from_secs(5);

/// How this agent comes by its state directory.
pub enum Start {
    /// Nobody has it.
    First(StateLock),
    /// Another agent runs, and stands still for this one.
    Successor(Predecessor),
}

/// Why an agent cannot start on a state directory.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error("--state-dir: cannot lock {}: {source}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error(
        "--state-dir: another edge agent uses {}, and it does not hand over: {source}; \
         it may be draining or have been started by `anyport up`",
        path.display()
    )]
    Held { path: PathBuf, source: io::Error },
    #[error("the running edge agent refuses to hand over: {0}")]
    Refused(String),
    #[error("taking over from the running edge agent: {0}")]
    Wire(#[from] WireError),
    #[error("taking over from the running edge agent: {0}")]
    Unknown(#[from] UnknownKey),
    #[error("taking over from the running edge agent: {0}")]
    Goods(String),
    #[error(
        "the running edge agent serves by revision {theirs} and here is revision {ours}; \
         it could not keep its configuration, as its log says: it goes on, stop it first"
    )]
    OtherRevision { theirs: Revision, ours: Revision },
}

/// The agent that runs, standing still.
pub struct Predecessor {
    wire: Wire,
    revision: Revision,
    pub estate: Estate,
    pub generations: Generations,
}

/// Owns `directory`, or has its owner stand still for the edge named `name`.
pub async fn begin(directory: &Path, name: &str) -> Result<Start, TakeError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let locked = StateLock::take(directory).map_err(|source| TakeError::Lock {
            path: directory.to_owned(),
            source,
        })?;
        if let Some(lock) = locked {
            return Ok(Start::First(lock));
        }
        match Wire::connect(&directory.join(SOCKET)) {
            Ok(wire) => match ask(wire?, name).await {
                // It ended meanwhile, so the directory is free.
                Err(TakeError::Wire(WireError::Gone)) if Instant::now() < deadline => {}
                asked => return asked.map(Start::Successor),
            },
            Err(source) if Instant::now() >= deadline => {
                return Err(TakeError::Held {
                    path: directory.to_owned(),
                    source,
                });
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn ask(wire: Wire, name: &str) -> Result<Predecessor, TakeError> {
    let hello = Message::Hello {
        name: name.to_owned(),
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    wire.send(&hello, &[])?;
    let (program_version, revision, descriptors) = match wire.receive(STANDSTILL).await?.0 {
        Message::Offer {
            program_version,
            revision,
            descriptors,
        } => (program_version, Revision(revision), descriptors),
        Message::Refused { reason } => return Err(TakeError::Refused(reason)),
        other => return Err(out_of_turn(&other).into()),
    };
    let mut predecessor = Predecessor {
        wire,
        revision,
        estate: Estate::default(),
        generations: Generations::default(),
    };
    let mut received = 0;
    while received < descriptors {
        received += predecessor.receive_goods().await?;
    }
    if received > descriptors {
        let said = format!("{received} descriptors came where {descriptors} were offered");
        return Err(TakeError::Goods(said));
    }
    tracing::info!(
        predecessor = predecessor.wire.pid(),
        %program_version,
        descriptors,
        "taking over from the running edge agent"
    );
    Ok(predecessor)
}

impl Predecessor {
    async fn receive_goods(&mut self) -> Result<usize, TakeError> {
        let (message, fds) = self.wire.receive(PROMPTLY).await?;
        let Message::Goods { keys } = message else {
            return Err(out_of_turn(&message).into());
        };
        if keys.is_empty() || keys.len() != fds.len() {
            let said = format!("{} descriptors came with {} names", fds.len(), keys.len());
            return Err(TakeError::Goods(said));
        }
        let count = fds.len();
        for (key, fd) in keys.iter().zip(fds) {
            let key: Key = key.parse()?;
            if let Key::Generation(pid) = key {
                let added = self.generations.add(pid, fd);
                added.map_err(|error| TakeError::Goods(error.to_string()))?;
            } else if !self.estate.insert(key, fd) {
                return Err(TakeError::Goods(format!("{key} came twice")));
            }
        }
        Ok(count)
    }

    /// The lock on the state directory, which is the predecessor's until it
    /// says "yours".
    pub fn state_lock(&mut self) -> Result<StateLock, TakeError> {
        let lock = self.estate.take(Key::StateLock);
        let missing = || TakeError::Goods("the lock on the state directory is missing".to_owned());
        Ok(StateLock::inherited(lock.ok_or_else(missing)?))
    }

    /// All that was handed over has to be adopted: a socket that is closed
    /// instead would take with it who waits in its queue.
    pub fn check_nothing_is_left(&self) -> Result<(), TakeError> {
        match self.estate.iter().next() {
            None => Ok(()),
            Some((key, _)) => Err(TakeError::Goods(format!("there is no use for {key}"))),
        }
    }

    /// This agent must serve by what the predecessor serves by.
    pub fn check_revision(&self, ours: Revision) -> Result<(), TakeError> {
        let theirs = self.revision;
        if ours == theirs {
            Ok(())
        } else {
            Err(TakeError::OtherRevision { theirs, ours })
        }
    }

    /// Tells the predecessor that this agent is ready. When this returns, it is
    /// this agent that has to serve.
    pub async fn succeed(self) -> Result<Departing, TakeError> {
        self.wire.send(&Message::Ready, &[])?;
        // Until it has said "yours" it can still go on, and this agent must
        // not: so there is no limit to the wait, as it is never a long one.
        let message = self.wire.receive(Duration::MAX).await?.0;
        if message != Message::Yours {
            return Err(out_of_turn(&message).into());
        }
        Ok(Departing {
            wire: self.wire,
            generations: self.generations,
        })
    }
}

/// A predecessor that is giving everything up.
pub struct Departing {
    wire: Wire,
    generations: Generations,
}

impl Departing {
    /// Returns when everything is this agent's alone, with what earlier agents
    /// still run.
    pub async fn gone(self) -> Generations {
        let pid = self.wire.pid();
        if let Err(error) = self.generations.add_peer(pid) {
            tracing::debug!(%error, "the earlier agent has ended already");
        }
        match self.wire.receive(RELEASE).await {
            Err(WireError::Gone) => {}
            // It has said that it is ours; what it still does is its end.
            _ => tracing::warn!(
                predecessor = pid,
                "the earlier edge agent is slow to let go"
            ),
        }
        tracing::info!(predecessor = pid, "this edge agent has taken over");
        self.generations
    }
}
