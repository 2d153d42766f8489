//! One agent for a network namespace.

use std::{
    fs::{self, File},
    future::pending,
    io,
    os::unix::fs::MetadataExt,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};
use tokio::time::{Instant, sleep};

/// An agent that ends gives up its state directory, by which the next one is
/// let in, and this in no certain order.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(50);

/// How long an earlier agent of this edge may take to let go before it is told.
const SLOW: Duration = Duration::from_secs(30);

/// Held, it keeps other agents from setting up the kernel in this network
/// namespace. Two at once would each take the other's work for drift, and undo
/// it without end.
///
/// It is a lock on the namespace itself (flock(2) on `/proc/thread-self/ns/net`), so
/// it needs no place that both agents would have to agree on, and the kernel
/// gives it back when the agent is gone, however it went.
#[derive(Debug)]
pub struct Sole(
    /// None where the lock cannot be had for a reason that is no agent.
    #[expect(dead_code, reason = "held for its lock")]
    Option<Flock<File>>,
);

/// Another process has it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "another process{} sets up the kernel in this network namespace, an edge agent with another \
     --state-dir as it seems; two would undo each other's work without end: end it, or start this \
     one in a network namespace of its own",
    named(*.0)
)]
pub struct NotSole(Option<u32>);

fn named(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |holder| format!(" ({holder})"))
}

impl Sole {
    /// In the network namespace of the calling thread. Waits a moment for one
    /// that ends.
    ///
    /// # Errors
    ///
    /// Where another agent has it.
    pub async fn take() -> Result<Self, NotSole> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::try_take() {
                Err(_) if Instant::now() < deadline => sleep(AGAIN).await,
                taken => return taken,
            }
        }
    }

    fn try_take() -> Result<Self, NotSole> {
        let locking = File::open("/proc/thread-self/ns/net").and_then(|namespace| {
            let inode = namespace.metadata()?.ino();
            match Flock::lock(namespace, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => Ok(Ok(lock)),
                Err((_, Errno::EWOULDBLOCK)) => Ok(Err(inode)),
                Err((_, error)) => Err(io::Error::from(error)),
            }
        });
        match locking {
            Ok(Ok(lock)) => Ok(Self(Some(lock))),
            Ok(Err(inode)) => {
                let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
                let holder = holder(&locks, inode);
                // Anybody may lock a namespace, which is to keep nobody's agent
                // from starting.
                if holder.is_some_and(|holder| !may_be_an_agent(holder)) {
                    tracing::warn!(?holder, "{UNKNOWN}: a program without privileges locks it");
                    return Ok(Self(None));
                }
                Err(NotSole(holder))
            }
            Err(error) => {
                tracing::warn!(%error, "{UNKNOWN}");
                Ok(Self(None))
            }
        }
    }

    /// Keeps it as long as this is polled, which never ends, and takes it before
    /// where it is still an earlier agent's.
    pub async fn keep(sole: Option<Self>) {
        let since = Instant::now();
        let (mut sole, mut told) = (sole, false);
        while sole.is_none() {
            match Self::try_take() {
                Ok(taken) => sole = Some(taken),
                Err(other) => {
                    if !told && since.elapsed() > SLOW {
                        tracing::error!("{other}");
                        told = true;
                    }
                    sleep(AGAIN).await;
                }
            }
        }
        pending().await
    }
}

const UNKNOWN: &str = "whether another edge agent is in this network namespace is not known";

/// Is it root's, or of the user that this agent is?
fn may_be_an_agent(process: u32) -> bool {
    // Of one that has just ended nothing is known.
    fs::metadata(format!("/proc/{process}"))
        .map_or(true, |about| [0, geteuid().as_raw()].contains(&about.uid()))
}

/// Who has the lock, by `/proc/locks` (proc_locks(5)); none where it is in
/// another PID namespace. Files of other file systems may have the same number.
fn holder(locks: &str, inode: u64) -> Option<u32> {
    let of_inode = locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let kind = words.next()?;
        let (_advisory, _write) = (words.next()?, words.next()?);
        let (process, file) = (words.next()?, words.next()?);
        let number = file.rsplit(':').next()?;
        (kind == "FLOCK" && number.parse() == Ok(inode)).then_some(process)
    });
    of_inode?.parse().ok().filter(|process| *process > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{os::unix::process::CommandExt, process::Command};

    use super::*;

    #[test]
    fn the_holder_is_named_by_the_kernels_list() {
        let locks = "\
1: POSIX  ADVISORY  WRITE 11 00:04:4026531840 0 EOF
2: FLOCK  ADVISORY  WRITE 12 fe:00:26531840 0 EOF
3: FLOCK  ADVISORY  WRITE 13506 00:04:4026531840 0 EOF
3: -> FLOCK  ADVISORY  WRITE 77 00:04:4026531840 0 EOF
4: FLOCK  ADVISORY  WRITE -1 00:04:4026531841 0 EOF
";
        assert_eq!(holder(locks, 4_026_531_840), Some(13506));
        assert_eq!(holder(locks, 4_026_531_841), None);
        assert_eq!(holder(locks, 1), None);
        assert_eq!(holder("nonsense\n:\n", 1), None);
    }

    #[test]
    fn who_is_no_agent_keeps_none_from_starting() {
        let mut program = Command::new("sleep").arg("60").uid(65534).spawn().unwrap();
        let may_be = [std::process::id(), 1, program.id()].map(may_be_an_agent);
        program.kill().unwrap();
        program.wait().unwrap();
        assert_eq!(may_be, [true, true, false]);
    }
}
