//! Perhaps say something, perhaps wait for the right reply.

use std::io::ErrorKind;

use anyport_model::check::Exchange;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    ANSWER_MAX,
    attempt::Progress,
    failure::{Failure, Quote, Waiting},
};

pub(super) async fn converse(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    Exchange { send, expect }: &Exchange,
    progress: &mut Progress,
) -> Result<(), Failure> {
    if !send.is_empty() {
        progress.waiting = Waiting::Send;
        stream.write_all(send).await.map_err(Failure::send)?;
        stream.flush().await.map_err(Failure::send)?;
    }
    if expect.is_empty() {
        return Ok(());
    }
    progress.waiting = Waiting::Reply;
    await_reply(stream, expect, &mut progress.heard).await
}

/// Reads until what was read contains `expect`, however the network cut it.
async fn await_reply(
    stream: impl AsyncRead + Unpin,
    expect: &[u8],
    heard: &mut Vec<u8>,
) -> Result<(), Failure> {
    heard.reserve(1024);
    let mut rest = stream.take(ANSWER_MAX as u64);
    loop {
        // A match may have begun in what was read before.
        let searched = heard.len().saturating_sub(expect.len() - 1);
        let read = match rest.read_buf(heard).await {
            // The end of TLS without close_notify.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => 0,
            read => read.map_err(Failure::reply)?,
        };
        if contains(&heard[searched..], expect) {
            return Ok(());
        }
        if heard.len() >= ANSWER_MAX {
            return Err(Failure::TooLong {
                expected: Quote::of(expect),
                limit: ANSWER_MAX,
                heard: Quote::of(heard),
            });
        }
        if read == 0 {
            return Err(Failure::Closed {
                expected: Quote::of(expect),
                received: heard.len(),
                heard: Quote::of_any(heard),
            });
        }
    }
}

pub(super) fn contains(text: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || text.windows(wanted.len()).any(|window| window == wanted)
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
                let mut heard = Vec::new();
                tokio::join!(say, await_reply(prober, expect.as_bytes(), &mut heard)).1
            });
            prop_assert_eq!(outcome.is_ok(), reply.contains(&expect), "{:?}", outcome);
        }
    }
}
