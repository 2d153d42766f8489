//! A worker on sockets of the loopback: a socket of an edge address stands in
//! for one that the kernel steers to.

#![allow(clippy::unwrap_used)]

use std::{io::ErrorKind, net::Ipv4Addr, sync::atomic::AtomicBool};

use anyport_model::{
    identity::ProxyProtocol,
    names::Revision,
    ports::{PortMap, PortRange},
    resource::{App, DirectOrigin, OriginChoice, Resource, Transport},
};
use nix::sys::socket::{setsockopt, sockopt};
use prometheus::Registry;
use socket2::{Domain, Socket, Type};
use tokio::{sync::mpsc, time::timeout};

use super::*;
use crate::{
    descriptors::Budget,
    events::{Connections, EventLog},
    stats::Stats,
    table::TableWriter,
};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn tokens_survive_the_kernel() {
    for bits in [0, 1 << 32, (1 << 31) - 1, u64::from(u32::MAX - 1) << 32] {
        let id = Id::from_bits(bits);
        for token in [Token::Client(id), Token::Origin(id)] {
            assert_eq!(Token::from_bits(token.to_bits()), token);
        }
    }
    for token in [Token::Steered(0), Token::Steered(1)] {
        assert_eq!(Token::from_bits(token.to_bits()), token);
    }
}

/// Flows, and what waits for each of them: several turns' work.
const FLOWS: usize = 20;
const EACH: usize = 200;

/// In a turn at most, of all and of one flow.
const MOST: usize = 1200;
const SHARE: usize = 150;

/// An app on every port of the loopback's network, with one origin.
struct Edge {
    service: Arc<Service>,
    origin: UdpSocket,
    /// Where clients send to.
    address: SocketAddr,
}

impl Edge {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut App)) -> Self {
        let origin = socket(Ipv4Addr::LOCALHOST);
        // Room for all that one turn moves.
        setsockopt(&origin, sockopt::RcvBufForce, &(4 << 20)).unwrap();
        let place = origin.local_addr().unwrap();
        let stats = Arc::new(Stats::new(&Registry::new()).unwrap());
        let mut writer = TableWriter::new(Arc::clone(&stats));
        let all: PortRange = "*".parse().unwrap();
        let choice = OriginChoice::Direct(vec![DirectOrigin {
            ip: place.ip(),
            port: PortMap::new(all, PortRange::single(place.port()).unwrap()).unwrap(),
        }]);
        let nets = vec!["127.66.0.0/16".parse().unwrap()];
        let mut app = App {
            transport: Transport::Udp,
            ..App::new("app".parse().unwrap(), all, nets, choice)
        };
        change(&mut app);
        let app = Resource::App(Arc::new(app));
        let prepared = writer.prepare(Revision(1), &[(app.reference(), app)].into());
        writer.publish(prepared);
        let service = Service {
            table: writer.reader(),
            connections: Arc::new(Connections::default()),
            events: Arc::new(EventLog::new(stats.events_lost.clone())),
            descriptors: Arc::new(Budget::of_process(1)),
            drained: AtomicBool::new(false),
            stats,
        };
        // Some port of an address that is nobody else's.
        let address = socket(Ipv4Addr::new(127, 66, 0, 1)).local_addr().unwrap();
        Self {
            service: Arc::new(service),
            origin,
            address,
        }
    }

    /// A socket there that is not connected.
    fn bound(&self) -> Socket {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), None).unwrap();
        socket.set_reuse_address(true).unwrap();
        setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true).unwrap();
        socket.bind(&self.address.into()).unwrap();
        socket
    }

    fn worker(&self) -> Worker {
        let steered = vec![self.bound().into()];
        Worker::new(steered, Arc::clone(&self.service), Caps::of(1000, 1000)).unwrap()
    }

    /// A client and its flow.
    fn flow(&self, worker: &mut Worker) -> (UdpSocket, Id, SocketAddr) {
        let client = socket(Ipv4Addr::LOCALHOST);
        client.send_to(b"first", self.address).unwrap();
        worker.turn();
        let id = self.session(worker, &client).unwrap();
        let (first, peer) = heard(&self.origin).unwrap();
        assert_eq!(first, b"first");
        (client, id, peer)
    }

    fn session(&self, worker: &Worker, client: &UdpSocket) -> Option<Id> {
        let client = client.local_addr().unwrap();
        let edge = self.address;
        worker.sessions.find(&Key { client, edge })
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.service.stats.dropped_of(reason)
    }
}

fn socket(ip: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// What is there, and from whom; over the loopback it is there at once.
fn heard(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut datagram = [0; 100];
    match socket.recv_from(&mut datagram) {
        Ok((count, from)) => Some((datagram[..count].to_vec(), from)),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            None
        }
    }
}

/// What came for another client to a flow's socket, before it was connected.
fn stray(edge: &Edge, worker: &mut Worker, (client, id): (&UdpSocket, Id)) -> UdpSocket {
    let racing = edge.bound();
    let stranger = socket(Ipv4Addr::LOCALHOST);
    stranger.send_to(b"strange", edge.address).unwrap();
    racing
        .connect(&client.local_addr().unwrap().into())
        .unwrap();
    worker.sessions.get_mut(id).unwrap().client = racing;
    client.send_to(b"second", edge.address).unwrap();
    stranger
}

#[tokio::test]
async fn what_another_client_sent_to_a_socket_before_it_was_connected_is_steered_again() {
    let edge = Edge::new();
    let mut worker = edge.worker();
    let (client, id, peer) = edge.flow(&mut worker);
    let stranger = stray(&edge, &mut worker, (&client, id));
    // Its port is free, as it is where clients are other hosts.
    let address = stranger.local_addr().unwrap();
    drop(stranger);
    worker.client_sent(id, Instant::now());
    assert_eq!(heard(&edge.origin), Some((b"second".to_vec(), peer)));
    assert_eq!(heard(&edge.origin), None);
    assert_eq!(worker.sessions.len(), 1, "another worker may have its flow");
    worker.turn();
    let key = Key {
        client: address,
        edge: edge.address,
    };
    assert!(worker.sessions.find(&key).is_some());
    let (strange, from) = heard(&edge.origin).unwrap();
    assert!(strange == b"strange" && from != peer);
}

#[tokio::test]
async fn what_cannot_be_steered_again_begins_a_flow_of_its_own() {
    let edge = Edge::new();
    let mut worker = edge.worker();
    let (client, id, peer) = edge.flow(&mut worker);
    let stranger = stray(&edge, &mut worker, (&client, id));
    worker.client_sent(id, Instant::now());
    assert_eq!(heard(&edge.origin), Some((b"second".to_vec(), peer)));
    let (other, strange) = heard(&edge.origin).unwrap();
    assert_eq!(other, b"strange");
    assert_ne!(strange, peer, "it went on the flow of another client");
    let own = edge.session(&worker, &stranger).unwrap();
    assert_ne!(own, id);
    edge.origin.send_to(b"answer", strange).unwrap();
    worker.origin_sent(own, Instant::now());
    let answer = heard(&stranger).unwrap();
    assert_eq!(answer, (b"answer".to_vec(), edge.address));
    assert_eq!(heard(&client), None);
}

#[tokio::test]
async fn what_others_sent_to_the_socket_of_an_origin_is_not_heard() {
    let edge = Edge::new();
    let mut worker = edge.worker();
    let (client, id, _) = edge.flow(&mut worker);
    let racing = Socket::from(socket(Ipv4Addr::LOCALHOST));
    let own = racing.local_addr().unwrap().as_socket().unwrap();
    let stranger = socket(Ipv4Addr::LOCALHOST);
    stranger.send_to(b"strange", own).unwrap();
    racing
        .connect(&edge.origin.local_addr().unwrap().into())
        .unwrap();
    worker.sessions.get_mut(id).unwrap().leg.socket = racing;
    edge.origin.send_to(b"answer", own).unwrap();

    worker.origin_sent(id, Instant::now());
    assert_eq!(heard(&client), Some((b"answer".to_vec(), edge.address)));
    assert_eq!(heard(&client), None);
    assert_eq!(edge.dropped(DropReason::Stray), 1);
}

/// A successor would take them for the beginning of another flow.
#[tokio::test]
async fn what_has_come_by_the_end_of_taking_is_taken() {
    let edge = Edge::new();
    let mut worker = edge.worker();
    let client = socket(Ipv4Addr::LOCALHOST);
    for _ in 0..EACH {
        client.send_to(b"x", edge.address).unwrap();
    }
    worker.stop_taking(None);
    assert!(edge.session(&worker, &client).is_some());
    let arrived = std::iter::from_fn(|| heard(&edge.origin)).count();
    assert_eq!(arrived, EACH);
}

#[tokio::test]
async fn a_turn_is_bounded_and_each_flow_has_its_share_in_it() {
    let edge = Edge::new();
    let mut worker = edge.worker();
    let flows: Vec<_> = (0..FLOWS).map(|_| edge.flow(&mut worker)).collect();
    for (client, ..) in &flows {
        for _ in 0..EACH {
            client.send_to(b"x", edge.address).unwrap();
        }
    }
    let mut arrived = vec![0; FLOWS];
    let mut turns = 0;
    loop {
        let left = worker.turn();
        turns += 1;
        assert!(worker.moved <= MOST, "{}", worker.moved);
        let before = arrived.clone();
        while let Some((_, from)) = heard(&edge.origin) {
            let flow = flows.iter().position(|(_, _, peer)| *peer == from);
            arrived[flow.unwrap()] += 1;
        }
        let most = arrived.iter().zip(before).map(|(now, before)| now - before);
        assert!(most.max() <= Some(SHARE), "{arrived:?}");
        if turns == (FLOWS * SHARE).div_ceil(MOST) {
            assert!(arrived.iter().all(|count| *count > 0), "{arrived:?}");
        }
        if left == Left::Nothing {
            break;
        }
    }
    assert_eq!(arrived, [EACH; FLOWS]);
}

/// As connections are, which are served on the same thread.
#[tokio::test]
async fn between_two_turns_others_have_theirs() {
    let edge = Edge::new();
    let (_orders, told) = mpsc::unbounded_channel();
    let limits = Limits::of_one(1000, 1, None);
    let (steered, service) = (vec![edge.bound().into()], Arc::clone(&edge.service));
    let drain = Drain::new();
    let taking = Taking {
        from: CancellationToken::new(),
        until: drain.guard(),
    };
    taking.from.cancel();
    let serving = tokio::spawn(serve(steered, service, limits, told, taking, drain));
    let clients: Vec<_> = (0..FLOWS).map(|_| socket(Ipv4Addr::LOCALHOST)).collect();
    let send = |count| {
        for client in &clients {
            (0..count).for_each(|_| assert!(client.send_to(b"x", edge.address).is_ok()));
        }
    };
    let arrive = async |count: usize| {
        let (mut arrived, mut most) = (0, 0);
        while arrived < count {
            tokio::task::yield_now().await;
            let now = std::iter::from_fn(|| heard(&edge.origin)).count();
            arrived += now;
            most = most.max(now);
        }
        most
    };
    let patiently = async |count| timeout(PATIENCE, arrive(count)).await.unwrap();
    send(1);
    patiently(FLOWS).await;
    send(EACH);
    let most = patiently(FLOWS * EACH).await;
    assert!(most <= MOST, "{most} without a pause");

    let listed = || edge.service.connections.page(None, 100, |_| true).0.len();
    assert_eq!(listed(), FLOWS);
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    assert_eq!(listed(), 0, "flows end with their worker");
    assert_eq!(edge.service.events.recent().len(), 2 * FLOWS, "and say so");
}

#[tokio::test]
async fn nothing_reaches_an_origin_before_its_header_does() {
    let edge = Edge::with(|app| app.identity.proxy_protocol = ProxyProtocol::V2);
    let mut worker = edge.worker();
    let client = socket(Ipv4Addr::LOCALHOST);
    // As large as a datagram can be with a header that is larger than nothing.
    client.send_to(&[b'x'; 65_500], edge.address).unwrap();
    worker.turn();
    assert_eq!(heard(&edge.origin), None);
    assert_eq!(edge.dropped(DropReason::TooLarge), 1);
    for (datagram, has_header) in [(b"second", true), (b"third!", false)] {
        client.send_to(datagram, edge.address).unwrap();
        worker.turn();
        let (said, _) = heard(&edge.origin).unwrap();
        assert!(said.ends_with(datagram), "{said:?}");
        let signature = b"\r\n\r\n\0\r\nQUIT\n";
        assert_eq!(said.starts_with(signature), has_header, "{said:?}");
    }
}

#[tokio::test]
async fn a_client_whose_place_is_an_apps_is_not_answered() {
    let edge = Edge::new();
    let mut worker = edge.worker();
    // Forged, it would be a flow from the edge to itself, without end.
    let forged = socket(Ipv4Addr::new(127, 66, 0, 2));
    forged.send_to(b"round and round", edge.address).unwrap();
    worker.turn();
    assert_eq!(heard(&edge.origin), None);
    assert_eq!(edge.session(&worker, &forged), None);
    assert_eq!(edge.dropped(DropReason::Unanswerable), 1);
}

#[tokio::test]
async fn that_there_is_no_origin_is_told_once_and_not_for_each_datagram() {
    let edge = Edge::with(|app| {
        app.origin = OriginChoice::Direct(vec![DirectOrigin {
            // Never dialled.
            ip: Ipv4Addr::new(169, 254, 169, 254).into(),
            port: PortMap::new(app.ports, PortRange::single(53).unwrap()).unwrap(),
        }]);
    });
    let mut worker = edge.worker();
    let client = socket(Ipv4Addr::LOCALHOST);
    for _ in 0..10 {
        client.send_to(b"anyone?", edge.address).unwrap();
        worker.turn();
    }
    assert_eq!(edge.dropped(DropReason::NoOrigin), 10);
    let told = edge.service.events.recent();
    let told: Vec<_> = told.iter().map(|event| event.status).collect();
    assert_eq!(told, [Some(Status::Blocked)]);
}
