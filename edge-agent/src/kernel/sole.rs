//! One agent for a network namespace.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// Held, it keeps other agents from setting up the kernel in this network
/// namespace. Two at once would each take the other's work for drift, and undo
/// it without end.
///
/// It is a lock on the namespace itself (flock(2) on `/proc/thread-self/ns/net`), so
/// it needs no place that both agents would have to agree on, and the kernel
/// gives it back when the agent is gone, however it went.
#[derive(Debug)]
pub struct Sole(#[expect(dead_code, reason = "held for its lock")] Flock<File>);

/// Why an agent cannot be the only one.
#[derive(Debug, thiserror::Error)]
pub enum SoleError {
    #[error("looking for another edge agent in this network namespace: {0}")]
    System(#[from] io::Error),
    #[error(
        "another edge agent{} sets up the kernel in this network namespace, with another \
         --state-dir; two would undo each other's work without end: end it, or start this one in a \
         network namespace of its own",
        process(*.0)
    )]
    Taken(Option<u32>),
}

fn process(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |holder| format!(" (process {holder})"))
}

impl Sole {
    /// In the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// Where another process has it.
    pub fn take() -> Result<Self, SoleError> {
        let namespace = File::open("/proc/thread-self/ns/net")?;
        let inode = namespace.metadata()?.ino();
        match Flock::lock(namespace, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, Errno::EWOULDBLOCK)) => {
                let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
                Err(SoleError::Taken(holder(&locks, inode)))
            }
            Err((_, error)) => Err(io::Error::from(error).into()),
        }
    }
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
}
