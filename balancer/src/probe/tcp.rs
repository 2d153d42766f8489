//! One attempt of a `tcp` probe: connect, perhaps say something, perhaps wait
//! for the right reply.

use std::{net::SocketAddr, time::Duration};

use anyport_model::target::{Source, forbidden};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::failure::{Expected, Failure};

/// A reply is searched up to here; a server that pours out more is not going to
/// say the right thing.
pub(super) const REPLY_MAX: usize = 64 << 10;

#[derive(Debug, Clone, Copy)]
enum Phase {
    Connect,
    Send,
    Reply,
}

/// Returns once the origin has passed. `within` bounds all phases together.
///
/// The connection is closed in the ordinary way rather than reset: that costs a
/// TIME_WAIT here, but leaves no error in the origin's log.
pub(super) async fn attempt(
    address: SocketAddr,
    send: &[u8],
    expect: &[u8],
    within: Duration,
) -> Result<(), Failure> {
    let mut phase = Phase::Connect;
    let exchange = exchange(address, send, expect, &mut phase);
    let outcome = tokio::time::timeout(within, exchange).await;
    match (outcome, phase) {
        (Ok(outcome), _) => outcome,
        (Err(_), Phase::Connect) => Err(Failure::ConnectTimeout(within)),
        (Err(_), Phase::Send) => Err(Failure::SendTimeout(within)),
        (Err(_), Phase::Reply) => Err(Failure::ReplyTimeout {
            expected: Expected::of(expect),
            within,
        }),
    }
}

async fn exchange(
    address: SocketAddr,
    send: &[u8],
    expect: &[u8],
    phase: &mut Phase,
) -> Result<(), Failure> {
    if let Some(why) = forbidden(address.ip(), Source::Declared) {
        return Err(Failure::Forbidden(address.ip(), why));
    }
    let mut stream = TcpStream::connect(address)
        .await
        .map_err(Failure::Connect)?;
    if !send.is_empty() {
        *phase = Phase::Send;
        stream.write_all(send).await.map_err(Failure::Send)?;
    }
    if expect.is_empty() {
        return Ok(());
    }
    *phase = Phase::Reply;
    await_reply(&mut stream, expect).await
}

/// Reads until what was read contains `expect`, however the network cut it.
async fn await_reply(stream: impl AsyncRead + Unpin, expect: &[u8]) -> Result<(), Failure> {
    let mut reply = Vec::with_capacity(1024);
    let mut rest = stream.take(REPLY_MAX as u64);
    loop {
        // A match may have begun in what was read before.
        let searched = reply.len().saturating_sub(expect.len() - 1);
        let read = rest.read_buf(&mut reply).await.map_err(Failure::Reply)?;
        if contains(&reply[searched..], expect) {
            return Ok(());
        }
        if reply.len() >= REPLY_MAX {
            return Err(Failure::TooLong {
                expected: Expected::of(expect),
                limit: REPLY_MAX,
            });
        }
        if read == 0 {
            return Err(Failure::Closed {
                expected: Expected::of(expect),
                received: reply.len(),
            });
        }
    }
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A pipe that holds `piece` bytes: no read brings more.
        #[test]
        fn a_reply_is_found_however_it_is_cut(
            reply in "[ab]{0,40}", expect in "[ab]{1,5}", piece in 1usize..8
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build()?;
            let outcome = runtime.block_on(async {
                let (mut origin, prober) = tokio::io::duplex(piece);
                let say = async {
                    let said = origin.write_all(reply.as_bytes()).await;
                    drop(origin);
                    said
                };
                tokio::join!(say, await_reply(prober, expect.as_bytes())).1
            });
            prop_assert_eq!(outcome.is_ok(), reply.contains(&expect), "{:?}", outcome);
        }
    }
}
