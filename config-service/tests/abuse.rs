//! Clients of the real program that abuse HTTP/2: each is stopped, and meanwhile and
//! afterwards others are served and the program stays within its memory.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyport_proto::v1::{ApplyRequest, ListRequest};
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use prost::bytes::Bytes;
use support::{
    PATIENCE, eventually,
    frames::{
        CONTINUATION, DATA, END_STREAM, Frames, GOAWAY, HEADERS, RST_STREAM, Said, message,
        timed_out,
    },
    http2,
    program::Program,
    resources,
    service::embedded,
    soon,
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// How much more memory an attack may cost, in bytes.
const ROOM: u64 = 64 << 20;
/// Others are answered within it, or a quarter of the attack, which takes long on a machine
/// that is slow or busy.
const IN_TIME: Duration = Duration::from_secs(5);
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;
/// Streams that a connection may have.
const TAKEN: usize = 256;
/// The initial window of HTTP/2.
const WINDOW: u32 = 65_535;

/// A program with some apps, that is attacked.
struct Victim {
    program: Program,
    _directory: TempDir,
}

impl Victim {
    async fn with(apps: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = Program::start(&embedded(directory.path()));
        let mut client = program.client().await;
        let apps = (1..=apps).map(|port| resources::app(&format!("app-{port}"), port));
        let prefix = resources::prefix("198.51.100.0/24");
        client
            .apply(ApplyRequest {
                resources: apps.chain([prefix]).collect(),
                ..Default::default()
            })
            .await
            .unwrap();
        Self {
            program,
            _directory: directory,
        }
    }

    fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.program.port()).into()
    }

    /// Runs the attack on a thread of its own; another client asks all the while, on
    /// a new connection each time.
    async fn under<T: Send + 'static>(
        &self,
        attack: impl FnOnce(SocketAddr) -> T + Send + 'static,
    ) -> T {
        self.with_room(ROOM, attack).await
    }

    /// As [`under`](Self::under), where the attack may cost so many bytes.
    async fn with_room<T: Send + 'static>(
        &self,
        room: u64,
        attack: impl FnOnce(SocketAddr) -> T + Send + 'static,
    ) -> T {
        let before = self.program.resident();
        let address = self.address();
        let attacked = Instant::now();
        let attack = tokio::task::spawn_blocking(move || attack(address));
        let (mut most, mut longest, mut answered) = (before, Duration::ZERO, 0);
        loop {
            let ended = attack.is_finished();
            let begun = Instant::now();
            let mut client = support::program::client(self.program.port());
            let asked = client.list(ListRequest {
                page_size: 1,
                ..Default::default()
            });
            let answer = soon("an answer to others", asked).await;
            answer.expect("others are served");
            answered += 1;
            longest = longest.max(begun.elapsed());
            most = most.max(self.program.resident());
            eprintln!("answer {answered}: {longest:?}, {} KiB at most", most >> 10);
            assert!(
                most < before + room,
                "{} KiB before, {} KiB now",
                before >> 10,
                most >> 10
            );
            if ended {
                let in_time = IN_TIME.max(attacked.elapsed() / 4);
                assert!(longest < in_time, "{longest:?}, and {in_time:?} is right");
                return attack.await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What the server said until it closed the connection.
fn until_closed(frames: &mut Frames) -> Vec<Said> {
    std::iter::from_fn(|| frames.next()).collect()
}

fn goaway(said: &[Said]) -> Option<u32> {
    let last = said.iter().rev().find(|said| said.kind == GOAWAY);
    last.map(|goaway| goaway.code)
}

/// Sends while somebody reads, until the server has had enough of it. How many were
/// sent, and what the server said.
fn flood(
    mut frames: Frames,
    mut send: impl FnMut(&mut Frames, u32) -> std::io::Result<()>,
    most: u32,
) -> (u32, Vec<Said>) {
    let mut back = frames.and_back();
    let reader = std::thread::spawn(move || until_closed(&mut back));
    let mut sent = 0;
    while sent < most {
        match send(&mut frames, sent) {
            Ok(()) => sent += 1,
            Err(error) => {
                assert!(!timed_out(&error), "the server neither reads nor closes");
                break;
            }
        }
    }
    (sent, reader.join().unwrap())
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once_end_their_connection() {
    let victim = Victim::with(10).await;
    let said = victim.under(|address| {
        let open_and_reset = |frames: &mut Frames, index: u32| {
            let stream = 2 * index + 1;
            frames.open("Watch", stream, 0)?;
            frames.send(RST_STREAM, 0, stream, &8u32.to_be_bytes())
        };
        flood(Frames::connect(address, WINDOW), open_and_reset, 10_000).1
    });
    assert_eq!(goaway(&said.await), Some(ENHANCE_YOUR_CALM));
}

#[tokio::test]
async fn headers_without_end_end_their_connection() {
    let victim = Victim::with(10).await;
    let attack = victim.under(|address| {
        // A header of 16 KiB, over and over: 256 MiB together.
        let mut header = vec![0, 1, b'x', 0x7f];
        // The length 16,000 as HPACK has it: 127, then 15,873 in groups of 7 bits.
        header.extend([0x81, 0x7c]);
        header.extend(vec![b'a'; 16_000]);
        let go_on = move |frames: &mut Frames, index: u32| match index {
            0 => frames.send(HEADERS, 0, 1, &header),
            _ => frames.send(CONTINUATION, 0, 1, &header),
        };
        flood(Frames::connect(address, WINDOW), go_on, 16_000)
    });
    let (sent, said) = attack.await;
    assert!(sent < 1_000, "{sent} of them were read");
    assert!(goaway(&said).is_none_or(|code| code != 0), "{said:?}");
}

#[tokio::test]
async fn ten_thousand_streams_that_say_nothing_are_not_all_taken() {
    let victim = Victim::with(10).await;
    let attack = victim.under(|address| {
        let open = |frames: &mut Frames, index: u32| frames.open("Apply", 2 * index + 1, 0);
        let mut frames = Frames::connect(address, WINDOW);
        let mut back = frames.and_back();
        let reader = std::thread::spawn(move || {
            let said = std::iter::from_fn(|| back.next());
            let refused = said.filter(|said| said.kind == RST_STREAM);
            // Of which the last one is the last stream's.
            refused.take(10_000 - TAKEN).map(|said| said.code).collect()
        });
        for index in 0..10_000 {
            open(&mut frames, index).unwrap();
        }
        let refused: Vec<u32> = reader.join().unwrap();
        refused
    });
    let refused = attack.await;
    assert_eq!(refused, [REFUSED_STREAM].repeat(10_000 - TAKEN));
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_by_its_length() {
    let victim = Victim::with(10).await;
    let said = victim.under(|address| {
        // Only the first of them carries resources.
        let too_long = [("Apply", 100 << 20), ("List", 1 << 20), ("Delete", 1 << 20)];
        too_long.map(|(method, length)| {
            let mut frames = Frames::connect(address, WINDOW);
            frames.open(method, 1, 0).unwrap();
            let begin = message(length, &[0; 1000]);
            frames.send(DATA, 0, 1, &begin).unwrap();
            // The answer comes although the message has only begun.
            loop {
                let said = frames.next().expect("an answer");
                if said.stream == 1 && said.kind == HEADERS {
                    return said;
                }
            }
        })
    });
    for said in said.await {
        assert_eq!(
            said.flags & END_STREAM,
            END_STREAM,
            "trailers only: {said:?}"
        );
    }
}

/// Each takes two bytes on the wire, and hundreds in memory.
#[tokio::test]
async fn more_resources_than_may_be_stored_are_refused_while_they_come() {
    const LENGTH: usize = 60 << 20;
    let victim = Victim::with(10).await;
    let attack = |address: SocketAddr| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let client = http2::connect(address.port()).await;
            let (answer, mut body) = http2::open(&client, "Apply").await;
            let begin = message(LENGTH.try_into().unwrap(), &[]);
            body.send_data(begin.into(), false).unwrap();
            let empty = Bytes::from([0x0a, 0].repeat(LENGTH / 2));
            let _ = http2::send(&mut body, empty).await;
            let _ = body.send_data(Bytes::new(), true);
            let answer = answer.await.unwrap();
            Status::from_header_map(answer.headers()).unwrap()
        })
    };
    let refused = victim.under(attack).await;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("200000"), "{refused}");
}

#[tokio::test]
async fn connections_that_never_speak_are_closed() {
    let victim = Victim::with(10).await;
    victim
        .under(|address| {
            let connect = || TcpStream::connect(address).unwrap();
            let silent: Vec<_> = (0..500).map(|_| connect()).collect();
            for mut stream in silent {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                // Some of its settings come first.
                let mut rest = Vec::new();
                match stream.read_to_end(&mut rest) {
                    Ok(_) => {}
                    Err(error) => assert!(!timed_out(&error), "still open"),
                }
            }
        })
        .await;
}

#[tokio::test]
async fn answers_that_nobody_reads_stay_within_the_memory() {
    let victim = Victim::with(10_000).await;
    victim
        .under(|address| {
            // Not a byte of an answer may be sent. The whole state is 1.2 MB here.
            let mut connections: Vec<_> = (0..4).map(|_| Frames::connect(address, 0)).collect();
            for frames in &mut connections {
                for (index, method) in ["Watch", "List"].repeat(4).into_iter().enumerate() {
                    let stream = u32::try_from(2 * index + 1).unwrap();
                    frames.open(method, stream, 0).unwrap();
                    frames
                        .send(DATA, END_STREAM, stream, &message(0, &[]))
                        .unwrap();
                }
            }
            std::thread::sleep(Duration::from_secs(5));
        })
        .await;
}

#[tokio::test]
async fn watches_that_nobody_reads_share_what_they_are_not_sent() {
    let victim = Victim::with(10_000).await;
    victim
        .under(|address| {
            // Of each, some can be sent, so that all are begun.
            let mut connections: Vec<_> = (0..4).map(|_| Frames::connect(address, 1)).collect();
            for frames in &mut connections {
                for index in 0..160 {
                    let stream = 2 * index + 1;
                    frames.open("Watch", stream, 0).unwrap();
                    frames
                        .send(DATA, END_STREAM, stream, &message(0, &[]))
                        .unwrap();
                }
            }
            std::thread::sleep(Duration::from_secs(5));
        })
        .await;
}

/// A request that never ends, of 64 MiB as it says.
struct Unfinished {
    answer: ResponseFuture,
    body: SendStream<Bytes>,
}

impl Unfinished {
    async fn begin(client: &SendRequest<Bytes>) -> Self {
        let (answer, mut body) = http2::open(client, "Apply").await;
        let begin = Bytes::from(message(64 << 20, &[]));
        body.send_data(begin, false).unwrap();
        Self { answer, body }
    }

    /// It, unless the server has had enough of it.
    async fn go_on(mut self, bytes: Bytes) -> Result<Self, Code> {
        match http2::send(&mut self.body, bytes).await {
            Some(()) => Ok(self),
            None => Err(self.refused().await),
        }
    }

    /// Kept open until then.
    async fn refused(self) -> Code {
        let answer = soon("the refusal", self.answer).await;
        let answer = answer.expect("cut off without a word");
        Status::from_header_map(answer.headers()).unwrap().code()
    }
}

/// All go on together until each has sent so much or was refused; nobody has to wait for
/// others so long that it would be late. Waits until no more than `taken` are left.
async fn unfinished(address: SocketAddr, calls: usize, bytes: usize, taken: usize) -> Vec<Code> {
    let chunk = Bytes::from(vec![0; 256 << 10]);
    let mut open = Vec::new();
    // Each connection takes 256 calls.
    for calls in std::iter::repeat_n(50, calls / 50) {
        let client = http2::connect(address.port()).await;
        for _ in 0..calls {
            open.push(Unfinished::begin(&client).await);
        }
    }
    let mut refused = Vec::new();
    for _ in 0..bytes / chunk.len() {
        let going_on = open.into_iter().map(|call| call.go_on(chunk.clone()));
        open = Vec::new();
        for went_on in going_on.collect::<JoinSet<_>>().join_all().await {
            match went_on {
                Ok(call) => open.push(call),
                Err(code) => refused.push(code),
            }
        }
    }
    let mut left: JoinSet<_> = open.into_iter().map(Unfinished::refused).collect();
    while left.len() > taken {
        let next = left.join_next().await.expect("some are left");
        refused.push(next.unwrap());
    }
    refused
}

#[tokio::test]
async fn requests_that_never_end_take_as_much_as_there_is_for_them() {
    /// What there is.
    const INTAKE: usize = 256 << 20;
    const EACH: usize = 4 << 20;
    const CALLS: usize = 200;
    /// The first 64 KiB of each are free.
    const TAKEN: usize = INTAKE / (EACH - (64 << 10));
    let victim = Victim::with(10).await;
    let attack = |address| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(unfinished(address, CALLS, EACH, TAKEN))
    };
    let refused = victim.with_room(INTAKE as u64 + ROOM, attack).await;
    let all = refused.iter().all(|code| *code == Code::ResourceExhausted);
    assert!(all, "{refused:?}");
    // Who is refused gives back what it had, so that others get further.
    let refused = refused.len();
    assert!(
        (CALLS - TAKEN..CALLS - TAKEN / 2).contains(&refused),
        "{refused}"
    );
    // All of it is given back once the server has seen that they are gone.
    let client = victim.program.client().await;
    let request = ApplyRequest {
        resources: resources::many(2_000),
        ..Default::default()
    };
    eventually("there is room", || async {
        client.clone().apply(request.clone()).await.ok()
    })
    .await;
}
