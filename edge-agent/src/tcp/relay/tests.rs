#![allow(clippy::unwrap_used)]

use super::*;
use crate::events::segments_sent;
use proptest::prelude::*;
use std::{future::Future, net::Ipv4Addr, num::NonZeroU32};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

const HOUR: Duration = Duration::from_secs(3600);
/// Far more than any of this takes; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

struct Lines {
    client: TcpStream,
    origin: TcpStream,
    ended: tokio::task::JoinHandle<(Ended, Moved)>,
}

/// Adds up what it is told.
#[derive(Default)]
struct Sum {
    moved: Moved,
    total: Moved,
}

impl Observer for Sum {
    fn stands_at(&mut self, total: Moved) {
        self.total = total;
    }

    fn moved(&mut self, moved: Moved) {
        self.moved.from_client += moved.from_client;
        self.moved.from_origin += moved.from_origin;
    }

    fn ends(&mut self, _client: BorrowedFd<'_>, _origin: BorrowedFd<'_>) {
        assert_eq!(self.moved, self.total);
    }
}

/// A relay between two sockets of which the test holds the far ends.
async fn relayed(idle: Duration) -> Lines {
    paced(idle, None).await
}

async fn paced(idle: Duration, rate: Option<u32>) -> Lines {
    let paces = rate.and_then(NonZeroU32::new);
    let paces = paces.map(|rate| Box::new(StreamPaces::new(rate)));
    let (client, near_client) = pair().await;
    let (near_origin, origin) = pair().await;
    let ended = tokio::spawn(async move {
        let sum = Sum::default();
        let (ended, sum) = relay(near_client, near_origin, idle, paces, sum).await;
        (ended, sum.moved)
    });
    Lines {
        client,
        origin,
        ended,
    }
}

/// The one that the test is about, and the other.
fn in_turn(by_client: bool, client: TcpStream, origin: TcpStream) -> (TcpStream, TcpStream) {
    match by_client {
        true => (client, origin),
        false => (origin, client),
    }
}

fn assert_blamed(client: bool, ended: &Ended) {
    match client {
        true => assert!(matches!(ended, Ended::Client(_)), "{ended:?}"),
        false => assert!(matches!(ended, Ended::Origin(_)), "{ended:?}"),
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}

async fn is_reset(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let error = within(stream.read_to_end(&mut rest)).await.unwrap_err();
    error.kind() == io::ErrorKind::ConnectionReset
}

#[tokio::test]
async fn a_half_close_leaves_the_other_direction_open() {
    let Lines {
        mut client,
        mut origin,
        ended,
    } = relayed(HOUR).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = String::new();
    within(origin.read_to_string(&mut question)).await.unwrap();
    origin.write_all(b"answer").await.unwrap();
    origin.shutdown().await.unwrap();
    let mut answer = String::new();
    within(client.read_to_string(&mut answer)).await.unwrap();
    assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    let (ended, moved) = within(ended).await.unwrap();
    assert!(matches!(ended, Ended::Done), "{ended:?}");
    assert_eq!(
        moved,
        Moved {
            from_client: 8,
            from_origin: 6
        }
    );
}

#[tokio::test]
async fn a_server_that_speaks_and_closes_first_is_heard() {
    let Lines {
        mut client,
        mut origin,
        ended,
    } = relayed(HOUR).await;
    origin.write_all(b"banner").await.unwrap();
    drop(origin);
    let mut banner = String::new();
    within(client.read_to_string(&mut banner)).await.unwrap();
    assert_eq!(banner, "banner");
    drop(client);
    assert!(matches!(within(ended).await.unwrap().0, Ended::Done));
}

#[tokio::test]
async fn a_reset_by_the_client_resets_the_origin() {
    let Lines {
        client,
        mut origin,
        ended,
    } = relayed(HOUR).await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert!(is_reset(&mut origin).await);
    assert!(matches!(within(ended).await.unwrap().0, Ended::Client(_)));
}

#[tokio::test]
async fn a_reset_by_the_origin_resets_the_client() {
    let Lines {
        mut client,
        origin,
        ended,
    } = relayed(HOUR).await;
    origin.set_zero_linger().unwrap();
    drop(origin);
    assert!(is_reset(&mut client).await);
    assert!(matches!(within(ended).await.unwrap().0, Ended::Origin(_)));
}

#[tokio::test]
async fn a_reset_after_a_half_close_is_carried_over_too() {
    let Lines {
        mut client,
        mut origin,
        ended,
    } = relayed(HOUR).await;
    client.shutdown().await.unwrap();
    let mut nothing = Vec::new();
    within(origin.read_to_end(&mut nothing)).await.unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    let (ended, _) = within(ended).await.unwrap();
    assert!(matches!(ended, Ended::Client(_)), "{ended:?}");
    // Its stream had ended well, so the origin's end is an ordinary one.
    within(origin.read_to_end(&mut nothing)).await.unwrap();
}

/// Sends until no more is taken, since nobody reads, and says how much was. A machine that stands
/// still takes nothing for a while either, but not each time that it is asked.
async fn flood(sender: &mut TcpStream) -> usize {
    let (flood, mut sent, mut stuck) = (vec![3; 1 << 20], 0, 0);
    while stuck < 4 {
        match timeout(Duration::from_millis(200), sender.write(&flood)).await {
            Ok(written) => (sent, stuck) = (sent + written.unwrap(), 0),
            Err(_) => stuck += 1,
        }
        assert!(sent < 64 << 20, "nothing stops the sender");
    }
    sent
}

#[tokio::test]
async fn a_receiver_that_does_not_read_is_waited_for_and_the_sender_is_blamed() {
    let idle = Duration::from_secs(4);
    let mut lines = relayed(idle).await;
    flood(&mut lines.client).await;
    // Silence from before the failure does not count.
    tokio::time::sleep(idle / 2).await;
    lines.client.set_zero_linger().unwrap();
    let start = Instant::now();
    drop(lines.client);
    let (ended, _) = within(lines.ended).await.unwrap();
    assert!(matches!(ended, Ended::Client(_)), "{ended:?}");
    let took = start.elapsed();
    assert!(took > idle * 3 / 4 && took < idle * 5, "{took:?}");
    drop(lines.origin);
}

#[tokio::test]
async fn a_receiver_that_pauses_after_the_sender_failed_gets_all_that_had_come() {
    // What waits in the relay too, and what the kernel takes at once.
    for (by_client, much) in [(true, true), (false, true), (true, false), (false, false)] {
        let lines = relayed(HOUR).await;
        let (mut sender, mut receiver) = in_turn(by_client, lines.client, lines.origin);
        if much {
            flood(&mut sender).await;
        } else {
            let receives = SockRef::from(&receiver);
            receives.set_recv_buffer_size(64 << 10).unwrap();
            sender.write_all(&[3; 256 << 10]).await.unwrap();
            // Its reset has its own kernel drop what is still to be sent.
            all_is_delivered(&sender).await;
        }
        sender.set_zero_linger().unwrap();
        drop(sender);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let got = before_reset(&mut receiver).await.len() as u64;
        let (ended, moved) = within(lines.ended).await.unwrap();
        let read = match by_client {
            true => moved.from_client,
            false => moved.from_origin,
        };
        assert_eq!(got, read, "{ended:?}");
        assert!(read >= 256 << 10, "{read}");
    }
}

/// What a sender has sent is with the relay's kernel, and a small part of it
/// with the receiver's.
async fn sent_to_a_slow_receiver(sender: &mut TcpStream, receiver: &TcpStream, count: usize) {
    let receives = SockRef::from(receiver);
    // No less than a segment of the loopback: a smaller window opens by probes of the sender's only,
    // which come ever more seldom.
    receives.set_recv_buffer_size(64 << 10).unwrap();
    within(sender.write_all(&vec![3; count])).await.unwrap();
    // Its reset has its own kernel drop what is still to be sent.
    all_is_delivered(sender).await;
}

#[tokio::test]
async fn a_stream_that_ended_before_its_sender_failed_is_delivered_whole() {
    for by_client in [true, false] {
        let lines = relayed(HOUR).await;
        let (mut sender, mut receiver) = in_turn(by_client, lines.client, lines.origin);
        // Something is on the way back, so that it resets what it closes.
        receiver.write_all(b"unread").await.unwrap();
        within(sender.readable()).await.unwrap();
        sent_to_a_slow_receiver(&mut sender, &receiver, 256 << 10).await;
        sender.shutdown().await.unwrap();
        all_is_delivered(&sender).await;
        drop(sender);
        // For a relay that closes what has input to lose what it has to send.
        let (mut reads, mut writes) = receiver.split();
        let all = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let mut got = Vec::new();
            within(reads.read_to_end(&mut got)).await.map(|_| got)
        };
        let more = async {
            while writes.write_all(&[4; 1000]).await.is_ok() {}
            std::future::pending().await
        };
        let got: io::Result<Vec<u8>> = tokio::select! { got = all => got, got = more => got };
        let got = got.unwrap();
        assert_eq!(got.len(), 256 << 10);
        let (ended, _) = within(lines.ended).await.unwrap();
        assert_blamed(by_client, &ended);
    }
}

#[tokio::test]
async fn a_receiver_that_speaks_before_it_listens_gets_what_came_before_the_failure() {
    // What waits in the relay too, and what the kernel takes at once.
    for much in [true, false] {
        let lines = relayed(HOUR).await;
        let (mut sender, mut receiver) = (lines.client, lines.origin);
        if much {
            flood(&mut sender).await;
        } else {
            sent_to_a_slow_receiver(&mut sender, &receiver, 256 << 10).await;
        }
        sender.set_zero_linger().unwrap();
        drop(sender);
        within(receiver.write_all(&vec![4; 32 << 20]))
            .await
            .unwrap();
        let got = before_reset(&mut receiver).await.len() as u64;
        let (ended, moved) = within(lines.ended).await.unwrap();
        assert!(matches!(ended, Ended::Client(_)), "{ended:?}");
        assert_eq!(got, moved.from_client);
    }
}

#[tokio::test]
async fn a_stream_that_ended_before_its_sender_failed_ended_well_also_at_a_pace() {
    // Also where the sender was told the end of the other stream before.
    for (by_client, was_told) in [(true, true), (true, false), (false, true), (false, false)] {
        let lines = paced(HOUR, Some(1000)).await;
        let (mut sender, mut receiver) = in_turn(by_client, lines.client, lines.origin);
        if was_told {
            receiver.shutdown().await.unwrap();
            within(sender.read_to_end(&mut Vec::new())).await.unwrap();
        }
        sender.write_all(&[3; 4500]).await.unwrap();
        sender.shutdown().await.unwrap();
        all_is_delivered(&sender).await;
        // In the name of the sender, which cannot reset any more once both sides
        // have ended.
        sender.set_zero_linger().unwrap();
        drop(sender);
        let mut got = Vec::new();
        let end = within(receiver.read_to_end(&mut got)).await;
        assert_eq!((end.ok(), got.len()), (Some(4500), 4500));
        let (ended, _) = within(lines.ended).await.unwrap();
        match (by_client, was_told) {
            (_, true) => assert!(matches!(ended, Ended::Done), "{ended:?}"),
            (true, _) => assert!(matches!(ended, Ended::Client(_)), "{ended:?}"),
            (false, _) => assert!(matches!(ended, Ended::Origin(_)), "{ended:?}"),
        }
    }
}

#[tokio::test]
async fn a_receiver_that_takes_little_at_a_time_is_neither_stuck_nor_silent() {
    for fails in [true, false] {
        let idle = Duration::from_secs(5);
        let lines = relayed(idle).await;
        let (mut sender, mut receiver) = (lines.client, lines.origin);
        sent_to_a_slow_receiver(&mut sender, &receiver, 1 << 20).await;
        if fails {
            sender.set_zero_linger().unwrap();
            drop(sender);
        } else {
            sender.shutdown().await.unwrap();
        }
        let (start, mut got) = (Instant::now(), 0);
        while start.elapsed() < idle * 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            got += within(receiver.read(&mut [0; 2000])).await.unwrap();
        }
        let mut rest = Vec::new();
        let end = within(receiver.read_to_end(&mut rest)).await;
        assert_eq!(end.is_err(), fails, "{end:?}");
        assert_eq!(got + rest.len(), 1 << 20);
        drop(receiver);
        let (ended, _) = within(lines.ended).await.unwrap();
        match fails {
            true => assert!(matches!(ended, Ended::Client(_)), "{ended:?}"),
            false => assert!(matches!(ended, Ended::Done), "{ended:?}"),
        }
    }
}

#[tokio::test]
async fn the_side_that_fails_first_is_the_one_that_is_told() {
    for (by_client, has_ended) in [(true, true), (true, false), (false, true), (false, false)] {
        let lines = relayed(HOUR).await;
        let (mut first, mut second) = in_turn(by_client, lines.client, lines.origin);
        if has_ended {
            second.shutdown().await.unwrap();
            within(first.read_to_end(&mut Vec::new())).await.unwrap();
        }
        // The relay is not reading the first when it fails, and so goes on.
        flood(&mut first).await;
        first.set_zero_linger().unwrap();
        drop(first);
        tokio::time::sleep(Silence::OFTEN * 3).await;
        second.set_zero_linger().unwrap();
        drop(second);
        let (ended, _) = within(lines.ended).await.unwrap();
        assert_blamed(by_client, &ended);
    }
}

#[tokio::test]
async fn a_receiver_that_does_not_read_stops_the_sender() {
    let Lines {
        mut client,
        mut origin,
        ended,
    } = relayed(HOUR).await;
    let sent = flood(&mut client).await;
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    within(origin.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), sent);
    drop((client, origin));
    let (_, moved) = within(ended).await.unwrap();
    assert_eq!(moved.from_client, sent as u64);
}

#[tokio::test]
async fn silence_ends_it_and_a_byte_does_not() {
    // A machine may stand still for most of it.
    let idle = Duration::from_secs(4);
    let Lines {
        mut client,
        mut origin,
        ended,
    } = relayed(idle).await;
    let start = Instant::now();
    for _ in 0..8 {
        tokio::time::sleep(idle / 4).await;
        client.write_all(b"x").await.unwrap();
        within(origin.read_exact(&mut [0])).await.unwrap();
    }
    let (ended, _) = within(ended).await.unwrap();
    assert!(matches!(ended, Ended::Idle));
    assert!(start.elapsed() >= idle * 3, "{:?}", start.elapsed());
    // Neither side ended its stream, so neither is told of an end.
    assert!(is_reset(&mut client).await && is_reset(&mut origin).await);
}

#[tokio::test]
async fn each_direction_keeps_its_own_pace_and_its_order() {
    const RATE: usize = 400_000;
    // Were it one pace, they would always wait for each other; else only for the machine.
    for _ in 0..5 {
        let took = there_and_back(RATE).await;
        assert!(took >= Duration::from_millis(1400), "{took:?}");
        if took < Duration::from_millis(2500) {
            return;
        }
    }
    panic!("never in less than two and a half seconds");
}

/// How long the way to the origin takes at this pace, while somebody speaks the other way.
async fn there_and_back(rate: usize) -> Duration {
    let Lines {
        client,
        origin,
        ended,
    } = paced(HOUR, Some(rate as u32)).await;
    let start = Instant::now();
    // Two and a half seconds' worth one way, of which the first is free; one the other way.
    let client = play(client, vec![Act::Send(rate * 5 / 2)], 5000);
    let origin = async {
        let played = play(origin, vec![Act::Send(rate)], 5000).await;
        (played, start.elapsed())
    };
    let (client, (origin, took)) = within(async { tokio::join!(client, origin) }).await;
    assert_eq!((origin.1, origin.2), (client.0, true));
    assert_eq!((client.1, client.2), (origin.0, true));
    assert!(matches!(within(ended).await.unwrap().0, Ended::Done));
    took
}

async fn all_is_delivered(sender: &TcpStream) {
    within(async {
        while undelivered(sender.as_fd()) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Reads up to a reset.
async fn before_reset(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let error = within(stream.read_to_end(&mut rest)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    rest
}

#[tokio::test]
async fn what_came_before_a_reset_is_carried_on_at_its_pace_whoever_resets() {
    let sent: Vec<u8> = (0..3000u32).map(|n| (n % 251) as u8).collect();
    for by_client in [true, false] {
        let lines = paced(HOUR, Some(1000)).await;
        let (mut sender, mut receiver) = in_turn(by_client, lines.client, lines.origin);
        let start = Instant::now();
        sender.write_all(&sent).await.unwrap();
        sender.set_zero_linger().unwrap();
        drop(sender);
        assert_eq!(before_reset(&mut receiver).await, sent);
        // The first second's worth is free.
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(1900), "{took:?}");
        let (ended, _) = within(lines.ended).await.unwrap();
        assert_blamed(by_client, &ended);
    }
}

#[tokio::test]
async fn what_a_side_said_before_it_failed_is_heard_though_more_is_sent_to_it() {
    for (rate, by_client) in [None, Some(1000)]
        .into_iter()
        .flat_map(|rate| [(rate, true), (rate, false)])
    {
        let lines = paced(HOUR, rate).await;
        let (mut fails, mut talks) = in_turn(by_client, lines.client, lines.origin);
        let mut told = [0];
        talks.write_all(b"x").await.unwrap();
        within(fails.read_exact(&mut told)).await.unwrap();
        // All of it is there before the relay has a turn.
        let answer = [7; 1500];
        fails.write_all(&answer).await.unwrap();
        fails.set_zero_linger().unwrap();
        drop(fails);
        talks.write_all(b"more").await.unwrap();
        assert_eq!(before_reset(&mut talks).await, answer);
        let (ended, _) = within(lines.ended).await.unwrap();
        assert_blamed(by_client, &ended);
    }
}

#[tokio::test]
async fn a_relay_that_is_dropped_resets_both_sides() {
    let Lines {
        mut client,
        mut origin,
        ended,
    } = relayed(HOUR).await;
    client.write_all(b"x").await.unwrap();
    within(origin.read_exact(&mut [0])).await.unwrap();
    ended.abort();
    assert!(is_reset(&mut client).await && is_reset(&mut origin).await);
}

/// A connection to an origin as the dial leaves it, and the origin.
async fn dialled() -> (TcpStream, TcpListener) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    SockRef::from(&socket).set_tcp_quickack(false).unwrap();
    let near = socket.connect(listener.local_addr().unwrap());
    (within(near).await.unwrap(), listener)
}

#[tokio::test]
async fn the_handshake_and_the_first_bytes_are_one_packet() {
    let (mut client, near_client) = pair().await;
    let (near_origin, listener) = dialled().await;
    let origin = near_origin.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(segments_sent(&origin), 1, "the SYN");
    client.write_all(b"question").await.unwrap();
    within(near_client.readable()).await.unwrap();
    let relay = relay(near_client, near_origin, HOUR, None, Sum::default());
    let question = async {
        let (mut far, _) = listener.accept().await.unwrap();
        let mut question = [0; 8];
        far.read_exact(&mut question).await.unwrap();
        question
    };
    tokio::select! {
        (ended, _) = relay => panic!("{ended:?}"),
        question = within(question) => assert_eq!(&question, b"question"),
    }
    assert_eq!(segments_sent(&origin), 2);
}

#[tokio::test]
async fn an_origin_that_speaks_first_is_not_kept_waiting() {
    let (_client, near_client) = pair().await;
    let (near_origin, listener) = dialled().await;
    let origin = near_origin.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(segments_sent(&origin), 1, "the SYN");
    let sum = Sum::default();
    let mut relay = pin!(relay(near_client, near_origin, HOUR, None, sum));
    let polled = poll_fn(|cx| Poll::Ready(relay.as_mut().poll(cx).is_pending())).await;
    assert_eq!((polled, segments_sent(&origin)), (true, 2));
    within(listener.accept()).await.unwrap();
}

#[tokio::test]
async fn both_sides_are_kept_alive_from_the_first_look_on() {
    let (_client, near_client) = pair().await;
    let (near_origin, _origin) = pair().await;
    let sides = [&near_client, &near_origin].map(|side| {
        let side = side.as_fd().try_clone_to_owned().unwrap();
        socket2::Socket::from(side)
    });
    let looked = async {
        while !sides.iter().all(|side| side.keepalive().unwrap()) {
            tokio::task::yield_now().await;
        }
    };
    let (sum, idle) = (Sum::default(), Duration::from_secs(4));
    tokio::select! {
        (ended, _) = relay(near_client, near_origin, idle, None, sum) => panic!("{ended:?}"),
        () = within(looked) => {}
    }
}

/// Whatever is added here, every idle connection pays for.
#[tokio::test]
async fn a_relay_fits_its_memory_budget() {
    let ((_client, client), (origin, _origin)) = tokio::join!(pair(), pair());
    let relay = relay(client, origin, HOUR, None, Sum::default());
    let size = size_of_val(&relay) - size_of::<Sum>();
    assert!(size <= 424, "{size} bytes");
}

#[test]
fn a_flow_earns_large_reads_and_loses_them_with_a_slow_receiver() {
    let mut chunk = Chunk::default();
    let first = chunk.len();
    for _ in 0..10 {
        chunk = chunk.next(chunk.len(), chunk.len());
    }
    assert_eq!(chunk.len(), SCRATCH);
    assert_eq!(chunk.next(100, 100).len(), SCRATCH);
    assert_eq!(chunk.next(SCRATCH, SCRATCH - 1).len(), first);
}

/// What one side does.
#[derive(Debug, Clone)]
enum Act {
    Send(usize),
    Rest,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => (1usize..3).prop_map(Act::Send),
        3 => (1usize..200_000).prop_map(Act::Send),
        1 => (200_000usize..2_000_000).prop_map(Act::Send),
        1 => Just(Act::Rest),
    ];
    prop::collection::vec(act, 0..6)
}

/// Sends what the acts say, numbered, and ends; reads all at its own pace.
async fn play(stream: TcpStream, acts: Vec<Act>, reads: usize) -> (u64, u64, bool) {
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        let mut sent = 0u64;
        for act in acts {
            match act {
                Act::Send(count) => {
                    let bytes: Vec<u8> = (0..count as u64)
                        .map(|i| ((sent + i) % 251) as u8)
                        .collect();
                    writer.write_all(&bytes).await.unwrap();
                    sent += count as u64;
                }
                Act::Rest => tokio::task::yield_now().await,
            }
        }
        writer.shutdown().await.unwrap();
        sent
    };
    let read = async {
        let (mut got, mut in_order) = (0u64, true);
        let mut buffer = vec![0; reads];
        loop {
            let count = reader.read(&mut buffer).await.unwrap();
            for byte in &buffer[..count] {
                in_order &= u64::from(*byte) == got % 251;
                got += 1;
            }
            if count == 0 {
                return (got, in_order);
            }
        }
    };
    let (sent, (got, in_order)) = tokio::join!(write, read);
    (sent, got, in_order)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_byte_arrives_once_and_in_order(
        up in acts(), down in acts(), slow in 1usize..5000, fast in 1000usize..300_000
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (client, origin, moved) = runtime.block_on(async {
            let lines = relayed(HOUR).await;
            let client = play(lines.client, up, slow);
            let origin = play(lines.origin, down, fast);
            let (client, origin) = within(async { tokio::join!(client, origin) }).await;
            (client, origin, within(lines.ended).await.unwrap().1)
        });
        prop_assert_eq!((origin.1, origin.2), (client.0, true));
        prop_assert_eq!((client.1, client.2), (origin.0, true));
        prop_assert_eq!(moved, Moved { from_client: client.0, from_origin: origin.0 });
    }
}
