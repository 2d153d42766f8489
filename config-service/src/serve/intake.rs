//! How much of requests is in memory at once, and for how long they may take to come.

mod message;
mod stream;

use std::{
    pin::Pin,
    sync::Arc,
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

use self::{message::Message, stream::Messages};
use super::status;

pub(super) use message::Taken;
pub(crate) use stream::Letters;

const APPLY: &str = "/anyport.v1.ConfigService/Apply";

/// Bytes of all requests that are being received, read or answered, and of messages of
/// subscribers that are being received: four of the largest.
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
pub struct Intake {
    room: Room,
}

impl Default for Intake {
    fn default() -> Self {
        Self::new(MOST)
    }
}

impl Intake {
    fn new(most: usize) -> Self {
        Self {
            room: Room(Arc::new(Semaphore::new(most))),
        }
    }

    /// The request, held to the limits; and what it takes, to be kept as long as it is
    /// worked on.
    pub(super) fn admit(&self, request: Request<Body>) -> (Request<Body>, Taken) {
        let message = Message::new(self.room.clone(), may_be_large(request.uri().path()));
        let taken = message.taken();
        (request.map(|body| metered(body, message)), taken)
    }

    /// The same for a stream, of which each message is held to the limits by itself, and
    /// the first may not be large; and what they take, each until it is read.
    pub(crate) fn admit_stream(&self, request: Request<Body>) -> (Request<Body>, Letters) {
        let messages = Messages::new(self.room.clone());
        let letters = messages.letters();
        (request.map(|body| metered(body, messages)), letters)
    }
}

/// What is not taken yet.
#[derive(Debug, Clone)]
struct Room(Arc<Semaphore>);

impl Room {
    /// What `bytes` more take, where `received` have come before; `None`: nothing.
    fn take(&self, received: usize, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, Status> {
        let large = |received: usize| received.saturating_sub(SMALL);
        let more = large(received.saturating_add(bytes)) - large(received);
        if more == 0 {
            return Ok(None);
        }
        let more = u32::try_from(more).map_err(|_| status::full(MOST))?;
        let taken = Arc::clone(&self.0).try_acquire_many_owned(more);
        taken.map(Some).map_err(|_| status::full(MOST))
    }
}

/// How long something may take to come, by how much of it has.
struct Coming {
    since: Instant,
    received: u64,
    /// Set once it has to be waited for.
    late: Option<Pin<Box<Sleep>>>,
}

impl Coming {
    fn since_now() -> Self {
        Self {
            since: Instant::now(),
            received: 0,
            late: None,
        }
    }

    /// When all of it has to be there, as far as it has come.
    fn until(&self) -> Instant {
        self.since + GRACE + Duration::from_secs(self.received / SLOWEST)
    }

    /// Ready when it has taken too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        let until = self.until();
        let late = self
            .late
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if late.deadline() != until {
            late.as_mut().reset(until);
        }
        late.as_mut().poll(cx).map(|()| {
            Status::deadline_exceeded(format!(
                "{} bytes of the request had come in time; right is all of it within {} s, \
                 and a second more for each {SLOWEST} bytes",
                self.received,
                GRACE.as_secs()
            ))
        })
    }
}

/// Holds what comes to the limits.
trait Meter {
    /// These bytes have come; an error ends the request.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Status>;

    /// What has begun to come and is not whole, if anything is.
    fn coming(&mut self) -> Option<&mut Coming>;
}

fn metered(body: Body, meter: impl Meter + Send + Unpin + 'static) -> Body {
    Body::new(Metered { body, meter })
}

/// The body of a request.
struct Metered<M> {
    body: Body,
    meter: M,
}

impl<M: Meter + Unpin> HttpBody for Metered<M> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(&[][..], AsRef::as_ref);
                Poll::Ready(Some(self.meter.take(bytes).map(|()| frame)))
            }
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending => match self.meter.coming() {
                Some(coming) => coming.poll_late(cx).map(|late| Some(Err(late))),
                None => Poll::Pending,
            },
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
    use crate::wire::{Coding, PREFIX, respond};

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
            intake.room.0.available_permits(),
            100_000,
            "small ones are free"
        );
        send(&one, 100_000).await;
        assert_eq!(next(&mut body).await, Ok(100_000));
        let left = 100_000 - (160_000 - SMALL);
        assert_eq!(intake.room.0.available_permits(), left);
        let (other, mut refused, _) = request(&intake);
        send(&other, SMALL + left + 1).await;
        assert_eq!(next(&mut refused).await, Err(Code::ResourceExhausted));
        // It is held as long as it is worked on, read or not.
        drop((one, body));
        assert_eq!(intake.room.0.available_permits(), left);
        drop(taken);
        assert_eq!(intake.room.0.available_permits(), 100_000);
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
            assert_eq!(intake.room.0.available_permits(), MOST);
        }
    }

    /// A message of gRPC with so many bytes.
    fn letter(bytes: usize) -> Vec<u8> {
        let length = u32::try_from(bytes).unwrap().to_be_bytes();
        [&[0][..], &length, &vec![0; bytes]].concat()
    }

    fn stream(intake: &Intake) -> (mpsc::Sender<Result<Bytes, Status>>, Body, Letters) {
        let (sender, bytes) = mpsc::channel(1);
        let body = respond(bytes, Coding::Identity).into_body();
        let (request, letters) = intake.admit_stream(Request::post("/").body(body).unwrap());
        (sender, request.into_body(), letters)
    }

    async fn pass(
        sender: &mpsc::Sender<Result<Bytes, Status>>,
        body: &mut Body,
        bytes: &[u8],
    ) -> Result<usize, Code> {
        sender
            .send(Ok(Bytes::copy_from_slice(bytes)))
            .await
            .unwrap();
        next(body).await
    }

    #[tokio::test]
    async fn of_a_stream_each_message_takes_room_as_it_comes_until_it_is_read() {
        let intake = Intake::new(100_000);
        let free = || intake.room.0.available_permits();
        let (one, mut body, letters) = stream(&intake);
        for _ in 0..3 {
            let small = letter(SMALL);
            assert_eq!(pass(&one, &mut body, &small).await, Ok(small.len()));
            letters.read();
        }
        assert_eq!(free(), 100_000, "small ones are free");
        // Cut within the prefix of the second of two large ones.
        let both = [letter(SMALL + 30_000), letter(SMALL + 50_000)].concat();
        let cut = SMALL + 30_000 + 2 * PREFIX - 1;
        pass(&one, &mut body, &both[..cut]).await.unwrap();
        assert_eq!(free(), 70_000);
        let half = cut + 1 + SMALL + 25_000;
        pass(&one, &mut body, &both[cut..half]).await.unwrap();
        assert_eq!(free(), 45_000);
        pass(&one, &mut body, &both[half..]).await.unwrap();
        assert_eq!(free(), 20_000);
        let (other, mut refused, _letters) = stream(&intake);
        pass(&other, &mut refused, &letter(1)).await.unwrap();
        let full = pass(&other, &mut refused, &letter(SMALL + 20_001)).await;
        assert_eq!(full, Err(Code::ResourceExhausted));
        letters.read();
        assert_eq!(free(), 50_000);
        drop((one, body, letters));
        assert_eq!(free(), 100_000);
    }

    #[tokio::test]
    async fn the_first_message_of_a_stream_is_small() {
        let (one, mut body, _letters) = stream(&Intake::default());
        let large = pass(&one, &mut body, &letter(SMALL + 1)[..PREFIX]).await;
        assert_eq!(large, Err(Code::OutOfRange));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_be_silent_between_messages_and_not_within_one() {
        let (one, mut body, _letters) = stream(&Intake::default());
        assert_eq!(pass(&one, &mut body, &letter(100)).await, Ok(100 + PREFIX));
        let waited = tokio::time::timeout(100 * GRACE, next(&mut body)).await;
        assert!(waited.is_err(), "{waited:?}");
        for part in [PREFIX - 1, PREFIX, 100] {
            let (one, mut body, _letters) = stream(&Intake::default());
            assert_eq!(pass(&one, &mut body, &letter(100)[..part]).await, Ok(part));
            let since = Instant::now();
            assert_eq!(next(&mut body).await, Err(Code::DeadlineExceeded));
            assert_eq!(since.elapsed().as_secs(), GRACE.as_secs());
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
