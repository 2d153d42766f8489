#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;
use rustls::{
    ClientConfig, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, ServerName},
    version::{TLS12, TLS13},
};
use std::{
    future::{Future, poll_fn},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional, split},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Far more than any of this takes; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// Of a server with a certificate of its own making, and of a client that takes
/// it, both with records of at most `fragment` bytes, header and all.
fn configs(version: bool, fragment: Option<usize>) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let versions = [if version { &TLS13 } else { &TLS12 }];
    let key = rcgen::KeyPair::generate().unwrap();
    // Such a chain is longer than a record.
    let names: Vec<String> = (0..1200).map(|n| format!("{n}.host.example.com")).collect();
    let params = rcgen::CertificateParams::new(names).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let mut server = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_protocol_versions(&versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    server.max_fragment_size = fragment;
    let any = super::super::Configs::default().unchecked().unwrap();
    let mut client = ClientConfig::clone(&any);
    client.max_fragment_size = fragment;
    (Arc::new(server), Arc::new(client))
}

fn name() -> ServerName<'static> {
    ServerName::try_from("1.host.example.com").unwrap()
}

async fn shaken<S: Session>(mut leg: TlsLeg<S>) -> io::Result<TlsLeg<S>> {
    poll_fn(|cx| leg.poll_shake(cx)).await?;
    Ok(leg)
}

async fn accepted(socket: TcpStream, config: &Arc<ServerConfig>) -> io::Result<ClientLeg> {
    let session = UnbufferedServerConnection::new(Arc::clone(config)).unwrap();
    shaken(TlsLeg::new(socket, session)).await
}

async fn connected(socket: TcpStream, config: &Arc<ClientConfig>) -> io::Result<OriginLeg> {
    let session = UnbufferedClientConnection::new(Arc::clone(config), name()).unwrap();
    shaken(TlsLeg::new(socket, session)).await
}

/// Sends bytes that are known by their place, in pieces of these sizes, and
/// ends; meanwhile receives all that the other side sends, in pieces of
/// `reads`. What was sent, what was received, and whether in order.
async fn talk(
    stream: impl AsyncRead + AsyncWrite,
    pieces: &[usize],
    reads: usize,
) -> io::Result<(u64, u64, bool)> {
    talk_until(stream, pieces, reads, None).await
}

/// As [`talk`], or without an end, until so much was received.
async fn talk_until(
    stream: impl AsyncRead + AsyncWrite,
    pieces: &[usize],
    reads: usize,
    enough: Option<u64>,
) -> io::Result<(u64, u64, bool)> {
    let (mut reader, mut writer) = split(stream);
    let send = async {
        let mut sent = 0u64;
        for piece in pieces {
            let bytes: Vec<u8> = (sent..).map(|n| (n % 251) as u8).take(*piece).collect();
            writer.write_all(&bytes).await?;
            writer.flush().await?;
            sent += bytes.len() as u64;
        }
        if enough.is_none() {
            writer.shutdown().await?;
        }
        Ok::<_, io::Error>(sent)
    };
    let receive = async {
        let (mut received, mut in_order) = (0u64, true);
        let mut buffer = vec![0; reads];
        loop {
            let count = reader.read(&mut buffer).await?;
            for byte in buffer.iter().take(count) {
                in_order &= u64::from(*byte) == received % 251;
                received += 1;
            }
            if count == 0 || enough == Some(received) {
                return Ok((received, in_order));
            }
        }
    };
    let (sent, (received, in_order)) = tokio::try_join!(send, receive)?;
    Ok((sent, received, in_order))
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    let piece = prop_oneof![3 => 1usize..4, 3 => 1usize..40_000, 1 => 40_000usize..700_000];
    prop::collection::vec(piece, 1..5)
}

fn fragments() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![Just(None), (32usize..2000).prop_map(Some)]
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against another implementation of what is around the library, on either
    /// side.
    #[test]
    fn every_byte_arrives_once_and_in_order(
        version: bool, fragment in fragments(), up in pieces(), down in pieces(),
        near in 1usize..40_000, far in 1usize..40_000, serving: bool,
    ) {
        let (server, client) = configs(version, fragment);
        let (ours, theirs) = block_on(within(async {
            let (near_end, far_end) = pair().await;
            if serving {
                let ours = async {
                    talk(accepted(near_end, &server).await?, &up, near).await
                };
                let theirs = async {
                    let connector = TlsConnector::from(client);
                    talk(connector.connect(name(), far_end).await?, &down, far).await
                };
                tokio::join!(ours, theirs)
            } else {
                let ours = async {
                    talk(connected(near_end, &client).await?, &up, near).await
                };
                let theirs = async {
                    let acceptor = TlsAcceptor::from(server);
                    talk(acceptor.accept(far_end).await?, &down, far).await
                };
                tokio::join!(ours, theirs)
            }
        }));
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        prop_assert_eq!((ours.1, ours.2), (theirs.0, true));
        prop_assert_eq!((theirs.1, theirs.2), (ours.0, true));
    }

    /// Whatever somebody on the way makes of the bytes: an error or an end, or
    /// no notice taken.
    #[test]
    fn what_is_changed_on_the_way_does_no_harm(
        version: bool, fragment in fragments(), pieces in pieces(),
        at in 0usize..8000, change in 1u8.., length in 1usize..200, of_client: bool,
    ) {
        let (server, client) = configs(version, fragment);
        block_on(async {
            let (client_end, on_the_way) = pair().await;
            let (onwards, server_end) = pair().await;
            // Nobody ends what it says: in a debug build, the library has an
            // assertion against an alert after close_notify.
            let all = Some(pieces.iter().sum::<usize>() as u64);
            let theirs = pieces.clone();
            let serving = tokio::spawn(async move {
                talk_until(accepted(server_end, &server).await?, &theirs, 5000, all).await
            });
            let asking = tokio::spawn(async move {
                talk_until(connected(client_end, &client).await?, &pieces, 5000, all).await
            });
            let changing = tokio::spawn(async move {
                let (mut from, mut to) = if of_client {
                    (on_the_way, onwards)
                } else {
                    (onwards, on_the_way)
                };
                let (mut before, mut seen) = (at, vec![0; 1000]);
                while before > 0 {
                    let (mut back, mut buffer) = ([0; 1000], 0);
                    tokio::select! {
                        count = from.read(&mut seen[..before.min(1000)]) => {
                            let count = count.unwrap_or(0);
                            if count == 0 || to.write_all(&seen[..count]).await.is_err() {
                                return;
                            }
                            before -= count;
                        }
                        count = to.read(&mut back) => {
                            buffer += count.unwrap_or(0);
                            if buffer == 0 || from.write_all(&back[..buffer]).await.is_err() {
                                return;
                            }
                        }
                    }
                }
                let mut changed = vec![0; length];
                if let Ok(count) = from.read(&mut changed).await {
                    changed.truncate(count);
                    changed.iter_mut().for_each(|byte| *byte ^= change);
                    if to.write_all(&changed).await.is_ok() {
                        let _ = copy_bidirectional(&mut from, &mut to).await;
                    }
                }
            });
            // A panic would be an error of the task.
            for side in [serving, asking] {
                let ended = timeout(Duration::from_secs(2), side).await;
                assert!(ended.is_err() || ended.unwrap().is_ok());
            }
            changing.abort();
        });
    }
}

/// A message after the handshake comes in many records, a byte at a time, while
/// there is something to send.
#[tokio::test]
async fn a_message_of_the_library_may_come_in_pieces_while_something_is_sent() {
    let (server, client) = configs(true, Some(32));
    let (near, on_the_way) = pair().await;
    let (onwards, far) = pair().await;
    let (mut on_the_way, mut onwards) = (on_the_way, onwards);
    tokio::spawn(async move {
        let mut byte = [0];
        let mut from_client = vec![0; 1 << 16];
        loop {
            tokio::select! {
                count = onwards.read(&mut byte) => {
                    if count.unwrap() == 0 {
                        return;
                    }
                    on_the_way.write_all(&byte).await.unwrap();
                    tokio::task::yield_now().await;
                }
                count = on_the_way.read(&mut from_client) => {
                    let count = count.unwrap();
                    onwards.write_all(&from_client[..count]).await.unwrap();
                }
            }
        }
    });
    let serving = tokio::spawn(async move {
        let mut stream = TlsAcceptor::from(server).accept(far).await.unwrap();
        // The tickets go out with it.
        let mut question = [0; 1000];
        stream.read_exact(&mut question).await.unwrap();
        stream.get_mut().1.refresh_traffic_keys().unwrap();
        stream.write_all(b"answer").await.unwrap();
        stream.flush().await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        rest.len()
    });
    let leg = within(connected(near, &client)).await.unwrap();
    let (mut reader, mut writer) = split(leg);
    let writing = tokio::spawn(async move {
        for _ in 0..2000 {
            writer.write_all(&[7; 5]).await.unwrap();
            writer.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        writer
    });
    let mut answer = [0; 6];
    within(reader.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"answer");
    let mut writer = within(writing).await.unwrap();
    writer.shutdown().await.unwrap();
    assert_eq!(within(serving).await.unwrap(), 9000);
}

#[tokio::test]
async fn an_idle_session_holds_no_buffer() {
    let (server, client) = configs(true, None);
    let (near, far) = pair().await;
    let (ours, theirs) = tokio::join!(accepted(near, &server), connected(far, &client));
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
    let bytes = vec![5; 300_000];
    let mut got = vec![0; bytes.len()];
    let (sent, read) = tokio::join!(theirs.write_all(&bytes), ours.read_exact(&mut got));
    sent.unwrap();
    read.unwrap();
    within(theirs.flush()).await.unwrap();
    assert_eq!(ours.0.received.capacity(), 0);
    assert!(ours.0.decrypted.is_empty() && theirs.0.unsent.is_empty());
}
