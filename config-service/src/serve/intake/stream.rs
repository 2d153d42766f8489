//! A request of many messages.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::{Coming, Meter, Room, SMALL};
use crate::wire::PREFIX;

/// The room that messages of a stream take which were not read yet, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Letters(Arc<Mutex<VecDeque<Option<OwnedSemaphorePermit>>>>);

impl Letters {
    /// The next one begins.
    fn begin(&self) {
        self.lock().push_back(None);
    }

    /// What has come of the latest takes more.
    fn add(&self, more: OwnedSemaphorePermit) {
        match self.lock().back_mut() {
            Some(Some(taken)) => taken.merge(more),
            Some(latest) => *latest = Some(more),
            None => {}
        }
    }

    /// One was read.
    pub(crate) fn read(&self) {
        self.lock().pop_front();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Option<OwnedSemaphorePermit>>> {
        // Every change to it is a single step, so a panic leaves it sound.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has come of them.
pub(super) struct Messages {
    room: Room,
    letters: Letters,
    is_first: bool,
    /// What has come of what goes before the next message.
    prefix: Vec<u8>,
    /// Bytes of the present message that have yet to come, and that have.
    left: usize,
    received: usize,
    /// The present message, or its prefix; `None`: there is none.
    coming: Option<Coming>,
}

impl Messages {
    pub(super) fn new(room: Room) -> Self {
        Self {
            room,
            letters: Letters::default(),
            is_first: true,
            prefix: Vec::with_capacity(PREFIX),
            left: 0,
            received: 0,
            coming: None,
        }
    }

    pub(super) fn letters(&self) -> Letters {
        self.letters.clone()
    }

    fn begin(&mut self, length: u32) -> Result<(), Status> {
        self.prefix.clear();
        self.left = usize::try_from(length).unwrap_or(usize::MAX);
        self.received = 0;
        if std::mem::take(&mut self.is_first) && self.left > SMALL {
            return Err(Status::out_of_range(format!(
                "the first message has more than {SMALL} bytes, which is the most for it"
            )));
        }
        self.letters.begin();
        Ok(())
    }

    fn more(&mut self, bytes: usize) -> Result<(), Status> {
        if let Some(more) = self.room.take(self.received, bytes)? {
            self.letters.add(more);
        }
        self.received += bytes;
        Ok(())
    }
}

impl Meter for Messages {
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while !bytes.is_empty() {
            let coming = self.coming.get_or_insert_with(Coming::since_now);
            let wanted = match self.left {
                0 => PREFIX - self.prefix.len(),
                left => left,
            };
            let (now, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            coming.received += now.len() as u64;
            if self.left > 0 {
                self.left -= now.len();
                self.more(now.len())?;
            } else {
                self.prefix.extend_from_slice(now);
                if let [_, a, b, c, d] = self.prefix[..] {
                    self.begin(u32::from_be_bytes([a, b, c, d]))?;
                }
            }
            if self.left == 0 && self.prefix.is_empty() {
                self.coming = None;
            }
        }
        Ok(())
    }

    fn coming(&mut self) -> Option<&mut Coming> {
        self.coming.as_mut()
    }
}
