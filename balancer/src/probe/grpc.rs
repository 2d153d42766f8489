//! `grpc.health.v1.Health/Check`, HTTP/2 in clear text with prior knowledge.

use std::net::SocketAddr;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::{Code, Status, body::Body};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    ANSWER_MAX,
    attempt::Progress,
    connection::Connection,
    failure::{Failure, Quote, Waiting},
};

/// What a server may send before it is read, in bytes: no more than an answer may be long.
const UNREAD_MAX: u32 = ANSWER_MAX as u32;

pub(super) async fn check(
    stream: Connection,
    address: SocketAddr,
    service: &str,
    progress: &mut Progress,
) -> Result<(), Failure> {
    progress.waiting = Waiting::Answer;
    // What it runs beside the connection ends with it.
    let mut handshake = http2::Builder::new(TokioExecutor::new());
    handshake
        .initial_stream_window_size(UNREAD_MAX)
        .initial_connection_window_size(UNREAD_MAX);
    let handshake = handshake.handshake::<_, Body>(TokioIo::new(stream));
    let (sender, connection) = handshake.await.map_err(Failure::http)?;
    let drive = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = Box::pin(ask(sender, address, service)) => outcome,
        () = drive => Ok(()),
    }
}

async fn ask(
    sender: http2::SendRequest<Body>,
    address: SocketAddr,
    service: &str,
) -> Result<(), Failure> {
    let send = tower::service_fn(move |request| {
        let mut sender = sender.clone();
        async move { sender.send_request(request).await }
    });
    let origin = format!("http://{address}").parse();
    let origin = origin.map_err(|error| Failure::Broken(format!("{error}")))?;
    let mut client = HealthClient::with_origin(send, origin).max_decoding_message_size(ANSWER_MAX);
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = client.check(request).await;
    let answer = answer.map_err(|status| failed(status, service))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(Failure::NotServing(other.as_str_name())),
    }
}

/// What the server answered, or that it did not.
fn failed(status: Status, service: &str) -> Failure {
    let mut source = std::error::Error::source(&status);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return Failure::of_http(error);
        }
        source = error.source();
    }
    let said = match status.code() {
        Code::NotFound => format!("the server has no service {service:?} (NOT_FOUND)"),
        Code::Unimplemented => "the server has no grpc.health.v1 (UNIMPLEMENTED)".to_owned(),
        code => {
            let message = Quote::of_any(status.message().as_bytes());
            let message = message.map_or(String::new(), |quote| format!(": {quote}"));
            format!("the server answered {code:?}{message}")
        }
    };
    Failure::Grpc(said)
}
