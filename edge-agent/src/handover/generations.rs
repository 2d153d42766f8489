//! Earlier agents that handed over and still finish their connections.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::sys;

/// More are not started: each may hold as much memory as the one that serves.
pub const GENERATIONS_MAX: usize = 4;

/// Those that still run. The kernel tells when one ends, so a process id that
/// was given to somebody else is never taken for one.
#[derive(Debug, Clone, Default)]
pub struct Generations(Arc<Mutex<BTreeMap<i32, Arc<OwnedFd>>>>);

impl Generations {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Arc<OwnedFd>>> {
        // The map is whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process on the other side of a connection that still stands.
    pub fn add_peer(&self, pid: i32) -> io::Result<()> {
        self.add(pid, sys::process(pid)?)
    }

    /// A process that an earlier agent knew of.
    pub fn add(&self, pid: i32, process: OwnedFd) -> io::Result<()> {
        let process = Arc::new(process);
        let ended = sys::readable(Arc::clone(&process))?;
        self.lock().insert(pid, process);
        let generations = self.clone();
        tokio::spawn(async move {
            // It is not read from; being readable is the message.
            let _ = ended.readable().await.map(|mut ready| ready.retain_ready());
            generations.lock().remove(&pid);
            tracing::info!(pid, "an earlier edge agent has ended");
        });
        Ok(())
    }

    pub fn list(&self) -> Vec<(i32, Arc<OwnedFd>)> {
        let lock = self.lock();
        lock.iter()
            .map(|(pid, fd)| (*pid, Arc::clone(fd)))
            .collect()
    }

    pub fn processes(&self) -> BTreeSet<u32> {
        let lock = self.lock();
        // None is negative.
        lock.keys()
            .filter_map(|pid| u32::try_from(*pid).ok())
            .collect()
    }

    /// Why there is no room for one more, if so.
    pub fn crowded(&self) -> Option<String> {
        let pids: Vec<String> = self.lock().keys().map(ToString::to_string).collect();
        (pids.len() >= GENERATIONS_MAX).then(|| {
            format!(
                "{} earlier agents still finish their connections (processes {}); wait for one \
                 of them, or end one with two SIGTERMs",
                pids.len(),
                pids.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::{process::Command, time::Duration};

    #[tokio::test]
    async fn one_that_ended_makes_room() {
        let generations = Generations::default();
        let mut running: Vec<_> = (0..GENERATIONS_MAX)
            .map(|_| Command::new("sleep").arg("60").spawn().unwrap())
            .collect();
        for child in &running {
            assert_eq!(generations.crowded(), None);
            generations
                .add_peer(child.id().try_into().unwrap())
                .unwrap();
        }
        let crowded = generations.crowded().unwrap();
        for child in &running {
            assert!(crowded.contains(&child.id().to_string()), "{crowded}");
        }
        let mut first = running.remove(0);
        first.kill().unwrap();
        let room = async {
            while generations.crowded().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), room)
            .await
            .unwrap();
        assert_eq!(generations.list().len(), GENERATIONS_MAX - 1);
        first.wait().unwrap();
        for mut child in running {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
