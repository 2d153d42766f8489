//! What one agent leaves to the next.

use std::{
    collections::BTreeMap,
    fs::{OpenOptions, TryLockError},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use super::key::Key;

const LOCK: &str = "lock";

/// Descriptors by name, each once.
#[derive(Debug, Default)]
pub struct Estate(BTreeMap<Key, OwnedFd>);

impl Estate {
    /// False where there is one of this name already; the new one is closed.
    #[must_use]
    pub fn insert(&mut self, key: Key, fd: OwnedFd) -> bool {
        let is_new = !self.0.contains_key(&key);
        if is_new {
            self.0.insert(key, fd);
        }
        is_new
    }

    pub fn take(&mut self, key: Key) -> Option<OwnedFd> {
        self.0.remove(&key)
    }

    /// Takes all whose names are `wanted`, in order.
    pub fn take_all(&mut self, wanted: impl Fn(Key) -> bool) -> Vec<(Key, OwnedFd)> {
        self.0.extract_if(.., |key, _| wanted(*key)).collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, BorrowedFd<'_>)> {
        self.0.iter().map(|(key, fd)| (*key, fd.as_fd()))
    }
}

/// The last of two that have one name wins; within an agent there are none.
impl FromIterator<(Key, OwnedFd)> for Estate {
    fn from_iter<I: IntoIterator<Item = (Key, OwnedFd)>>(goods: I) -> Self {
        Self(goods.into_iter().collect())
    }
}

/// The state directory is this agent's. Held by the open file, so it can be
/// handed over like one, and the kernel gives it back when the last holder is
/// gone, however it went (flock(2)).
#[derive(Debug)]
pub struct StateLock(OwnedFd);

impl StateLock {
    /// None where another agent has it.
    pub fn take(directory: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file.into()))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    pub fn inherited(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_directory_is_free_when_the_last_copy_of_its_lock_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let take = || StateLock::take(directory.path()).unwrap();
        let first = take().unwrap();
        assert!(take().is_none());
        let second = StateLock::inherited(first.duplicate().unwrap());
        drop(first);
        assert!(take().is_none(), "the heir has it");
        drop(second);
        assert!(take().is_some());
    }

    #[test]
    fn nothing_is_there_twice() {
        let fd = || OwnedFd::from(std::io::pipe().unwrap().0);
        let mut estate = Estate::default();
        assert!(estate.insert(Key::Grpc, fd()));
        assert!(!estate.insert(Key::Grpc, fd()));
        assert!(estate.take(Key::Grpc).is_some());
        assert!(estate.take(Key::Grpc).is_none());
    }
}
