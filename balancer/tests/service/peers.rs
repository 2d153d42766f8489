//! A balancer among others.

use std::{net::SocketAddr, pin::Pin};

use anyport_proto::v1::{
    self, HealthState,
    balancer_service_server::{BalancerService, BalancerServiceServer},
};
use futures_util::{Stream, StreamExt};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tonic::{Code, Request, Response, Status};

use crate::support::*;

/// Another balancer, which says what it is told to say.
struct Peer {
    address: SocketAddr,
    says: watch::Sender<Option<v1::VerdictsUpdate>>,
}

impl Peer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (says, said) = watch::channel(None);
        let script = Script { said };
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(BalancerServiceServer::new(script))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self { address, says }
    }

    /// Once; a balancer that is well says something every second.
    fn say(&self, update: v1::VerdictsUpdate) {
        self.says.send_replace(Some(update));
    }
}

struct Script {
    said: watch::Receiver<Option<v1::VerdictsUpdate>>,
}

type Said<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl BalancerService for Script {
    type WatchWeightsStream = Said<v1::WeightsUpdate>;
    type WatchVerdictsStream = Said<v1::VerdictsUpdate>;

    async fn watch_weights(
        &self,
        _: Request<v1::WatchWeightsRequest>,
    ) -> Result<Response<Self::WatchWeightsStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn report_origins(
        &self,
        _: Request<v1::ReportOriginsRequest>,
    ) -> Result<Response<v1::ReportOriginsResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn get_health(
        &self,
        _: Request<v1::GetHealthRequest>,
    ) -> Result<Response<v1::GetHealthResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn watch_verdicts(
        &self,
        request: Request<v1::WatchVerdictsRequest>,
    ) -> Result<Response<Self::WatchVerdictsStream>, Status> {
        assert_eq!(request.into_inner().balancer, "balancer-1");
        let said = WatchStream::new(self.said.clone()).filter_map(async |said| said);
        Ok(Response::new(Box::pin(said.map(Ok))))
    }
}

/// What a balancer is told of the origins that another one probes.
struct Verdicts(tonic::Streaming<v1::VerdictsUpdate>);

impl Verdicts {
    async fn of(balancer: &Running) -> Self {
        let request = v1::WatchVerdictsRequest {
            balancer: "balancer-2".into(),
        };
        let stream = balancer.client().await.watch_verdicts(request).await;
        Self(stream.unwrap().into_inner())
    }

    async fn next(&mut self) -> v1::VerdictsUpdate {
        let next = within("verdicts", self.0.message()).await;
        next.unwrap().expect("no end")
    }

    async fn until(&mut self, wanted: impl Fn(&v1::VerdictsUpdate) -> bool) -> v1::VerdictsUpdate {
        within("verdicts as wanted", async {
            loop {
                let update = self.next().await;
                if wanted(&update) {
                    return update;
                }
            }
        })
        .await
    }
}

fn health(update: &v1::VerdictsUpdate) -> Vec<HealthState> {
    update
        .verdicts
        .iter()
        .map(|verdict| verdict.health())
        .collect()
}

#[tokio::test]
async fn others_are_told_all_and_then_what_changes_and_that_it_is_still_there() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let origin = Origin::start().await;
    let game = pool("game", "quick", &[("a", origin.address)]);
    config.say(full(1, resources(monitor(INTERVAL), vec![game])));
    let peer = Peer::start().await;
    config.say_set(
        7,
        &[
            ("balancer-1", balancer.address),
            ("balancer-2", peer.address),
        ],
    );

    let mut verdicts = Verdicts::of(&balancer).await;
    let first = verdicts.next().await;
    assert!(first.full, "{first:?}");
    assert_eq!(
        (first.balancer.as_str(), first.epoch, first.isolated),
        ("balancer-1", 7, false)
    );
    let up = match health(&first)[..] {
        [HealthState::Up] => first,
        _ => {
            verdicts
                .until(|update| health(update) == [HealthState::Up])
                .await
        }
    };
    let sign_of_life = verdicts.until(|update| update.verdicts.is_empty()).await;
    assert!(!sign_of_life.full && sign_of_life.withdrawn.is_empty());

    origin.kill().await;
    let down = verdicts
        .until(|update| health(update) == [HealthState::Down])
        .await;
    assert_eq!(down.verdicts[0].reason, "connect: connection refused");
    assert_eq!(down.verdicts[0].asked, up.verdicts[0].asked);
    config.say(full(2, resources(monitor(INTERVAL), vec![])));
    let gone = verdicts.until(|update| !update.withdrawn.is_empty()).await;
    assert_eq!(Some(&gone.withdrawn[0]), down.verdicts[0].name.as_ref());
}

#[tokio::test]
async fn two_of_three_decide_until_one_of_them_is_silent() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let (a, b) = (Origin::start().await, Origin::start().await);
    let game = pool("game", "quick", &[("a", a.address), ("b", b.address)]);
    config.say(full(1, resources(monitor(INTERVAL), vec![game])));
    let peers = [Peer::start().await, Peer::start().await];
    let [two, three] = &peers;
    config.say_set(
        7,
        &[
            ("balancer-1", balancer.address),
            ("balancer-2", two.address),
            ("balancer-3", three.address),
        ],
    );
    // Before it has heard them, it says nothing of what they may know better.
    let mut verdicts = Verdicts::of(&balancer).await;
    let first = verdicts.next().await;
    assert!(
        health(&first)
            .iter()
            .all(|health| *health == HealthState::Unknown),
        "{first:?}"
    );
    for (peer, name) in [(two, "balancer-2"), (three, "balancer-3")] {
        peer.say(v1::VerdictsUpdate {
            balancer: name.into(),
            epoch: 7,
            full: true,
            ..Default::default()
        });
    }
    let mut watch = balancer.watch().await;
    watch.until("game", "a", HealthState::Up).await;
    assert_eq!(watch.pools["game"].origins[0].weight, 1.0);

    // Of `a`, which answers this balancer, the others say that it does not.
    let is_of_a = |verdict: &&v1::OriginVerdict| {
        let name = verdict.name.as_ref().unwrap();
        name.origin == "a" && verdict.health() == HealthState::Up
    };
    let own = verdicts
        .until(|update| update.verdicts.iter().any(|verdict| is_of_a(&verdict)))
        .await;
    let own = own
        .verdicts
        .into_iter()
        .find(|verdict| is_of_a(&verdict))
        .unwrap();
    let down = |name: &str| v1::VerdictsUpdate {
        balancer: name.into(),
        epoch: 7,
        full: true,
        verdicts: vec![v1::OriginVerdict {
            health: HealthState::Down.into(),
            reason: "connect: timed out".into(),
            ..own.clone()
        }],
        ..Default::default()
    };
    let keep_talking = async {
        loop {
            two.say(down("balancer-2"));
            three.say(down("balancer-3"));
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let taken_away = async {
        watch.until("game", "a", HealthState::Down).await;
        balancer.health("game").await
    };
    let shown = tokio::select! {
        shown = taken_away => shown,
        never = keep_talking => never,
    };
    assert_eq!(
        shown.origins[0].reason,
        "down to 2 of 3 balancers: connect: timed out"
    );
    // They say nothing more.
    watch.until("game", "a", HealthState::Up).await;
    drop(b);
}

#[tokio::test]
async fn who_is_left_behind_sends_its_edges_to_the_others() {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let peer = Peer::start().await;
    let members = [
        ("balancer-1", balancer.address),
        ("balancer-2", peer.address),
    ];
    config.say(full(1, vec![]));
    config.say_set(7, &members);
    let mut watch = balancer.watch().await;
    let first = within("the epoch", async {
        loop {
            let update = watch.next().await;
            if update.epoch == 7 {
                return update;
            }
        }
    });
    first.await;

    let ahead = async {
        loop {
            peer.say(v1::VerdictsUpdate {
                balancer: "balancer-2".into(),
                epoch: 8,
                serves: true,
                ..Default::default()
            });
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let behind = async {
        let ended = watch.end().await.unwrap_err();
        assert_eq!(ended.code(), Code::Unavailable);
        assert!(ended.message().contains("go by set 8"), "{ended:?}");
        let refused = balancer.try_watch().await.err().unwrap();
        assert_eq!(refused.code(), Code::Unavailable);
        config.say_set(8, &members);
        within("it is told", async {
            while balancer.try_watch().await.is_err() {
                tokio::time::sleep(INTERVAL).await;
            }
        })
        .await;
    };
    tokio::select! {
        () = behind => {}
        never = ahead => never,
    }
}
