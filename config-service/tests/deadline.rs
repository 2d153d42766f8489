//! Calls with a deadline, while the store hangs: they end in time, as what they are,
//! and a write whose outcome was not told is done once.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyport_proto::v1;
use h2::client::SendRequest;
use prost::{
    Message,
    bytes::{BufMut, Bytes, BytesMut},
};
use support::{etcd::EtcdServer, eventually, http2, program::Program, resources, soon};
use tonic::{Code, Status};

const DEADLINE: Duration = Duration::from_secs(1);

/// A call that cannot be answered; what it ended with, and after how long.
async fn call(
    client: &SendRequest<Bytes>,
    method: &str,
    headers: &[(&str, &str)],
    message: &impl Message,
) -> (Status, Duration) {
    let (answer, mut body) = http2::begin(client, method, headers).await;
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut framed).unwrap();
    body.send_data(framed.freeze(), true).unwrap();
    let begun = Instant::now();
    let answer = soon(method, answer).await.unwrap();
    let after = begun.elapsed();
    let status = Status::from_header_map(answer.headers()).expect("no answer, but a status");
    (status, after)
}

fn write(name: &str) -> v1::ApplyRequest {
    v1::ApplyRequest {
        resources: vec![resources::monitor(name)],
        request_id: format!("write of {name}"),
        ..Default::default()
    }
}

#[tokio::test]
async fn while_the_store_hangs_calls_end_by_their_deadline_and_writes_are_done_once() {
    let etcd = EtcdServer::start().await;
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("log");
    let program = Program::start_logging(&etcd.url("deadline"), &log);
    let mut client = program.client().await;
    client.apply(write("first")).await.unwrap();

    let raw = http2::connect(program.port()).await;
    etcd.pause();
    let wanted = write("second");
    let history = v1::HistoryRequest::default();
    // What ends these is the server's clock, and the third one what the store may take.
    let timeout = format!("{}m", DEADLINE.as_millis());
    let in_time = [("grpc-timeout", &*timeout)];
    let (written, read, (_, unhurried)) = tokio::join!(
        call(&raw, "Apply", &in_time, &wanted),
        call(&raw, "History", &in_time, &history),
        call(&raw, "History", &[], &history),
    );
    for (status, after) in [written, read] {
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(after < unhurried, "{after:?}, and without: {unhurried:?}");
    }
    // Nobody knows what became of the write, and the audit says that it was asked for.
    let is_told = |line: &str| line.contains("\"unknown\"") && line.contains("apply");
    eventually("the audit", || async {
        let log = fs::read_to_string(&log).unwrap();
        log.lines().any(is_told).then_some(())
    })
    .await;
    etcd.resume();

    let revision = eventually("the write is repeated", || async {
        let answer = client.clone().apply(wanted.clone()).await.ok()?;
        Some(answer.into_inner().revision)
    })
    .await;
    assert_eq!(revision, 2);
    // Nothing that was given up is in the way of others.
    let next = soon("apply", client.apply(write("third"))).await;
    assert_eq!(next.unwrap().into_inner().revision, 3);
}
