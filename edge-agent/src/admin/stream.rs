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
use crate::{earlier::Answer, events::Next};

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
            let answer = match self.earlier.events(number, request.clone()).await {
                Answer::Said(stream) => match send_remembered(stream, to).await? {
                    Ok(goes_on) => {
                        if let Some(stream) = goes_on {
                            followed.spawn(pass_on(stream, to.clone()));
                        }
                        continue;
                    }
                    Err(reason) => self.earlier.missing(number, &reason),
                },
                other => other,
            };
            if let Answer::Missing(agent) = answer {
                let told = v1::StreamEventsResponse {
                    missing: Some(agent),
                    ..Default::default()
                };
                to.send(Ok(told)).await?;
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
                ..Default::default()
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
                    let told = v1::StreamEventsResponse {
                        lost,
                        ..Default::default()
                    };
                    to.send(Ok(told)).await?;
                }
                Next::End => return Ok(()),
            }
        }
    }
}

/// Gives the stream back where it goes on. One that breaks off or says nothing
/// holds up nobody; then gives why.
async fn send_remembered(
    mut from: Streaming<v1::StreamEventsResponse>,
    to: &Sender,
) -> Result<Result<Option<Streaming<v1::StreamEventsResponse>>, String>, Gone> {
    loop {
        match timeout(PATIENCE, from.message()).await {
            Ok(Ok(None)) => return Ok(Ok(None)),
            // All that it remembers is sent.
            Ok(Ok(Some(message))) if message == v1::StreamEventsResponse::default() => {
                return Ok(Ok(Some(from)));
            }
            Ok(Ok(Some(message))) => to.send(Ok(message)).await?,
            Ok(Err(status)) => return Ok(Err(status.message().to_owned())),
            Err(_) => return Ok(Err("it does not go on".to_owned())),
        }
    }
}

async fn pass_on(mut from: Streaming<v1::StreamEventsResponse>, to: Sender) {
    while let Ok(Some(message)) = from.message().await {
        if to.send(Ok(message)).await.is_err() {
            return;
        }
    }
}
