//! The open file, and the same one opened again.
//!
//! After an error of the disk redb refuses all further work, until its file is
//! closed and opened. Then what was whole on the disk counts, as after a crash.

use std::{
    fmt,
    sync::{PoisonError, RwLock},
};

use redb::Database;

use crate::store::StoreError;

/// Opens the file, ready to be worked with.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, redb::Error> + Send + Sync>;

/// See the module.
pub(super) struct File {
    open: Opener,
    /// Shared by those who work with it; alone is who closes or opens it.
    slot: RwLock<Slot>,
}

struct Slot {
    /// `None` from an error of the disk to the next work.
    database: Option<Database>,
    /// How often the file was opened: an error counts for that opening only.
    opened: u64,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").finish_non_exhaustive()
    }
}

impl File {
    pub(super) fn open(open: Opener) -> Result<Self, redb::Error> {
        let slot = Slot {
            database: Some(open()?),
            opened: 1,
        };
        Ok(Self {
            open,
            slot: RwLock::new(slot),
        })
    }

    /// Does `work`, waiting for the disk.
    pub(super) fn work<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (done, opened) = loop {
            let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(database) = &slot.database {
                break (work(database), slot.opened);
            }
            drop(slot);
            self.reopen()
                .map_err(|error| StoreError::unavailable(action, error))?;
        };
        if done.as_ref().is_err_and(is_of_the_disk) {
            self.close(opened);
        }
        done
    }

    fn reopen(&self) -> Result<(), redb::Error> {
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        if slot.database.is_none() {
            slot.database = Some((self.open)()?);
            slot.opened += 1;
        }
        Ok(())
    }

    fn close(&self, opened: u64) {
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        if slot.opened == opened {
            slot.database = None;
        }
    }
}

fn is_of_the_disk(error: &StoreError) -> bool {
    let StoreError::Unavailable { source, .. } = error else {
        return false;
    };
    matches!(
        source.downcast_ref(),
        Some(redb::Error::Io(_) | redb::Error::PreviousIo)
    )
}
