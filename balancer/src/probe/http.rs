//! A GET request, HTTP/1.1, and what is to be in the answer. Redirects are not
//! followed: a monitor names the path that it means.

use std::net::SocketAddr;

use anyport_model::check::Request;
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    ANSWER_MAX,
    attempt::Progress,
    failure::{Failure, Quote, Waiting},
};

/// The head of an answer is at most so long, in bytes.
const HEAD_MAX: usize = 64 << 10;

/// As a client names the server: without the port where that goes without saying.
pub(super) fn authority(address: SocketAddr, usual: u16) -> String {
    match (address.port() == usual, address) {
        (false, address) => address.to_string(),
        (true, SocketAddr::V4(address)) => address.ip().to_string(),
        (true, SocketAddr::V6(address)) => format!("[{}]", address.ip()),
    }
}

pub(super) async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    authority: String,
    request: &Request,
    progress: &mut Progress,
) -> Result<(), Failure> {
    progress.waiting = Waiting::Answer;
    let handshake = http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .handshake(TokioIo::new(stream));
    let (sender, connection) = handshake.await.map_err(Failure::http)?;
    // Ends with the probe. That it ends says less than what the answer comes to.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = exchange(sender, authority, request, progress) => outcome,
        () = drive => Ok(()),
    }
}

async fn exchange(
    mut sender: http1::SendRequest<Empty<Bytes>>,
    authority: String,
    request: &Request,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let head = hyper::Request::get(request.path.as_str())
        .header(header::HOST, authority)
        .header(header::USER_AGENT, "anyport-balancer")
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new());
    // No path that could be declared is refused here.
    let head = head.map_err(|error| Failure::Broken(error.to_string()))?;
    let answer = sender.send_request(head).await.map_err(Failure::http)?;
    let status = answer.status().as_u16();
    if !request.expected_codes.contains(status) {
        return Err(Failure::Status {
            status,
            expected: request.expected_codes.to_string(),
        });
    }
    if request.expected_body.is_empty() {
        return Ok(());
    }
    progress.waiting = Waiting::Body;
    await_body(
        answer.into_body(),
        &request.expected_body,
        &mut progress.heard,
    )
    .await
}

async fn await_body(
    mut body: Incoming,
    expected: &str,
    heard: &mut Vec<u8>,
) -> Result<(), Failure> {
    let wanted = expected.as_bytes().to_ascii_lowercase();
    let mut searched = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(Failure::http)?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        let room = ANSWER_MAX - heard.len();
        let data = data.get(..room).unwrap_or(data);
        // A match may have begun in what was read before.
        let from = searched.len().saturating_sub(wanted.len() - 1);
        heard.extend_from_slice(data);
        searched.extend(data.iter().map(u8::to_ascii_lowercase));
        if super::converse::contains(&searched[from..], &wanted) {
            return Ok(());
        }
        if heard.len() >= ANSWER_MAX {
            break;
        }
    }
    Err(Failure::Body {
        expected: Quote::of(expected.as_bytes()),
        whole: heard.len() < ANSWER_MAX,
        heard: Quote::of_any(heard),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_usual_port_goes_without_saying() {
        let said = |address: &str, usual| authority(address.parse().unwrap(), usual);
        assert_eq!(said("10.0.2.2:80", 80), "10.0.2.2");
        assert_eq!(said("10.0.2.2:80", 443), "10.0.2.2:80");
        assert_eq!(said("[2001:db8::1]:443", 443), "[2001:db8::1]");
        assert_eq!(said("[2001:db8::1]:8443", 443), "[2001:db8::1]:8443");
    }
}
