//! A request of one message.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::{super::fields::Resources, Coming, Meter, Room, SMALL};

/// The room that one request takes, until it is dropped everywhere: by whoever reads
/// the request and by whoever answers it.
#[derive(Debug, Clone, Default)]
pub(in crate::serve) struct Taken(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Taken {
    fn add(&self, more: OwnedSemaphorePermit) {
        // Every change to it is a single step, so a panic leaves it sound.
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *taken {
            Some(taken) => taken.merge(more),
            None => *taken = Some(more),
        }
    }
}

/// What has come of it.
pub(super) struct Message {
    room: Room,
    taken: Taken,
    /// What may be large has resources, which are counted; `None`: it may not.
    large: Option<Resources>,
    received: usize,
    coming: Coming,
}

impl Message {
    pub(super) fn new(room: Room, may_be_large: bool) -> Self {
        Self {
            room,
            taken: Taken::default(),
            large: may_be_large.then(Resources::default),
            received: 0,
            coming: Coming::since_now(),
        }
    }

    pub(super) fn taken(&self) -> Taken {
        self.taken.clone()
    }
}

impl Meter for Message {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Status> {
        let before = self.received;
        self.received = self.received.saturating_add(bytes.len());
        self.coming.received = self.received as u64;
        match &mut self.large {
            Some(resources) => resources.read(bytes)?,
            None if self.received > SMALL => return Err(too_long()),
            None => {}
        }
        if let Some(more) = self.room.take(before, bytes.len())? {
            self.taken.add(more);
        }
        Ok(())
    }

    fn coming(&mut self) -> Option<&mut Coming> {
        Some(&mut self.coming)
    }
}

fn too_long() -> Status {
    Status::out_of_range(format!(
        "the request has more than {SMALL} bytes, which is the most for all methods but Apply"
    ))
}
