//! A client of HTTP/2 without a clock or a codec of its own.

use std::future::poll_fn;

use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::Request;
use prost::bytes::Bytes;
use tokio::net::TcpStream;

pub async fn connect(port: u16) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await;
    let (client, connection) = h2::client::handshake(stream.unwrap()).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Begins a call of a method of the config service.
pub async fn open(
    client: &SendRequest<Bytes>,
    method: &str,
) -> (ResponseFuture, SendStream<Bytes>) {
    begin(client, method, &[]).await
}

/// As [`open`], with more headers.
pub async fn begin(
    client: &SendRequest<Bytes>,
    method: &str,
    headers: &[(&str, &str)],
) -> (ResponseFuture, SendStream<Bytes>) {
    let path = format!("http://anyport/anyport.v1.ConfigService/{method}");
    let mut request = Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut client = client.clone().ready().await.unwrap();
    client
        .send_request(request.body(()).unwrap(), false)
        .unwrap()
}

/// Sends all of it, as far as the server takes it; `None`: it takes no more.
pub async fn send(body: &mut SendStream<Bytes>, mut bytes: Bytes) -> Option<()> {
    while !bytes.is_empty() {
        body.reserve_capacity(bytes.len());
        let room = poll_fn(|cx| body.poll_capacity(cx)).await?.ok()?;
        let now = bytes.split_to(room.min(bytes.len()));
        body.send_data(now, false).ok()?;
    }
    Some(())
}
