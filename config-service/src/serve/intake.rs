//! How much of requests is in memory at once, and for how long they may take to come.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep},
};
use tonic::{Status, body::Body, codegen::http::Request};

use super::{fields::Resources, status};

const APPLY: &str = "/anyport.v1.ConfigService/Apply";

/// Bytes of all requests that are being received, read or answered: four of the largest.
const MOST: usize = 256 << 20;
/// So much of each counts nothing: small requests are served whatever large ones do.
/// Those of all methods but one have to be so small.
pub(super) const SMALL: usize = 64 << 10;
/// A request has this long to come,
const GRACE: Duration = Duration::from_secs(30);
/// and one second more for so many bytes of it that have come.
const SLOWEST: u64 = 32 << 10;

/// Does a request to this path carry resources?
pub(super) fn may_be_large(path: &str) -> bool {
    path == APPLY
}

/// Room for requests. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Intake {
    room: Arc<Semaphore>,
}

/// The room that one request takes, until it is dropped everywhere: by whoever reads
/// the request and by whoever answers it.
#[derive(Debug, Clone, Default)]
pub(super) struct Taken(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Default for Intake {
    fn default() -> Self {
        Self::new(MOST)
    }
}

impl Intake {
    fn new(most: usize) -> Self {
        Self {
            room: Arc::new(Semaphore::new(most)),
        }
    }

    /// The request, held to the limits; and what it takes, to be kept as long as it is
    /// worked on.
    pub(super) fn admit(&self, request: Request<Body>) -> (Request<Body>, Taken) {
        let taken = Taken::default();
        let large = may_be_large(request.uri().path()).then(Resources::default);
        let request = request.map(|body| {
            Body::new(Metered {
                body,
                room: Arc::clone(&self.room),
                taken: taken.clone(),
                large,
                received: 0,
                since: Instant::now(),
                late: None,
            })
        });
        (request, taken)
    }
}

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

/// The body of a request.
struct Metered {
    body: Body,
    room: Arc<Semaphore>,
    taken: Taken,
    /// What may be large has resources, which are counted; `None`: it may not.
    large: Option<Resources>,
    received: usize,
    since: Instant,
    /// Set once it has to be waited for.
    late: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Status> {
        let before = self.received.saturating_sub(SMALL);
        self.received = self.received.saturating_add(bytes.len());
        match &mut self.large {
            Some(resources) => resources.read(bytes)?,
            None if self.received > SMALL => return Err(too_long()),
            None => {}
        }
        let more = self.received.saturating_sub(SMALL) - before;
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).map_err(|_| status::full(MOST))?;
        let more = Arc::clone(&self.room).try_acquire_many_owned(more);
        self.taken.add(more.map_err(|_| status::full(MOST))?);
        Ok(())
    }

    /// When all of it has to be there, as far as it has come.
    fn until(&self) -> Instant {
        self.since + GRACE + Duration::from_secs(self.received as u64 / SLOWEST)
    }
}

fn too_long() -> Status {
    Status::out_of_range(format!(
        "the request has more than {SMALL} bytes, which is the most for all methods but Apply"
    ))
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(&[][..], AsRef::as_ref);
                Poll::Ready(Some(self.take(bytes).map(|()| frame)))
            }
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending => {
                let until = self.until();
                let late = self
                    .late
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                if late.deadline() != until {
                    late.as_mut().reset(until);
                }
                late.as_mut().poll(cx).map(|()| {
                    let said = format!(
                        "{} bytes of the request had come in time; right is all of it within {} s, \
                         and a second more for each {SLOWEST} bytes",
                        self.received,
                        GRACE.as_secs()
                    );
                    Some(Err(Status::deadline_exceeded(said)))
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::poll_fn;

    use tokio::sync::mpsc;
    use tonic::Code;

    use super::*;
    use crate::wire::{Coding, respond};

    /// A request whose bytes come as they are sent.
    fn request(intake: &Intake) -> (mpsc::Sender<Result<Bytes, Status>>, Body, Taken) {
        request_to(APPLY, intake)
    }

    fn request_to(
        path: &str,
        intake: &Intake,
    ) -> (mpsc::Sender<Result<Bytes, Status>>, Body, Taken) {
        let (sender, bytes) = mpsc::channel(1);
        let body = respond(bytes, Coding::Identity).into_body();
        let request = Request::post(path).body(body).unwrap();
        let (request, taken) = intake.admit(request);
        (sender, request.into_body(), taken)
    }

    async fn next(body: &mut Body) -> Result<usize, Code> {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx))
            .await
            .unwrap();
        let frame = frame.map_err(|status| status.code())?;
        Ok(frame.data_ref().unwrap().len())
    }

    #[tokio::test]
    async fn there_is_room_until_it_is_taken_and_again_once_who_took_it_has_gone() {
        let intake = Intake::new(100_000);
        let send = async |sender: &mpsc::Sender<_>, bytes: usize| {
            sender.send(Ok(Bytes::from(vec![0; bytes]))).await.unwrap();
        };
        let (one, mut body, taken) = request(&intake);
        send(&one, 60_000).await;
        assert_eq!(next(&mut body).await, Ok(60_000));
        assert_eq!(
            intake.room.available_permits(),
            100_000,
            "small ones are free"
        );
        send(&one, 100_000).await;
        assert_eq!(next(&mut body).await, Ok(100_000));
        let left = 100_000 - (160_000 - SMALL);
        assert_eq!(intake.room.available_permits(), left);
        let (other, mut refused, _) = request(&intake);
        send(&other, SMALL + left + 1).await;
        assert_eq!(next(&mut refused).await, Err(Code::ResourceExhausted));
        // It is held as long as it is worked on, read or not.
        drop((one, body));
        assert_eq!(intake.room.available_permits(), left);
        drop(taken);
        assert_eq!(intake.room.available_permits(), 100_000);
    }

    #[tokio::test]
    async fn what_carries_no_resources_takes_nothing_of_the_room() {
        let intake = Intake::default();
        for path in [
            "/anyport.v1.ConfigService/List",
            "/anyport.v1.ConfigService/Delete",
        ] {
            let (sender, mut body, _taken) = request_to(path, &intake);
            for (bytes, read) in [(SMALL, Ok(SMALL)), (1, Err(Code::OutOfRange))] {
                sender.send(Ok(Bytes::from(vec![0; bytes]))).await.unwrap();
                assert_eq!(next(&mut body).await, read, "{path}");
            }
            assert_eq!(intake.room.available_permits(), MOST);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_too_slowly_is_not_waited_for() {
        let intake = Intake::default();
        let (_silent, mut body, _) = request(&intake);
        let since = Instant::now();
        assert_eq!(next(&mut body).await, Err(Code::DeadlineExceeded));
        assert_eq!(since.elapsed().as_secs(), GRACE.as_secs());

        for (each, ends) in [(SLOWEST as usize - 1_000, true), (SLOWEST as usize, false)] {
            let (sender, mut body, _) = request(&intake);
            let sending = async {
                while sender.send(Ok(Bytes::from(vec![0; each]))).await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            let reading = async {
                for _ in 0..2_000 {
                    next(&mut body).await?;
                }
                Ok(())
            };
            let read = tokio::select! {
                () = sending => unreachable!(),
                read = reading => read,
            };
            assert_eq!(
                read == Err(Code::DeadlineExceeded),
                ends,
                "{each} a second: {read:?}"
            );
        }
    }
}
