//! The subscriber's side of `DiscoveryService.Sync`, the same for edges and
//! balancers: connects to one of the config service's replicas, resumes from
//! what is held, acknowledges, and comes back after a failure, elsewhere if
//! there is an elsewhere.

use std::{future::Future, time::Duration};

use anyport_model::{
    backoff::Backoff,
    names::Revision,
    replica::{Gap, Update},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{
    Status,
    body::Body,
    client::GrpcService,
    codec::CompressionEncoding,
    codegen::{Body as HttpBody, Bytes, StdError},
};

use crate::{
    convert::{read_update, split_hash, write_timestamp},
    v1::{self, discovery_service_client::DiscoveryServiceClient, sync_request::Message},
};

/// Largest update that is taken: 100,000 apps of 600 bytes.
pub const UPDATE_MAX: usize = 64 << 20;

/// Pauses between attempts. The first is short, because a replica that was
/// just replaced is back at once; the last bounds how long an edge runs on old
/// configuration after a long outage.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Messages on their way out: an acknowledgement and a report each fit, and
/// more only pile up while the connection stands still.
const OUTGOING: usize = 8;

/// Who subscribes.
#[derive(Debug, Clone)]
pub struct Identity {
    pub role: v1::NodeRole,
    pub name: String,
    pub region: String,
    pub version: String,
    /// How an edge's kernel hands connections over; empty for a balancer.
    pub steering: String,
    /// URL of its own gRPC service; empty: not told.
    pub address: String,
}

/// Where an update came from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// When its revision was committed.
    pub committed_at: Option<prost_types::Timestamp>,
    /// W3C trace context of the write; empty: not traced.
    pub traceparent: String,
    /// Only some edges have the revision yet: how connections fare with it is to
    /// be reported.
    pub trial: bool,
}

/// What became of an update.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Every resource of which an earlier version stays in use or none, each
    /// with why, not only those of this update.
    pub rejections: Vec<v1::Rejection>,
    /// W3C trace context of the work; empty: not traced.
    pub traceparent: String,
}

/// Who uses the configuration.
pub trait Subscriber: Send {
    /// What is held, to resume from.
    fn held(&self) -> (Revision, Vec<u8>);

    /// Takes an update into use. Returns once it is, so that an
    /// acknowledgement means what it says.
    fn apply(
        &mut self,
        update: Update,
        origin: Origin,
    ) -> impl Future<Output = Result<Applied, Gap>> + Send;

    /// The stream to a replica stands, or broke with an error.
    fn connection(&mut self, state: Result<(), &Status>);
}

/// Follows the configuration without end; the caller drops the future to stop.
/// `report` is sent on connecting and whenever it changes.
///
/// `replicas` dial one each. They are tried in turn, starting with one at random, so
/// that a fleet spreads over them. `random` gives numbers uniform over all 64 bits.
pub async fn follow<S, D, F, T>(
    replicas: Vec<D>,
    identity: Identity,
    mut report: watch::Receiver<Option<v1::Report>>,
    subscriber: &mut S,
    random: impl Fn() -> u64 + Send,
) where
    S: Subscriber,
    D: Fn() -> F + Send + Sync,
    F: Future<Output = Result<T, Status>> + Send,
    T: Transport,
{
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut next = (random() % replicas.len().max(1) as u64) as usize;
    let mut from_scratch = false;
    loop {
        let Some(replica) = replicas.get(next % replicas.len().max(1)) else {
            return std::future::pending().await;
        };
        let mut session = Session {
            identity: &identity,
            subscriber: &mut *subscriber,
            from_scratch,
            applied_any: false,
        };
        let ended = session.run(replica(), &mut report).await;
        if session.applied_any {
            backoff.reset();
        }
        subscriber.connection(Err(&ended.status));
        from_scratch = ended.gap;
        if !ended.gap {
            next += 1;
        }
        tokio::time::sleep(backoff.pause(random())).await;
    }
}

/// What calls can be made over: a [`Channel`](tonic::transport::Channel), or
/// something that stands in for one.
pub trait Transport:
    GrpcService<
        Body,
        ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
        Future: Send,
        Error: Into<StdError>,
    > + Send
{
}

impl<T> Transport for T where
    T: GrpcService<
            Body,
            ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
            Future: Send,
            Error: Into<StdError>,
        > + Send
{
}

/// Why a session is over.
struct Ended {
    status: Status,
    /// The replica is sound, but its delta did not start where we stand.
    gap: bool,
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Ended { status, gap: false }
    }
}

impl From<Gap> for Ended {
    fn from(gap: Gap) -> Self {
        Ended {
            status: Status::out_of_range(gap.to_string()),
            gap: true,
        }
    }
}

struct Session<'a, S> {
    identity: &'a Identity,
    subscriber: &'a mut S,
    from_scratch: bool,
    applied_any: bool,
}

impl<S: Subscriber> Session<'_, S> {
    async fn run<T: Transport>(
        &mut self,
        dialled: impl Future<Output = Result<T, Status>> + Send,
        report: &mut watch::Receiver<Option<v1::Report>>,
    ) -> Ended {
        match self.follow(dialled, report).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn follow<T: Transport>(
        &mut self,
        dialled: impl Future<Output = Result<T, Status>> + Send,
        report: &mut watch::Receiver<Option<v1::Report>>,
    ) -> Result<std::convert::Infallible, Ended> {
        // A whole state is a tenth of itself then; what is short comes as it is.
        let mut client = DiscoveryServiceClient::new(dialled.await?)
            .max_decoding_message_size(UPDATE_MAX)
            .accept_compressed(CompressionEncoding::Gzip);
        let (outgoing, requests) = mpsc::channel(OUTGOING);
        send(&outgoing, Message::Subscribe(self.subscribe())).await?;
        let stream = client.sync(ReceiverStream::new(requests)).await?;
        let mut updates = stream.into_inner();
        self.subscriber.connection(Ok(()));
        report.mark_changed();
        let mut reports_end = false;
        loop {
            tokio::select! {
                // In this order, so that a simulation can be replayed.
                biased;
                update = updates.next() => {
                    let message = update.ok_or_else(|| Status::unavailable("the stream ended"))??;
                    if let Some(update) = message.update {
                        let ack = self.apply(update).await?;
                        send(&outgoing, Message::Ack(ack)).await?;
                    }
                }
                changed = report.changed(), if !reports_end => {
                    reports_end = changed.is_err();
                    let latest = report.borrow_and_update().clone();
                    if let Some(latest) = latest {
                        send(&outgoing, Message::Report(latest)).await?;
                    }
                }
            }
        }
    }

    fn subscribe(&self) -> v1::Subscribe {
        let (revision, state_hash) = if self.from_scratch {
            Default::default()
        } else {
            self.subscriber.held()
        };
        let (state_hash, store) = split_hash(state_hash);
        v1::Subscribe {
            role: self.identity.role.into(),
            name: self.identity.name.clone(),
            region: self.identity.region.clone(),
            version: self.identity.version.clone(),
            steering: self.identity.steering.clone(),
            address: self.identity.address.clone(),
            revision: revision.0,
            state_hash,
            store,
        }
    }

    async fn apply(&mut self, wire: v1::Update) -> Result<v1::Ack, Ended> {
        let (revision, state_hash) = (wire.revision, wire.state_hash.clone());
        let origin = Origin {
            committed_at: wire.committed_at,
            traceparent: wire.traceparent.clone(),
            trial: wire.trial,
        };
        let read = read_update(wire)
            .map_err(|fault| Status::internal(format!("the update is unreadable: {fault}")))?;
        let applied = self.subscriber.apply(read, origin).await?;
        self.applied_any = true;
        Ok(v1::Ack {
            revision,
            state_hash,
            rejections: applied.rejections,
            applied_at: Some(write_timestamp(std::time::SystemTime::now())),
            traceparent: applied.traceparent,
        })
    }
}

async fn send(to: &mpsc::Sender<v1::SyncRequest>, message: Message) -> Result<(), Status> {
    let request = v1::SyncRequest {
        message: Some(message),
    };
    let closed = |_| Status::unavailable("the stream closed");
    to.send(request).await.map_err(closed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Keeps what it is told, as one that has a disk.
    #[derive(Default)]
    struct Keeps(Option<(Revision, Vec<u8>)>);

    impl Subscriber for Keeps {
        fn held(&self) -> (Revision, Vec<u8>) {
            self.0.clone().unwrap_or_default()
        }

        async fn apply(&mut self, update: Update, _: Origin) -> Result<Applied, Gap> {
            self.0 = Some((update.revision, update.state_hash));
            Ok(Applied::default())
        }

        fn connection(&mut self, _: Result<(), &Status>) {}
    }

    #[tokio::test]
    async fn who_comes_back_says_what_it_holds_and_of_which_store() {
        let identity = Identity {
            role: v1::NodeRole::Edge,
            name: "a".to_owned(),
            region: String::new(),
            version: String::new(),
            steering: String::new(),
            address: String::new(),
        };
        for store in [vec![3; 16], Vec::new()] {
            let mut subscriber = Keeps::default();
            let mut session = Session {
                identity: &identity,
                subscriber: &mut subscriber,
                from_scratch: false,
                applied_any: false,
            };
            let update = v1::Update {
                revision: 5,
                state_hash: vec![7; 32],
                store: store.clone(),
                full: true,
                ..Default::default()
            };
            let acknowledged = session.apply(update).await;
            let acknowledged = acknowledged.map_err(|ended| ended.status).unwrap();
            assert_eq!(acknowledged.state_hash, [7; 32]);
            let said = session.subscribe();
            let expected = (5, vec![7; 32], store);
            assert_eq!((said.revision, said.state_hash, said.store), expected);
            session.from_scratch = true;
            let said = session.subscribe();
            assert_eq!(
                (said.revision, said.state_hash, said.store),
                Default::default()
            );
        }
    }
}
