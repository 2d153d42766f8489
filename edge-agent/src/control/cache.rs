//! What an agent keeps on disk: the last known good configuration, so that an
//! edge that starts while the control plane is away serves what it served
//! before, and what a revision on trial is held against.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyport_proto::v1;
use prost::Message;

use crate::disk;

const CONFIGURATION: &str = "last-known-good";
const TRIAL: &str = "trial";

/// Changes when the layout of the files does; a file of another layout is left
/// alone and the configuration is fetched.
const MAGIC: &[u8; 8] = b"anyport1";

/// A trial, as an agent that starts during it needs to know it.
#[derive(Clone, PartialEq, Message)]
pub struct TrialBegun {
    /// Of the state that is tried: numbers of revisions come again where a store
    /// is restored from an older copy.
    #[prost(bytes = "vec", tag = "1")]
    pub state_hash: Vec<u8>,
    /// The revision, and of each app how its connections ended before.
    #[prost(message, optional, tag = "2")]
    pub before: Option<v1::TrialReport>,
}

/// The directory that an agent keeps its state in.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
}

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--state-dir: cannot {doing} {}: {source}", path.display())]
pub struct CacheError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Cache {
    /// Makes the directory where it is missing.
    pub fn open(directory: &Path) -> Result<Self, CacheError> {
        // For nobody else: private keys of certificates are kept here.
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory);
        made.map_err(|source| CacheError {
            doing: "create",
            path: directory.to_owned(),
            source,
        })?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// What was saved last; `None` if nothing was, or what is there is damaged
    /// (it is then fetched anew, as on a first start).
    pub fn load(&self) -> Result<Option<v1::Update>, CacheError> {
        self.read(CONFIGURATION)
    }

    /// Saves `update` in place of what was saved before, whole or not at all,
    /// also if the machine fails in between. Blocks.
    pub fn save(&self, update: &v1::Update) -> Result<(), CacheError> {
        self.write(CONFIGURATION, update)
    }

    /// How connections had ended before a revision on trial; as
    /// [`load`](Self::load).
    pub fn load_trial(&self) -> Result<Option<TrialBegun>, CacheError> {
        self.read(TRIAL)
    }

    /// As [`save`](Self::save).
    pub fn save_trial(&self, begun: &TrialBegun) -> Result<(), CacheError> {
        self.write(TRIAL, begun)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    fn read<M: Message + Default>(&self, file: &str) -> Result<Option<M>, CacheError> {
        let path = self.path(file);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let doing = "read";
                return Err(CacheError {
                    doing,
                    path,
                    source,
                });
            }
        };
        let message = decode(&bytes);
        if message.is_none() {
            tracing::warn!(path = %path.display(), "what was kept is damaged and is not used");
        }
        Ok(message)
    }

    fn write(&self, file: &str, message: &impl Message) -> Result<(), CacheError> {
        let path = self.path(file);
        let written = disk::replace(&path, &encode(message));
        written.map_err(|source| CacheError {
            doing: "write",
            path,
            source,
        })
    }
}

fn encode(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut bytes = Vec::with_capacity(MAGIC.len() + 4 + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&checksum(&body).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Option<M> {
    let (sum, body) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<4>()?;
    if u32::from_be_bytes(*sum) != checksum(body) {
        return None;
    }
    M::decode(body).ok()
}

/// FNV-1a: finds a torn or truncated file; nobody is being kept out.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn update(revision: u64) -> v1::Update {
        v1::Update {
            revision,
            full: true,
            state_hash: vec![7; 32],
            ..Default::default()
        }
    }

    #[test]
    fn what_was_saved_last_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("a/b")).unwrap();
        assert_eq!(cache.load().unwrap(), None);
        cache.save(&update(1)).unwrap();
        cache.save(&update(2)).unwrap();
        assert_eq!(cache.load().unwrap(), Some(update(2)));
    }

    #[test]
    fn a_damaged_file_counts_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        cache.save(&update(1)).unwrap();
        let whole = fs::read(cache.path(CONFIGURATION)).unwrap();
        for length in 0..whole.len() {
            fs::write(cache.path(CONFIGURATION), &whole[..length]).unwrap();
            assert_eq!(cache.load().unwrap(), None, "cut to {length}");
        }
        for byte in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[byte] ^= 1;
            fs::write(cache.path(CONFIGURATION), &flipped).unwrap();
            assert_eq!(cache.load().unwrap(), None, "byte {byte} flipped");
        }
    }
}
