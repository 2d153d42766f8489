//! One subscriber, from its first word to its last.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyport_model::names::Revision;
use anyport_node::{drain::Drain, telemetry};
use anyport_proto::v1::{self, sync_request::Message};
use prost::bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::{
    frames::{Frame, Frames, Held, held},
    subscriber::{Subscriber, first_word},
};
use crate::{
    metrics::Metrics,
    nodes::{NodeKey, Nodes, Role, Session},
    serve::status,
    state::{Keeper, Target},
    wire::Coding,
};

/// Whole states on their way at once: a new fleet comes within seconds, and has the
/// state sooner in turn than all at once. What is in sockets on the way takes memory
/// for each, while the state itself is shared.
const WHOLE_AT_ONCE: usize = 32;
/// A subscriber that takes longer than this makes room for others.
const WHOLE_PATIENCE: Duration = Duration::from_secs(10);

/// Who comes to a replica that is cut off has found no better one, and is not sent away
/// for so long at least, and twice that at most.
const STAY: Duration = Duration::from_secs(60);
/// Those who are sent away leave one after the other, within so long.
const LEAVE: Duration = Duration::from_secs(5);

/// Rejections kept of one acknowledgement, and the longest reason in bytes.
const REJECTIONS_MAX: usize = 1_000;
const REASON_MAX: usize = 1_000;
/// Apps kept of one report on a trial.
const TRIAL_APPS_MAX: usize = 100;

/// Pushes the present state to whoever subscribes. Clones share it.
#[derive(Debug, Clone)]
pub struct Push {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    keeper: Keeper,
    nodes: Nodes,
    frames: Frames,
    metrics: Metrics,
    drain: Drain,
    /// How `NodeStatus` names this process.
    replica: String,
    whole: Arc<Semaphore>,
}

/// An update that is not acknowledged yet.
struct InFlight {
    update: Held,
    target: Arc<Target>,
    /// Given back when the acknowledgement comes, and at the latest then.
    whole: Option<(OwnedSemaphorePermit, Instant)>,
}

impl Push {
    pub fn new(
        keeper: Keeper,
        nodes: Nodes,
        metrics: Metrics,
        drain: Drain,
        replica: String,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                frames: Frames::new(keeper.clone()),
                keeper,
                nodes,
                metrics,
                drain,
                replica,
                whole: Arc::new(Semaphore::new(WHOLE_AT_ONCE)),
            }),
        }
    }

    /// Serves one subscriber, which takes this coding. Its updates come out of the
    /// receiver, each an encoded message of a gRPC stream; dropping the receiver ends it.
    pub fn sync<S>(&self, requests: S, coding: Coding) -> mpsc::Receiver<Result<Bytes, Status>>
    where
        S: Stream<Item = Result<v1::SyncRequest, Status>> + Send + Unpin + 'static,
    {
        // One place: at most one update is on its way.
        let (updates, receiver) = mpsc::channel(1);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let gone = updates.clone();
            let ended = tokio::select! {
                biased;
                ended = shared.serve(requests, coding, &updates) => ended,
                () = gone.closed() => return,
            };
            if let Err(status) = ended {
                // Only a subscriber that is gone does not take it.
                let _ = updates.send(Err(status)).await;
            }
        });
        receiver
    }
}

impl Shared {
    async fn serve<S>(
        &self,
        mut requests: S,
        coding: Coding,
        updates: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Result<(), Status>
    where
        S: Stream<Item = Result<v1::SyncRequest, Status>> + Send + Unpin,
    {
        let Some(subscriber) = first_word(&mut requests).await? else {
            return Ok(());
        };
        tracing::info!(node = %subscriber.key, version = subscriber.version, "connected");
        let mut connection = Connection {
            session: self.nodes.connect(
                subscriber.key.clone(),
                self.first_status(&subscriber, SystemTime::now()),
            ),
            key: subscriber.key,
            coding,
            held: subscriber.held,
            in_flight: None,
            found: None,
            shared: self,
        };
        let mut present = self.keeper.subscribe();
        let mut sent_away = pin!(self.sent_away());
        loop {
            if connection.found.is_none()
                && let Some(Held { revision, hash }) = connection.held
                && present.latest().is_some()
            {
                let node = connection.key.to_string();
                let keeper = &self.keeper;
                let caught_up = keeper.catch_up_with(revision, hash, subscriber.store, &node);
                // It goes on with what it holds, and asks another replica.
                caught_up.await.map_err(|error| status::of_store(&error))?;
            }
            // Marked as seen before it is sent, so that none is missed.
            let latest = present.latest();
            if let Some(latest) = latest
                && connection.in_flight.is_none()
                && connection.lacks(latest.target(&connection.key))
            {
                let target = latest.target(&connection.key);
                let change = connection.change_to(target).await;
                if let Some(change) = change {
                    connection.send(target, change, None, updates).await?;
                } else {
                    let Some(place) = connection.place(&mut requests).await? else {
                        return Ok(());
                    };
                    // It may have moved while others had their turn.
                    let latest = present.latest().unwrap_or(latest);
                    let target = latest.target(&connection.key);
                    let whole = self.frames.whole(connection.key.role, target, coding).await;
                    connection.send(target, whole, Some(place), updates).await?;
                }
            }
            tokio::select! {
                // In this order, so that a simulation can be replayed.
                biased;
                () = self.drain.started() => {
                    return Err(status::stopping());
                }
                () = &mut sent_away => {
                    return Err(status::cut_off());
                }
                () = connection.too_slow() => {}
                // Cannot fail: `self` holds the sender.
                _ = present.changed(), if connection.in_flight.is_none() => {}
                // Last: who never stops talking keeps nothing else from being done.
                request = requests.next() => match request {
                    Some(request) => connection.hear(request?)?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// Returns when a subscriber had better ask another replica. One that is cut off from
    /// the store knows nothing of later revisions, and its nodes are gone to all others.
    async fn sent_away(&self) {
        let mut cut_off = self.nodes.cut_off();
        if *cut_off.borrow() {
            tokio::time::sleep(STAY + self.part_of(STAY)).await;
        }
        loop {
            // Cannot fail: `self` holds the sender.
            let _ = cut_off.wait_for(|cut_off| *cut_off).await;
            tokio::time::sleep(self.part_of(LEAVE)).await;
            if *cut_off.borrow() {
                return;
            }
        }
    }

    /// A random one.
    fn part_of(&self, time: Duration) -> Duration {
        time.mul_f64(self.keeper.random() as f64 / u64::MAX as f64)
    }

    fn first_status(&self, subscriber: &Subscriber, now: SystemTime) -> v1::NodeStatus {
        // What it applied, and what of that it rejected, comes with its first
        // acknowledgement.
        v1::NodeStatus {
            role: v1::NodeRole::from(subscriber.key.role).into(),
            name: subscriber.key.name.to_string(),
            region: subscriber.region.clone(),
            version: subscriber.version.clone(),
            steering: subscriber.steering.clone(),
            address: subscriber.address.clone(),
            connected_at: Some(now.into()),
            replica: self.replica.clone(),
            ..Default::default()
        }
    }
}

/// What stands between a subscriber and its next update.
struct Connection<'a> {
    session: Session,
    key: NodeKey,
    coding: Coding,
    /// What it last acknowledged, or said that it holds.
    held: Option<Held>,
    in_flight: Option<InFlight>,
    /// Revision of the first update: older commits say nothing of how long a
    /// change takes.
    found: Option<Revision>,
    shared: &'a Shared,
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        tracing::info!(node = %self.key, "disconnected");
    }
}

impl Connection<'_> {
    /// The first update is sent in any case: its acknowledgement is how the
    /// subscriber says what it runs.
    fn lacks(&self, target: &Target) -> bool {
        self.found.is_none() || self.held != Some(held(target))
    }

    /// `None`: the whole state is needed.
    async fn change_to(&self, target: &Arc<Target>) -> Option<Frame> {
        let frames = &self.shared.frames;
        let (role, coding) = (self.key.role, self.coding);
        frames.change(role, self.held?, target, coding).await
    }

    /// Waits for a place among whole states; `None`: the subscriber ended.
    async fn place<S>(&mut self, requests: &mut S) -> Result<Option<OwnedSemaphorePermit>, Status>
    where
        S: Stream<Item = Result<v1::SyncRequest, Status>> + Send + Unpin,
    {
        let mut place = pin!(Arc::clone(&self.shared.whole).acquire_owned());
        loop {
            tokio::select! {
                biased;
                // Never closed.
                place = &mut place => return Ok(place.ok()),
                request = requests.next() => match request {
                    Some(request) => self.hear(request?)?,
                    None => return Ok(None),
                },
                () = self.shared.drain.started() => return Err(status::stopping()),
            }
        }
    }

    async fn send(
        &mut self,
        target: &Arc<Target>,
        frame: Frame,
        whole: Option<OwnedSemaphorePermit>,
        updates: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Result<(), Status> {
        let Frame {
            bytes,
            leads_to,
            full,
        } = frame;
        self.found.get_or_insert(target.state.revision);
        self.in_flight = Some(InFlight {
            update: leads_to,
            target: Arc::clone(target),
            whole: whole.map(|place| (place, Instant::now() + WHOLE_PATIENCE)),
        });
        self.shared.metrics.pushed(self.key.role, full, bytes.len());
        let gone = |_| Status::cancelled("the subscriber is gone");
        updates.send(Ok(bytes)).await.map_err(gone)
    }

    fn hear(&mut self, request: v1::SyncRequest) -> Result<(), Status> {
        match request.message {
            Some(Message::Ack(ack)) => self.acknowledged(ack, SystemTime::now()),
            Some(Message::Report(report)) => self.reported(report),
            Some(Message::Subscribe(_)) => Err(Status::invalid_argument(
                "subscribe: this stream has a subscriber already",
            )),
            None => Err(Status::invalid_argument("message: is not set")),
        }
    }

    fn reported(&mut self, report: v1::Report) -> Result<(), Status> {
        let told_drain = report.drain != v1::DrainState::Unspecified as i32;
        match self.key.role {
            Role::Balancer if told_drain => Err(Status::invalid_argument(
                "report.drain: only an edge is drained",
            )),
            Role::Balancer if report.trial.is_some() => Err(Status::invalid_argument(
                "report.trial: only an edge has connections",
            )),
            Role::Edge if !report.pools.is_empty() => Err(Status::invalid_argument(
                "report.pools: only a balancer has pools to report",
            )),
            Role::Balancer => {
                self.session.update(|status| status.pools = report.pools);
                Ok(())
            }
            Role::Edge => {
                let trial = report.trial.map(bounded_trial);
                self.session.update(|status| {
                    status.drain = report.drain;
                    status.trial = trial;
                });
                Ok(())
            }
        }
    }

    fn acknowledged(&mut self, ack: v1::Ack, now: SystemTime) -> Result<(), Status> {
        let InFlight { update, target, .. } = match self.in_flight.take() {
            Some(sent)
                if sent.update.revision.0 == ack.revision
                    && sent.update.hash.as_bytes()[..] == ack.state_hash[..] =>
            {
                sent
            }
            _ => {
                return Err(Status::invalid_argument(format!(
                    "ack.revision: {} with its hash is not the update on its way",
                    ack.revision
                )));
            }
        };
        let span = tracing::info_span!(
            "acknowledged",
            edge = %self.key.name,
            // Signed: that is how OpenTelemetry has numbers.
            revision = ack.revision.cast_signed(),
            rejections = i64::try_from(ack.rejections.len()).unwrap_or(i64::MAX),
        );
        telemetry::set_parent(&span, &ack.traceparent);
        let _entered = span.enter();
        if !ack.rejections.is_empty() {
            tracing::warn!(
                node = %self.key,
                revision = ack.revision,
                rejections = ack.rejections.len(),
                first = ack.rejections.first().map(|rejection| &*rejection.reason),
                "a node keeps earlier versions of some resources"
            );
        }
        if self.found < Some(update.revision)
            && let Some(committed) = target.committed_at
        {
            let took = now.duration_since(committed).unwrap_or_default();
            self.shared.metrics.propagated(took);
        }
        self.held = Some(update);
        self.session.update(|status| {
            status.applied_revision = ack.revision;
            status.applied_hash = ack.state_hash;
            status.applied_at = ack.applied_at;
            status.rejections = ack
                .rejections
                .into_iter()
                .take(REJECTIONS_MAX)
                .map(bounded)
                .collect();
        });
        Ok(())
    }

    /// Gives back the place among whole states once it was held for too long,
    /// whatever the subscriber says meanwhile.
    async fn too_slow(&mut self) {
        let whole = self.in_flight.as_mut().map(|sent| &mut sent.whole);
        let Some(whole) = whole else {
            return std::future::pending().await;
        };
        match whole {
            Some((_, until)) => tokio::time::sleep_until(*until).await,
            None => std::future::pending().await,
        }
        *whole = None;
    }
}

/// As many apps as a report may have; names and numbers are judged when they
/// are looked at.
fn bounded_trial(mut trial: v1::TrialReport) -> v1::TrialReport {
    trial.apps.truncate(TRIAL_APPS_MAX);
    trial
}

fn bounded(mut rejection: v1::Rejection) -> v1::Rejection {
    if rejection.reason.len() > REASON_MAX {
        let end = rejection.reason.floor_char_boundary(REASON_MAX);
        rejection.reason.truncate(end);
    }
    rejection
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyport_node::metrics::Registry;
    use prost::Message as _;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::{
        admit::{Conditions, Intent, Writer, read_apply},
        store::embedded::Embedded,
    };

    const PATIENCE: Duration = Duration::from_secs(60);

    struct Scene {
        _directory: tempfile::TempDir,
        drain: Drain,
        push: Push,
        /// All places among whole states.
        places: OwnedSemaphorePermit,
        requests: mpsc::Sender<Result<v1::SyncRequest, Status>>,
        updates: mpsc::Receiver<Result<Bytes, Status>>,
    }

    /// A subscriber that waits for its place.
    async fn waiting() -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(Arc::new(Embedded::open(directory.path()).unwrap()));
        keeper.turn().await.unwrap().refresh().await.unwrap();
        let drain = Drain::new();
        let push = Push::new(
            keeper,
            Nodes::default(),
            Metrics::new(&Registry::new()).unwrap(),
            drain.clone(),
            "here".to_owned(),
        );
        let places = Arc::clone(&push.shared.whole)
            .acquire_many_owned(WHOLE_AT_ONCE as u32)
            .await
            .unwrap();
        let (requests, stream) = mpsc::channel(1);
        let updates = push.sync(ReceiverStream::new(stream), Coding::Identity);
        let subscribe = Message::Subscribe(v1::Subscribe {
            role: v1::NodeRole::Edge.into(),
            name: "e1".to_owned(),
            ..Default::default()
        });
        let message = Some(subscribe);
        requests
            .send(Ok(v1::SyncRequest { message }))
            .await
            .unwrap();
        let mut here = push.shared.nodes.changes_here();
        let nodes = push.shared.nodes.clone();
        here.wait_for(|_| !nodes.here().is_empty()).await.unwrap();
        Scene {
            _directory: directory,
            drain,
            push,
            places,
            requests,
            updates,
        }
    }

    async fn next(scene: &mut Scene) -> Option<Result<Bytes, Status>> {
        let next = tokio::time::timeout(PATIENCE, scene.updates.recv());
        next.await.expect("in time")
    }

    #[tokio::test]
    async fn who_waits_for_its_turn_hears_the_drain() {
        let mut scene = waiting().await;
        scene.drain.begin();
        let end = next(&mut scene).await.unwrap().unwrap_err();
        assert_eq!(end.message(), status::stopping().message());
    }

    #[tokio::test]
    async fn who_ends_while_it_waits_for_its_turn_is_gone() {
        let mut scene = waiting().await;
        scene.requests = mpsc::channel(1).0;
        assert!(next(&mut scene).await.is_none());
        assert!(scene.push.shared.nodes.here().is_empty());
    }

    /// Reports are no reason to wait for it any longer.
    #[tokio::test(start_paused = true)]
    async fn who_is_slow_makes_room_for_others_however_much_it_says() {
        let mut scene = waiting().await;
        let free = Arc::clone(&scene.push.shared.whole);
        drop(scene.places.split(1));
        scene.updates.recv().await.unwrap().unwrap();
        assert_eq!(free.available_permits(), 0, "it has the one that is left");
        let since = Instant::now();
        while free.available_permits() == 0 {
            assert!(since.elapsed() <= WHOLE_PATIENCE + Duration::from_secs(1));
            let message = Some(Message::Report(v1::Report::default()));
            let report = Ok(v1::SyncRequest { message });
            scene.requests.send(report).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(since.elapsed() >= WHOLE_PATIENCE);
    }

    #[tokio::test]
    async fn after_the_wait_it_is_the_latest_state_that_comes() {
        let mut scene = waiting().await;
        let kind = v1::resource::Kind::Prefix(v1::Prefix {
            cidr: "198.51.100.0/24".to_owned(),
        });
        let intent = Intent::Apply {
            request: read_apply(vec![v1::Resource { kind: Some(kind) }]),
            prune: false,
        };
        Writer::new(scene.push.shared.keeper.clone())
            .write(intent, Conditions::default(), SystemTime::now)
            .await
            .unwrap();
        scene.places.split(1);
        let bytes = next(&mut scene).await.unwrap().unwrap();
        // What goes before every message of a gRPC stream.
        let update = v1::SyncResponse::decode(bytes.slice(5..))
            .unwrap()
            .update
            .unwrap();
        assert_eq!((update.revision, update.full), (1, true));
    }
}
