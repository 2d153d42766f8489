//! Events for one reader.

use std::time::Duration;

use anyport_proto::v1;
use tokio::{
    sync::mpsc::{self, error::SendError},
    task::JoinSet,
    time::timeout,
};
use tonic::{Status, Streaming};

use super::{Admin, is_of};
use crate::events::Next;

/// An earlier agent sends what it remembers at once.
const PATIENCE: Duration = Duration::from_secs(2);

type Message = Result<v1::StreamEventsResponse, Status>;
type Sender = mpsc::Sender<Message>;

/// The reader is gone.
type Gone = SendError<Message>;

impl Admin {
    /// What earlier agents remember, then what this one does, and then, if it is
    /// to follow, whatever comes from any of them.
    pub(super) async fn send_events(
        &self,
        request: &v1::StreamEventsRequest,
        to: &Sender,
    ) -> Result<(), Gone> {
        let mut followed = JoinSet::new();
        let mut number = 0;
        while let Some(next) = self.earlier.next(number) {
            number = next;
            let stream = self.earlier.events(number, request.clone()).await;
            if let Some(stream) = stream
                && let Some(stream) = send_remembered(stream, to).await?
            {
                followed.spawn(pass_on(stream, to.clone()));
            }
        }
        self.send_own_events(request, to).await
    }

    async fn send_own_events(
        &self,
        request: &v1::StreamEventsRequest,
        to: &Sender,
    ) -> Result<(), Gone> {
        let message = |event: &_| {
            Ok(v1::StreamEventsResponse {
                event: Some(self.writer.event(event)),
                lost: 0,
            })
        };
        let (log, app) = (&self.events, &request.application);
        let (recent, follower) = if request.follow {
            let Some((recent, follower)) = log.follow() else {
                return Ok(());
            };
            (recent, Some(follower))
        } else {
            (log.recent(), None)
        };
        for event in recent.iter().filter(|event| is_of(&event.connection, app)) {
            to.send(message(event)).await?;
        }
        drop(recent);
        let Some(mut follower) = follower else {
            return Ok(());
        };
        to.send(Ok(v1::StreamEventsResponse::default())).await?;
        loop {
            match follower.next().await {
                Next::Event(event) if is_of(&event.connection, app) => {
                    to.send(message(&event)).await?;
                }
                Next::Event(_) => {}
                Next::Lost(lost) => {
                    let told = v1::StreamEventsResponse { event: None, lost };
                    to.send(Ok(told)).await?;
                }
                Next::End => return Ok(()),
            }
        }
    }
}

/// Gives the stream back where it goes on; one that breaks off or says nothing
/// holds up nobody.
async fn send_remembered(
    mut from: Streaming<v1::StreamEventsResponse>,
    to: &Sender,
) -> Result<Option<Streaming<v1::StreamEventsResponse>>, Gone> {
    while let Ok(Ok(Some(message))) = timeout(PATIENCE, from.message()).await {
        // All that it remembers is sent.
        if message == v1::StreamEventsResponse::default() {
            return Ok(Some(from));
        }
        to.send(Ok(message)).await?;
    }
    Ok(None)
}

async fn pass_on(mut from: Streaming<v1::StreamEventsResponse>, to: Sender) {
    while let Ok(Some(message)) = from.message().await {
        if to.send(Ok(message)).await.is_err() {
            return;
        }
    }
}
