//! Against real sockets on loopback.
#![allow(clippy::unwrap_used)]

mod datagrams;
mod grpc;
mod tls;
mod web;

use std::{
    io,
    net::{SocketAddr, TcpStream as StdStream},
    sync::Arc,
    time::Duration,
};

use anyport_model::{
    check::{Check, Exchange},
    resource::Monitor,
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::{
    failure::{Blame, Cause},
    *,
};
use crate::membership::fixtures;

/// Far more than loopback needs; a probe that should pass must not reach it.
const AMPLE: Duration = Duration::from_secs(20);
/// For probes that should time out.
const SHORT: Duration = Duration::from_millis(500);

/// For probes that should time out once something was heard.
const LONG: Duration = Duration::from_secs(3);

/// Without what a process shares among its probes. Where this host was too busy to
/// judge, it is asked again.
async fn probe(target: &Target) -> Outcome {
    let end = Instant::now() + 3 * AMPLE;
    loop {
        match probe_once(target).await {
            Err(Failure::Busy(_)) if Instant::now() < end => {}
            outcome => return outcome,
        }
    }
}

async fn probe_once(target: &Target) -> Outcome {
    super::probe(&Opener::new().unwrap(), target).await
}

fn exchange(send: &str, expect: &str) -> Exchange {
    Exchange {
        send: send.into(),
        expect: expect.into(),
    }
}

fn target(origin: SocketAddr, timeout: Duration, send: &str, expect: &str) -> Target {
    asking(origin, timeout, Check::Tcp(exchange(send, expect)))
}

fn asking(origin: SocketAddr, timeout: Duration, check: Check) -> Target {
    let monitor = Monitor {
        check,
        timeout,
        ..fixtures::monitor("quick", 1, 1)
    };
    Target {
        origin,
        place: 0,
        monitor: Arc::new(monitor),
    }
}

fn with_retries(target: Target, retries: u32) -> Target {
    let monitor = Monitor {
        retries,
        ..(*target.monitor).clone()
    };
    Target {
        monitor: Arc::new(monitor),
        ..target
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Runs `serve` on each connection; the count of them comes back when the
/// returned function is called.
async fn origin<F, Fut>(serve: F) -> (SocketAddr, impl Fn() -> usize)
where
    F: Fn(usize, TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let (listener, address) = listen().await;
    let (count, accepted) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let index = *count.borrow();
            count.send_modify(|count| *count += 1);
            serve(index, stream).await;
        }
    });
    (address, move || *accepted.borrow())
}

async fn failure(target: &Target) -> Failure {
    probe(target).await.expect_err("the probe should fail")
}

#[tokio::test]
async fn an_open_port_passes() {
    let (_listener, address) = listen().await;
    let took = probe(&target(address, AMPLE, "", "")).await.unwrap();
    assert!(took < AMPLE);
}

/// An origin that greets after a while, and what it then finds of the connection:
/// what was left to read, and the error.
async fn greeter(
    pause: Duration,
    greeting: Vec<u8>,
) -> (SocketAddr, mpsc::UnboundedReceiver<Seen>) {
    let (tell, seen) = mpsc::unbounded_channel();
    let greeting = Arc::new(greeting);
    let (address, _) = origin(move |_, mut stream: TcpStream| {
        let (tell, greeting) = (tell.clone(), Arc::clone(&greeting));
        async move {
            tokio::time::sleep(pause).await;
            let said = stream.write_all(&greeting).await;
            let end = stream.read_to_end(&mut Vec::new()).await;
            let end = said.and(end).map_err(|error| error.kind());
            let error = stream.take_error().unwrap().map(|error| error.kind());
            let _ = tell.send((end, error));
        }
    })
    .await;
    (address, seen)
}

type Seen = (Result<usize, io::ErrorKind>, Option<io::ErrorKind>);

#[tokio::test]
async fn who_greets_is_not_reset_be_it_at_once_or_later() {
    for pause in [Duration::ZERO, Duration::from_millis(30)] {
        let (address, mut seen) = greeter(pause, b"220 mail.example\r\n".to_vec()).await;
        for expect in ["", "220"] {
            probe(&target(address, AMPLE, "", expect)).await.unwrap();
            assert_eq!(seen.recv().await.unwrap(), (Ok(0), None), "{pause:?}");
        }
    }
}

#[tokio::test]
async fn who_never_closes_is_left_alone_after_a_while() {
    let (listener, address) = listen().await;
    let opener = Opener::new().unwrap();
    super::probe(&opener, &target(address, AMPLE, "", ""))
        .await
        .unwrap();
    assert_eq!(opener.closing(), 1);
    let (_stream, _) = listener.accept().await.unwrap();
    tokio::time::timeout(AMPLE, async {
        while opener.closing() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn who_pours_out_is_not_listened_to_without_end() {
    let (address, mut seen) = greeter(Duration::ZERO, vec![b'x'; 64 << 20]).await;
    probe(&target(address, AMPLE, "", "")).await.unwrap();
    let (end, _) = seen.recv().await.unwrap();
    assert!(end.is_err(), "{end:?}");
}

#[tokio::test]
async fn however_many_do_not_close_few_are_waited_for() {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let opener = Opener::new().unwrap();
    let probe_once = async || {
        let passes = super::probe(&opener, &target(address, AMPLE, "", "")).await;
        passes.unwrap();
        opener.closing()
    };
    // Of others, so many are being closed all the while; for some there is room.
    let room = 8;
    let _others = opener.close_others(connection::CLOSING_MAX as u32 - room);
    let full = async { while probe_once().await < connection::CLOSING_MAX {} };
    tokio::time::timeout(AMPLE, full).await.unwrap();
    for _ in 0..16 {
        assert!(probe_once().await <= connection::CLOSING_MAX);
    }
}

#[tokio::test]
async fn a_closed_port_refuses() {
    let (listener, address) = listen().await;
    drop(listener);
    let failure = failure(&target(address, AMPLE, "", "")).await;
    assert_eq!(failure.to_string(), "connect: connection refused");
    assert_eq!(failure.cause(), Cause::Refused);
}

#[tokio::test]
async fn the_monitors_port_is_probed_instead_of_the_origins() {
    let (_listener, open) = listen().await;
    let (closed, own) = listen().await;
    drop(closed);
    let mut target = target(own, AMPLE, "", "");
    target.monitor = Arc::new(Monitor {
        port: Some(open.port()),
        ..(*target.monitor).clone()
    });
    probe(&target).await.unwrap();
}

/// A listener whose queue is full: the kernel drops further SYNs.
fn full() -> (Socket, Vec<StdStream>, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = StdStream::connect_timeout(&address, Duration::from_millis(300)) {
        queued.push(stream);
        assert!(queued.len() < 100, "the queue never fills");
    }
    (listener, queued, address)
}

#[tokio::test]
async fn a_full_queue_is_no_answer_to_connect() {
    let (_listener, _queued, address) = full();
    let failure = failure(&target(address, SHORT, "", "")).await;
    assert_eq!(failure.to_string(), "connect: no answer within 500ms");
}

#[tokio::test]
async fn silence_is_no_reply() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let failure = failure(&target(address, SHORT, "PING\r\n", "+PONG")).await;
    assert_eq!(
        failure.to_string(),
        r#"no reply containing "+PONG" within 500ms"#
    );
}

#[tokio::test]
async fn an_origin_that_takes_nothing_fails_to_be_sent_to() {
    // Nobody accepts, so nobody reads; more than both buffers hold.
    let (_listener, address) = listen().await;
    let much = "x".repeat(64 << 20);
    let failure = failure(&target(address, LONG, &much, "")).await;
    assert_eq!(failure.to_string(), "send: the peer took nothing for 3s");
}

#[tokio::test]
async fn what_is_sent_arrives_and_the_reply_passes() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        let mut heard = [0; 6];
        if stream.read_exact(&mut heard).await.is_ok() && &heard == b"PING\r\n" {
            let _ = stream.write_all(b"+PONG\r\n").await;
        }
    })
    .await;
    probe(&target(address, AMPLE, "PING\r\n", "+PONG"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_reply_in_pieces_passes_when_its_last_piece_arrives() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        stream.set_nodelay(true).unwrap();
        for piece in ["220 mail.exa", "mple ES", "M", "TP rea", "dy\r\n"] {
            let _ = stream.write_all(piece.as_bytes()).await;
        }
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    probe(&target(address, AMPLE, "", "ESMTP ready"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_banner_that_never_says_it_is_read_up_to_a_bound() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        let block = [b'x'; 4096];
        while stream.write_all(&block).await.is_ok() {}
    })
    .await;
    let failure = failure(&target(address, AMPLE, "", "ready")).await;
    assert_eq!(
        failure.to_string(),
        format!(
            r#"no reply containing "ready" in the first 65536 bytes, which begin "{}"…"#,
            "x".repeat(40)
        )
    );
    assert_eq!(failure.cause(), Cause::Reply);
}

#[tokio::test]
async fn the_wrong_reply_and_an_end_is_said_so() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        let _ = stream.write_all(b"-LOADING").await;
    })
    .await;
    let failure = failure(&target(address, AMPLE, "", "+PONG")).await;
    assert_eq!(
        failure.to_string(),
        r#"closed after 8 bytes, no reply containing "+PONG"; heard "-LOADING""#
    );
}

#[tokio::test]
async fn a_reset_instead_of_a_reply_fails() {
    let (address, _) = origin(async |_, stream: TcpStream| {
        stream.set_zero_linger().unwrap();
    })
    .await;
    let failure = failure(&target(address, AMPLE, "", "+PONG")).await;
    assert_eq!(failure.to_string(), "reply: connection reset by peer");
    assert_eq!(failure.cause(), Cause::Network);
}

#[tokio::test]
async fn a_timeout_is_retried_and_the_retry_passes() {
    let (address, accepted) = origin(async |index, mut stream: TcpStream| {
        if index == 0 {
            // Silent until the prober gives up on it.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        } else {
            let _ = stream.write_all(b"ready").await;
        }
    })
    .await;
    let target = target(address, LONG, "", "ready");
    let begun = Instant::now();
    let took = probe(&with_retries(target, 1)).await.unwrap();
    let whole = begun.elapsed();
    assert!(
        took + LONG <= whole,
        "of the attempt that passed: {took:?} of {whole:?}"
    );
    // More where this host was too busy.
    assert!(accepted() >= 2, "{}", accepted());
}

#[tokio::test]
async fn attempts_end_with_the_retries() {
    let (address, accepted) = origin(async |_, mut stream: TcpStream| {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let target = with_retries(target(address, SHORT, "", "ready"), 2);
    let mut before = 0;
    let failed = loop {
        match probe_once(&target).await.expect_err("nobody answers") {
            Failure::Busy(_) => before = accepted(),
            failed => break failed,
        }
    };
    assert_eq!(failed.cause(), Cause::Timeout);
    assert_eq!(accepted() - before, 3);
}

#[tokio::test]
async fn what_is_no_timeout_is_not_retried() {
    let (address, accepted) = origin(async |_, _| ()).await;
    let target = with_retries(target(address, AMPLE, "", "ready"), 5);
    assert_eq!(failure(&target).await.cause(), Cause::Reply);
    assert_eq!(accepted(), 1);
}

#[tokio::test]
async fn what_is_never_dialled_is_not_probed_either() {
    for address in [
        "169.254.169.254:80",
        "[::ffff:169.254.169.254]:80",
        "0.0.0.0:80",
    ] {
        let target = target(address.parse().unwrap(), AMPLE, "", "");
        let failure = failure(&target).await;
        assert!(matches!(failure, Failure::Forbidden(..)), "{failure:?}");
        assert_eq!(failure.blame(), Blame::Origin);
    }
}

#[tokio::test]
async fn ipv6_origins_are_probed_alike() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    probe(&target(address, AMPLE, "", "")).await.unwrap();
    drop(listener);
    let failure = failure(&target(address, AMPLE, "", "")).await;
    assert_eq!(failure.to_string(), "connect: connection refused");
}

/// The thread of a test, and with it the probe that has begun on it.
async fn held_up() {
    tokio::task::yield_now().await;
    std::thread::sleep(4 * SHORT);
}

#[tokio::test]
async fn what_these_tests_assert_waits_for_a_host_that_is_too_busy() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let target = target(address, SHORT, "", "ready");
    let (failure, ()) = tokio::join!(failure(&target), held_up());
    assert_eq!(failure.cause(), Cause::Timeout, "{failure}");
}

/// A probe whose own thread is held up knows nothing of the origin: its reply may
/// have been there all along.
#[tokio::test]
async fn a_host_that_is_too_busy_blames_nobody() {
    let (address, _) = origin(async |_, mut stream: TcpStream| {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let target = target(address, SHORT, "", "ready");
    let (outcome, ()) = tokio::join!(probe_once(&target), held_up());
    let failure = outcome.expect_err("nobody answers");
    assert!(matches!(failure, Failure::Busy(_)), "{failure}");
    assert_eq!(failure.blame(), Blame::Host);
}
