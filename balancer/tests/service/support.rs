//! The balancer's neighbours.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener as StdListener},
    pin::Pin,
    thread,
    time::Duration,
};

use anyport_balancer::{Balancer, BalancerError, Config};
use anyport_node::{drain::Drain, identity::Identity};
use anyport_proto::v1::{
    self, balancer_service_client::BalancerServiceClient, discovery_service_server as discovery,
    sync_request::Message,
};
use futures_util::{Stream, StreamExt};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

/// Between two probes of one origin in these tests: the shortest that may be
/// declared.
pub const INTERVAL: Duration = Duration::from_millis(100);
/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A port on loopback that nobody else is given as long as this process lives. It is bound,
/// and refuses until a server binds it too.
fn own_address() -> SocketAddr {
    let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    held.set_reuse_address(true).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    held.bind(&any.into()).unwrap();
    let address = held.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(held);
    address
}

/// What `future` comes to; a test that waits in vain says for what.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// What the balancer told the config service.
#[derive(Debug)]
pub enum Heard {
    Subscribe(v1::Subscribe),
    Ack(v1::Ack),
    Report(v1::Report),
}

/// A config service that says what it is told to say.
pub struct ConfigService {
    pub address: SocketAddr,
    updates: watch::Sender<Option<v1::Update>>,
    sets: watch::Sender<Option<v1::BalancerSet>>,
    heard: mpsc::UnboundedReceiver<Heard>,
    thread: Option<(oneshot::Sender<()>, thread::JoinHandle<()>)>,
}

struct Script {
    updates: watch::Receiver<Option<v1::Update>>,
    sets: watch::Receiver<Option<v1::BalancerSet>>,
    heard: mpsc::UnboundedSender<Heard>,
}

impl ConfigService {
    pub fn start() -> Self {
        Self::start_at(own_address())
    }

    /// On a thread and a runtime of its own, so that it can be stopped dead.
    pub fn start_at(address: SocketAddr) -> Self {
        let listener = StdListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (updates, script) = watch::channel(None);
        let (sets, script_of_sets) = watch::channel(None);
        let (tell, heard) = mpsc::unbounded_channel();
        let script = Script {
            updates: script,
            sets: script_of_sets,
            heard: tell,
        };
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let served = tonic::transport::Server::builder()
                    .add_service(discovery::DiscoveryServiceServer::new(script))
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::select! {
                    served = served => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            updates,
            sets,
            heard,
            thread: Some((stop, thread)),
        }
    }

    pub fn say(&self, update: v1::Update) {
        self.updates.send_replace(Some(update));
    }

    /// These balancers take part from now on.
    pub fn say_set(&self, epoch: u64, members: &[(&str, SocketAddr)]) {
        let member = |(name, address): &(&str, SocketAddr)| v1::BalancerMember {
            name: (*name).into(),
            address: format!("http://{address}"),
        };
        self.sets.send_replace(Some(v1::BalancerSet {
            epoch,
            members: members.iter().map(member).collect(),
            lease: None,
        }));
    }

    /// Gone with every connection, as by `kill -9`.
    pub fn kill(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }

    async fn hear<T>(&mut self, what: &str, wanted: impl Fn(Heard) -> Option<T>) -> T {
        within(what, async {
            loop {
                let heard = self.heard.recv().await.expect("the script runs");
                if let Some(found) = wanted(heard) {
                    return found;
                }
            }
        })
        .await
    }

    pub async fn subscription(&mut self) -> v1::Subscribe {
        let wanted = |heard| match heard {
            Heard::Subscribe(subscribe) => Some(subscribe),
            _ => None,
        };
        self.hear("a subscription", wanted).await
    }

    pub async fn ack(&mut self, revision: u64) -> v1::Ack {
        let wanted = |heard| match heard {
            Heard::Ack(ack) if ack.revision == revision => Some(ack),
            _ => None,
        };
        self.hear("an acknowledgement", wanted).await
    }

    /// The next report in which the origin of the pool is so.
    pub async fn report(
        &mut self,
        pool: &str,
        origin: &str,
        health: v1::HealthState,
    ) -> v1::OriginHealth {
        let wanted = |heard| match heard {
            Heard::Report(report) => report
                .pools
                .into_iter()
                .filter(|found| found.pool == pool)
                .flat_map(|found| found.origins)
                .find(|found| found.origin == origin && found.health() == health),
            _ => None,
        };
        self.hear("a report", wanted).await
    }
}

impl Drop for ConfigService {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tonic::async_trait]
impl discovery::DiscoveryService for Script {
    type WatchBalancersStream = Pin<Box<dyn Stream<Item = Result<v1::BalancerSet, Status>> + Send>>;

    async fn watch_balancers(
        &self,
        _: Request<v1::WatchBalancersRequest>,
    ) -> Result<Response<Self::WatchBalancersStream>, Status> {
        let sets = WatchStream::new(self.sets.clone()).filter_map(async |set| set);
        Ok(Response::new(Box::pin(sets.map(Ok))))
    }

    type SyncStream = Pin<Box<dyn Stream<Item = Result<v1::SyncResponse, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<v1::SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let mut requests = request.into_inner();
        let heard = self.heard.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let told = match request.message.expect("a message") {
                    Message::Subscribe(subscribe) => Heard::Subscribe(subscribe),
                    Message::Ack(ack) => Heard::Ack(ack),
                    Message::Report(report) => Heard::Report(report),
                };
                if heard.send(told).is_err() {
                    return;
                }
            }
        });
        let updates = WatchStream::new(self.updates.clone());
        let updates = updates.filter_map(async |update| update);
        Ok(Response::new(Box::pin(updates.map(|update| {
            Ok(v1::SyncResponse {
                update: Some(update),
            })
        }))))
    }
}

/// The whole state.
pub fn full(revision: u64, upserts: Vec<v1::Resource>) -> v1::Update {
    v1::Update {
        revision,
        state_hash: vec![u8::try_from(revision).unwrap()],
        full: true,
        upserts,
        ..Default::default()
    }
}

pub fn delta(base_revision: u64, upserts: Vec<v1::Resource>) -> v1::Update {
    v1::Update {
        full: false,
        base_revision,
        ..full(base_revision + 1, upserts)
    }
}

/// `quick`: up again after 2, down after 3.
pub fn monitor(interval: Duration) -> v1::Monitor {
    v1::Monitor {
        name: "quick".into(),
        interval: Some(interval.try_into().unwrap()),
        consecutive_up: 2,
        consecutive_down: 3,
        ..Default::default()
    }
}

pub fn pool(name: &str, monitor: &str, origins: &[(&str, SocketAddr)]) -> v1::Pool {
    let origin = |(name, address): &(&str, SocketAddr)| v1::Origin {
        name: (*name).into(),
        address: address.to_string(),
        ..Default::default()
    };
    v1::Pool {
        name: name.into(),
        monitor: monitor.into(),
        origins: origins.iter().map(origin).collect(),
        ..Default::default()
    }
}

pub fn resource(kind: impl Into<v1::resource::Kind>) -> v1::Resource {
    v1::Resource {
        kind: Some(kind.into()),
    }
}

pub fn resources(monitor: v1::Monitor, pools: Vec<v1::Pool>) -> Vec<v1::Resource> {
    let monitor = v1::resource::Kind::Monitor(monitor);
    let pools = pools.into_iter().map(v1::resource::Kind::Pool);
    [monitor].into_iter().chain(pools).map(resource).collect()
}

/// A server that accepts, and counts.
pub struct Origin {
    pub address: SocketAddr,
    accepted: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Origin {
    pub async fn start() -> Self {
        Self::start_at(own_address()).await
    }

    pub async fn start_at(address: SocketAddr) -> Self {
        Self::on(TcpListener::bind(address).await.unwrap())
    }

    pub fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let (count, accepted) = watch::channel(0);
        let task = tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.send_modify(|count| *count += 1);
            }
        });
        Self {
            address,
            accepted,
            task,
        }
    }

    pub async fn accepted(&mut self, at_least: u64) {
        let enough = self.accepted.wait_for(|count| *count >= at_least);
        within("connections to the origin", enough).await.unwrap();
    }

    /// From when it returns on, connections are refused.
    pub async fn kill(self) -> SocketAddr {
        let Self { address, task, .. } = self;
        task.abort();
        let _ = task.await;
        address
    }
}

/// A balancer that runs, and stops when this is dropped.
pub struct Running {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    drain: Drain,
    task: Option<JoinHandle<Result<(), BalancerError>>>,
}

impl Running {
    pub fn start(config_service: SocketAddr) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let balancer = Balancer::bind(Config {
            name: "balancer-1".parse().unwrap(),
            listen: any,
            advertise: None,
            admin: any,
            config_service: format!("http://{config_service}").parse().unwrap(),
            identity: Identity::none(),
        })
        .unwrap();
        let drain = Drain::new();
        Self {
            address: balancer.address(),
            admin: balancer.admin_address(),
            drain: drain.clone(),
            task: Some(tokio::spawn(balancer.run(drain))),
        }
    }

    pub fn begin_drain(&self) {
        self.drain.begin();
    }

    pub async fn ended(mut self) -> Result<(), BalancerError> {
        let task = self.task.take().expect("asked once");
        within("the balancer's end", task).await.unwrap()
    }

    pub async fn client(&self) -> BalancerServiceClient<Channel> {
        let connected = BalancerServiceClient::connect(format!("http://{}", self.address));
        within("a connection", connected).await.unwrap()
    }

    /// Watches once the balancer has a configuration.
    pub async fn watch(&self) -> Watch {
        self.page("/readyz", |_, body| !body.contains("\nconfig: "))
            .await;
        self.try_watch().await.unwrap()
    }

    pub async fn try_watch(&self) -> Result<Watch, Status> {
        let request = v1::WatchWeightsRequest {
            edge: "edge-1".into(),
        };
        let stream = self.client().await.watch_weights(request).await?;
        Ok(Watch {
            stream: stream.into_inner(),
            pools: BTreeMap::new(),
        })
    }

    pub async fn health(&self, pool: &str) -> v1::PoolHealth {
        let request = v1::GetHealthRequest { pool: pool.into() };
        let answer = self.client().await.get_health(request).await.unwrap();
        answer.into_inner().pools.remove(0)
    }

    /// Status and body of an admin page.
    pub async fn get(&self, path: &str) -> (u16, String) {
        within("an admin page", async {
            let mut stream = TcpStream::connect(self.admin).await.unwrap();
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
            let status = head.split(' ').nth(1).expect("a status line");
            (status.parse().unwrap(), body.to_owned())
        })
        .await
    }

    /// Reads an admin page until it is as wanted.
    pub async fn page(&self, path: &str, wanted: impl Fn(u16, &str) -> bool) -> String {
        within("an admin page with the right content", async {
            loop {
                let (status, body) = self.get(path).await;
                if wanted(status, &body) {
                    return body;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// An edge's view of the weights.
pub struct Watch {
    stream: Streaming<v1::WeightsUpdate>,
    pub pools: BTreeMap<String, v1::PoolWeights>,
}

impl Watch {
    pub async fn next(&mut self) -> v1::WeightsUpdate {
        self.next_within(PATIENCE).await
    }

    pub async fn next_within(&mut self, patience: Duration) -> v1::WeightsUpdate {
        let update = tokio::time::timeout(patience, self.stream.message()).await;
        let update = update.unwrap_or_else(|_| panic!("waited {patience:?} in vain: weights"));
        let update = update.unwrap().expect("the stream goes on");
        if update.full {
            self.pools.clear();
        }
        for pool in &update.removed_pools {
            assert!(self.pools.remove(pool).is_some(), "{pool} was never told");
        }
        for pool in &update.pools {
            self.pools.insert(pool.pool.clone(), pool.clone());
        }
        update
    }

    /// The stream's end, as the edge sees it.
    pub async fn end(mut self) -> Result<(), Status> {
        within("the end of the stream", async {
            while self.stream.message().await?.is_some() {}
            Ok(())
        })
        .await
    }

    /// Follows until the origin is so. Bounded as a whole: an endless stream of
    /// updates that never bring it about fails too.
    pub async fn until(&mut self, pool: &str, origin: &str, health: v1::HealthState) {
        let what = format!("{pool}/{origin} to be {health:?}");
        within(&what, async {
            while self.origin(pool, origin).map(|found| found.health()) != Some(health) {
                self.next().await;
            }
        })
        .await;
    }

    pub fn origin(&self, pool: &str, origin: &str) -> Option<&v1::OriginWeight> {
        let mut origins = self.pools.get(pool)?.origins.iter();
        origins.find(|found| found.origin == origin)
    }
}
